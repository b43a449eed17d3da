"""A feed with links, put where it was asked for; only a feed of ours is replaced there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster.results.ownership import Inputs, OutFolder, Standing, describe

#: The record of feeds; no row's id begins with a dot.
_FEEDS = ".feeds"


def place_feed(
    target: Path, write: Callable[[Path], object], inputs: Inputs, told: Callable[[str], None] = lambda _text: None
) -> bool:
    """Write a feed by `write` and put it at `target`, whole or not at all; False where it is there as it would be.

    One of ours that was edited is kept under another name, of which `told` hears. Raises `RowRefusedError` where
    something else stands there, `ResultsError` where nothing can be written, and what `write` raises.
    """
    folder = OutFolder(target.parent, inputs, told)
    folder.make()
    with folder.alone(), folder.drafts() as draft:
        temporary = draft(write)
        known = folder.page_record(_FEEDS)
        before = known.get(target.name)
        found = folder.look(target.name, before)
        new = describe(temporary, "")
        if found.standing is Standing.BLOCKED:
            raise folder.refusal(target.name, found)
        if found.standing is Standing.FOREIGN:
            if (there := folder.same(target.name, new)) is None:
                raise folder.refusal(target.name, found)
            folder.write_record(_FEEDS, {**known, target.name: there})
            return False
        if found.standing is Standing.OURS:
            if found.sha256 == new.sha256:
                return False
            new = new.model_copy(update={"replaces": found.sha256})
        # The record first: a process that is killed here leaves no file of which nobody knows whose it is.
        folder.write_record(_FEEDS, {**known, target.name: new})
        folder.bring(temporary, target.name, before, new)
    return True
