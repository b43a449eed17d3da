"""Errors of the API: exception, HTTP status and code in one table, which gateway and client both read.

Errors are `{"error": {message, type, param, code}}`, as OpenAI's clients expect them; a problem that says what to do
next is under `clipmill`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy.exc

from cluster.access.quotas import QuotaExceededError
from cluster.jobs.transitions import RefusedError
from cluster.storage import StorageError
from cluster.store.access.keys import NoSuchKeyError
from cluster.store.batches import IdempotencyConflictError
from cluster.store.lookup import AmbiguousIdError, NoSuchBatchError, NoSuchCardError, NoSuchJobError
from cluster.store.webhooks.registry import NoSuchWebhookError
from pipeline.problems import BadInputError, Problem


class NoSuchFileError(LookupError):
    """The owner has no still of this id."""


class NoSuchModelError(LookupError):
    """The farm has no model of this name."""


#: Code of the answer to an owner who may ask for no more, for now.
QUOTA_EXCEEDED = "quota_exceeded"


class AccessRefusedError(RuntimeError):
    """A farm lets nobody in with this key, or without one; or not to this."""


#: Codes of answers to requests whose key is at fault, or missing.
_OF_ACCESS = frozenset({"no_key", "no_keys_yet", "invalid_key", "missing_scope", "wrong_owner"})
#: Code of the answer to a path that no route has: what answers there is no farm, or one of another version.
NO_SUCH_ROUTE = "no_such_route"


@dataclass(frozen=True, kw_only=True)
class ErrorKind:
    """One kind of exception, and the answer to it."""

    raised: type[Exception]
    status: int
    code: str
    #: The field at fault, where it is always the same.
    param: str | None = None
    #: The field at fault, by the exception.
    param_of: Callable[[Any], str | None] | None = None
    #: What to do next, where the exception has no problem that says it.
    remedy: str | None = None
    #: What a person reads; None: the exception's own text.
    message_of: Callable[[Any], str] | None = None
    #: Makes the exception from the message of an answer; None: `raised` is called with it.
    again: Callable[[str], Exception] | None = None


#: The kinds of errors that a farm raises; the first that an exception is an instance of counts.
ERRORS: tuple[ErrorKind, ...] = (
    ErrorKind(raised=BadInputError, status=400, code="bad_input", param_of=lambda error: error.problem.field),
    ErrorKind(
        raised=NoSuchBatchError,
        status=404,
        code="not_found",
        param="batch_id",
        remedy="GET /v1/batches lists those there are.",
    ),
    ErrorKind(
        raised=NoSuchJobError,
        status=404,
        code="not_found",
        param="job_id",
        remedy="GET /v1/videos lists those there are.",
    ),
    ErrorKind(
        raised=NoSuchCardError,
        status=404,
        code="not_found",
        param="card",
        remedy="GET /v1/cards lists those there are.",
    ),
    ErrorKind(
        raised=NoSuchKeyError,
        status=404,
        code="not_found",
        param="key_id",
        remedy="GET /v1/keys lists those there are.",
    ),
    ErrorKind(raised=QuotaExceededError, status=429, code=QUOTA_EXCEEDED, param_of=lambda error: error.problem.field),
    ErrorKind(
        raised=NoSuchFileError,
        status=404,
        code="not_found",
        param="file_id",
        remedy="GET /v1/files lists those there are.",
    ),
    ErrorKind(
        raised=NoSuchWebhookError,
        status=404,
        code="not_found",
        param="webhook_id",
        remedy="GET /v1/webhooks lists those there are.",
    ),
    ErrorKind(
        raised=NoSuchModelError, status=404, code="model_not_found", param="model", remedy="GET /v1/models lists them."
    ),
    ErrorKind(
        raised=AmbiguousIdError,
        status=400,
        code="ambiguous_id",
        param="id",
        remedy="Give more of the id.",
    ),
    ErrorKind(
        raised=RefusedError,
        status=409,
        code="refused",
        param_of=lambda error: error.verb,
        again=RefusedError.told,
        remedy="Look at it with GET: what can be done depends on its state.",
    ),
    ErrorKind(
        raised=IdempotencyConflictError,
        status=422,
        code="idempotency_conflict",
        param="Idempotency-Key",
        remedy="Give another key, or the same body.",
    ),
    ErrorKind(
        raised=sqlalchemy.exc.OperationalError,
        status=503,
        code="store_unreachable",
        message_of=lambda error: f"the store cannot be used: {error.orig}",
    ),
    ErrorKind(raised=StorageError, status=503, code="storage", param="storage"),
)


def answer_of(kind: ErrorKind, error: Exception) -> dict[str, Any]:
    """The body of the answer to an exception of this kind."""
    param = kind.param_of(error) if kind.param_of else kind.param
    message = kind.message_of(error) if kind.message_of else str(error)
    return error_body(kind.status, message, kind.code, param, getattr(error, "problem", None), remedy=kind.remedy)


def error_body(
    status: int,
    message: str,
    code: str,
    param: str | None = None,
    problem: Problem | None = None,
    *,
    remedy: str | None = None,
) -> dict[str, Any]:
    """The body of an answer that is an error; `remedy` says what to do where no `problem` does."""
    answer: dict[str, Any] = {
        "message": message,
        "type": "invalid_request_error" if status < 500 else "server_error",
        "param": param,
        "code": code,
    }
    if problem or remedy:
        answer["remedy"] = problem.remedy if problem else remedy
    if problem:
        answer["clipmill"] = problem.model_dump()
    return {"error": answer}


def error_from(answer: Mapping[str, Any]) -> Exception:
    """The exception that a farm raised, from the `error` of its answer to a request that was at fault (a 4xx)."""
    code, message, param = answer["code"], str(answer["message"]), answer.get("param")
    if problem := answer.get("clipmill"):
        if code in _OF_ACCESS:
            return AccessRefusedError(str(Problem(**problem)))
        return BadInputError(**problem)
    of_code = [kind for kind in ERRORS if kind.code == code and kind.raised is not BadInputError]
    if of_code:
        kind = next((kind for kind in of_code if kind.param == param), of_code[0])
        return kind.again(message) if kind.again else kind.raised(message)
    return BadInputError(param or "request", message, "Correct the request.")
