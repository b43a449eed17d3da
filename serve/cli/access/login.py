"""`clipmill login`, `logout`, `whoami`: a key for a farm that is reached by its URL, never on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from cluster.access.keys import read_key_text
from pipeline.problems import BadInputError
from serve.cli.common import Exit, Json, Url, console, exit_on_error, fail, print_json, settings_for
from serve.client import RemoteClient
from serve.credentials import Credentials, key_for, origin_of
from serve.loopback import is_loopback

_FarmUrl = Annotated[str | None, typer.Argument(metavar="URL", help="Address of the farm (default: CLIPMILL_URL).")]
_LONGEST_FILE = 4096


def login(
    url: _FarmUrl = None,
    key_file: Annotated[Path | None, typer.Option(help="Read the key from this file, not from the terminal.")] = None,
) -> None:
    """Keep a key for a farm, for every command with its `--url`: asked for, or read from standard input."""
    with exit_on_error():
        address = _address(url)
        key = _read_key(key_file)
        if read_key_text(key) is None:
            raise BadInputError("key", "that is no key, or a mistyped one", "Copy the whole of it: clipmill_…")
        who = RemoteClient(address, key=key).whoami()
        if who["key_id"] is None:
            console.print(f"{origin_of(address)} asks nobody for a key; nothing is kept")
            return
        credentials = Credentials()
        credentials.keep(address, key)
        console.print(f"logged in to {origin_of(address)} as {who['owner']} ({', '.join(who['scopes'])})")
        console.print(f"  the key is kept in {credentials.path}", style="dim", soft_wrap=True)
        if not _is_private(address):
            console.print(
                "  note: this address is not https: whoever is on the way can read the key", style="dim", soft_wrap=True
            )


def logout(url: _FarmUrl = None) -> None:
    """Forget the key of a farm. It stays valid: whoever runs the farm revokes it."""
    with exit_on_error():
        address = _address(url)
        forgotten = Credentials().forget(address)
    console.print(f"{'forgotten' if forgotten else 'there was none'}: the key of {origin_of(address)}")


def whoami(url: Url = None, as_json: Json = False) -> None:
    """Say whose work is seen and handed in at a farm, and what the key may do."""
    with exit_on_error():
        address = _address(url)
        who = RemoteClient(address, key=key_for(address)).whoami()
    if as_json:
        print_json(who)
    else:
        key = f" by {who['key_id']}" if who["key_id"] else ", without a key"
        console.print(f"{who['owner']} ({', '.join(who['scopes'])}){key} at {origin_of(address)}", soft_wrap=True)


def _address(url: str | None) -> str:
    address = url or settings_for(None).url
    if not address:
        fail(Exit.USAGE, "it is not said which farm. Give its address, or set CLIPMILL_URL.")
    origin_of(address)
    return address


def _read_key(key_file: Path | None) -> str:
    if key_file is not None:
        with key_file.open("r", encoding="utf-8", errors="replace") as file:
            return file.read(_LONGEST_FILE).strip()
    if not sys.stdin.isatty():
        return sys.stdin.readline(_LONGEST_FILE).strip()
    return str(typer.prompt("key", hide_input=True, err=True)).strip()


def _is_private(address: str) -> bool:
    parts = urlsplit(origin_of(address))
    return parts.scheme == "https" or is_loopback(parts.hostname)
