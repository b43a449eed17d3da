"""What a gateway has resident while it sends the results of a large batch as one zip.

A store with `--clips` completed rows (their clips share the objects of one, of `--kib` KiB) is served by a gateway of
its own process, as in `polling.py`. The zip is read as it comes, its bytes counted and, with `--keep`, written and
tested. Resident memory is taken after a tenth of the bytes and at the end; it must not grow with the batch.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import httpx
import psutil
from polling import gateway
from report import Aim, Report, parser

#: Aims: most resident memory over that after a tenth of the bytes, and in MiB more than before the first byte.
RATIO_AIM, MORE_AIM_MIB = 1.10, 48.0


def fill(url: str, storage: Path, clips: int, size: int) -> str:
    """A batch of so many completed rows, each with a clip of `size` bytes; its id."""
    from cluster.dispatch.retry import after_attempt
    from cluster.fleet.cards import Card, Fleet
    from cluster.jobs.model import Draft, Objects
    from cluster.jobs.outcomes import Completed
    from cluster.storage import Storage
    from cluster.store import BatchStore, Database, DispatchStore
    from pipeline.clips.clip import ClipSpec, ResolutionClass
    from pipeline.families import FAMILIES

    family = FAMILIES["camera"]
    shape = {"resolution_class": ResolutionClass.P256, "width": 256, "height": 256, "frames": 8, "fps": 8}
    spec = ClipSpec(family=family.name, revision=family.revision, prompt="pan", steps=1, guidance=1, seed=0, **shape)
    database = Database(url)
    database.migrate()
    store, office, objects = BatchStore(database), DispatchStore(database), Storage(storage)
    names = ("video.mp4", "poster.jpg", "spritesheet.jpg", "provenance.json")
    video, poster, sheet, provenance = (f"clips/one/one/{name}" for name in names)
    objects.put_bytes(video, os.urandom(size))
    objects.put_bytes(poster, os.urandom(size // 10 + 1))
    objects.put_bytes(sheet, b"sheet")
    objects.put_bytes(provenance, b'{"model": "camera"}')

    def rows(first: int, last: int) -> list[Draft]:
        return [
            Draft(number=n, name=f"SKU-{n}", row={}, still="ab" * 32, spec=spec, content_key="one")
            for n in range(first, last + 1)
        ]

    batch_id, _ = store.open_batch("local", name=f"{clips} clips")
    store.add("local", batch_id, rows(1, 1))
    office.take_office("benchmark")
    (job,) = office.waiting(1)
    card = Card(renderer="one", card="one", card_class="c8", kind="test", usable_bytes=2**33, idle=True)
    (claim,) = office.start([(job, card)], 60)
    made = Objects(
        video=video, poster=poster, spritesheet=sheet, provenance=provenance, video_bytes=size, frames_sha256="cd" * 32
    )
    ended = Completed(objects=made)
    office.finish(claim, ended, after_attempt(job, ended, Fleet(usable_bytes={"c8": 2**33})))
    # Rows whose clip exists are complete when they come.
    for first in range(2, clips + 1, 1000):
        store.add("local", batch_id, rows(first, min(first + 999, clips)))
    store.seal("local", batch_id)
    database.close()
    return batch_id


class Watched:
    """Resident memory of a process, looked at all the while."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.most = self.now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def now(self) -> int:
        """Bytes that are resident."""
        return int(self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.most = max(self.most, self.now())

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def stream(pid: int, port: int, batch_id: str, expected: int, target: Path | None) -> dict[str, float | int]:
    """Read the zip of a batch as it comes; what the gateway had resident meanwhile."""
    url = f"http://127.0.0.1:{port}/v1/batches/{batch_id}/results"
    httpx.get(url, params={"limit": 1}, timeout=60).raise_for_status()
    came, early = 0, 0
    began = time.monotonic()
    with Watched(pid) as watched:
        before = watched.now()
        file = target.open("wb") if target else None
        with httpx.stream("GET", url, params={"format": "zip"}, timeout=300) as response:
            response.raise_for_status()
            for part in response.iter_raw():
                came += len(part)
                if file:
                    file.write(part)
                if not early and came >= expected // 10:
                    early = watched.most
        if file:
            file.close()
    return {
        "mib": came / 2**20,
        "mib_a_second": came / 2**20 / (time.monotonic() - began),
        "rss_before_mib": before / 2**20,
        "rss_early_mib": (early or watched.most) / 2**20,
        "rss_most_mib": watched.most / 2**20,
    }


def main() -> int:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--clips", type=int, default=2000)
    arguments.add_argument("--kib", type=int, default=256, help="of a clip")
    arguments.add_argument("--keep", action="store_true", help="write the zip to a temporary file and test it")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="clipmill-zip-") as temporary:
        folder = Path(temporary)
        url = f"sqlite:///{folder / 'store.db'}"
        size = options.kib * 1024
        batch_id = fill(url, folder / "storage", options.clips, size)
        with gateway(url, folder) as (pid, port):
            target = folder / "results.zip" if options.keep else None
            figures = stream(pid, port, batch_id, options.clips * size, target)
        aims = [
            Aim(name="most resident ÷ after a tenth", value=figures["rss_most_mib"] / figures["rss_early_mib"],
                at_most=RATIO_AIM),
            Aim(name="more resident than before", value=figures["rss_most_mib"] - figures["rss_before_mib"],
                at_most=MORE_AIM_MIB, unit="MiB"),
        ]  # fmt: skip
        if target:
            with zipfile.ZipFile(target) as made:
                bad = made.testzip()
                figures["files"] = len(made.namelist())
            aims.append(Aim(name="damaged files", value=0 if bad is None else 1, at_most=0))
            aims.append(Aim(name="missing files", value=3 * options.clips + 1 - figures["files"], at_most=0))
    return Report(name="results_zip", figures=figures, aims=aims).finish(options)


if __name__ == "__main__":
    sys.exit(main())
