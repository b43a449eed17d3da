"""Taking words out of a prompt so that what is left still reads well."""

from __future__ import annotations

import re

_PREPOSITIONS = (
    "in|on|at|of|to|into|onto|from|over|across|around|along|toward|towards|with|for|by|under|behind|through|made of"
)
#: Determiners and prepositions that stand before nothing.
_DANGLING = re.compile(
    rf"(?:\s+(?:{_PREPOSITIONS}))?\s+(?:the|a|an|its|and the|and an?)"
    r"(?=\s*(?:[,.;!?]|$|(?:and|or|while|with|in|on)\b(?![-/])))",
    re.IGNORECASE,
)
_LEADING = re.compile(r"^(?:(?:and|or|but|while|then|with|as|that|which|of|please)\s+|[\s,.;:·-]+)+", re.IGNORECASE)
_TRAILING = re.compile(
    r"(?:[\s,;:·-]|\b(?:and|or|but|while|then|with|as|the|a|an|that|which|is|are|at|of|to|into|onto|from|towards?|for)\s*$)+$",
    re.IGNORECASE,
)
#: Each pass may bare another word; a text made of nothing else is left as it is.
_PASSES = 8
_TOGETHER = re.compile(r"\s*\b(?:simultaneously|at the same time|at once|both at once)\b", re.IGNORECASE)


def tidied(text: str) -> str:
    """`text` without gaps, doubled commas and words that have lost what they belong to."""
    capital = text.lstrip()[:1].isupper()
    for _ in range(_PASSES):
        before = text
        text = " ".join(text.split())
        text = re.sub(r"\(\s*\)|\[\s*\]|\"\s*\"", " ", text)
        text = re.sub(r"\s+([,.;!?])", r"\1", text)
        text = re.sub(r"([,;])(?:\s*[,;])+", r"\1", text)
        text = re.sub(r"[,;.]\s*([.!?])", r"\1", text)
        text = re.sub(r"\b(?:and|or|while|but)\s*([,.;])", r"\1", text, flags=re.IGNORECASE)
        text = re.sub(r"([,.;])\s*(?:and|or|but)(?=\s*[,.;]|\s*$)", r"\1", text, flags=re.IGNORECASE)
        text = re.sub(r"\b(and|or)\s+(?:and|or)\b", r"\1", text, flags=re.IGNORECASE)
        text = _DANGLING.sub("", text)
        text = _TRAILING.sub("", _LEADING.sub("", text))
        if text == before:
            break
    return text[:1].upper() + text[1:] if capital else text


def without_together(text: str) -> str:
    """`text` without the words that say that two things happen at once."""
    return tidied(_TOGETHER.sub("", text))


def joined(text: str, more: str) -> str:
    """`text` with the clause `more` after it."""
    text = text.rstrip(" .,;:!?")
    if not text:
        return more[:1].upper() + more[1:]
    return f"{text}, {more}"
