"""Prompts with moves that undo each other or are too many, written with the first of them alone."""

from __future__ import annotations

import re

from pipeline.clips.prompts import CameraMove
from pipeline.lint.reading import camera_moves, third_person
from pipeline.lint.texts import joined, tidied, without_together
from pipeline.lint.vocabulary import AFTER_VERBS, FAST, MOSTLY_THINGS

#: Each move as every reader of English prompts understands it.
MOVE_TEXTS = {
    CameraMove.ZOOM_IN: "camera slowly zooming in",
    CameraMove.ZOOM_OUT: "camera slowly zooming out",
    CameraMove.PAN_LEFT: "camera slowly panning left",
    CameraMove.PAN_RIGHT: "camera slowly panning right",
    CameraMove.TILT_UP: "camera slowly tilting up",
    CameraMove.TILT_DOWN: "camera slowly tilting down",
    CameraMove.ROLL_CLOCKWISE: "camera slowly rolling clockwise",
    CameraMove.ROLL_COUNTERCLOCKWISE: "camera slowly rolling counterclockwise",
    CameraMove.ORBIT_LEFT: "camera slowly orbiting to the left",
    CameraMove.ORBIT_RIGHT: "camera slowly orbiting to the right",
    CameraMove.DOLLY_IN: "camera slowly dollying in",
    CameraMove.DOLLY_OUT: "camera slowly dollying out",
}
_WAY = r"(?:in|out|left|right|up|down|forwards?|backwards?|clockwise|counter-?clockwise|anti-?clockwise)"
_TWO_WAYS = re.compile(
    rf"\b({_WAY})\b(?:\s*(?:,|/|&)\s*|\s+)(?:(?:and|or|then|and then) )?(?:(?:back|to the) )?{_WAY}\b(?!-)",
    re.IGNORECASE,
)
_PART = re.compile(
    r"(\s*(?:[,;]|\.(?=\s|$))\s*(?:(?:and then|then|and|after that|finally|before|followed by|while)\s+)?"
    r"|\s+(?:and then|then|and|while|after that|finally|followed by|before|as)\s+)",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"\b(?:over|across|around|along|towards?|of|from|on|to|through|above|at|past) ((?:the|a|an|his|her|its) .+)$",
    re.IGNORECASE,
)
#: What joins a move and the thing that it shows.
_TOWARDS = {
    "zoom in": "on",
    "zoom out": "from",
    "pan": "across",
    "tilt": "over",
    "orbit": "around",
    "dolly in": "toward",
}
_STANDS = re.compile(
    r"\b(?:static|locked(?:[- ]off)?|locked[- ]down|fixed|stationary|still|motionless|immobile|unmoving)"
    r" (?P<what>camera|shot|view|frame)\b"
    r"|\b(?:with )?(?:no|without(?: any)?|zero) (?:camera )?(?:movement|motion|moves?)\b"
    r"|\b(?:the )?camera (?:does not|doesn't|doesnt|never|not) mov(?:e|es|ing)\b"
    r"|\b(?:the )?camera (?:\w+ )?(?:stays? |remains? |is |kept )?(?:perfectly |completely )?"
    r"(?:still|static|fixed|stationary|motionless|locked(?:[- ]off)?)\b",
    re.IGNORECASE,
)
_QUICK = rf"(?:very |too |extremely )?(?:{'|'.join(sorted(FAST, key=len, reverse=True))})"
_FAST_WORDS = re.compile(
    rf"\b(?:and |but )?{_QUICK}\b(?: (?:and|but)(?= slow))?(?![- ]?\w+ing\b(?<!moving))", re.IGNORECASE
)
_SLOW_WORD = r"slow(?:ly)?|slow[- ]?mo(?:tion)?|gently|gradually"
_MOVE_WORD = r"(?:zoom|pan|tilt|orbit|doll|push|pull|rotat|mov|motion|camera|spin|roll|shot|turn)\w*"
_BOTH_SPEEDS = re.compile(
    rf"\b(?:{_SLOW_WORD})\b,?(?: \w+){{0,4}},? (?:and |but )?{_QUICK} (?:camera )?{_MOVE_WORD}"
    rf"|\b{_QUICK} (?:and |but )?(?:{_SLOW_WORD})\b|\b(?:{_SLOW_WORD}) (?:and|but) {_QUICK}\b"
    rf"|\b{_QUICK} (?:camera )?{_MOVE_WORD}(?: \w+){{0,3}},? (?:in |and )?(?:{_SLOW_WORD})\b",
    re.IGNORECASE,
)
_UNMOVED = re.compile(
    r"\b(?:(?:completely |perfectly |totally |absolutely )?(?:motionless|unmoving|immobile)"
    r"|(?:completely|perfectly|totally|absolutely) (?:still|frozen))\b",
    re.IGNORECASE,
)
_CLAUSES = re.compile(r"[.;!?]| (?:while|as|but|when) ")


