"""A prompt's findings: what keeps a clip from moving as it is meant to, and the prompt written anew.

A good prompt says a subject, its motion, direction or speed, and surroundings: `Camera slowly panning left across the
bag, soft light`. Findings are notes (`pipeline.notes`) with the new text as their fix; they never refuse a row, but for
places that a column left empty, where a strict row does not get what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from pipeline.clips.prompts import read_motion
from pipeline.families import Family, family_named
from pipeline.lint import moves
from pipeline.lint.columns import empty_places, without_places
from pipeline.lint.language import foreign_language
from pipeline.lint.negation import negated, without_negated
from pipeline.lint.readers import PromptReader, reader_of
from pipeline.lint.reading import PromptParts, as_written, read_parts
from pipeline.lint.texts import joined
from pipeline.lint.vocabulary import MEDIUM, SUITABLE, MotionKind
from pipeline.notes import NewCell, Note

#: Prompts that are remembered with their findings.
_REMEMBERED = 8192
#: Rewrites of one prompt, one after the other, until nothing is left to rewrite.
_ROUNDS = 8
#: Rewrites of one fault, until it is not found any more.
_TRIES = 4
#: Longest prompt that is rewritten, in characters: about twice what I2VGen-XL reads.
_LONGEST_REWRITTEN = 700
#: Longest prompt that is judged, in characters: longer ones are refused (`MAX_PROMPT_CHARACTERS` of the catalog).
_LONGEST = 2000


@dataclass(frozen=True, kw_only=True)
class PromptTexts:
    """What a row says to an encoder."""

    prompt: str
    negative_prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """One kind of finding."""

    code: str
    #: What is wrong, in a sentence; None where nothing is.
    finds: Callable[[PromptParts, PromptReader], str | None]
    #: The texts without it; None where only a person can write them.
    rewrites: Callable[[PromptTexts, PromptParts, PromptReader], PromptTexts] | None


def lint_prompt(family: Family, prompt: str, negative_prompt: str = "") -> tuple[Note, ...]:
    """What `family` will make little of in a prompt; () where it reads none, or nothing is to be said.

    Each note's `fix` has the texts with which it would not be noted. Never raises; equal prompts are judged once.
    """
    return _lint(family.name, prompt[:_LONGEST], negative_prompt)


def rewritten(family: Family, texts: PromptTexts) -> PromptTexts:
    """The texts with every fix applied that the findings propose; equal to `texts` where there is none."""
    for _ in range(_ROUNDS):
        notes = lint_prompt(family, texts.prompt, texts.negative_prompt)
        fix = next((note.fix for note in notes if note.fix), None)
        if fix is None:
            break
        texts = with_fix(texts, fix)
    return texts


def with_fix(texts: PromptTexts, fix: Mapping[str, NewCell]) -> PromptTexts:
    """The texts with a note's new values."""
    return PromptTexts(
        prompt=str(fix.get("prompt", texts.prompt)),
        negative_prompt=str(fix.get("negative_prompt", texts.negative_prompt) or ""),
    )


def forget_prompts() -> None:
    """Judge prompts anew that were judged before."""
    _lint.cache_clear()


@lru_cache(maxsize=_REMEMBERED)
def _lint(family: str, prompt: str, negative_prompt: str) -> tuple[Note, ...]:
    reader = reader_of(family_named(family))
    texts = PromptTexts(prompt=" ".join(prompt.split()), negative_prompt=negative_prompt)
    return tuple(_notes(texts, reader)) if reader is not None and texts.prompt else ()


def _notes(texts: PromptTexts, reader: PromptReader) -> Iterator[Note]:
    parts = _parts_for(reader, texts.prompt)
    for rule in _rules_for(texts.prompt, reader):
        if message := rule.finds(parts, reader):
            yield Note(code=rule.code, message=message, field="prompt", fix=_fix(rule, texts, parts, reader))


def _parts_for(reader: PromptReader, prompt: str) -> PromptParts:
    # The camera's rules read moves by themselves, of the prompt as it is written.
    return as_written(prompt) if reader.answers_to == {MotionKind.CAMERA} else read_parts(prompt)


def _rules_for(prompt: str, reader: PromptReader) -> tuple[_Rule, ...]:
    if reader.answers_to == {MotionKind.CAMERA}:
        return _OF_CAMERA
    language = foreign_language(prompt)
    if language is None:
        return _OF_ENGLISH
    # What is not English cannot be judged by English words.
    return (_EMPTY, _LANGUAGE) if reader.languages else (_EMPTY,)


