"""What marking costs a clip on its way out of the farm: processor time, and bytes in storage.

Clips of 512 × 512 × 48 frames are published into a storage as renderers do it, with a still that has a manifest of its
own, and read as `results`, the zip and the gateway read them: with plain words, signed for the first time, and signed
before. Then each file is verified. Processor time, not the clock's: a busy machine does not count.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from report import Aim, Report, parser

#: Aims: milliseconds of processor time a clip, and bytes of a signed mark in storage without the still's manifest.
PLAIN_MS, SIGN_MS, AGAIN_MS, VERIFY_MS, STORED_BYTES = 10.0, 60.0, 10.0, 40.0, 16_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    options = parser(__doc__)
    options.add_argument("--clips", type=int, default=20, help="so many clips")
    asked = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="clipmill-bench-") as folder:
        figures = measure(Path(folder), asked.clips)
    aims = [
        Aim(name="plain words, median", value=figures["plain_ms"], at_most=PLAIN_MS, unit="ms"),
        Aim(name="signed the first time, median", value=figures["sign_ms"], at_most=SIGN_MS, unit="ms"),
        Aim(name="signed before, median", value=figures["again_ms"], at_most=AGAIN_MS, unit="ms"),
        Aim(name="verified, median", value=figures["verify_ms"], at_most=VERIFY_MS, unit="ms"),
        Aim(name="stored beside a clip", value=figures["stored_bytes"], at_most=STORED_BYTES, unit="bytes"),
    ]
    return Report(name="marks", figures=figures, aims=aims).finish(asked)


def measure(folder: Path, clips: int) -> dict[str, float]:
    """The figures of so many clips."""
    from cluster.results.marked import MarkedObjects
    from cluster.storage import Storage
    from pipeline.marks.facts import ClipFacts
    from pipeline.marks.identity import make_test_identity
    from pipeline.marks.mark import mark
    from pipeline.marks.marker import Marker
    from pipeline.marks.verdict import MarkState
    from pipeline.marks.verify import verify

    marker = Marker(make_test_identity("benchmark"), "")
    still = folder / "still.png"
    Image.fromarray(frames(0, 1)[0]).save(still)
    plain_still = still.stat().st_size
    mark(still, ClipFacts(content_key="still"), marker)
    storage = Storage(folder / "storage")
    sha256 = storage.put_still(still.read_bytes())
    keys = [publish(folder / "clip", storage, number, sha256) for number in range(clips)]
    sizes = [storage.size(key) for key in keys]

    def read(objects: MarkedObjects) -> list[float]:
        return [taken(partial(objects.get_bytes, key)) for key in keys]

    plain = read(MarkedObjects(storage, Marker))
    first = read(MarkedObjects(storage, lambda: marker))
    signed = MarkedObjects(storage, lambda: marker)
    again = read(signed)
    verified = []
    for number, key in enumerate(keys):
        path = folder / f"{number}.mp4"
        signed.get_to(key, path)
        began = time.process_time()
        assert verify(path).state is MarkState.VALID
        verified.append((time.process_time() - began) * 1000)
    stored = [entry.size for entry in storage.entries("clips") if "/marks-" in entry.key]
    of_still = still.stat().st_size - plain_still
    return {
        "clips": clips,
        "clip_bytes": statistics.median(sizes),
        "plain_ms": statistics.median(plain),
        "sign_ms": statistics.median(first),
        "again_ms": statistics.median(again),
        "verify_ms": statistics.median(verified),
        "stored_bytes": statistics.median(stored) - of_still,
        "manifest_of_the_still_bytes": of_still,
    }


def frames(seed: int, count: int) -> NDArray[np.uint8]:
    """A pattern that wanders."""
    y, x = np.mgrid[:512, :512]
    made = [np.stack([(x + 3 * n) % 256, (2 * y + n) % 256, (x + y + seed) % 256], -1) for n in range(count)]
    return np.stack(made).astype(np.uint8)


def publish(folder: Path, storage: object, number: int, still: str) -> str:
    """Put a clip into storage, as a renderer does; its video's key."""
    from cluster.storage import Storage
    from pipeline.clips.clip import ClipSpec, ResolutionClass
    from pipeline.families import FAMILIES
    from pipeline.render import write_clip

    assert isinstance(storage, Storage)
    folder.mkdir(exist_ok=True)
    family = FAMILIES["camera"]
    shape = {"resolution_class": ResolutionClass.P512, "width": 512, "height": 512, "frames": 48, "fps": 24}
    spec = ClipSpec(family=family.name, revision=family.revision, prompt="pan", steps=1, guidance=1, seed=0, **shape)
    files = write_clip(frames(number, 48), spec, folder, {"content_key": f"{number:064}", "still_sha256": still})
    under = f"clips/{number}/one"
    for path in (files.video, files.poster, files.provenance):
        storage.put_file(f"{under}/{path.name}", path)
    return f"{under}/{files.video.name}"


def taken(what: Callable[[], object]) -> float:
    """Milliseconds of processor time that a call takes."""
    began = time.process_time()
    what()
    return (time.process_time() - began) * 1000


if __name__ == "__main__":
    sys.exit(main())
