"""Whether an error of the store says that it does not answer for now, and in words what is wrong with it."""

from __future__ import annotations

import sqlite3

import sqlalchemy as sa


def is_outage(error: BaseException) -> bool:
    """Whether the same call may succeed later: the server is away, restarting or full, the file is locked.

    False for what a later call would meet again, such as a missing table.
    """
    if isinstance(error, sa.exc.TimeoutError | sa.exc.InterfaceError):
        return True
    if isinstance(error, sa.exc.OperationalError):
        # SQLite's code for "no such table" and for wrong SQL.
        return getattr(error.orig, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR
    return isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated


def why_unusable(error: sa.exc.DBAPIError) -> tuple[str, str]:
    """(what is wrong with the store, what to do) in a person's words, after any error of its driver."""
    text = " ".join(str(error.orig).split())
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        return _SQLITE.get(code, (text, "Check its disk; `clipmill store check` tests the file."))
    for words, why, remedy in _SERVER:
        if words in text.lower():
            return why or text, remedy
    return text, _ASK_SERVER


_ASK_SERVER = "Check the server, and CLIPMILL_DATABASE_URL."
_SQLITE = {
    sqlite3.SQLITE_READONLY: ("it can only be read", "Give this user the right to write it and its folder."),
    sqlite3.SQLITE_CANTOPEN: (
        "its file cannot be opened",
        "Check that its folder is there, that it is a file, and that this user may read and write both.",
    ),
    sqlite3.SQLITE_NOTADB: ("its file is no SQLite database", "Name another file, or restore a backup."),
    sqlite3.SQLITE_CORRUPT: (
        "its file is damaged",
        "Put a copy of it back, or save what is in it with `sqlite3 FILE .recover`.",
    ),
    sqlite3.SQLITE_FULL: ("its disk is full", "Make room; nothing that was acknowledged is lost."),
    sqlite3.SQLITE_BUSY: (
        "another process keeps it locked",
        "End what has it open (a backup, a database browser), then try again.",
    ),
    sqlite3.SQLITE_IOERR: ("its disk does not work", "Check the disk, and that it is no network share."),
}
#: Words of a server or driver (in lower case), what is wrong (empty: the server's own words), what to do.
_SERVER = (
    ("timeout", "nothing answers there", "Check address and port, and that no firewall drops what is sent."),
    ("timed out", "nothing answers there", "Check address and port, and that no firewall drops what is sent."),
    ("connection refused", "no server listens there", "Start it, or correct the address or port."),
    ("authentication failed", "the server refuses this user or password", "Correct them in CLIPMILL_DATABASE_URL."),
    ("no password supplied", "the server wants a password", "Put one into CLIPMILL_DATABASE_URL, or into ~/.pgpass."),
    ("resolve host", "its host has no address", "Correct the name in CLIPMILL_DATABASE_URL."),
    ("name or service not known", "its host has no address", "Correct the name in CLIPMILL_DATABASE_URL."),
    ("does not exist", "", "Create it there, or correct CLIPMILL_DATABASE_URL."),
    ("read-only", "the server takes nothing but reads", "Name the primary server, not a copy of it."),
    ("permission denied", "", "Grant this user the right to create and write tables there."),
    ("too many", "the server has no connection left", "Raise its max_connections, or end what it does not need."),
)
