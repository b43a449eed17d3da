"""Keys of farms that a person logged in to: in a file that only they may read, each sent to its own farm alone."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.private import private_folder, write_private
from pipeline.problems import BadInputError

#: Environment variables: a key for whichever farm is asked, and the folder of what a person told clipmill.
KEY_VARIABLE, CONFIG_VARIABLE = "CLIPMILL_KEY", "CLIPMILL_CONFIG"
_FILE = "credentials.json"
_PORTS = {"http": 80, "https": 443}
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def config_folder() -> Path:
    """`CLIPMILL_CONFIG`, else `clipmill` where the XDG Base Directory Specification has settings of programs."""
    if given := os.environ.get(CONFIG_VARIABLE):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config").absolute() / "clipmill"


def origin_of(url: str) -> str:
    """Scheme, host and port of a farm's address as people write it. Raises `BadInputError`."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.scheme not in _PORTS or parts.username or parts.password:
        # It is not repeated: a password, or a key, may be part of it.
        raise BadInputError("url", "it is no address of a farm", "Give one such as https://farm.example.org.")
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


class Credentials:
    """The keys that a person keeps, by the addresses of their farms."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where they are kept (None: `config_folder()`)."""
        self._path = (folder or config_folder()) / _FILE

    @property
    def path(self) -> Path:
        """The file that they are in."""
        return self._path

    def key_of(self, url: str) -> str | None:
        """The key that is kept for the farm at `url`. Raises `BadInputError` for a file that others could write to."""
        found = self._read().get(origin_of(url), {}).get("key")
        return str(found) if found else None

    def keep(self, url: str, key: str) -> None:
        """Keep a key for the farm at `url`, in place of the one before. Raises `BadInputError` and `OSError`."""
        self._write(self._read() | {origin_of(url): {"key": key}})

    def forget(self, url: str) -> bool:
        """Forget the key of the farm at `url`; False where none was kept. Raises `BadInputError` and `OSError`."""
        kept = self._read()
        if kept.pop(origin_of(url), None) is None:
            return False
        self._write(kept)
        return True

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            facts = self._path.stat()
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        if facts.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(facts.st_mode) & _OTHERS:
            message = f"{self._path} can be read by other users, or is another's"
            remedy = f"Make it yours alone, `chmod 600 {self._path}`; replace the keys in it if strangers saw them."
            raise BadInputError("credentials", message, remedy)
        try:
            return dict(json.loads(text)["farms"])
        except (ValueError, KeyError, TypeError):
            message = f"{self._path} is not as `clipmill login` writes it"
            raise BadInputError("credentials", message, "Delete it, and log in again.") from None

    def _write(self, farms: dict[str, dict[str, Any]]) -> None:
        private_folder(self._path.parent)
        # Whole or not at all: a process that is killed half way loses no key.
        beside = self._path.with_name(f".{_FILE}.{secrets.token_hex(4)}")
        try:
            write_private(beside, json.dumps({"version": 1, "farms": farms}, indent=2) + "\n")
            beside.replace(self._path)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def key_for(url: str) -> str | None:
    """The key to show to the farm at `url`: `CLIPMILL_KEY`, else the one that is kept for it; None where there is none.

    Raises `BadInputError`.
    """
    return os.environ.get(KEY_VARIABLE, "").strip() or Credentials().key_of(url)
