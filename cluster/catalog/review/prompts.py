"""Several prompts for every picture, as a file has them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from cluster.catalog.cells import MAX_PROMPTS
from pipeline.clips.clip import MAX_PROMPT_CHARACTERS
from pipeline.problems import BadInputError
from pipeline.small_files import read_small_file

#: A file of prompts is no larger.
MAX_PROMPTS_BYTES = 1 << 20
_FIELD = "prompts"


def read_prompts(path: str | PathLike[str]) -> list[str]:
    """The prompts of a file, a line each and each once; empty lines and those that begin with `#` are passed over.

    Raises `BadInputError` where there is none, where there are too many, and where one is too long or no text.
    """
    path, large = Path(path), "Write a prompt a line."
    data = read_small_file(path, MAX_PROMPTS_BYTES, _FIELD, unreadable="Check the path.", too_large=large)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(_FIELD, f"{path} is not text in UTF-8", "Save it as UTF-8.") from error
    lines = (line.strip() for line in text.splitlines())
    prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise BadInputError(_FIELD, f"{path} has no prompt", "Write a prompt a line.")
    if len(prompts) > MAX_PROMPTS:
        what = f"{path} has {len(prompts)} prompts, more than {MAX_PROMPTS} for a picture"
        raise BadInputError(_FIELD, what, "Hand in several batches.")
    if long := next((one for one in prompts if len(one) > MAX_PROMPT_CHARACTERS), None):
        what = f"a prompt has {len(long)} characters, more than {MAX_PROMPT_CHARACTERS}: {long[:40]!r}…"
        raise BadInputError(_FIELD, what, "Shorten it.")
    return prompts
