"""What deliveries cost: seconds a clip and profile, files that pass, and that the same again is not made again.

Clips of the camera over the stills of `--catalog` (default: the examples) are made into files of all built-in profiles,
or those of `--profiles`, as `clipmill results --deliver` does, and asked for a second time. Seconds are of CPU, over
all processes that work for it: those of a wall clock tell how busy a machine is.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from report import Aim, Report, parser

#: Aims: CPU seconds a file in the mean, files that break a rule, files that are encoded again, and seconds in which a
#: file that is kept is given.
CPU_AIM_S, FAILED_AIM, AGAIN_AIM, KEPT_AIM_S = 60.0, 0.0, 0.0, 0.5


def cpu_s() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def master(still: Path, target: Path, frames: int) -> None:
    """A clip of 24 frames a second that zooms in on a still, as the camera makes it."""
    from pipeline.clips.clip import ClipSpec, ResolutionClass
    from pipeline.clips.encode import encode_mp4
    from pipeline.clips.stills import open_still
    from pipeline.families import FAMILIES, size_for
    from pipeline.families.layouts import RESIDENT
    from pipeline.models.camera import CameraModel

    picture, family = open_still(still.read_bytes()), FAMILIES["camera"]
    aspect = min(max(picture.width / picture.height, 0.5), 2.0)
    width, height = size_for(ResolutionClass.P512, aspect, family.stride, family.native_sizes)
    shape = {"resolution_class": ResolutionClass.P512, "width": width, "height": height, "frames": frames, "fps": 24}
    spec = ClipSpec(
        family=family.name, revision=family.revision, prompt="zoom in", steps=1, guidance=1, seed=0, **shape
    )
    made = CameraModel().render(picture, spec, RESIDENT, lambda _done, _of, _snapshot: None)
    encode_mp4(made, 24, target)


def main() -> int:
    """Run it."""
    from cluster.results.contact_sheet import ResultRow
    from cluster.results.deliveries import DeliveryMaker, DeliveryTerms, KeptDeliveries
    from cluster.storage import Storage
    from pipeline.delivery.profiles import built_in

    asked = parser(__doc__)
    asked.add_argument("--catalog", type=Path, default=Path(__file__).parents[1] / "examples" / "catalog")
    asked.add_argument("--clips", type=int, default=4, help="so many stills of the catalog")
    asked.add_argument("--frames", type=int, default=48)
    asked.add_argument("--profiles", default=",".join(built_in().names))
    options = asked.parse_args()
    names = tuple(options.profiles.split(","))
    stills = sorted(path for path in options.catalog.iterdir() if path.suffix in {".jpg", ".png", ".webp"})
    made = refused = failed = again = 0
    spent, kept_s, enlarged = 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        storage = Storage(folder / "storage")
        for still in stills[: options.clips]:
            master(still, folder / "clip.mp4", options.frames)
            key = f"clips/{still.stem}/one/video.mp4"
            storage.put_file(key, folder / "clip.mp4")
            row = ResultRow(
                id=still.stem, number=1, prompt="", state="completed", video_key=key, content_key=key, deliver=names
            )
            terms = DeliveryTerms(profiles=built_in())
            began = cpu_s()
            found = DeliveryMaker(storage, KeptDeliveries(storage), terms).deliver(row, folder)
            spent += cpu_s() - began
            made += sum(one.delivered for one in found.values())
            refused += sum(not one.delivered and not one.verdict.checks for one in found.values())
            failed += sum(not one.delivered and bool(one.verdict.checks) for one in found.values())
            enlarged += sum("soft" in one.verdict.facts for one in found.values())
            for one in found.values():
                print(f"  {still.stem} {one.profile}: {one.verdict.problem or one.verdict.facts.get('frame')}")
            second = DeliveryMaker(storage, KeptDeliveries(storage), terms)
            start = time.monotonic()
            second.deliver(row, folder)
            kept_s += time.monotonic() - start
            again += second.encoded
    files = max(1, made + failed)
    figures = {
        "clips": min(options.clips, len(stills)),
        "frames of a clip": options.frames,
        "files delivered": made,
        "refused with a reason": refused,
        "files that break a rule": failed,
        "files enlarged more than twice": enlarged,
        "CPU seconds a file": spent / files,
        "seconds a file that is kept": kept_s / files,
    }
    aims = [
        Aim(name="CPU seconds a file", value=spent / files, at_most=CPU_AIM_S, unit="s"),
        Aim(name="files that break a rule", value=float(failed), at_most=FAILED_AIM),
        Aim(name="files encoded again", value=float(again), at_most=AGAIN_AIM),
        Aim(name="seconds a file that is kept", value=kept_s / files, at_most=KEPT_AIM_S, unit="s"),
    ]
    return Report(name="deliveries", figures=figures, aims=aims).finish(options)


if __name__ == "__main__":
    sys.exit(main())
