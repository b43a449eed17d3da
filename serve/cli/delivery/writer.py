"""Deliveries of a batch, made beside its clips while the rest is still rendered."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.catalog.names import file_stem
from cluster.results.deliveries import (
    DeliveredFile,
    DeliveryMaker,
    DeliveryTerms,
    FetchedObjects,
    Finish,
    KeptDeliveries,
    actions_of,
    deliveries_key,
    refused_all,
)
from cluster.results.export import ResultRow, write_delivery
from cluster.results.marked import FileOrigin, MarkedObjects
from cluster.results.ownership import NO_INPUTS, Inputs, RowRefusedError
from cluster.storage import Storage, StorageError
from pipeline.clips.encode import EncodeError
from pipeline.delivery.brands import read_brand
from pipeline.delivery.profiles import Lengthening, profile_names_of
from pipeline.delivery.verdicts import refused
from pipeline.marks.marker import Marker
from pipeline.problems import BadInputError, Problem
from serve.cli.options import OptionGroup
from serve.results_source import LocalResults, RemoteResults, ResultsSource
from serve.settings import Settings

_PANEL = "How clips are delivered (docs/deliveries.md)"
#: Below a home: finished files of a farm whose storage this machine does not reach.
_KEPT = "deliveries"
#: Profiles that are named in a terminal when they are refused.
MAX_REFUSALS_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class DeliveryOptions(OptionGroup):
    """Options on the files that are made of finished clips."""

    brand: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Overlays, fonts, colours, logo (default: brand.yaml in the home).",
            rich_help_panel=_PANEL,
        ),
    ] = None
    lengthen: Annotated[
        Lengthening, typer.Option(help="How clips that are too short become longer.", rich_help_panel=_PANEL)
    ] = Lengthening.AUTO
    profiles: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Delivery profiles of your own (default: profiles.yaml in the home).",
            rich_help_panel=_PANEL,
        ),
    ] = None

    def terms(self, settings: Settings, deliver: str = "") -> DeliveryTerms:
        """What the options say; `deliver`: profiles of rows that name none. Raises `BadInputError`."""
        profiles = settings.delivery_profiles(self.profiles)
        try:
            names = profile_names_of(deliver)
        except ValueError as error:
            raise BadInputError("--deliver", str(error), f"Choose some of: {', '.join(profiles.names)}.") from None
        for name in names:
            profiles.named(name)
        if names:
            require_reader()
        brand = read_brand(self.brand) if self.brand is not None else settings.deliveries().brand
        return DeliveryTerms(profiles=profiles, brand=brand, lengthening=self.lengthen, default=names)


def require_reader() -> None:
    """Raise `BadInputError` where what reads finished files is not installed."""
    if find_spec("av") is None:
        remedy = "pip install 'clipmill[deliver]' brings it."
        raise BadInputError("--deliver", "deliveries need PyAV, which is not installed", remedy)


class DeliveryWriter:
    """Makes the files of rows as their clips are done, one row at a time in a thread of its own, and writes them."""

    def __init__(
        self,
        maker: DeliveryMaker,
        out: Path,
        *,
        finish: Finish | None = None,
        inputs: Inputs = NO_INPUTS,
        told: Callable[[str], None] = lambda _text: None,
        name_of: Callable[[ResultRow, str], str] | None = None,
    ) -> None:
        """`finish`: the last step on every file, such as marks. `told` hears of files that are kept aside.

        `name_of`: what a row's file for a profile is called below `out`; None: `<profile>/<id>.mp4`.
        """
        self._maker, self._out, self._finish = maker, out, finish
        self.name_of = name_of
        self._inputs, self._told = inputs, told
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: list[tuple[ResultRow, Future[dict[str, DeliveredFile]]]] = []
        #: What became of each row, by its id and the profile's name; paths are those in OUT.
        self.made: dict[str, dict[str, DeliveredFile]] = {}

    @property
    def encoded(self) -> int:
        """Files that were encoded; the others were kept from before."""
        return self._maker.encoded

    @property
    def waiting(self) -> int:
        """Rows whose files are not all there yet."""
        return len(self._waiting)

    def take(self, row: ResultRow, catalog: str) -> None:
        """Have the files of a completed row made, if it asks for any."""
        if not self._maker.terms.wanted(row):
            return
        self._pool = self._pool or ThreadPoolExecutor(1, "deliveries")
        self._waiting.append((row, self._pool.submit(self._deliver, row, catalog)))

    def collect(self, *, wait: bool = False) -> bool:
        """Note what is done, all of it with `wait`; returns whether there was anything new.

        Raises `ResultsError` where nothing can be written any more.
        """
        left, new = [], False
        for row, future in self._waiting:
            if wait or future.done():
                self.made[row.id] = future.result()
                new = True
            else:
                left.append((row, future))
        self._waiting = left
        return new

    def close(self) -> None:
        """Begin no further row; the one that is under way comes to its end."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def words_of(self, row_id: str) -> dict[str, str]:
        """What became of a row for each profile, in words."""
        return {name: words(one) for name, one in self.made.get(row_id, {}).items()}

    @property
    def refusals(self) -> list[str]:
        """What was not delivered and why, one line each."""
        return [
            f"{row_id}: {one.verdict.problem.message}. {one.verdict.problem.remedy}"
            for row_id, files in self.made.items()
            for one in files.values()
            if not one.delivered and one.verdict.problem is not None
        ]

    def to_json(self) -> dict[str, Any]:
        """For `--json`: by row and profile the file, if there is one, and the verdict."""
        return {
            row_id: {
                name: {"file": str(one.path) if one.path else None, "verdict": one.verdict.model_dump(mode="json")}
                for name, one in files.items()
            }
            for row_id, files in self.made.items()
        }

    def _deliver(self, row: ResultRow, catalog: str) -> dict[str, DeliveredFile]:
        with tempfile.TemporaryDirectory(prefix="clipmill-") as folder:
            try:
                delivered = self._maker.deliver(row, Path(folder))
            except (StorageError, BadInputError) as error:
                return refused_all(self._maker.terms.wanted(row), error.problem)
            except EncodeError as error:
                # Of this row: a disk that is full for all of them is met where they are written.
                problem = Problem(field="deliver", message=str(error), remedy="Run the command again.")
                return refused_all(self._maker.terms.wanted(row), problem)
            return {name: self._write(row, one, catalog) for name, one in delivered.items()}

    def _write(self, row: ResultRow, one: DeliveredFile, catalog: str) -> DeliveredFile:
        try:
            name = self.name_of(row, one.profile) if self.name_of else ""
            more = {"name": name, "inputs": self._inputs, "catalog": catalog, "told": self._told}
            write_delivery(self._out, row, one, self._finish, **more)  # type: ignore[arg-type]
        except (RowRefusedError, StorageError) as error:
            return replace(one, path=None, verdict=refused(one.profile, error.problem))
        if one.path is None:
            return one
        return replace(one, path=self._out / name if name else delivered_path(self._out, row, one.profile))


