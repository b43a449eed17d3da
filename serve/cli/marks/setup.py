"""`marks setup`, `marks show` and `marks remove`: the certificate that files of clips are signed with."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from pipeline.marks.identity import SigningIdentity, forget, from_files, keep, load, make_test_identity
from pipeline.marks.problems import MarkError
from pipeline.problems import BadInputError
from serve.cli.common import Exit, Home, Json, console, exit_on_error, fail, open_home, print_json, settings_for

app = typer.Typer(help="Who signs what files of clips say of themselves (docs/marks.md).", no_args_is_help=True)

#: Environment variable of `setup`: what the key's file is encrypted with.
PASSPHRASE_VARIABLE = "CLIPMILL_MARKS_PASSPHRASE"  # noqa: S105 - the variable's name


@app.command()
def setup(
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM: your certificate first, then those that vouch for it."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"PEM: its key; encrypted: with {PASSPHRASE_VARIABLE}.")
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Make a certificate that says of itself that it is a test.")
    ] = False,
    name: Annotated[str, typer.Option(help="Of a test certificate: who signs.")] = "clipmill test",
    timestamp_url: Annotated[
        str,
        typer.Option(metavar="URL", help="A timestamp authority (RFC 3161), asked for every file that is signed."),
    ] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="In place of the one that is set up; clips are marked anew, not rendered.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Set up the certificate that clips are signed with: your own, or a test one.

    The key is kept in the home folder, for this user only. Nothing is asked of a network but the timestamp authority.
    """
    with exit_on_error():
        settings = settings_for(home)
        if test == (certificate is not None):
            fail(Exit.USAGE, "give --certificate and --key, or --test for a certificate that says it is a test.")
        if (certificate is None) != (key is None):
            fail(Exit.USAGE, "--certificate and --key go together: give both.")
        check_timestamp_url(timestamp_url)
        before = None
        try:
            before = load(settings.marks)
        except BadInputError:
            # What cannot be used may be replaced without a word.
            replace = True
        if before is not None and not replace:
            who = f"{before.common_name}, until {_day(before.valid_until)}"
            fail(Exit.USAGE, f"{settings.marks} has a certificate already ({who}). Give --replace to replace it.")
        if certificate is not None and key is not None:
            made = from_files(certificate, key, os.environ.get(PASSPHRASE_VARIABLE), timestamp_url)
        else:
            made = make_test_identity(name, timestamp_url)
        _try(made)
        open_home(settings)
        keep(settings.marks, made)
        _show(made, settings.marks, as_json=as_json)


@app.command()
def show(home: Home = None, as_json: Json = False) -> None:
    """Show who signs clips, until when, and what is asked for the time; exit 1 where nobody does."""
    with exit_on_error():
        settings = settings_for(home)
        found = load(settings.marks)
        if found is None:
            if as_json:
                print_json({"certificate": None})
            else:
                console.print("clips are not signed: no certificate is set up (`clipmill marks setup`)")
            raise typer.Exit(Exit.SOME_FAILED)
        _show(found, settings.marks, as_json=as_json)
        if problem := found.problem_at(time.time()):
            fail(Exit.SOME_FAILED, f"{problem}. Set up another with `clipmill marks setup --replace`.")


@app.command()
def remove(home: Home = None) -> None:
    """Delete the key: clips are not signed from here on. The certificate is kept, so that old marks are known."""
    with exit_on_error():
        settings = settings_for(home)
        if not forget(settings.marks):
            fail(Exit.USAGE, f"{settings.marks} has no certificate")
        console.print("clips are not signed from here on; what is signed stays so")


def check_timestamp_url(url: str) -> None:
    """Raise `BadInputError` for what is no address of a timestamp authority."""
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname):
        message = f"{url!r} is no address of a timestamp authority"
        raise BadInputError("timestamp_url", message, "Give one such as http://timestamp.example.org.")


def _try(made: SigningIdentity) -> None:
    from pipeline.marks.trial import try_signing

    if made.timestamp_url:
        console.print(f"asking {made.timestamp_url} for the time, as for every file that is signed", soft_wrap=True)
    try:
        try_signing(made)
    except MarkError as error:
        raise BadInputError("certificate", error.problem.message, error.problem.remedy) from error


def _show(found: SigningIdentity, folder: Path, *, as_json: bool) -> None:
    if as_json:
        told: dict[str, Any] = {
            name: getattr(found, name)
            for name in (
                "common_name",
                "organization",
                "algorithm",
                "is_test",
                "valid_from",
                "valid_until",
                "timestamp_url",
                "fingerprint",
            )
        }
        print_json({"certificate": told, "folder": str(folder)})
        return
    lines = [f"clips are signed by {found.common_name} ({found.organization}) until {_day(found.valid_until)}"]
    if found.is_test:
        lines.append("  a test certificate: it shows how marks work, and proves nothing to anybody")
    lines.append(f"  time: {found.timestamp_url or 'of this machine; no timestamp authority is asked'}")
    lines.append(f"  key: {folder}, for this user only")
    lines.append("  imperceptible mark: off; no model that makes one is here (docs/marks.md)")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _day(at: int) -> str:
    return time.strftime("%d %b %Y", time.gmtime(at))
