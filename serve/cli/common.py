"""Options, exit codes, output and the reporting of errors that all commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import sqlalchemy as sa
import sqlalchemy.exc
import typer
from pydantic import ValidationError
from rich.markup import escape

from cluster.access.quotas import QuotaExceededError
from cluster.catalog.defaults import FewStep
from cluster.catalog.manifest import ManifestError
from cluster.estimates.times import TimeEstimates
from cluster.explain.reasons import Rules
from cluster.farm import Farm
from cluster.fleet.cards import NOMINAL_BYTES
from cluster.fleet.fleet_file import Cards as CardGroups
from cluster.fleet.fleet_file import cards_of_roster
from cluster.jobs.transitions import RefusedError
from cluster.results.export import ResultsError
from cluster.results.marked import MarkedObjects
from cluster.storage import Storage, StorageError
from cluster.store import BatchStore, Database
from cluster.store.access.keys import NoSuchKeyError
from cluster.store.batches import IdempotencyConflictError
from cluster.store.database import StoreVersionError
from cluster.store.lookup import AmbiguousIdError, NoSuchBatchError, NoSuchCardError, NoSuchJobError
from cluster.store.measurements import load_times
from cluster.store.outage import why_unusable
from cluster.store.webhooks.registry import NoSuchWebhookError
from pipeline.families import family_named
from pipeline.families.licences import remember_acceptance
from pipeline.kernels.kernels import KernelChoice
from pipeline.marks.marker import WatchedMarker
from pipeline.models.tokens import PromptLengths
from pipeline.private import private_folder
from pipeline.problems import BadInputError
from serve.client import FarmClient, FarmUnreachableError, LocalClient, RemoteClient
from serve.credentials import key_for
from serve.embedded import FarmLock
from serve.gateway.errors import AccessRefusedError
from serve.settings import Settings
from serve.terminal import PlainConsole, json_text


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    SOME_FAILED = 1
    USAGE = 2
    NO_FARM = 3
    INTERRUPTED = 130


Home = Annotated[
    Path | None, typer.Option("--home", help="State and weights of this machine's farm (default: ~/.clipmill).")
]
BatchId = Annotated[str | None, typer.Argument(help="Batch id, or its beginning (default: the newest).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Url = Annotated[str | None, typer.Option("--url", help="Address of a farm's gateway (default: this machine's).")]
KernelsOption = Annotated[
    KernelChoice | None,
    typer.Option("--kernels", help="What denoisers compute with on cards (default: eager). See docs/kernels.md."),
]
Cards = Annotated[
    str | None,
    typer.Option("--cards", help="Emulate these cards on the CPU, such as c8,c24 (a class may be named twice)."),
]

AcceptLicense = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-license",
        metavar="MODEL",
        help="Accept the licence of this model, for this home from here on (`clipmill models` shows licences).",
    ),
]

#: Progress and errors; results go to standard output.
console = PlainConsole(stderr=True)
if not console.is_terminal:
    # A log file has no width; rich would cut tables at 80 columns.
    console.width = 160


def settings_for(home: Path | None) -> Settings:
    """Settings from the environment; a `home` given by `--home` goes before the environment's."""
    return Settings() if home is None else Settings(home=home)


def accept_licenses(settings: Settings, names: list[str] | None) -> None:
    """Remember the acceptance of these families' licences under the home. Raises `BadInputError` for no family."""
    for family in [family_named(name) for name in names or ()]:
        if family.licence_gate:
            remember_acceptance(family, settings.home)
            where = f" ({family.licence_url})" if family.licence_url else ""
            console.print(f"accepted: {family.licence} for {family.name}{where}", style="dim", soft_wrap=True)


def open_home(settings: Settings) -> None:
    """Make the home where there is none; take it from other users of the machine where they could look into it."""
    before = private_folder(settings.home)
    if before is not None:
        console.print(
            f"  note: other users could enter {settings.home} (mode {before:04o}); now only you can. "
            "It holds the farm's database and token.",
            style="dim",
            markup=False,
            soft_wrap=True,
        )


def open_store(url: str) -> Database:
    """The store at a URL, made and migrated where needed. Exits 3 where it cannot be used, and says where and why."""
    database = Database.shared(url)
    try:
        database.migrate()
    except sqlalchemy.exc.DBAPIError as error:
        why, remedy = why_unusable(error)
        fail(Exit.NO_FARM, f"the store at {database.shown_url} cannot be used: {why}. {remedy}")
    except OSError as error:
        why = error.strerror or str(error)
        remedy = "Check the path and its rights; CLIPMILL_HOME or CLIPMILL_DATABASE_URL names another."
        fail(Exit.NO_FARM, f"the store at {database.shown_url} cannot be used: {why}. {remedy}")
    return database


def local_farm(settings: Settings) -> Farm:
    """The farm of a home folder; its store is created and migrated when needed."""
    open_home(settings)
    database = open_store(settings.database_url)
    lengths = PromptLengths(settings.home)
    storage = Storage(settings.storage_url)
    marked = MarkedObjects(storage, WatchedMarker(settings.marks))
    return Farm(
        BatchStore(database),
        storage,
        accepted=settings.accepted,
        cut_texts=lengths.cut,
        marked=marked,
        deliveries=settings.deliveries_or_plain(),
    )


