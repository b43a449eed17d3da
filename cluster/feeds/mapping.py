"""A mapping: which column of somebody's table means what, written down in YAML.

    columns: {id: Artikelnummer, image: Bild, title: Bezeichnung, price: Preis}
    defaults: {brand: Acme}
    image_separator: "|"
    video_column: Video

`columns` says for ours which of theirs is meant; `defaults` what stands where a cell is empty.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.problems import BadInputError
from pipeline.small_files import read_small_file

MAX_MAPPING_BYTES = 1 << 20
_FIELD = "--mapping"
_FORM = "Write `columns: {id: THEIRS, image: THEIRS}` (docs/feeds.md)."


class FeedMapping(BaseModel):
    """Which of their columns are which of ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Name of the column by our name; `id` and `image` are needed.
    columns: dict[str, str]
    #: What a row has that leaves a column empty, by our name.
    defaults: dict[str, str] = Field(default_factory=dict)
    #: What stands between several pictures in one cell; empty: a cell is one picture.
    image_separator: str = Field(default="", max_length=3)
    #: The column that links to clips go to.
    video_column: str = Field(default="video_link", min_length=1, max_length=200)


def read_mapping(path: Path) -> FeedMapping:
    """The mapping in the file at `path`. Raises `BadInputError` on `--mapping` where there is none."""
    data = read_small_file(
        path, MAX_MAPPING_BYTES, _FIELD, unreadable="Check its name and permissions.", too_large="Leave out the rest."
    )
    try:
        mapping = FeedMapping.model_validate(yaml.safe_load(data.decode("utf-8-sig")))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(_FIELD, f"{path} is no YAML: {str(error).splitlines()[0][:200]}", _FORM) from error
    except ValidationError as error:
        # A name that is misspelt says more than the one that is missing for it.
        first = min(error.errors(), key=lambda one: one["type"] == "missing")
        where = ".".join(map(str, first["loc"])) or "it"
        raise BadInputError(_FIELD, f"{path}: {where}: {first['msg']}", _FORM) from error
    if missing := [name for name in ("id", "image") if name not in mapping.columns]:
        raise BadInputError(_FIELD, f"{path} does not say which column is {' and '.join(missing)}", _FORM)
    return mapping
