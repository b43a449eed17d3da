"""What of a text its encoder does not see; counted by the tokenizers of weights, without torch."""

from __future__ import annotations

import html
import importlib
import logging
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.clips.clip import ClipSpec
from pipeline.families import Family, family_named
from pipeline.weights.weights import built_folder, cached_folder

log = logging.getLogger("clipmill.models")

#: Length, in tokens, of the prompt embeddings that Wan's denoiser was trained on.
WAN_TOKENS = 512
#: Tokens that an engine's encoder reads, those that mark begin and end included, and how many of these there are.
_READ = {"i2vgen-xl": (77, 2), "wan": (WAN_TOKENS, 1)}


def cut_of(texts: Mapping[str, str], tokens_of: Callable[[str], int], most: int) -> dict[str, Any]:
    """By `<name>_tokens_cut` and `<name>_cut`, how many tokens of each text are beyond `most`, and which words.

    `tokens_of` counts a text's tokens, those that mark its begin and end included. The first of the words may be cut
    within.
    """
    cut: dict[str, Any] = {}
    for name, text in texts.items():
        beyond = tokens_of(text) - most
        if beyond <= 0:
            continue
        words = text.split()
        # A beginning of a text never has more tokens than all of it.
        seen = bisect_right(range(1, len(words) + 1), most, key=lambda count: tokens_of(" ".join(words[:count])))
        cut |= {f"{name}_tokens_cut": beyond, f"{name}_cut": " ".join(words[seen:])}
    return cut


def texts_of(spec: ClipSpec) -> dict[str, str]:
    """The texts of a clip that encoders read, by name."""
    return {"prompt": spec.prompt, "negative_prompt": spec.negative_prompt}


def clean_text(prompt: str) -> str:
    """The prompt as Wan's text encoder was trained on it: entities resolved, white space collapsed.

    diffusers also mends mis-decoded characters where `ftfy` is installed; a clip must not depend on that.
    """
    return " ".join(html.unescape(html.unescape(prompt)).split())


@dataclass(frozen=True)
class TokenCounter:
    """A tokenizer as an engine uses it."""

    engine: str
    tokenizer: Any

    @property
    def most(self) -> int:
        """Tokens that the engine's encoder reads."""
        return WAN_TOKENS if self.engine == "wan" else int(self.tokenizer.model_max_length)

    def count(self, text: str) -> int:
        """Tokens of a text, those that mark its begin and end included."""
        text = clean_text(text) if self.engine == "wan" else text
        return len(self.tokenizer(text, truncation=False, verbose=False).input_ids)

    def cut(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """What is cut of each text, as `cut_of` says it."""
        return cut_of(texts, self.count, self.most)


class PromptLengths:
    """Says what of a clip's texts will be cut before the clip is rendered, as far as this machine can tell."""

    def __init__(self, home: Path, folders: Mapping[str, Path] = MappingProxyType({})) -> None:
        """`home`: where weights are kept; `folders`: those of families whose weights lie elsewhere."""
        self._home = home
        self._folders = folders
        self._counters: dict[str, TokenCounter] = {}

    def cut(self, spec: ClipSpec) -> dict[str, Any]:
        """What is cut of the clip's texts, as `cut_of` says it.

        Without the tokenizer of the weights only what is sure: that a text has more words than its encoder reads
        tokens; then `<name>_at_least` is true. The renderer counts again, and exactly.
        """
        family = family_named(spec.family)
        read = _READ.get(family.engine)
        if read is None:
            return {}
        texts = {name: text for name, text in texts_of(spec).items() if not _fits(text, read[0] - read[1])}
        if not texts:
            return {}
        counter = self._counter(family)
        return counter.cut(texts) if counter is not None else _surely_cut(family, texts, read[0] - read[1])

    def _counter(self, family: Family) -> TokenCounter | None:
        if family.name not in self._counters:
            found = self._load(family)
            if found is None:
                return None
            self._counters[family.name] = TokenCounter(family.engine, found)
        return self._counters[family.name]

    def _load(self, family: Family) -> Any:
        place = cached_folder if family.repo else built_folder
        folder = self._folders.get(family.name) or place(family, self._home)
        component = next((one for one in family.components if one.name == "tokenizer"), None)
        if component is None or not any((folder / component.name / name).is_file() for name in component.files):
            return None
        try:
            # By name, and only here: whoever has short prompts need not have it installed.
            library = importlib.import_module(component.library)
            return getattr(library, component.cls).from_pretrained(folder / component.name, local_files_only=True)
        except Exception as error:
            # Damaged weights are told where they are loaded.
            log.warning("the tokenizer of %s cannot be read: %s", family.name, error)
            return None


def _fits(text: str, most: int) -> bool:
    """Whether a text surely has at most so many tokens: each takes a character of it, or an entity that grows none.

    But for one: T5's tokenizer sets a space before a text, which may be a token of its own.
    """
    return text.isascii() and "&" not in text and len(text) < most


def _surely_cut(family: Family, texts: Mapping[str, str], most: int) -> dict[str, Any]:
    cut: dict[str, Any] = {}
    for name, text in texts.items():
        words = (clean_text(text) if family.engine == "wan" else text).split()
        if len(words) > most:
            beyond, lost = len(words) - most, " ".join(words[most:])
            cut |= {f"{name}_tokens_cut": beyond, f"{name}_cut": lost, f"{name}_at_least": True}
    return cut
