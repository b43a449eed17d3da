"""What an English prompt says: its motion, its camera moves, its words that say nothing."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache

from pipeline.clips.prompts import STATIC_CAMERA, CameraMove, read_motion
from pipeline.lint import vocabulary as words
from pipeline.lint.vocabulary import MotionKind, word_set

_TOKEN = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[^\w\s]")
_PHRASES = {
    kind: re.compile(rf"(?<![\w-])(?:{'|'.join(patterns)})(?![\w-])") for kind, patterns in words.PHRASES.items()
}
_DETERMINERS = word_set("the a an this that these those its his her their your my our some each every")
_PLURAL = word_set("people children men women feet fish sheep geese mice police they we")
#: Whoever stands before a word in -ing does it: `men riding horses` beside `men's riding boots`.
_DOERS = word_set("man men woman women person people boy boys girl girls child children kid kids couple she he they")
_BEFORE_BASE = word_set("will to and then can let lets")
_BE = word_set("is are being be gets get was were")
_DESIRE = word_set("make turn bring show add create let do give please animate put transform generate produce")
#: After a verb, but as often after a noun: no proof that a word that names things is a verb there.
_AFTER_NOUNS = word_set("on in with and or for is are of as under behind beside near inside each your")
#: Asked of everything and said of nothing: motion only where something is named that could do it.
_EMPTY_MOTION = word_set("move moves moving change changes changing happen happens happening")
_LEAST_LIKENESS, _LEAST_LETTERS = 0.84, 5

#: `turn this photo into a video` is no motion of anything.
_REQUEST = re.compile(
    r"\b(?:turn|transform|make|bring|convert|change) (?:this|the|my|that|it|your)\b(?: \w+)?(?: (?:in)?to)?"
    r"(?: an?| the)? ?(?:video|life|clip|gif|animation|movie)?"
)

_CLAUSE = re.compile(r"[,.;:!?()]| (?:while|and then|then|and|but|as|after that|finally|before|after) ")
#: Verbs that things have as often as cameras.
_OF_THINGS = re.compile(
    r"\b(?:rotat\w+|spin\w*|turn(?:s|ing)?\b(?: ?table)?|turntable|revolv\w+|roll(?:s|ing)?|360\S*(?: degrees?)?|"
    r"circl\w+|fly\w*|flies|mov(?:es|ing)|push(?:es|ing)?|pull(?:s|ing)?|track(?:s|ing)?|truck(?:s|ing)?|arcs|arcing|"
    r"tilt(?:s|ing)|boom\w*|crane\w*|jib\w*)\b"
)
_OF_CAMERA = re.compile(r"\b(?:cameras?|shots?|views?|footage|drone|lens|cam|pov|frame)\b")


@dataclass(frozen=True, kw_only=True)
class PromptParts:
    """What is said by a prompt."""

    #: The prompt with white space collapsed.
    written: str
    #: In lower case, as it is read.
    text: str
    #: What moves.
    kinds: frozenset[MotionKind]
    #: Camera moves that are meant for the camera, in their order; those that undo each other too.
    moves: tuple[CameraMove, ...]
    #: Camera moves that undo each other.
    cancelled: tuple[CameraMove, ...]
    #: Whether the camera is told to stand still.
    static: bool
    #: Words that say neither motion nor praise: what the prompt is about.
    concrete: tuple[str, ...]
    #: Whether it asks for something to be done and describes nothing.
    asks: bool


def read_parts(prompt: str) -> PromptParts:
    """The parts of an English prompt; never raises."""
    written = " ".join(prompt.replace("’", "'").split())
    text = written.lower()
    tokens = _TOKEN.findall(text)
    static = STATIC_CAMERA.search(text) is not None
    moves, cancelled = camera_moves(text)
    concrete = tuple(word for word in tokens if word[0].isalpha() and word not in words.HOLLOW)
    kinds = _kinds(_TOKEN.findall(_REQUEST.sub(" ", text)), text, bool(concrete))
    if moves:
        kinds |= {MotionKind.CAMERA}
    if not kinds and concrete:
        kinds = _misspelt(tokens)
    return PromptParts(
        written=written,
        text=text,
        kinds=frozenset(kinds),
        moves=moves,
        cancelled=cancelled,
        static=static,
        concrete=concrete,
        asks=any(word in _DESIRE for word in tokens),
    )


def as_written(prompt: str) -> PromptParts:
    """The prompt as `read_parts` has it, with nothing read in it."""
    written = " ".join(prompt.replace("’", "'").split())
    return PromptParts(
        written=written,
        text=written.lower(),
        kinds=frozenset(),
        moves=(),
        cancelled=(),
        static=False,
        concrete=(),
        asks=False,
    )


def camera_moves(text: str) -> tuple[tuple[CameraMove, ...], tuple[CameraMove, ...]]:
    """(the camera's moves, those of them that undo each other) of text in lower case.

    Verbs that a named thing does as well (`the shoe rotates`) are left out where no camera is named beside them.
    """
    motion = read_motion(_without_things(STATIC_CAMERA.sub("camera", text).replace("camera that ", "camera ")))
    if motion.assumed:
        return motion.cancelled, motion.cancelled
    # Moving closer is one move, by lens or by wheels.
    kept = [m for m in motion.moves if not (m == CameraMove.DOLLY_IN and CameraMove.ZOOM_IN in motion.moves)]
    kept = [m for m in kept if not (m == CameraMove.DOLLY_OUT and CameraMove.ZOOM_OUT in motion.moves)]
    return (*motion.cancelled, *kept), motion.cancelled


def _without_things(text: str) -> str:
    kept = list(text)
    begin = 0
    for end in [match.start() for match in _CLAUSE.finditer(text)] + [len(text)]:
        clause = text[begin:end]
        for match in _OF_THINGS.finditer(clause):
            subject = clause[: match.start()].strip(" ,.;:!?()")
            subject = re.sub(
                r"^(?:(?:while|and|then|but|as|after that|finally|before|after|slowly|gently|slow)\b ?)+", "", subject
            )
            if subject and not _OF_CAMERA.search(clause):
                kept[begin + match.start() : begin + match.end()] = "·" * (match.end() - match.start())
        begin = end
    return "".join(kept)


@cache
def _forms() -> tuple[dict[str, MotionKind], dict[str, tuple[str, MotionKind]], dict[str, MotionKind]]:
    """Verbs of motion by their form in -ing, by that in -s (with the base form), and by the base form."""
    ing: dict[str, MotionKind] = {}
    third: dict[str, tuple[str, MotionKind]] = {}
    base: dict[str, MotionKind] = {}
    for kind, verbs in words.VERBS.items():
        for verb in verbs:
            base.setdefault(verb, kind)
            stems = {verb, verb[:-1] if verb.endswith("e") else verb + verb[-1]}
            if verb.endswith("ie"):
                stems = {verb[:-2] + "y"}
            for stem in stems:
                ing.setdefault(stem + "ing", kind)
            ending = "es" if verb.endswith(("s", "sh", "ch", "x", "z", "go")) else "s"
            form = verb[:-1] + "ies" if verb[-1] == "y" and verb[-2] not in "aeou" else verb + ending
            third.setdefault(form, (verb, kind))
    return ing, third, base


def third_person() -> dict[str, tuple[str, MotionKind]]:
    """Verbs of motion as one thing does them (`turns`), with their base form and what moves."""
    return _forms()[1]


def _kinds(tokens: list[str], text: str, concrete: bool) -> set[MotionKind]:
    found = {kind for kind, pattern in _PHRASES.items() if pattern.search(text)}
    for place, word in enumerate(tokens):
        before = tokens[place - 1] if place else ""
        if before.endswith("ly") and place > 1:
            # `leaves gradually change`, `being vigorously stirred`
            before = tokens[place - 2]
        after = tokens[place + 1] if place + 1 < len(tokens) else ""
        if word in _EMPTY_MOTION and not concrete:
            continue
        kind = _kind_of(word, before, after, first=place == 0)
        if kind is not None:
            found.add(kind)
    return found


def _kind_of(word: str, before: str, after: str, *, first: bool) -> MotionKind | None:
    ing, third, base = _forms()
    ends = not after or not after[0].isalnum()
    verb_like = ends or after in words.AFTER_VERBS
    if word.endswith("ing") and len(word) > 4 and "-" not in word:
        return _of_ing(word, before, after, ing)
    if word in words.DONE and before in (*_BE, "then"):
        return MotionKind.THINGS
    if word in third:
        verb, kind = third[word]
        if before in _DETERMINERS or first:
            return None
        proof = after in words.AFTER_VERBS and after not in _AFTER_NOUNS
        return kind if verb not in words.MOSTLY_THINGS or proof else None
    if word in base:
        if first:
            return base[word] if after in words.AFTER_VERBS and word not in _EMPTY_MOTION else None
        plural = before in _PLURAL or (len(before) > 3 and before.endswith("s") and not before.endswith("ss"))
        if not (plural or before in _BEFORE_BASE) or not verb_like:
            return None
        thing = word in words.MOSTLY_THINGS and (ends or after in ("with", "and", "or", "for", "is", "are"))
        return None if thing else base[word]
    return None


def _of_ing(word: str, before: str, after: str, ing: dict[str, MotionKind]) -> MotionKind | None:
    does = before in _BE or before in _DOERS
    if word in words.STATE_ING:
        return None
    if word in words.STILL_ING and not (word in ing and (does or after in ("up", "out", "down"))):
        return None
    verb_like = not after or not after[0].isalnum() or after in words.AFTER_VERBS
    if word in words.FOR_ING and not does and (not verb_like or before in ("for", "of", "with", "and", "or", "")):
        return None
    # A form that is not known is a verb more often than a thing.
    return ing.get(word, MotionKind.THINGS)


def _misspelt(tokens: list[str]) -> set[MotionKind]:
    """Kinds of motion that are named by words which are misspelt by a letter or two."""
    ing = _forms()[0]
    for word in tokens:
        if (
            len(word) < _LEAST_LETTERS
            or word in words.STILL_ING | words.STATE_ING
            or word in words.FOR_ING
            or not word.endswith(("ng", "ig"))
        ):
            continue
        if close := difflib.get_close_matches(word, ing, n=1, cutoff=_LEAST_LIKENESS):
            return {ing[close[0]]}
    return set()
