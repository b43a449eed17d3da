"""What a row's clip is in each of its rounds: all of them are known, and checked, before the first is rendered."""

from __future__ import annotations

from cluster.catalog.defaults import Defaults
from cluster.catalog.manifest import Row
from cluster.catalog.resolve import resolve
from cluster.catalog.review.rounds import Round
from cluster.jobs.model import PlannedRound
from pipeline.clips.clip import ClipSpec, ResolutionClass, Tier
from pipeline.notes import distinct

#: Drafts are made in no larger class.
DRAFT_CLASS = ResolutionClass.P512
_TIERS = {Round.DRAFT: Tier.DRAFT, Round.QUICK: Tier.DRAFT, Round.TUNE: Tier.STANDARD}
#: What a row says of its final clip alone.
_OF_FINAL = ("frames", "seconds", "fps", "steps", "window", "window_overlap", "motion_class", "strength", "upscale")


def plan(row: Row, still_size: tuple[int, int], defaults: Defaults, still_sha256: str) -> tuple[PlannedRound, ...]:
    """The rounds of `row`'s clip, the first to be rendered first; one where `defaults` ask for no review.

    All have the still, the prompt and the seed in common. With `from_draft` the last starts from the latents of the
    round before it, else from its seed. A round is told the notes of those after it, too. `still_size` is (width,
    height) in pixels. Raises `RowProblems` where one of them cannot be rendered.
    """
    if not defaults.rounds:
        found = resolve(row, still_size, defaults, still_sha256)
        return (PlannedRound(name="", spec=found.spec, noted=found.noted),)
    from_draft = defaults.from_draft if row.from_draft is None else row.from_draft
    resolved = []
    before: ClipSpec | None = None
    for name in defaults.rounds:
        asked, given = _asked(name, row, defaults)
        draft = before if name is Round.FINAL and from_draft else None
        resolved.append(resolve(asked, still_size, given, still_sha256, draft=draft))
        before = resolved[-1].spec
    rounds = []
    for place, (name, one) in enumerate(zip(defaults.rounds, resolved, strict=True)):
        # What is said of the clip for good goes first: it is what its writer wants to know.
        to_come = [note for later in reversed(resolved[place:]) for note in later.noted]
        rounds.append(PlannedRound(name=name.value, spec=one.spec, noted=distinct(to_come)))
    return tuple(rounds)


def _asked(name: Round, row: Row, defaults: Defaults) -> tuple[Row, Defaults]:
    """The row and its defaults as they ask for the clip of this round."""
    if name is Round.FINAL:
        return row.model_copy(update={"from_draft": False}), defaults.model_copy(update={"from_draft": False})
    wanted = row.resolution_class or defaults.resolution_class
    smaller = min(wanted, DRAFT_CLASS, key=lambda one: one.side)
    changes = {"tier": _TIERS[name], "resolution_class": smaller, "from_draft": False}
    given = defaults.model_copy(update={"window": 0, "window_overlap": None, "motion_class": None, "from_draft": False})
    return row.model_copy(update=changes | dict.fromkeys(_OF_FINAL)), given
