"""`make chaos-real SEED=…`: real faults to a real farm on this machine, on SQLite and, where there is one, PostgreSQL.

Farms are started, killed and started again: several minutes a seed and store. Root is needed for faults of the storage.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import uuid
from pathlib import Path

import sqlalchemy as sa

from tests.chaos.play import Verdict, play


def main() -> None:
    """Play every seed on every store; exits 1 where anything is broken."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, nargs="+", default=[1])
    options.add_argument("--faults", type=int, default=60, help="faults of each run")
    options.add_argument("--store", choices=["sqlite", "postgresql", "both"], default="both")
    options.add_argument("--kind", nargs="+", help="do these faults, by name, in this order")
    options.add_argument("--json", type=Path, help="write the figures here")
    options.add_argument("--keep", action="store_true", help="keep homes and logs, which are deleted where all is well")
    given = options.parse_args()
    verdicts = [_run(seed, given, url) for seed in given.seed for url in _stores(given.store)]
    if given.json:
        machine = {"machine": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
        given.json.write_text(json.dumps({**machine, "runs": [one.to_json() for one in verdicts]}, indent=2))
    sys.exit(any(verdict.broken for verdict in verdicts))


def _stores(which: str) -> list[str | None]:
    server = os.environ.get("CLIPMILL_TEST_POSTGRES")
    if which == "postgresql" and not server:
        sys.exit("CLIPMILL_TEST_POSTGRES names no server")
    return [*([None] if which != "postgresql" else []), *([server] if which != "sqlite" and server else [])]


def _run(seed: int, given: argparse.Namespace, server: str | None) -> Verdict:
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"seed {seed} on {'PostgreSQL' if server else 'SQLite'}, in {folder}", flush=True)
    database, url = f"chaos_{uuid.uuid4().hex[:12]}", None
    if server:
        _administer(server, f"CREATE DATABASE {database}")
        url = sa.make_url(server).set(database=database).render_as_string(hide_password=False)
    try:
        verdict = play(folder, seed=seed, count=given.faults, database_url=url, kinds=given.kind, say=_say)
    finally:
        if server:
            _administer(server, f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
    _print(verdict)
    if not (given.keep or verdict.broken):
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    return verdict


def _administer(server: str, statement: str) -> None:
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as c:
        c.exec_driver_sql(statement)
    engine.dispose()


def _say(line: str) -> None:
    print(f"  {line}", flush=True)


def _print(verdict: Verdict) -> None:
    print(f"    {'fault':40} times  lost  twice  repeated steps  seconds each")
    for name, done in sorted(verdict.faults.items()):
        each = done.seconds / max(1, done.times)
        print(f"    {name:40} {done.times:5} {done.lost:5} {done.twice:6} {done.repeated:15} {each:13.1f}")
    print(
        f"  {verdict.count} faults, {verdict.restarts} restarts, {verdict.rows} rows,"
        f" attempts {verdict.attempts}, {verdict.repeated} of {verdict.steps} steps done again, {verdict.seconds:.0f} s"
    )
    for line in verdict.broken:
        print(f"  BROKEN {line}")
    print(f"  {'all held' if not verdict.broken else f'{len(verdict.broken)} things did not hold'}", flush=True)


if __name__ == "__main__":
    main()
