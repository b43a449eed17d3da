"""Failures of requests to hosts that strangers name: what may pass in a moment, and in which words it is told."""

from __future__ import annotations

import socket
import ssl
import time
from email.utils import parsedate_to_datetime

import httpcore

from cluster.remote.urls import FetchRefusedError

#: What to do about a picture that did not come.
TRY_AGAIN = "Try again later, or download it beside the manifest and write its path."


class LaterError(Exception):
    """A failure that may pass in a moment; `pause_s`: the host asked for so long a pause."""

    def __init__(self, message: str, pause_s: float = 0) -> None:
        self.message, self.pause_s = message, pause_s
        super().__init__(message)


def pause_of(text: str) -> float:
    """Seconds that a header `Retry-After` (RFC 9110, 10.2.3) asks for; 0 where it says nothing that can be read."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def of_look_up(error: OSError) -> LaterError | FetchRefusedError:
    """What is said where the system could not look a host's name up."""
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        return LaterError("its host's name could not be looked up")
    return FetchRefusedError("its host's name is not known", "Correct the URL.")


def of_connection(error: Exception) -> LaterError | FetchRefusedError:
    """What is said where a connection failed: an error of httpcore's."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        remedy = "Correct the URL, or download it beside the manifest and write its path."
        return FetchRefusedError(f"its certificate is not believed ({cause.verify_message})", remedy)
    if isinstance(cause, ssl.SSLError):
        return FetchRefusedError(f"no encrypted connection comes about ({cause.reason or 'TLS'})", TRY_AGAIN)
    if isinstance(error, httpcore.TimeoutException):
        return LaterError("the host does not answer in time")
    if isinstance(error, httpcore.ConnectError):
        return LaterError("the host takes no connection")
    return LaterError("the answer broke off, or is no HTTP")
