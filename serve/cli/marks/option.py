"""The option `--no-marks`, and what commands that write clips say of marks."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from cluster.farm import Farm
from pipeline.marks.marker import Marker
from pipeline.problems import BadInputError
from serve.cli.common import console
from serve.client import FarmClient, LocalClient, RemoteClient
from serve.results_source import ResultsSource, results_source
from serve.settings import Settings

NoMarks = Annotated[
    bool,
    typer.Option(
        "--no-marks", help="Write clips without what says that a machine made them; recorded (docs/marks.md)."
    ),
]


def unmarked(farm: Farm) -> Farm:
    """The view of a farm whose files leave as they are in storage."""
    return replace(farm, marked=None)


def source_with_marks(client: FarmClient, settings: Settings, *, no_marks: bool, quiet: bool) -> ResultsSource:
    """The results of the farm that a client speaks to, marked unless that is not wanted.

    Raises `BadInputError` where files cannot be signed as they should, or another machine's farm decides.
    """
    if isinstance(client, RemoteClient) and no_marks:
        remedy = "Leave it out, or ask whoever runs that farm for `marks: off` in its arguments."
        raise BadInputError("no_marks", f"{client.url} marks what it sends", remedy)
    if isinstance(client, LocalClient):
        tell_of_marks(settings, no_marks=no_marks, quiet=quiet)
        if no_marks:
            client.farm = unmarked(client.farm)
    return results_source(client)


def tell_of_marks(settings: Settings, *, no_marks: bool, quiet: bool) -> None:
    """Say in one line that clips carry no signed mark, where they do not. Raises `BadInputError`."""
    if no_marks:
        line = "clips carry no marks, as --no-marks says; the law of many countries wants them (docs/marks.md)"
    else:
        marker = Marker.of(settings.marks)
        if marker.identity is not None and not marker.identity.is_test:
            return
        line = marker.summary
    if not quiet:
        console.print(f"  {line}", style="dim", markup=False, soft_wrap=True)
