"""What stands around every page: the farm as a whole, and who looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.access.scopes import Scope
from cluster.farm import Farm
from cluster.store.lookup import owners_of
from serve.gateway.access.callers import Caller
from serve.gateway.page.cards import CardPanel, summary_of


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """Who looks at a page, and what they may do from it."""

    owner: str
    #: Whether a key was shown, so that there is a session to end.
    has_key: bool
    submits: bool
    operates: bool
    #: Whose work may be looked at, in order; () for whoever sees their own alone.
    owners: tuple[str, ...] = ()
    #: Who they are, whoever's work they look at.
    own: str = ""

    @classmethod
    def of(cls, caller: Caller, farm: Farm) -> Viewer:
        """The viewer of `farm` whose request came from `caller`."""
        sees_all = Scope.ADMIN in caller.scopes
        own = caller.key.owner if caller.key is not None else Farm.owner
        return cls(
            owners=tuple(sorted({own, caller.owner, *owners_of(farm.batch_store.database)})) if sees_all else (),
            own=own,
            owner=caller.owner,
            has_key=caller.key is not None,
            submits=Scope.SUBMIT in caller.scopes,
            operates=Scope.OPERATE in caller.scopes,
        )


def frame(panels: list[CardPanel], caller: Caller, farm: Farm) -> dict[str, Any]:
    """What every template is given besides its own: `cards_text`, `storage_fault`, `has_cards`, `viewer`."""
    fault = next((panel.beat.storage_fault for panel in panels if panel.beat.storage_fault), "")
    told = {"cards_text": summary_of(panels), "storage_fault": fault, "has_cards": bool(panels)}
    return told | {"viewer": Viewer.of(caller, farm)}