def connect(settings: Settings, url: str | None) -> FarmClient:
    """A client of the farm at `url` or `CLIPMILL_URL`, else of the farm of the home folder."""
    if address := url or settings.url:
        return RemoteClient(address, key=key_for(address))
    facts = farm_facts(settings)
    few_step = {name: FewStep.model_validate(few) for name, few in facts.get("few_step", {}).items()}
    # The farm within `render` says nothing of itself, and goes by the defaults.
    rules = Rules.model_validate(facts.get("rules", {"plans": bool(facts)}))
    return LocalClient(local_farm(settings), facts.get("default_model", "i2vgen-xl"), few_step, rules)


def known_times(settings: Settings) -> tuple[TimeEstimates, tuple[CardGroups, ...]]:
    """What was measured on this home, and the cards of the farm that runs there; nothing where there is no store."""
    url = sa.make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not (url.database and Path(url.database).exists()):
        return TimeEstimates(), ()
    farm = local_farm(settings)
    return load_times(farm.batch_store.database), cards_of_roster(farm.batch_store.cards())


def knows_job(settings: Settings) -> Callable[[str], bool]:
    """Tells whether a job of an id is there: on the farm of `CLIPMILL_URL`, else in the home's store.

    A store that is not there is not made for the question.
    """

    def known(job_id: str) -> bool:
        if not job_id.startswith("video_"):
            return False
        if settings.url:
            try:
                RemoteClient(settings.url, key=key_for(settings.url)).job(job_id)
            except NoSuchJobError:
                return False
            return True
        if Database.shared(settings.database_url).is_missing():
            return False
        return local_farm(settings).has_job(job_id)

    return known


def farm_facts(settings: Settings) -> dict[str, Any]:
    """Facts on the running farm of this home, as it noted them in its lock; empty where none runs."""
    return FarmLock(settings.home).holder() or {}


def require_farm(settings: Settings, url: str | None) -> None:
    """Exit 3 unless a farm runs that will render what is handed in."""
    if url or settings.url:
        return
    if FarmLock(settings.home).holder() is None:
        fail(Exit.NO_FARM, f"no farm runs on {settings.home}. Start one with `clipmill up`, or use `clipmill render`.")


def newest(client: FarmClient) -> str:
    """The id of the newest batch. Exits 2 where there is none."""
    batches = client.batches(1)
    if not batches:
        fail(Exit.USAGE, "there are no batches")
    return str(batches[0]["id"])


def parse_cards(text: str) -> list[str]:
    """`c8,c24` as a list. Exits 2 for an unknown class."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in NOMINAL_BYTES]
    if unknown or not names:
        what = f"{', '.join(unknown)} is no card class" if unknown else "--cards is empty"
        fail(Exit.USAGE, f"{what}. Choose from {', '.join(NOMINAL_BYTES)}, such as --cards c8,c24.")
    return names


def print_json(value: Any) -> None:
    """Print one JSON object on standard output, over several lines."""
    sys.stdout.write(json_text(value, indent=2) + "\n")


def print_line(value: Any) -> None:
    """Print one JSON object on one line of standard output, and flush it."""
    sys.stdout.write(json_text(value) + "\n")
    sys.stdout.flush()


def say_error(message: str) -> None:
    """Say what is wrong, where the process has something left to do."""
    console.print(f"[bold red]error[/] {escape(message)}", soft_wrap=True, markup=True)


def fail(code: Exit, message: str) -> NoReturn:
    """Say what is wrong and end with `code`."""
    say_error(message)
    raise typer.Exit(code)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn what can go wrong into one clear line and the right exit code."""
    try:
        yield
    except ManifestError as error:
        fail(Exit.USAGE, str(error))
    except (BadInputError, IdempotencyConflictError, ResultsError, StoreVersionError) as error:
        fail(Exit.USAGE, str(error))
    except (
        NoSuchBatchError,
        NoSuchJobError,
        NoSuchCardError,
        NoSuchWebhookError,
        AmbiguousIdError,
        RefusedError,
    ) as error:
        fail(Exit.USAGE, str(error))
    except (AccessRefusedError, NoSuchKeyError, QuotaExceededError) as error:
        fail(Exit.USAGE, str(error))
    except ValidationError as error:
        first = error.errors()[0]
        fail(Exit.USAGE, f"{'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}")
    except StorageError as error:
        fail(Exit.USAGE, str(error))
    except FarmUnreachableError as error:
        fail(Exit.NO_FARM, str(error))
    except sqlalchemy.exc.DBAPIError as error:
        why, remedy = why_unusable(error)
        fail(Exit.NO_FARM, f"the store cannot be used: {why}. {remedy}")
    except BrokenPipeError:
        # `… --json | head`: whoever read the output has seen enough.
        # Python flushes once more at its end, and must not meet the closed pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.DONE) from None
    except OSError as error:
        fail(Exit.USAGE, f"{error.strerror or error}: {error.filename or ''}. Check the path, its rights and the disk.")
