"""Options, exit codes and the way errors are told, alike in every command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import sqlalchemy.exc
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from cluster.cards import NOMINAL_BYTES
from cluster.farm import Farm
from cluster.few_step import FewStep
from cluster.manifest import ManifestError
from cluster.results import ResultsError
from cluster.storage import Storage, StorageError
from cluster.store import Database, Desk
from cluster.store.database import StoreVersionError
from cluster.store.desk import IdempotencyConflictError
from cluster.store.lookup import AmbiguousIdError, NoSuchBatchError, NoSuchCardError, NoSuchJobError
from cluster.verbs import RefusedError
from cluster.why import Rules
from pipeline.families import family_named
from pipeline.families.licences import remember_acceptance
from pipeline.problems import BadInputError
from serve.local import FarmLock
from serve.ports import FarmPort, FarmUnreachableError, LocalPort, RemotePort
from serve.settings import Settings


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
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Url = Annotated[str | None, typer.Option("--url", help="Address of a farm's gateway (default: this machine's).")]
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
console = Console(stderr=True, highlight=False)
if not console.is_terminal:
    # A log file has no width; rich would cut tables at 80 columns.
    console.width = 160


def settings_for(home: Path | None) -> Settings:
    """Settings from the environment, with `--home` on top."""
    return Settings() if home is None else Settings(home=home)


def accept_licenses(settings: Settings, names: list[str] | None) -> None:
    """Remember the acceptance of these families' licences under the home. Raises `BadInputError` for no family."""
    for family in [family_named(name) for name in names or ()]:
        if family.licence_gate:
            remember_acceptance(family, settings.home)
            where = f" ({family.licence_url})" if family.licence_url else ""
            console.print(f"accepted: {family.licence} for {family.name}{where}", style="dim", soft_wrap=True)


def local_farm(settings: Settings) -> Farm:
    """The farm of a home folder; its store is created and migrated when needed."""
    settings.home.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database_url)
    database.migrate()
    return Farm(Desk(database), Storage(settings.storage_url), accepted=settings.accepted)


def connect(settings: Settings, url: str | None) -> FarmPort:
    """The farm at `url`, else the one of the home folder."""
    if address := url or settings.url:
        return RemotePort(address)
    facts = farm_facts(settings)
    few_step = {name: FewStep.model_validate(few) for name, few in facts.get("few_step", {}).items()}
    # The farm within `render` says nothing of itself, and goes by the defaults.
    rules = Rules.model_validate(facts.get("rules", {"plans": bool(facts)}))
    return LocalPort(local_farm(settings), facts.get("default_model", "i2vgen-xl"), few_step, rules)


def farm_facts(settings: Settings) -> dict[str, Any]:
    """What the running farm of this home says of itself; empty where none runs."""
    return FarmLock(settings.home).holder() or {}


def require_farm(settings: Settings, url: str | None) -> None:
    """Exit 3 unless a farm runs that will render what is handed in."""
    if url or settings.url:
        return
    if FarmLock(settings.home).holder() is None:
        fail(Exit.NO_FARM, f"no farm runs on {settings.home}. Start one with `clipmill up`, or use `clipmill render`.")


def parse_cards(text: str) -> list[str]:
    """`c8,c24` as a list. Exits 2 for an unknown class."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in NOMINAL_BYTES]
    if unknown or not names:
        what = f"{', '.join(unknown)} is no card class" if unknown else "--cards is empty"
        fail(Exit.USAGE, f"{what}. Choose from {', '.join(NOMINAL_BYTES)}, such as --cards c8,c24.")
    return names


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_line(value: Any) -> None:
    """One JSON object on a line of standard output, at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def fail(code: Exit, message: str) -> NoReturn:
    """Say what is wrong and end with `code`."""
    console.print(f"[bold red]error[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


@contextmanager
def telling_errors() -> Iterator[None]:
    """Turn what can go wrong into one clear line and the right exit code."""
    try:
        yield
    except ManifestError as error:
        fail(Exit.USAGE, str(error))
    except (BadInputError, IdempotencyConflictError, ResultsError, StoreVersionError) as error:
        fail(Exit.USAGE, str(error))
    except (NoSuchBatchError, NoSuchJobError, NoSuchCardError, AmbiguousIdError, RefusedError) as error:
        fail(Exit.USAGE, str(error))
    except ValidationError as error:
        first = error.errors()[0]
        fail(Exit.USAGE, f"{'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}")
    except StorageError as error:
        fail(Exit.USAGE, str(error))
    except FarmUnreachableError as error:
        fail(Exit.NO_FARM, str(error))
    except sqlalchemy.exc.OperationalError as error:
        fail(Exit.NO_FARM, f"the store cannot be used: {error.orig}. Check that its disk is writable and not full.")
    except BrokenPipeError:
        # `… --json | head`: whoever read the output has seen enough.
        # Python flushes once more at its end, and must not meet the closed pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.DONE) from None
    except OSError as error:
        fail(Exit.USAGE, f"{error.strerror or error}: {error.filename or ''}. Check the path, its rights and the disk.")
