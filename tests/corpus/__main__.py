"""`python -m tests.corpus [SEED]`: hostile inputs of a seed against ingest and API; exits 1 where one gets through."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from cluster.store import Database
from tests.corpus.make import hostile
from tests.corpus.run import run


def main() -> int:
    """Run and print what did not hold."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    inputs = hostile(seed)
    with tempfile.TemporaryDirectory() as folder:
        database = Database.in_folder(Path(folder) / "home")
        held = run(inputs, Path(folder), database)
        database.close()
    doors = ", ".join(f"{count} by {door}" for door, count in Counter(one.door for one in inputs).items())
    slowest = max(held, key=lambda one: one.cpu_s)
    print(f"seed {seed}: {len(held)} inputs ({doors})")
    print(f"slowest: {slowest.name}, {slowest.cpu_s:.1f} CPU s ({slowest.answer})")
    largest = max(held, key=lambda one: one.bytes)
    print(f"most memory: {largest.name}, {largest.bytes / 1e6:.0f} MB ({largest.answer})")
    faults = [one for one in held if one.fault]
    for one in faults:
        print(f"FAULT {one.name}: {one.fault}")
    print(f"{len(faults)} got through")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
