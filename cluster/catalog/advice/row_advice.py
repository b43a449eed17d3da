"""What is to be said of rows before their pictures are read: faults, findings on prompts, traps of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import CutTexts
from cluster.catalog.manifest import BadRow, RowRead
from cluster.catalog.resolve import RowProblems, resolve
from pipeline.clips.clip import NO_PROMPT, ClipSpec
from pipeline.families import FAMILIES
from pipeline.lint.lint import PromptTexts, rewritten
from pipeline.notes import NewCell, Note, Severity, distinct, reading_notes
from pipeline.problems import Problem

#: A still of which nothing is known: a square that no class enlarges.
UNKNOWN_STILL = (2048, 2048)
_TEXTS = ("prompt", "negative_prompt")


@dataclass(frozen=True, kw_only=True)
class RowAdvice:
    """What is said of one row."""

    number: int
    line: int | None
    id: str
    #: Prompt as the row is rendered with it: empty where it has none, or cannot be read.
    prompt: str = ""
    negative_prompt: str = ""
    #: Why it cannot be rendered.
    problems: tuple[Problem, ...] = ()
    #: What a person should know, each once.
    notes: tuple[Note, ...] = ()
    #: New values by column with which nothing is left that has a fix; {} where there is nothing to change.
    fixed: Mapping[str, NewCell]

    @property
    def warns(self) -> bool:
        """Whether the row needs a second thought."""
        return bool(self.problems) or any(note.severity is Severity.WARNING for note in self.notes)


def advise(
    row: RowRead,
    defaults: Defaults,
    *,
    still_size: tuple[int, int] = UNKNOWN_STILL,
    cut_texts: CutTexts | None = None,
    of_clip: Callable[[ClipSpec], Iterable[Note]] | None = None,
) -> RowAdvice:
    """What is said of a row whose upright still has `still_size` (width, height) pixels; nothing is read or made.

    `cut_texts` tells what of its texts is cut, as in `cluster.catalog.ingest`. `of_clip` adds notes on the clip, such
    as that no card holds it.
    """
    if isinstance(row, BadRow):
        return RowAdvice(number=row.number, line=row.line, id=row.id, problems=row.problems, fixed={})
    found = RowAdvice(number=row.number, line=row.line, id=row.id, fixed={}, prompt=row.prompt or "")
    found = replace(found, negative_prompt=row.negative_prompt or "")
    try:
        resolved = resolve(row, still_size, defaults, "")
    except RowProblems as error:
        return replace(found, problems=error.problems, notes=row.notes)
    spec = resolved.spec
    if spec.prompt != NO_PROMPT:
        found = replace(found, prompt=spec.prompt)
    texts = {"prompt": spec.prompt, "negative_prompt": spec.negative_prompt}
    cut = reading_notes(cut_texts(spec), texts) if cut_texts is not None else []
    told = list(of_clip(spec)) if of_clip is not None else []
    if row.seconds is not None:
        # A row says one of both.
        told = [n.model_copy(update={"fix": {**n.fix, "seconds": None}}) if "frames" in n.fix else n for n in told]
    notes = distinct([*row.notes, *resolved.noted, *cut, *told])
    return replace(found, notes=notes, fixed=_fixed(spec, notes))


def _fixed(spec: ClipSpec, notes: Sequence[Note]) -> dict[str, NewCell]:
    """The fixes of all notes together; of a column that several change the first."""
    new: dict[str, NewCell] = {}
    for note in notes:
        if not new.keys() & note.fix.keys():
            new |= {name: value for name, value in note.fix.items() if name not in _TEXTS}
    start = PromptTexts(prompt=spec.prompt, negative_prompt=spec.negative_prompt)
    texts = rewritten(FAMILIES[spec.family], start)
    cut = next((note.fix for note in notes if note.code == "prompt_cut" and note.fix), None)
    if cut is not None and texts.prompt == start.prompt:
        texts = rewritten(FAMILIES[spec.family], replace(texts, prompt=str(cut["prompt"])))
    for name in _TEXTS:
        if getattr(texts, name) != getattr(start, name):
            new[name] = getattr(texts, name)
    return new