def words(delivered: DeliveredFile) -> str:
    """What became of a file, for people."""
    if delivered.delivered:
        facts = delivered.verdict.facts
        return f"delivered ({facts.get('frame', '')}; {facts.get('length', '')})"
    problem = delivered.verdict.problem
    return f"not delivered: {problem.message if problem else ''}"


def delivered_path(out: Path, row: ResultRow, profile: str) -> Path:
    """Where a row's file for a profile lies in OUT."""
    return out / profile / f"{file_stem(row.id)}.mp4"


class DeliveryMarks:
    """Marks finished files as the gateway does that hands them out; see `cluster.results.marked`."""

    def __init__(self, marked: MarkedObjects, terms: DeliveryTerms) -> None:
        """`marked`: the storage in which finished files are kept."""
        self._marked, self._terms = marked, terms

    @property
    def name(self) -> str:
        """Names who marks, and changes with them."""
        return f"marks-{self._marked.marks}"

    def __call__(self, delivered: DeliveredFile, row: ResultRow, target: Path) -> None:
        """Write the marked file to `target`; what is kept stays as it is. Raises `OSError` and `StorageError`."""
        key = deliveries_key(delivered.key)
        done = actions_of(row, self._terms.profiles.named(delivered.profile), self._terms)
        provenance = row.provenance_key or ""
        self._marked.tell(key, FileOrigin(provenance=provenance, profile=delivered.profile, actions=done))
        self._marked.get_to(key, target)


def delivery_writer(
    source: ResultsSource,
    settings: Settings,
    out: Path,
    terms: DeliveryTerms,
    *,
    inputs: Inputs = NO_INPUTS,
    told: Callable[[str], None] = lambda _text: None,
    name_of: Callable[[ResultRow, str], str] | None = None,
) -> DeliveryWriter:
    """What makes the deliveries of a batch and writes them into `out`, as `delivery_maker` makes them."""
    maker, finish = delivery_maker(source, settings, terms)
    return DeliveryWriter(maker, out, finish=finish, inputs=inputs, told=told, name_of=name_of)


def delivery_maker(
    source: ResultsSource, settings: Settings, terms: DeliveryTerms
) -> tuple[DeliveryMaker, Finish | None]:
    """What makes the files of a batch's rows, and the last step on them.

    Finished files are kept in the farm's storage where it is at hand. They are marked as `source` marks clips, or by
    this machine where they come from another's farm.
    """
    # Made of clips as they were published: marks come last, on what was made.
    objects: FetchedObjects
    if isinstance(source, LocalResults):
        objects, storage, marked = source.storage, source.storage, source.marked
    elif isinstance(source, RemoteResults):
        storage = Storage(str(settings.home / _KEPT))
        objects = source.objects
        marked = MarkedObjects(storage, lambda: Marker.of(settings.marks), origins=source.objects)
    else:
        raise TypeError(f"{type(source).__name__} has no clips to deliver")
    maker = DeliveryMaker(objects, KeptDeliveries(storage), terms)
    return maker, None if marked is None else DeliveryMarks(marked, terms)