def both_speeds(text: str) -> bool:
    """Whether one move is to be slow and fast."""
    return _BOTH_SPEEDS.search(text) is not None


def without_fast(prompt: str) -> str:
    """The prompt without its words for a fast move."""
    return tidied(_FAST_WORDS.sub(" ", prompt))


def unmoved(text: str) -> bool:
    """Whether something is said to stand still and to move in one clause of text in lower case."""
    return any(_UNMOVED.search(clause) and _moving(clause) for clause in _CLAUSES.split(text))


def without_unmoved(prompt: str) -> str:
    """The prompt without the words that say that something stands still."""
    return tidied(
        re.sub(r",?\s*\b(?:still|frozen),(?=\s)", " ", _UNMOVED.sub(" ", prompt)) if unmoved(prompt.lower()) else prompt
    )


def without_standing(prompt: str) -> str:
    """The prompt without the words that let the camera stand still."""
    left = tidied(_STANDS.sub(lambda match: match["what"] or " ", prompt))
    return tidied(re.sub(r"^(camera|shot|view),? (?:that )?(?=\w+(?:ing|s)\b)", r"\1 ", left, flags=re.IGNORECASE))


def actions(text: str) -> list[str]:
    """The actions that one subject does one after the other: parts of text in lower case that begin with a verb."""
    parts = [part for part in _PART.split(text)[::2] if part.strip()]
    found = [part for part in parts[1:] if _begins_with_action(part)]
    return [parts[0], *found] if found and not _begins_with_action(parts[0]) else found


def with_actions(prompt: str, most: int) -> str:
    """The prompt with the first `most` actions alone."""
    parts = _PART.split(prompt)
    kept, count = [parts[0]], 1
    for separator, part in zip(parts[1::2], parts[2::2], strict=True):
        acts = _begins_with_action(part.lower())
        count += acts
        if not acts or count <= most:
            kept += [separator, part]
    return tidied("".join(kept))


def with_moves(prompt: str, most: int) -> str:
    """The prompt with its first `most` camera moves alone."""
    text = without_together(prompt)
    text = _TWO_WAYS.sub(lambda m: m[1], text) if camera_moves(text.lower())[1] else text
    parts = _PART.split(text)
    kept: list[str] = []
    seen: list[CameraMove] = []
    tail = ""
    for place in range(0, len(parts), 2):
        separator = parts[place - 1] if place else ""
        moves = [m for m in _moves_of(parts[place]) if m not in seen]
        if not moves or len(seen) < most:
            kept += [separator, parts[place]]
        elif match := _TAIL.search(parts[place]):
            tail = tail or match[1]
        seen += moves
    made = tidied("".join(kept))
    made = re.sub(r"^(?:start with|first|begin with)[, ]+", "", made, flags=re.IGNORECASE)
    found = camera_moves(made.lower())[0]
    if not found or len(set(found)) > most:
        return _anew(parts, seen)
    joins = next((word for move, word in _TOWARDS.items() if found[0].startswith(move)), "")
    return f"{made} {joins} {tail}" if tail and joins and not _TAIL.search(made) and "," not in made else made


def _anew(parts: list[str], seen: list[CameraMove]) -> str:
    """The parts without a move, after the first move in plain words."""
    rest = [
        part.strip() for part in parts[::2] if part.strip() and not _moves_of(part) and "camera" not in part.lower()
    ]
    first = MOVE_TEXTS[seen[0]] if seen else MOVE_TEXTS[CameraMove.ZOOM_IN]
    made = first[:1].upper() + first[1:]
    for part in rest:
        made = joined(made, part)
    return tidied(made)


def _moves_of(part: str) -> list[CameraMove]:
    return list(camera_moves(part.lower())[0])


def _begins_with_action(part: str) -> bool:
    """Whether a part of a sentence begins with what its subject does: `picks up the cup`, never `brushes`."""
    found = re.match(r"\s*(?:then |\w+ly )?([a-z]+)(?: ([a-z]+))?", part)
    if found is None or found[1] not in third_person():
        return False
    verb = third_person()[found[1]][0]
    return verb not in MOSTLY_THINGS or (found[2] or "") in AFTER_VERBS - {"for", "is", "are", "with", "and", "or"}


def _moving(clause: str) -> bool:
    return re.search(r"\b\w{3,}ing\b", _UNMOVED.sub(" ", clause)) is not None
