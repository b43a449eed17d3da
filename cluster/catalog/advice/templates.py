"""Prompts with places which columns fill, kept by a team or typed for one batch: `slow orbit around {color|a} {title}`.

A place is a column's name in braces, spelt as columns may be; behind a bar stands what is said where the column is
empty. Braces that are meant are doubled. A place that stays empty is a problem of its row: nothing is rendered with a
hole in its prompt. A file of templates is YAML: a name, and either the prompt or a table of `prompt`, `negative_prompt`
and `comment`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.catalog.advice.places import PLACE, fault_of_places, needed_columns, not_among
from cluster.catalog.cells import COLUMNS
from cluster.catalog.columns import letters_of
from pipeline.lint.texts import tidied
from pipeline.problems import BadInputError, Problem
from pipeline.small_files import read_small_file

#: Largest file of templates, in bytes, and most templates in it.
MAX_TEMPLATES_BYTES, MAX_TEMPLATES = 1 << 20, 1000
#: Characters of a cell that fill a place: a description is no colour.
MAX_FILLED_CHARACTERS = 200
_FIELD = "--template"
_FORM_OF_PLACES = "Write {column}, {column|instead}, or {{ and }} for braces that are meant."
#: Columns that say how a clip is made, not what its picture shows: not offered for a place.
_TOLD_OTHERWISE = COLUMNS - {"id"}

#: Places that every row fills: what it is called by, whether a column says it or not.
OWN_PLACES = ("id", "name")
#: Columns named in a remedy.
_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class FilledPrompt:
    """A template's texts for one row."""

    #: The texts without the places that are empty.
    prompt: str
    negative_prompt: str
    #: Columns that are empty and for which the template says nothing.
    empty: tuple[str, ...]
    #: Places that the row could have filled.
    there: tuple[str, ...] = ()

    @property
    def problem(self) -> Problem | None:
        """Why the row is not rendered with these texts; None where no place of them is empty."""
        if not self.empty:
            return None
        places = ", ".join(f"{{{name}}}" for name in self.empty)
        message = f"the prompt for all rows has a place for {places}, which this row leaves empty"
        others = ", ".join(f"{{{name}}}" for name in self.there[:_NAMED])
        instead = f"{{{self.empty[0]}|instead}}"
        remedy = f"Fill the column in, give the row a prompt of its own, or write {instead}; the row has {others}."
        return Problem(field="prompt", message=message, remedy=remedy)


class PromptTemplate(BaseModel):
    """A prompt with places for columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(min_length=1, max_length=2000)
    negative_prompt: str = Field(default="", max_length=2000)
    #: For people.
    comment: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns without which a place is empty: those that have nothing instead."""
        return needed_columns(self.prompt, self.negative_prompt)

    def filled(self, values: Mapping[str, object]) -> FilledPrompt:
        """The texts with the places filled from a row's `values` by column."""
        texts_of = {name: text for name, value in values.items() if (text := _text(value))}
        known = {letters_of(name): text for name, text in texts_of.items()}
        empty: dict[str, None] = {}

        def fill(place: re.Match[str]) -> str:
            if place["column"] is None:
                return place.group()[0]
            if value := known.get(letters_of(place["column"]), ""):
                return value
            if place["instead"] is None:
                empty[place["column"].strip()] = None
            return (place["instead"] or "").strip()

        texts = [PLACE.sub(fill, text) for text in (self.prompt, self.negative_prompt)]
        if empty:
            texts = [tidied(text) for text in texts]
        elif any(place["column"] is not None for place in PLACE.finditer(self.prompt)):
            # Where nothing stands instead, two spaces are left.
            texts = [" ".join(text.split()) for text in texts]
        prompt, negative_prompt = (text.strip() for text in texts)
        there = tuple(name for name in texts_of if name not in _TOLD_OTHERWISE)
        return FilledPrompt(prompt=prompt, negative_prompt=negative_prompt, empty=tuple(empty), there=there)

    def missing(self, columns: Iterable[str]) -> list[str]:
        """Places for which a catalog of these columns has none, and which say nothing instead."""
        return not_among(self.columns, (*columns, *OWN_PLACES))


def plain_template(prompt: str) -> PromptTemplate | None:
    """A template that is one prompt as it is written, braces too; None where it is empty."""
    text = prompt.strip()
    return PromptTemplate.model_construct(prompt=text.replace("{", "{{").replace("}", "}}")) if text else None


def typed_template(prompt: str) -> PromptTemplate | None:
    """What somebody typed as the prompt of many rows: a template where it has places, else as it is written.

    Raises `BadInputError` on `prompt` for a place without a name, and a brace without its other one beside places.
    """
    text = prompt.strip()
    if not any(place["column"] for place in PLACE.finditer(text)):
        return plain_template(text)
    template = PromptTemplate.model_construct(prompt=text)
    if fault := fault_of_places(text):
        raise BadInputError("prompt", fault, _FORM_OF_PLACES)
    return template


def template_named(path: Path, name: str) -> PromptTemplate:
    """The template of that name in the file at `path`. Raises `BadInputError` where it is not to be had."""
    templates = read_templates(path)
    if name not in templates:
        there = ", ".join(sorted(templates)[:20]) or "none"
        raise BadInputError(_FIELD, f"{path} has no template {name!r}", f"There are: {there}.")
    return templates[name]


def read_templates(path: Path) -> dict[str, PromptTemplate]:
    """All templates of a file by name. Raises `BadInputError` where it cannot be read, or one of them is none."""
    remedy = "Name the file with --templates, or write templates.yaml into the farm's home."
    large = "Leave out what is no prompt."
    data = read_small_file(path, MAX_TEMPLATES_BYTES, _FIELD, unreadable=remedy, too_large=large)
    return templates_of(data, str(path))


def templates_of(data: bytes, source: str) -> dict[str, PromptTemplate]:
    """The templates that the YAML text `data` holds, by name; `source` names it in errors. Raises `BadInputError`."""
    form = "Write `name: prompt`, or below the name `prompt:` and `negative_prompt:` (examples/templates.yaml)."
    try:
        found: Any = yaml.safe_load(data.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        first = str(error).splitlines()[0][:200]
        raise BadInputError(_FIELD, f"{source} is no YAML: {first}", form) from error
    if found is None:
        return {}
    if not isinstance(found, dict) or len(found) > MAX_TEMPLATES:
        raise BadInputError(_FIELD, f"{source} is no table of up to {MAX_TEMPLATES} templates", form)
    return {str(name): _template(str(name), value, source, form) for name, value in found.items()}


def _template(name: str, value: Any, source: str, form: str) -> PromptTemplate:
    try:
        made = PromptTemplate.model_validate({"prompt": value} if isinstance(value, str) else value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInputError(_FIELD, f"{source}: {name}: {where} {first['msg']}", form) from error
    for text in (made.prompt, made.negative_prompt):
        if fault := fault_of_places(text):
            raise BadInputError(_FIELD, f"{source}: {name}: {fault}", _FORM_OF_PLACES)
    return made


def _text(value: object) -> str:
    if value is None or isinstance(value, (dict, list, tuple)):
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())[:MAX_FILLED_CHARACTERS]
