"""`clipmill keys`: keys and quotas of a farm, through its store or its API."""

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

from cluster.access.quotas import OwnerQuota
from cluster.access.scopes import Scope, scopes_from
from cluster.store.access.keys import GRACE_S
from pipeline.problems import BadInputError
from serve.cli.common import (
    Home,
    Json,
    Url,
    connect,
    console,
    exit_on_error,
    open_home,
    open_store,
    print_json,
    settings_for,
)
from serve.key_client import KeyClient, LocalKeys

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
    url: Url = None,
    home: Home = None,
    database: _Database = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown this once: the store has a hash of it."""
    with exit_on_error(), _keys(url, home, database) as keys:
        lasts_s = None if expires is None else seconds_of(expires, "expires")
        view = keys.create(owner, sorted(scopes_from(scope or ())), name, lasts_s)
    _print_new(view, as_json)


@app.command("list")
def list_keys(
    owner: Annotated[str | None, typer.Option(help="Only keys of this owner.")] = None,
    url: Url = None,
    home: Home = None,
    database: _Database = None,
    as_json: Json = False,
) -> None:
    """List keys, revoked and expired ones among them. Their texts are kept nowhere."""
    with exit_on_error(), _keys(url, home, database) as keys:
        found = keys.all(owner)
    if as_json:
        print_json({"object": "list", "data": found})
        return
    table = Table("key", "owner", "scopes", "name", "state", "expires", "last used", box=None)
    for key in found:
        times = (_date(key["expires_at"], "never"), _date(key["used_at"], "never"))
        name, scopes = escape(key["name"]), ", ".join(key["scopes"])
        table.add_row(key["id"], escape(key["owner"]), scopes, name, key["status"], *times)
    console.print(table if found else "there are no keys: whoever reaches the API on loopback may ask for everything")


@app.command("revoke")
def revoke_key(
    key: _KeyId, url: Url = None, home: Home = None, database: _Database = None, as_json: Json = False
) -> None:
    """Revoke a key for good: within seconds it opens nothing, nor do sessions that were opened with it."""
    with exit_on_error(), _keys(url, home, database) as keys:
        revoked = keys.revoke(key)
    if as_json:
        print_json(revoked)
    else:
        console.print(f"revoked: {revoked['id']} of {revoked['owner']}", markup=False)


@app.command("rotate")
def rotate_key(
    key: _KeyId,
    grace: Annotated[str, typer.Option(help="The old key goes on for so long, such as 1h.")] = f"{GRACE_S // 3600}h",
    url: Url = None,
    home: Home = None,
    database: _Database = None,
    as_json: Json = False,
) -> None:
    """Make a key in place of another, which goes on for a time of grace."""
    with exit_on_error(), _keys(url, home, database) as keys:
        view = keys.rotate(key, seconds_of(grace, "grace"))
    _print_new(view, as_json)


@app.command("quota")
def quota(
    owner: Annotated[str | None, typer.Argument(help="Owner (default: all who have a quota).")] = None,
    queued_jobs: Annotated[str | None, typer.Option(help="Rows that may wait at a time.")] = None,
    gpu_seconds_day: Annotated[str | None, typer.Option(help="Seconds of cards a day (UTC).")] = None,
    cost_month: Annotated[str | None, typer.Option(help="Money a month (UTC), by the table of rates.")] = None,
    requests_minute: Annotated[str | None, typer.Option(help="Requests a minute.")] = None,
    url: Url = None,
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
    with exit_on_error(), _keys(url, home, database) as keys:
        if changes and owner is None:
            raise BadInputError("owner", "it is not said whose quota", "Name the owner: clipmill keys quota OWNER.")
        one = owner and [keys.set_quota(owner, changes) if changes else keys.quota(owner)]
        views = one or keys.quotas()
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
def _keys(url: str | None, home: Any, database_url: str | None) -> Iterator[KeyClient]:
    """Keys of the farm at `url` or `CLIPMILL_URL`; of a store, where one is named or neither is."""
    settings = settings_for(home)
    if url and database_url:
        raise BadInputError("url", "--url and --database name two farms", "Leave one of them out.")
    if database_url is None and (url or settings.url):
        yield connect(settings, url).keys
        return
    if database_url is None:
        open_home(settings)
    database = open_store(database_url or settings.database_url)
    try:
        yield LocalKeys(database)
    finally:
        database.close()


def _print_new(view: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    scopes = ", ".join(view["scopes"])
    until = "until it is revoked" if view["expires_at"] is None else f"until {_date(view['expires_at'], '')}"
    words = f"{view['id']} of {view['owner']} ({scopes}), valid {until}. It is shown this once:"
    console.print(words, markup=False, soft_wrap=True)
    # Alone on standard output, for whoever pipes it into a Secret.
    sys.stdout.write(view["key"] + "\n")
    if old := view.get("replaces"):
        console.print(f"{old['id']} goes on until {_date(old['expires_at'], '')}", soft_wrap=True)
    if {Scope.OPERATE.value, Scope.ADMIN.value}.intersection(view["scopes"]):
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
