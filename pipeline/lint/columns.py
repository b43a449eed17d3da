"""Places of a prompt that a column should have filled, and did not."""

from __future__ import annotations

import re

from pipeline.lint.texts import tidied

#: Names that people give such places, where they are only in brackets.
_SLOTS = (
    "product|product[ _]?name|name|title|brand|colou?r|material|size|category|item|subject|style|sku|model|"
    "model[ _]?name|price|description|motion|action|background|type|variant|pattern|insert|placeholder|"
    "your[ _]\\w+|text|x+"
)
_PLACE = re.compile(
    rf"\$?\{{\{{?[^{{}}]{{0,60}}\}}?\}}|%\(\w{{1,40}}\)[sd]|(?<![\w%])%[sd]\b|<(?:{_SLOTS})>|\[(?:{_SLOTS})\]",
    re.IGNORECASE,
)
#: What programs write where they have nothing.
_NOTHING = re.compile(
    r"#N/A\b|#REF!|#VALUE!|#NAME\?|#NULL!"
    r"|\b(?:NaN|nan|NULL|null|undefined|N/A|n/a)\b(?![-'])|(?<=\S )None\b(?! of| other)"
)
#: A gap: a word that needs another one, and none there.
_GAP = re.compile(
    r"(?:\b(?:the|a|an)|^(?:The|A|An)|(?<=[.!?] )(?:The|A|An))"
    r"(?=\s*(?:[,.;!?](?:\s|$)|$)|\s+(?:and|or|of|with|on|in|from)\b(?![-/'’]))"
    r"|\b(?:made of|of|with|from|toward|towards|across)(?=\s*[,.;](?:\s|$))"
)


def empty_places(prompt: str) -> list[str]:
    """The places that a column left empty, as they are written; `…` for a gap after a word."""
    found = [match.group() for pattern in (_PLACE, _NOTHING) for match in pattern.finditer(prompt)]
    return found + [f"{match.group()} …" for match in _GAP.finditer(prompt)]


def without_places(prompt: str) -> str:
    """The prompt without the places that a column left empty, and without what stands before them for their sake."""
    return tidied(_GAP.sub(" ", tidied(_NOTHING.sub(" ", _PLACE.sub(" ", prompt)))))
