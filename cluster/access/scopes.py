"""What a key may do."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pipeline.problems import BadInputError


class Scope(StrEnum):
    """One thing that a key may do."""

    #: Hand in work of its owner's, and command and delete it.
    SUBMIT = "submit"
    #: See its owner's work and results, models and cards.
    READ = "read"
    #: Command cards; see, change and hand in the work of every owner.
    OPERATE = "operate"
    #: Keys and quotas, and all the rest.
    ADMIN = "admin"
    #: Scrape `/metrics`.
    METRICS = "metrics"


#: Scopes of a key that is made without saying any.
USUAL_SCOPES = frozenset({Scope.SUBMIT, Scope.READ})
#: Scopes that others have within them.
_WITHIN = {
    Scope.OPERATE: frozenset({Scope.SUBMIT, Scope.READ}),
    Scope.ADMIN: frozenset(Scope),
}


def expanded(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """The scopes with all that they have within them: `operate` submits and reads, `admin` does everything."""
    given = frozenset(scopes)
    return given.union(*(_WITHIN.get(scope, frozenset()) for scope in given))


def scopes_from(names: Iterable[str]) -> frozenset[Scope]:
    """Scopes by their names, several of which may stand in one text with commas between them.

    None at all are `USUAL_SCOPES`. Raises `BadInputError` for a name that there is not.
    """
    given = [name.strip() for text in names for name in text.split(",") if name.strip()]
    known = {scope.value for scope in Scope}
    if unknown := [name for name in given if name not in known]:
        message = f"{unknown[0][:40]!r} is no scope"
        raise BadInputError("scopes", message, f"Choose from {', '.join(scope.value for scope in Scope)}.")
    return frozenset(map(Scope, given)) or USUAL_SCOPES
