"""Whether an error of the store says that it does not answer for now."""

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
