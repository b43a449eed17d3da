"""`check`: what is wrong with a catalog and what would be assumed of it, before anything is rendered."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.catalog.advice.deliveries import DeliveryPreflight
from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import draft, gather
from cluster.forecast.card_notes import card_notes
from cluster.forecast.within import TimeChooser
from cluster.jobs.after import judged
from pipeline.clips.inspection.words import can_read, read_words, text_note
from pipeline.clips.stills import open_still
from pipeline.families import FAMILIES, family_named
from pipeline.models.tokens import PromptLengths
from pipeline.notes import Note
from pipeline.notes import as_json as notes_json
from pipeline.problems import BadInputError
from serve.cli.common import (
    Exit,
    Home,
    Json,
    console,
    exit_on_error,
    known_times,
    knows_job,
    print_json,
    settings_for,
)
from serve.cli.feeds.told import print_taken_for
from serve.cli.options import Catalog, FewStepFile, RowOptions, few_step_of, with_option_groups
from serve.cli.render import choose_model
from serve.cli.show import notes_text, problems_table, unknown_text, waits_text
from serve.gateway.forecasting import Sizes


@with_option_groups()
def check(
    catalog: Catalog,
    model: Annotated[str, typer.Option(help="Model of rows that name none; `clipmill models` lists them.")] = "auto",
    rows: RowOptions = RowOptions(),  # noqa: B008 - frozen
    few_step: FewStepFile = None,
    read_text: Annotated[
        bool,
        typer.Option("--read-text", help="Look for much text in the pictures: seconds each (clipmill[text])."),
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Say what is wrong with a catalog's rows and what would be assumed of them; nothing is rendered or handed in.

    Exit 1 where some rows cannot be rendered.
    """
    with exit_on_error():
        if read_text and not can_read():
            raise BadInputError("--read-text", "RapidOCR is not installed", "pip install 'clipmill[text]'")
        family = choose_model(model)[0] if model == "auto" else family_named(model).name
        settings = settings_for(home)
        manifest = rows.read(catalog, family, settings.home)
        fast = few_step_of(settings, few_step)
        defaults = Defaults(model=family, **rows.defaults().model_dump(), few_step=fast)
        asks = bool(defaults.deliver) or any(row.deliver for row in manifest.good)
        more = {"more": _text_of} if read_text else {}
        sizes = Sizes(notes=True, products=asks, **more)
        looks = DeliveryPreflight(profiles=settings.delivery_profiles(), product_of=sizes.product)
        lengths = PromptLengths(settings.home)
        estimates, cards = known_times(settings)
        choose = TimeChooser(cards, estimates)
        drafts = judged(
            [
                # Whether a licence is accepted is no matter of the rows.
                draft(
                    one,
                    defaults,
                    sizes.get,
                    accepted=FAMILIES,
                    cut_texts=lengths.cut,
                    still_notes=sizes.notes,
                    choose=choose,
                    deliveries=looks,
                )
                for one in gather(manifest, sizes.put, rows.remote())
            ],
            knows_job(settings),
        )
        largest = max((group.usable_bytes for group in cards), default=0)
        found: list[dict[str, Any]] = [
            {
                "number": one.number,
                "name": one.name,
                "row": {name: one.row.get(name) for name in ("number", "line")},
                "not_before": one.not_before,
                "after": one.after,
                "problems": [problem.model_dump() for problem in one.problems],
                "noted": [*one.row.get("noted", []), *notes_json(card_notes(one.spec, largest) if one.spec else ())],
            }
            for one in drafts
        ]
        bad = [row for row in found if row["problems"]]
        if as_json:
            told = {"taken_for": manifest.taken_for} if manifest.taken_for else {}
            print_json({"rows": found, "unknown_columns": manifest.unknown, "model": family, **told})
        else:
            print_taken_for(manifest)
            for note in [*unknown_text(manifest), *notes_text(found)]:
                console.print(f"  note: {note}", style="dim", markup=False, soft_wrap=True)
            for words in waits_text([row for row in found if not row["problems"]]):
                console.print(f"  starts: {words}", markup=False, soft_wrap=True)
            if bad:
                console.print(problems_table(bad))
            good = len(found) - len(bad)
            mark = "[bold yellow]![/]" if bad else "[bold green]✓[/]"
            words = f"{mark} {good} of {len(found)} clips can be rendered with {family}"
            console.print(words, soft_wrap=True, markup=True)
    raise typer.Exit(Exit.SOME_FAILED if bad else Exit.DONE)


def _text_of(data: bytes) -> list[Note]:
    """What is to be said of the words in a still that was opened once already, within bounds."""
    note = text_note(read_words(open_still(data)))
    return [] if note is None else [note]
