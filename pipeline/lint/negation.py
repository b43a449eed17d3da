"""What a prompt says that a clip shall not show: an encoder reads the thing and not the `no`."""

from __future__ import annotations

import re

from pipeline.lint.texts import tidied

_ABOUT = r"(?:in|from|on) the (?:picture|image|frame|scene|video|background|shot|clip)"
_END = rf"(?=\s*(?:[,.;!?()]|$|\b{_ABOUT}\b|\b(?:anywhere|at all|please|while|but|as)\b))"
_WHAT = rf"(?:any |a |an |the |other |more )*(?P<{{name}}>(?:(?!\b(?:no|without|not)\b)[\w'’ /-])+?){_END}"
_SHOW = "show|add|include|display|have|use|draw|generate|make|put|render|insert|create|contain"
_STATES = (
    "blurry|blurred|distorted|deformed|shaky|grainy|noisy|dark|overexposed|cropped|ugly|pixelated|flickering|cartoonish|"
    "artificial|fake|low quality|out of focus"
)
#: Not denied things: a camera that stands still, names (`No. 5`), what never ends.
_FINE = r"(?!(?:camera )?(?:movement|motion|moves?)\b|longer\b|matter\b|one\b|more than\b|doubt\b|\.|\d)"
_GOES_ON = (
    r"(?!(?:\w+ )?(?:\w+ing|interruption|pause|hesitation|warning|effort|limits?|end|"
    r"camera (?:movement|motion|moves?))\b)"
)
_NEGATED = re.compile(
    # At the begin of a clause alone: `had no choice` and `to avoid the danger` tell a story.
    r"(?:(?:^|(?<=[,.;:!?(])|(?<=[,.;:!?(] ))(?:and |or |but |with )?"
    r"|\b(?:and|or|but|with) |(?=\bwithout |\bthere |\bnot ))(?:"
    rf"\b(?:there (?:are|is|should be|must be|shall be) |with |absolutely |please )*no {_FINE}{_WHAT.format(name='no')}"
    rf"|\bwithout {_GOES_ON}{_WHAT.format(name='without')}"
    rf"|\b(?:please )?(?:do not|don't|don’t|dont|never|must not|should not) (?:{_SHOW}) {_WHAT.format(name='never')}"
    rf"|\b(?:please )?avoid(?:ing)? {_WHAT.format(name='avoid')}"
    rf"|\b(?:is |are )?not (?P<state>{_STATES})\b"
    r")",
    re.IGNORECASE,
)
_ASIDE = re.compile(rf"\s*\b{_ABOUT}\b(?=\s*(?:[,.;!?]|$))|\s*\b(?:anywhere|at all)\b", re.IGNORECASE)
#: A word of its own: `No. 5` begins no denial, and neither does `No Fear`.
_NAME = re.compile(r"^(?:with )?No [A-Z]")


def negated(prompt: str) -> list[str]:
    """The things that the prompt denies, in its order."""
    found = []
    for match in _matches(prompt):
        what = next(text for text in match.groups() if text)
        found += [part.strip() for part in re.split(r"\band\b|\bor\b|/", what) if part.strip()]
    return list(dict.fromkeys(found))


def without_negated(prompt: str) -> str:
    """The prompt without the things that it denies."""
    kept, begin = [], 0
    for match in _matches(prompt):
        aside = _ASIDE.match(prompt, match.end())
        kept.append(prompt[begin : match.start()])
        begin = aside.end() if aside else match.end()
    return tidied(" ".join([*kept, prompt[begin:]]))


def _matches(prompt: str) -> list[re.Match[str]]:
    found = []
    for match in _NEGATED.finditer(prompt):
        inside = match.start() > 0 and prompt[: match.start()].rstrip()[-1:] not in (".", "!", "?", "")
        if not (inside and _NAME.match(match.group())):
            found.append(match)
    return found
