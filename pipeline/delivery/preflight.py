"""Whether a row's clip can be delivered as it asks, found out from its still and its specification alone."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.bounded import ExhaustedError, RaisedError, run_bounded
from pipeline.clips.clip import ClipSpec, Fit
from pipeline.clips.still_check import still_bounds
from pipeline.clips.stills import DeclaredSize
from pipeline.delivery.profiles import DeliveryProfiles
from pipeline.notes import NewCell, Note
from pipeline.problems import BadInputError, Problem

#: Raised whenever the same still may have another product: what was found of it before is looked for anew.
PRODUCT_VERSION = 1


class StillProduct(BaseModel):
    """Where a still shows its product, as `pipeline.delivery.framing.ProductTrack` has it of a clip."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: Left, top, right, bottom as shares of the still's sides; all of it where nobody can tell.
    box: tuple[float, float, float, float]
    found: bool
    #: Whether the left, top, right and bottom side show nothing but smooth background.
    plain: tuple[bool, bool, bool, bool]
    #: Share of each side that is smooth background at least.
    smooth: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)


def still_product(data: bytes, size: tuple[int, int]) -> StillProduct | None:
    """Where the still in `data`, of `size` (width, height), shows its product, decoded in another process.

    None where that takes more than its size explains: what cannot be told before is told of the clip.
    """
    bounds = still_bounds(DeclaredSize(width=size[0], height=size[1]), len(data))
    name = "pipeline.delivery.preflight:product_of"
    try:
        found = run_bounded(name, data, cpu_s=bounds.cpu_s, memory_bytes=bounds.memory_bytes)
        return StillProduct.model_validate(found)
    except (ExhaustedError, RaisedError, ValidationError):
        return None


def product_of(data: bytes) -> dict[str, object]:
    """What `still_product` asks of the other process."""
    import numpy as np

    from pipeline.clips.stills import open_still
    from pipeline.delivery.framing import track_product

    track = track_product(np.asarray(open_still(data).convert("RGB"))[None])
    return {"box": track.box, "found": track.found, "plain": track.plain, "smooth": track.smooth}


def product_in_clip(product: StillProduct, still_size: tuple[int, int], spec: ClipSpec) -> StillProduct:
    """Where the clip's frames show the product of its still while the camera is at rest."""
    width, height = still_size
    across, down = spec.width / width, spec.height / height
    if spec.fit is Fit.STRETCH:
        return product
    scale = min(across, down) if spec.fit is Fit.CONTAIN else max(across, down)
    x, y = (1 - scale / across) / 2, (1 - scale / down) / 2
    left, top, right, bottom = product.box
    placed = (
        x + left * scale / across,
        y + top * scale / down,
        x + right * scale / across,
        y + bottom * scale / down,
    )
    return product.model_copy(update={"box": _clipped(placed)})


def refusals(
    names: Sequence[str],
    spec: ClipSpec,
    still_size: tuple[int, int],
    product: StillProduct | None,
    profiles: DeliveryProfiles,
) -> dict[str, Problem]:
    """Profiles of `names` that the clip of `spec` cannot be delivered for, each with why, in numbers.

    `product`: where the still shows it; None: nobody has looked, and only names and lengths are checked.
    """
    from pipeline.delivery.framing import ProductTrack, plan_frame
    from pipeline.delivery.length import plan_time

    track = None
    if product is not None:
        there = product_in_clip(product, still_size, spec)
        track = ProductTrack(box=there.box, found=there.found, plain=there.plain, smooth=there.smooth)
    found: dict[str, Problem] = {}
    for name in names:
        try:
            profile = profiles.named(name)
            plan_time(spec.frames, spec.fps, profile, seamless=False)
            if track is not None:
                plan_frame(track, spec.size, profile)
        except BadInputError as error:
            found[name] = error.problem
    return found


def length_notes(names: Sequence[str], spec: ClipSpec, profiles: DeliveryProfiles, longer: bool) -> list[Note]:
    """What is noted of a clip that is shorter than its profiles ask for: it is repeated, or may be rendered longer.

    `longer`: whether its family renders clips of any length, by windows; then the note has that as its fix.
    """
    least = {name: profiles.named(name).min_seconds for name in names if name in profiles.names}
    short = {name: seconds for name, seconds in least.items() if spec.seconds < seconds - 1e-9}
    if not short:
        return []
    most = max(short.values())
    wanted = ", ".join(f"{name} {seconds:g} s" for name, seconds in short.items())
    message = f"the clip lasts {spec.seconds:.2f} s, and is repeated for {wanted}"
    fix: dict[str, NewCell] = {}
    if longer:
        message += f"; its model can render {most:g} s instead"
        fix = {"seconds": most, "frames": None}
    return [Note(code="delivery_repeated", message=message, field="deliver", fix=fix)]


def _clipped(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (min(1.0, max(0.0, share)) for share in box)
    return left, top, right, bottom