def _fix(rule: _Rule, texts: PromptTexts, parts: PromptParts, reader: PromptReader) -> dict[str, NewCell]:
    """New values with which `rule` finds nothing; {} where there are none."""
    if rule.rewrites is None or len(texts.prompt) > _LONGEST_REWRITTEN:
        return {}
    made = texts
    for _ in range(_TRIES):
        before, made = made, rule.rewrites(made, parts, reader)
        if made == before:
            break
        parts = _parts_for(reader, made.prompt)
        if rule.finds(parts, reader) is None and made.prompt:
            new: dict[str, NewCell] = {"prompt": made.prompt}
            if made.negative_prompt != texts.negative_prompt:
                new["negative_prompt"] = made.negative_prompt
            return new
    return {}


def _still(parts: PromptParts, reader: PromptReader) -> bool:
    return not parts.static and not parts.kinds & reader.answers_to


def _is_vague(parts: PromptParts) -> bool:
    words = set(parts.text.replace(",", " ").replace(".", " ").split())
    return not parts.concrete and (parts.asks or not words & MEDIUM)


def _find_vague(parts: PromptParts, reader: PromptReader) -> str | None:
    if not _still(parts, reader) or not _is_vague(parts):
        return None
    what = "asks for motion or beauty without saying what moves, and how"
    return f"the prompt {what}. Name a subject and its motion, such as '{reader.safe_move}, soft light'"


def _find_no_motion(parts: PromptParts, reader: PromptReader) -> str | None:
    if not _still(parts, reader) or _is_vague(parts):
        return None
    example = f"say what moves, how and in which direction, such as '{_suitable(parts, reader)}'"
    return f"the prompt says what the picture shows and nothing that moves: {example}"


def _suitable(parts: PromptParts, reader: PromptReader) -> str:
    named = set(parts.text.replace(",", " ").replace(".", " ").split())
    return next((motion for words, motion in SUITABLE if words & named), reader.safe_move)


def _write_vague(texts: PromptTexts, parts: PromptParts, reader: PromptReader) -> PromptTexts:
    move = reader.safe_move
    return PromptTexts(prompt=f"{move[:1].upper()}{move[1:]}, soft light", negative_prompt=texts.negative_prompt)


def _write_motion(texts: PromptTexts, parts: PromptParts, reader: PromptReader) -> PromptTexts:
    move = _suitable(parts, reader)
    said = joined(texts.prompt, move)
    # Words that the motion is no part of, such as a size: then the camera moves, which every model reads.
    if _still(read_parts(said), reader):
        said = joined(texts.prompt, reader.safe_move)
    return PromptTexts(prompt=said, negative_prompt=texts.negative_prompt)


def _find_contradiction(parts: PromptParts, reader: PromptReader) -> str | None:
    if parts.cancelled and not _in_sequence(parts):
        return f"{' and '.join(parts.cancelled)} undo each other: keep one of them"
    if parts.static and parts.moves:
        return f"the camera is to stand still and to {parts.moves[0]}: keep one of them"
    if moves.both_speeds(parts.text):
        return "a move is to be slow and fast: keep one speed"
    if moves.unmoved(parts.text):
        return "something is to stand still and to move: keep one of them"
    return None


def _in_sequence(parts: PromptParts) -> bool:
    return any(word in parts.text for word in (" then ", " after that", " followed by ", " before ", "finally"))


def _write_one(texts: PromptTexts, parts: PromptParts, reader: PromptReader) -> PromptTexts:
    prompt = texts.prompt
    if parts.cancelled:
        prompt = moves.with_moves(prompt, 1)
    elif parts.static and parts.moves:
        prompt = moves.without_standing(prompt)
    elif moves.both_speeds(parts.text):
        prompt = moves.without_fast(prompt)
    else:
        prompt = moves.without_unmoved(prompt)
    return PromptTexts(prompt=prompt, negative_prompt=texts.negative_prompt)


def _find_many(parts: PromptParts, reader: PromptReader) -> str | None:
    distinct = list(dict.fromkeys(parts.moves))
    undone = parts.cancelled and not _in_sequence(parts)
    if len(distinct) > reader.most_moves and not undone:
        names = ", ".join(distinct)
        most = "one" if reader.most_moves == 1 else str(reader.most_moves)
        return f"{len(distinct)} camera moves ({names}) in a clip of a few seconds: each is cut short. Keep {most}"
    count = len(moves.actions(parts.text))
    if count > reader.most_actions:
        fit = reader.most_actions
        return f"{count} actions one after the other in a clip of a few seconds: most are left out. Keep {fit} or fewer"
    return None


