"""Whether rows can be delivered as they ask, before anything is rendered for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.clips.clip import ClipSpec
from pipeline.delivery.preflight import StillProduct, length_notes, refusals
from pipeline.delivery.profiles import DeliveryProfiles
from pipeline.families import family_named
from pipeline.notes import Note
from pipeline.problems import Problem


@dataclass(frozen=True, kw_only=True)
class DeliveryForecast:
    """What is known of a row's deliveries before its clip is there."""

    #: Why the row is refused: none of its profiles can be met. () where one can.
    problems: tuple[Problem, ...] = ()
    #: Profiles that cannot be met while others can, and clips that are repeated.
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DeliveryPreflight:
    """Looks at rows that ask for deliveries."""

    profiles: DeliveryProfiles
    #: Given the SHA-256 and the size of a still, where it shows its product.
    product_of: Callable[[str, tuple[int, int]], StillProduct | None] = lambda _sha256, _size: None

    def look(self, names: Sequence[str], spec: ClipSpec, still: str, size: tuple[int, int]) -> DeliveryForecast:
        """What of the profiles `names` the clip of `spec`, made of `still` of `size`, can be delivered for."""
        if not names:
            return NOTHING_FORESEEN
        refused = refusals(names, spec, size, self.product_of(still, size), self.profiles)
        unknown = tuple(problem for name, problem in refused.items() if name not in self.profiles.names)
        if unknown or len(refused) == len(names):
            # A name that is none is a slip of the pen, and nobody renders a clip that nothing can be made of.
            return DeliveryForecast(problems=unknown or tuple(refused.values()))
        notes = [
            Note(code="delivery_refused", message=f"{problem.message}. {problem.remedy}", field="deliver")
            for problem in refused.values()
        ]
        family = family_named(spec.family)
        longer = not spec.base and family.max_windowed_frames >= spec.fps * max(
            self.profiles.named(name).min_seconds for name in names
        )
        met = [name for name in names if name not in refused]
        return DeliveryForecast(notes=(*notes, *length_notes(met, spec, self.profiles, longer)))


NOTHING_FORESEEN = DeliveryForecast()
