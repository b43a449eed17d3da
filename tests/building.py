"""Small parts that several tests are made of."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import sqlalchemy as sa
from PIL import Image

from cluster.fleet.cards import Beat, Card, CardState, Fleet
from cluster.jobs.model import Draft, Job, Objects, Outcome
from cluster.jobs.outcomes import ENDINGS, Completed, Ended
from cluster.store import Claim, Database, DispatchStore
from cluster.store.schema import attempts, clips, jobs, tallies
from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.families import FAMILIES
from pipeline.problems import Problem
from pipeline.units import GIB

FLEET = Fleet(usable_bytes={"c8": 7 * GIB, "c24": 21 * GIB})
PROBLEM = Problem(field="image", message="it is no picture", remedy="Give a PNG.")


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now: float = 1_000_000) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def set_on(self, database: Database) -> Clock:
        """Make this the store's clock."""
        database.now = lambda _connection: int(self.now)  # type: ignore[method-assign]
        return self


def spec(family: str = "camera", **changes: Any) -> ClipSpec:
    values = {
        "family": family,
        "revision": FAMILIES[family].revision,
        "prompt": "pan left",
        "resolution_class": ResolutionClass.P256,
        "width": 256,
        "height": 256,
        "frames": 8,
        "fps": 8,
        "steps": 1,
        "guidance": 1,
        "seed": 0,
    }
    return ClipSpec(**(values | changes))


def draft(number: int, key: str | None = None, **changes: Any) -> Draft:
    values: dict[str, Any] = {
        "number": number,
        "name": f"row{number}",
        "row": {"number": number},
        "still": "ab" * 32,
        "spec": spec(),
        "content_key": key or f"key{number}",
    }
    return Draft(**(values | changes))


def bad_draft(number: int) -> Draft:
    return Draft(number=number, name=f"row{number}", row={}, problems=(PROBLEM,))


def card(name: str = "gpu0", usable_bytes: int = 7 * GIB, *, idle: bool = True, family: str | None = None) -> Card:
    return Card(
        renderer=f"renderer-{name}",
        card=name,
        card_class="c8",
        kind="test",
        usable_bytes=usable_bytes,
        idle=idle,
        family=family,
    )


def beat(name: str = "gpu0", *, renderer: str | None = None, usable_bytes: int = 7 * GIB, **changes: Any) -> Beat:
    values = {
        "renderer": renderer or f"renderer-{name}",
        "card": name,
        "card_class": "c8",
        "kind": "test",
        "total_bytes": 8 * GIB,
        "usable_bytes": usable_bytes,
        "used_bytes": 0,
        "state": CardState.IDLE,
    }
    return Beat(**(values | changes))


def objects(of: str = "x") -> Objects:
    return Objects(
        video=f"clips/{of}/video.mp4",
        poster=f"clips/{of}/poster.jpg",
        spritesheet=f"clips/{of}/spritesheet.jpg",
        provenance=f"clips/{of}/provenance.json",
        video_bytes=1000,
        frames_sha256="cd" * 32,
    )


def ended_with(outcome: Outcome, **facts: Any) -> Ended:
    """An ending of that outcome, with those of the facts that it can tell."""
    kind = ENDINGS[outcome]
    if outcome is Outcome.COMPLETED:
        facts.setdefault("objects", objects())
    told = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in facts.items() if name in told})


def completed(claim: Claim) -> Ended:
    return Completed(objects=objects(claim.attempt_id))


@dataclass(frozen=True)
class Truth:
    """What the tables hold, read without the code under test."""

    database: Database

    def rows(self, query: sa.Select[Any]) -> list[Any]:
        with self.database.engine.connect() as c:
            return list(c.execute(query).all())

    def job(self, job_id: str) -> Any:
        return self.rows(sa.select(jobs).where(jobs.c.id == job_id))[0]

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of all tables, for `nothing changed`."""
        found = {}
        for table in jobs.metadata.sorted_tables:
            if table.name != "alembic_version":
                found[table.name] = sorted((tuple(map(repr, row)) for row in self.rows(sa.select(table))), key=repr)
        return found

    def rows_of_before(self, like: dict[str, list[tuple[Any, ...]]] | None = None) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of the tables and columns that are there by the database's own word, or of those in `like`."""
        found: dict[str, list[tuple[Any, ...]]] = {}
        with self.database.engine.connect() as c:
            for table in like or sa.inspect(c).get_table_names():
                if table != "alembic_version":
                    names = like[table][0] if like else [column["name"] for column in sa.inspect(c).get_columns(table)]
                    columns = ", ".join(f'"{name}"' for name in names)
                    rows = c.execute(sa.text(f'SELECT {columns} FROM "{table}"')).all()
                    found[table] = [tuple(names), *sorted((tuple(map(repr, row)) for row in rows), key=repr)]
        return found

    def attempts(self) -> list[Any]:
        return self.rows(sa.select(attempts).order_by(attempts.c.job_id, attempts.c.fence))

    def clips(self) -> list[Any]:
        return self.rows(sa.select(clips))

    def tally(self, name: str, **labels: str) -> float:
        query = sa.select(sa.func.coalesce(sa.func.sum(tallies.c.value), 0)).where(tallies.c.name == name)
        for label, value in labels.items():
            query = query.where(tallies.c[label] == value)
        return float(self.rows(query)[0][0])


def claim_one(dispatch_store: DispatchStore, job: Job, name: str = "gpu0") -> Claim:
    (claim,) = dispatch_store.start([(job, card(name))], 10)
    return claim


def still_png(size: tuple[int, int] = (160, 120), seed: int = 0) -> bytes:
    """A picture with some detail, so that no review calls it blank."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(out, "PNG")
    return out.getvalue()
