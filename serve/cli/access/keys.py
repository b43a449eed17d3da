"""`clipmill keys`: keys and quotas of the farm whose store this machine reaches."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cluster.access.keys import AccessKey, KeyText
from cluster.access.quotas import OwnerQuota
from cluster.access.scopes import Scope, scopes_from
from cluster.store import Database
from cluster.store.access.keys import GRACE_S, KeyStore
from cluster.store.access.quotas import QuotaStore
from pipeline.problems import BadInputError
from serve.cli.common import Home, Json, console, exit_on_error, open_home, open_store, print_json, settings_for
from serve.gateway.access.views import key_view, quota_view

app = typer.Typer(help="Make and revoke keys of the API, and set quotas of their owners.", no_args_is_help=True)

_Database = Annotated[
    str | None, typer.Option("--database", help="The farm's store (default: CLIPMILL_DATABASE_URL, else the home's).")
]
_KeyId = Annotated[str, typer.Argument(help="Key id, or its beginning, as `clipmill keys list` has it.")]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_NO_LIMIT = "none"


@app.command("create")
def create_key(
    owner: Annotated[str, typer.Option(help="Whose work is seen and handed in with it.")] = "local",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it may do: submit, read, operate, admin, metrics (default: submit and read)."),
    ] = None,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    expires: Annotated[str | None, typer.Option(help="It is valid for so long, such as 90d or 12h.")] = None,
    home: Home = None,
    database: _Database = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown this once: the store has a hash of it."""
    with exit_on_error(), _store(home, database) as store:
        lasts_s = None if expires is None else seconds_of(expires, "expires")
        key, text = KeyStore(store).create(owner, scopes_from(scope or ()), name=name, expires_s=lasts_s)
    _print_new(key, text, as_json)


@app.command("list")
def list_keys(
    owner: Annotated[str | None, typer.Option(help="Only keys of this owner.")] = None,
    home: Home = None,
    database: _Database = None,
    as_json: Json = False,
) -> None:
    """List keys, revoked and expired ones among them. Their texts are kept nowhere."""
    with exit_on_error(), _store(home, database) as store:
        found, now = KeyStore(store).listed(owner), _now(store)
    if as_json:
        print_json({"object": "list", "data": [key_view(key, now) for key in found]})
        return
    table = Table("key", "owner", "scopes", "name", "state", "expires", "last used", box=None)
    for key in found:
        scopes = ", ".join(sorted(one.value for one in key.scopes))
        times = (_date(key.expires_at, "never"), _date(key.used_at, "never"))
        table.add_row(key.id, key.owner, scopes, escape(key.name), key.state(now).value, *times)
    console.print(table if found else "there are no keys: whoever reaches the API on loopback may ask for everything")


@app.command("revoke")
def revoke_key(key: _KeyId, home: Home = None, database: _Database = None, as_json: Json = False) -> None:
    """Revoke a key for good: within seconds it opens nothing, nor do sessions that were opened with it."""
    with exit_on_error(), _store(home, database) as store:
        revoked, now = KeyStore(store).revoke(key), _now(store)
    if as_json:
        print_json(key_view(revoked, now))
    else:
        console.print(f"revoked: {revoked.id} of {revoked.owner}")


@app.command("rotate")
def rotate_key(
    key: _KeyId,
    grace: Annotated[str, typer.Option(help="The old key goes on for so long, such as 1h.")] = f"{GRACE_S // 3600}h",
    home: Home = None,
    database: _Database = None,
    as_json: Json = False,
) -> None:
    """Make a key in place of another, which goes on for a time of grace."""
    with exit_on_error(), _store(home, database) as store:
        new, text, old = KeyStore(store).rotate(key, grace_s=seconds_of(grace, "grace"))
    _print_new(new, text, as_json, old)


@app.command("quota")
def quota(
    owner: Annotated[str | None, typer.Argument(help="Owner (default: all who have a quota).")] = None,
    queued_jobs: Annotated[str | None, typer.Option(help="Rows that may wait at a time.")] = None,
    gpu_seconds_day: Annotated[str | None, typer.Option(help="Seconds of cards a day (UTC).")] = None,
    cost_month: Annotated[str | None, typer.Option(help="Money a month (UTC), by the table of rates.")] = None,
    requests_minute: Annotated[str | None, typer.Option(help="Requests a minute.")] = None,
    home: Home = None,
    database: _Database = None,
    as_json: Json = False,
) -> None:
    """Show what an owner may hand in and has used, or change it; `none` takes a limit away."""
    given = {
        "queued_jobs": queued_jobs,
        "gpu_seconds_day": gpu_seconds_day,
        "cost_month": cost_month,
        "requests_minute": requests_minute,
    }
    changes = {name: None if text == _NO_LIMIT else text for name, text in given.items() if text is not None}
    with exit_on_error(), _store(home, database) as store:
        quotas = QuotaStore(store)
        if changes:
            if owner is None:
                raise BadInputError("owner", "it is not said whose quota", "Name the owner: clipmill keys quota OWNER.")
            quotas.set(owner, OwnerQuota.model_validate(quotas.quota(owner).model_dump() | changes))
        names = list(quotas.quotas()) if owner is None else [owner]
        views = [quota_view(name, quotas.quota(name), quotas.use(name)) for name in names]
    if as_json:
        print_json({"object": "list", "data": views} if owner is None else views[0])
    else:
        _print_quotas(views)


def seconds_of(text: str, field: str) -> int:
    """Seconds of a time such as `90d`, `12h`, `30m` or `45s`. Raises `BadInputError`."""
    found = re.fullmatch(r"(\d{1,9})\s*([smhdw])", text.strip().lower())
    if found is None:
        raise BadInputError(field, f"{text[:40]!r} is no length of time", "Give one such as 90d, 12h or 30m.")
    return int(found[1]) * _SECONDS[found[2]]


@contextmanager
def _store(home: Any, url: str | None) -> Iterator[Database]:
    settings = settings_for(home)
    if url is None:
        open_home(settings)
    database = open_store(url or settings.database_url)
    try:
        yield database
    finally:
        database.close()


def _now(database: Database) -> int:
    with database.read() as c:
        return database.now(c)


def _print_new(key: AccessKey, text: KeyText, as_json: bool, old: AccessKey | None = None) -> None:
    if as_json:
        replaced = {"replaces": key_view(old, key.created_at)} if old else {}
        print_json(key_view(key, key.created_at, text) | replaced)
        return
    scopes = ", ".join(sorted(one.value for one in key.scopes))
    until = "until it is revoked" if key.expires_at is None else f"until {_date(key.expires_at, '')}"
    console.print(f"{key.id} of {key.owner} ({scopes}), valid {until}. It is shown this once:", soft_wrap=True)
    # Alone on standard output, for whoever pipes it into a Secret.
    sys.stdout.write(text.text + "\n")
    if old is not None:
        console.print(f"{old.id} goes on until {_date(old.expires_at, '')}", soft_wrap=True)
    if set(key.scopes) & {Scope.OPERATE, Scope.ADMIN}:
        console.print("It sees and changes the work of every owner.", soft_wrap=True)


def _print_quotas(views: list[dict[str, Any]]) -> None:
    if not views:
        console.print("no owner has a quota")
    for view in views:
        console.print(f"[bold]{escape(view['owner'])}[/]", markup=True)
        for name in OwnerQuota.model_fields:
            most = "no limit" if view[name] is None else f"of {view[name]:g}"
            used = view["used"].get(name)
            console.print(f"  {name}: {most if used is None else f'{used:g} {most}'}")


def _date(at: int | None, never: str) -> str:
    return never if at is None else time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(at))