def _write_few(texts: PromptTexts, parts: PromptParts, reader: PromptReader) -> PromptTexts:
    if len(set(parts.moves)) > reader.most_moves:
        prompt = moves.with_moves(texts.prompt, reader.most_moves)
    else:
        prompt = moves.with_actions(texts.prompt, min(2, reader.most_actions))
    return PromptTexts(prompt=prompt, negative_prompt=texts.negative_prompt)


def _find_negated(parts: PromptParts, reader: PromptReader) -> str | None:
    things = negated(parts.written)
    if not things:
        return None
    named = ", ".join(things)
    return f"encoders read '{named}' and not the denial of it: say it in negative_prompt, without 'no'"


def _write_negative(texts: PromptTexts, parts: PromptParts, reader: PromptReader) -> PromptTexts:
    there = [text.strip() for text in texts.negative_prompt.split(",") if text.strip()]
    more = [thing for thing in negated(texts.prompt) if thing.lower() not in {text.lower() for text in there}]
    left = without_negated(texts.prompt) or f"{reader.safe_move[:1].upper()}{reader.safe_move[1:]}"
    return PromptTexts(prompt=left, negative_prompt=", ".join([*there, *more]))


def _find_empty(parts: PromptParts, reader: PromptReader) -> str | None:
    places = empty_places(parts.written)
    if not places:
        return None
    shown = ", ".join(repr(place[:40]) for place in places[:3])
    return f"a column left a place of the prompt empty: {shown}. Fill the column, or leave the place out"


def _write_filled(texts: PromptTexts, parts: PromptParts, reader: PromptReader) -> PromptTexts:
    left = without_places(texts.prompt) or f"{reader.safe_move[:1].upper()}{reader.safe_move[1:]}"
    return PromptTexts(prompt=left, negative_prompt=texts.negative_prompt)


def _find_foreign(parts: PromptParts, reader: PromptReader) -> str | None:
    language = foreign_language(parts.written)
    if language is None:
        return None
    return f"the prompt is written in {language}, and this model's encoder was trained on English: translate it"


_NAME_ONE = "Name one, such as 'pan left', or write 'static camera'"


def _find_cancelled(parts: PromptParts, reader: PromptReader) -> str | None:
    motion = read_motion(parts.written)
    if not motion.cancelled:
        return None
    instead = ": a slow zoom in is made instead" if motion.assumed else ""
    return f"{' and '.join(motion.cancelled)} cancel each other{instead}. {_NAME_ONE}"


def _find_no_camera(parts: PromptParts, reader: PromptReader) -> str | None:
    motion = read_motion(parts.written)
    if motion.cancelled or not motion.assumed:
        return None
    return f"the prompt names no camera move: a slow zoom in is made. {_NAME_ONE}"


def _write_first(texts: PromptTexts, parts: PromptParts, reader: PromptReader) -> PromptTexts:
    return PromptTexts(prompt=moves.with_moves(texts.prompt, 1), negative_prompt=texts.negative_prompt)


def _write_zoom(texts: PromptTexts, parts: PromptParts, reader: PromptReader) -> PromptTexts:
    return PromptTexts(prompt=joined(texts.prompt, reader.safe_move), negative_prompt=texts.negative_prompt)


_EMPTY = _Rule(code="prompt_column_empty", finds=_find_empty, rewrites=_write_filled)
_LANGUAGE = _Rule(code="prompt_language", finds=_find_foreign, rewrites=None)
#: In the order in which they are told, and in which fixes are applied.
_OF_ENGLISH = (
    _EMPTY,
    _Rule(code="prompt_negated", finds=_find_negated, rewrites=_write_negative),
    _Rule(code="prompt_vague", finds=_find_vague, rewrites=_write_vague),
    _Rule(code="prompt_no_motion", finds=_find_no_motion, rewrites=_write_motion),
    _Rule(code="prompt_contradictory", finds=_find_contradiction, rewrites=_write_one),
    _Rule(code="prompt_many_moves", finds=_find_many, rewrites=_write_few),
)
#: The camera makes every move that it reads, so only these are of use to it.
_OF_CAMERA = (
    _EMPTY,
    _Rule(code="moves_cancelled", finds=_find_cancelled, rewrites=_write_first),
    _Rule(code="no_camera_move", finds=_find_no_camera, rewrites=_write_zoom),
)
