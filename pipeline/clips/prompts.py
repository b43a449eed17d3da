"""Motion vocabulary: which camera moves a prompt asks for, read from English text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache


class CameraMove(StrEnum):
    """What the camera does. The picture is seen to do the opposite: it moves right while the camera pans left."""

    ZOOM_IN = "zoom in"
    ZOOM_OUT = "zoom out"
    PAN_LEFT = "pan left"
    PAN_RIGHT = "pan right"
    TILT_UP = "tilt up"
    TILT_DOWN = "tilt down"
    ROLL_CLOCKWISE = "roll clockwise"
    ROLL_COUNTERCLOCKWISE = "roll counterclockwise"
    ORBIT_LEFT = "orbit left"
    ORBIT_RIGHT = "orbit right"
    DOLLY_IN = "dolly in"
    DOLLY_OUT = "dolly out"


class Speed(StrEnum):
    """How far the camera gets within a clip."""

    SLOW = "slow"
    NORMAL = "normal"
    FAST = "fast"

    @property
    def amplitude(self) -> float:
        """Factor on the length of every move."""
        return {"slow": 0.6, "normal": 1.0, "fast": 1.6}[self.value]


@dataclass(frozen=True, kw_only=True)
class Motion:
    """The camera's part of a prompt."""

    #: Moves made together, in the order they are named; empty only where the prompt asks for a static camera.
    moves: tuple[CameraMove, ...]
    speed: Speed = Speed.NORMAL
    #: Whether the last frame leads back to the first.
    loop: bool = False
    #: True when the prompt left no camera move and a gentle zoom in was chosen in its place.
    assumed: bool = False
    #: Moves the prompt asks for that undo each other and were dropped.
    cancelled: tuple[CameraMove, ...] = ()

    def __str__(self) -> str:
        said = " + ".join(self.moves) if self.moves else "static camera"
        if self.moves:
            said += f", {self.speed}"
        if self.loop:
            said += ", looping"
        if self.assumed:
            said += " (assumed: the prompt names no camera move)"
        if self.cancelled:
            said += f" ({' and '.join(self.cancelled)} cancel each other)"
        return said


_M = CameraMove
_OPPOSITES = {
    frozenset(pair)
    for pair in (
        (_M.ZOOM_IN, _M.ZOOM_OUT),
        (_M.PAN_LEFT, _M.PAN_RIGHT),
        (_M.TILT_UP, _M.TILT_DOWN),
        (_M.ROLL_CLOCKWISE, _M.ROLL_COUNTERCLOCKWISE),
        (_M.ORBIT_LEFT, _M.ORBIT_RIGHT),
        (_M.DOLLY_IN, _M.DOLLY_OUT),
    )
}

# Directions: the word in the text -> its canonical name.
_DIRECTIONS = (
    (r"counter[- ]?clockwise|anti[- ]?clockwise", "counterclockwise"),
    (r"clockwise", "clockwise"),
    (r"(?:from )?left[- ]to[- ]right", "right"),
    (r"(?:from )?right[- ]to[- ]left", "left"),
    (r"(?:from )?(?:the )?bottom[- ]to[- ](?:the )?top", "up"),
    (r"(?:from )?(?:the )?top[- ]to[- ](?:the )?bottom", "down"),
    (r"left(?:wards?)?", "left"),
    (r"right(?:wards?)?", "right"),
    (r"up(?:wards?)?", "up"),
    (r"down(?:wards?)?", "down"),
    (r"inwards?|into|in|closer|forwards?|towards?|nearer|on", "in"),
    (r"outwards?|out|backwards?|back|away", "out"),
)
_ANY_DIRECTION = "|".join(pattern for pattern, _ in _DIRECTIONS)
_ADVERB = (
    r"(?:very |more |ever so )?"
    r"(?:\w+ly|shot|slow|steady|across|over|along|move|movement|camera|a bit|a little|straight)"
)
#: Between a move and its direction only these may stand: "pan slowly to the left", never "pan across the left shoe".
_TO_DIRECTION = rf"(?:[ -]+{_ADVERB})*[ -]+(?:(?:to|towards?) (?:the |its |your |viewer's )?)?"
_DIRECTION = re.compile(rf"{_TO_DIRECTION}(?P<first>{_ANY_DIRECTION})\b")
_SECOND = re.compile(
    rf",? (?:and then|and|then|or|&)(?: (?:back|again))? (?:to the )?(?P<second>{_ANY_DIRECTION})\b"
    r"(?! (?:the|a|an)\b)"
)
#: Further on in the same clause only an unmistakable direction counts.
_LATER = re.compile(
    r"\b(?:(?:to|towards?) the (?P<side>left|right)"
    r"(?=$|[,.;]| (?:side )?(?:around|across|over|while|and|with|at|then)\b)"
    r"|(?:from )?(?P<span>left[- ]to[- ]right|right[- ]to[- ]left)"
    r"|(?P<turn>counter[- ]?clockwise|anti[- ]?clockwise|clockwise|leftwards?|rightwards?|upwards?|downwards?))\b"
)
_CLAUSE_END = re.compile(r"[,.;:!?]| while | then | and ")

#: Words before a move that make it a thing, not a move, or deny it.
_NOT_AFTER = re.compile(
    r"(?:\b(?:frying|fry|sauce|saut[eé]|baking|roasting|cast[- ]iron|iron|steel|non[- ]?stick|copper|wok|grill|crepe|"
    r"cooking|cake|hot|the|this|that|its|hand|furniture|head|face|chin|hat|visor|"
    r"no|not|without|never|don't|avoid|doesn't|isn't)|"
    r"\b(?:no|not|without|never|don't|avoid) (?:any |a |camera |the )*(?:\w+ly )?)[ -]$"
)
_LOOK_BACK_CHARS = 40


@dataclass(frozen=True, kw_only=True)
class _Verb:
    """One way to name a move: a pattern, and what it means with each direction."""

    pattern: re.Pattern[str]
    #: Direction -> move. The key "" is the move without any direction; missing: then it is no move.
    meanings: dict[str, CameraMove]


def _verb(pattern: str, **meanings: CameraMove) -> _Verb:
    bare = meanings.pop("bare", None)
    table: dict[str, CameraMove] = dict(meanings)
    if bare is not None:
        table[""] = bare
    return _Verb(pattern=re.compile(rf"(?<![\w-]){pattern}(?![\w])"), meanings=table)


_SIDEWAYS = {"left": _M.PAN_LEFT, "right": _M.PAN_RIGHT, "up": _M.TILT_UP, "down": _M.TILT_DOWN}
_INOUT = {"in": _M.DOLLY_IN, "out": _M.DOLLY_OUT}
_ROUND = {"left": _M.ORBIT_LEFT, "right": _M.ORBIT_RIGHT}
# Seen from above, a camera that circles counterclockwise moves to its right.
_ORBIT = {**_ROUND, "counterclockwise": _M.ORBIT_RIGHT, "clockwise": _M.ORBIT_LEFT}
_ROLL = {"clockwise": _M.ROLL_CLOCKWISE, "counterclockwise": _M.ROLL_COUNTERCLOCKWISE}
_THING = r"(?! (?:lens|lenses|call|meeting|range|ring|sneakers?|trainers?|air)\b)"

#: First match wins at a place in the text: the more telling phrases stand first.
_VERBS = (
    _verb(rf"zoom(?:s|ed|ing)?{_THING}", **{"in": _M.ZOOM_IN, "out": _M.ZOOM_OUT}, bare=_M.ZOOM_IN),
    _verb(r"ken burns(?: effect)?", bare=_M.ZOOM_IN),
    _verb(r"(?:panning|pans|panned)(?= )", **_SIDEWAYS, bare=_M.PAN_RIGHT),
    _verb(r"panning", **_SIDEWAYS, bare=_M.PAN_RIGHT),
    _verb(
        r"(?:(?<=slow )|(?<=quick )|(?<=fast )|(?<=gentle )|(?<=smooth )|(?<=camera ))pan",
        **_SIDEWAYS,
        bare=_M.PAN_RIGHT,
    ),
    _verb(r"pan(?= (?:shot|across|over|along)\b)", **_SIDEWAYS, bare=_M.PAN_RIGHT),
    _verb(r"pan", **_SIDEWAYS),
    _verb(
        r"(?<=camera )tilt(?:s|ing)?",
        up=_M.TILT_UP,
        down=_M.TILT_DOWN,
        left=_M.ROLL_COUNTERCLOCKWISE,
        right=_M.ROLL_CLOCKWISE,
        bare=_M.TILT_UP,
    ),
    _verb(r"tilt(?:s|ing)", up=_M.TILT_UP, down=_M.TILT_DOWN, bare=_M.TILT_UP),
    _verb(r"tilt", up=_M.TILT_UP, down=_M.TILT_DOWN),
    _verb(r"(?:orbit(?:s|ing)?|revolv(?:es?|ing)|circl(?:es|ing)|arc shot|arcs|arcing)", **_ORBIT, bare=_M.ORBIT_RIGHT),
    _verb(
        r"(?:rotat(?:es?|ing|ion)|spin(?:s|ning)?|turn(?:s|ing)?|mov(?:es?|ing)|fl(?:y|ies|ying)) (?:\w+ly )?"
        r"(?:around|round|about)",
        **_ORBIT,
        bare=_M.ORBIT_RIGHT,
    ),
    _verb(
        r"(?:turn ?table|360(?:[- ]degree)?|360°)(?: (?:rotation|spin|turn|view|shot))?", **_ORBIT, bare=_M.ORBIT_RIGHT
    ),
    _verb(
        r"(?<=camera )(?:\w+ly )?(?:rotat(?:es?|ing)|roll(?:s|ing)?|spin(?:s|ning)?)",
        **_ROLL,
        **_ROUND,
        bare=_M.ROLL_CLOCKWISE,
    ),
    _verb(r"(?:camera|dutch) roll", **_ROLL, bare=_M.ROLL_CLOCKWISE),
    _verb(r"roll(?:s|ing)?", **_ROLL),
    _verb(r"(?:rotat(?:es?|ing|ion)|spin(?:s|ning))", **_ROLL, **_ROUND, bare=_M.ORBIT_RIGHT),
    _verb(r"doll(?:y|ies|ying)(?! cart)(?: zoom)?", **_INOUT, left=_M.PAN_LEFT, right=_M.PAN_RIGHT, bare=_M.DOLLY_IN),
    _verb(r"push(?:es|ing)?", **{"in": _M.DOLLY_IN}),
    _verb(r"pull(?:s|ing)?", out=_M.DOLLY_OUT),
    _verb(r"truck(?:s|ing)?", **{k: v for k, v in _SIDEWAYS.items() if k in ("left", "right")}),
    _verb(r"track(?:s|ing)?(?: shot)?", **_SIDEWAYS, **_INOUT),
    _verb(r"(?:pedestal|crane|boom|jib)(?:s|ing)?", up=_M.TILT_UP, down=_M.TILT_DOWN),
    _verb(r"(?<=camera )(?:\w+ly )?(?:ris(?:es?|ing)|ascend(?:s|ing)?)", bare=_M.TILT_UP),
    _verb(r"(?<=camera )(?:\w+ly )?(?:descend(?:s|ing)?|lower(?:s|ing)?|sink(?:s|ing)?)", bare=_M.TILT_DOWN),
    _verb(r"(?<=camera )(?:\w+ly )?approach(?:es|ing)?", bare=_M.DOLLY_IN),
    _verb(r"(?<=camera )(?:\w+ly )?(?:retreat(?:s|ing)?|withdraw(?:s|ing)?)", bare=_M.DOLLY_OUT),
    _verb(
        r"(?<=camera )(?:\w+ly )?(?:mov(?:es?|ing)|movement|slid(?:es?|ing)|glid(?:es?|ing)|sweep(?:s|ing)?|"
        r"drift(?:s|ing)?|travel(?:s|ing)?|com(?:es?|ing)|go(?:es|ing)?|clos(?:es|ing))",
        **_SIDEWAYS,
        **_INOUT,
    ),
)

#: A camera that is told to stand still, in text of lower case.
STATIC_CAMERA = re.compile(
    r"\b(?:(?:static|locked(?:[- ]off)?|locked[- ]down|fixed|stationary|motionless|still|immobile|unmoving) camera"
    r"|(?:static|locked(?:[- ]off)?|locked[- ]down|fixed|stationary|motionless) (?:shot|view|frame)"
    r"|(?:no|without(?: any)?|zero) (?:camera )?(?:movement|motion|moves?)"
    r"|camera (?:does not|doesn't|doesnt|never|not) mov(?:e|es|ing)"
    r"|(?:camera )?(?:not|never) moving(?= camera| at all)"
    r"|camera (?:\w+ )?(?:stays? |remains? |is |kept )?(?:perfectly |completely )?"
    r"(?:still|static|fixed|stationary|motionless|locked(?:[- ]off)?))\b"
)
_LOOP = re.compile(
    r"(?<!belt )(?<!hook-and-)(?<!hook and )(?<!heel )(?<!pull )(?<!carry )(?<!hang )(?<!gear )(?<!belay )"
    r"(?<!webbing )(?<!fabric )(?<!daisy )(?<!haul )(?<!tool )(?<!axe )(?<!ear )"
    r"\bloop(?:s|ing|ed|able)?\b(?! (?:straps?|closures?|fasteners?|pile|earrings?|stitch|knot)\b)"
    r"|\bboomerang (?:effect|loop|clip|video)\b"
    r"|\bseamless(?:ly)?\b"
    r"(?! (?:\w+ )?(?:backgrounds?|backdrops?|paper|white|gr[ae]y|black|studio|construction|fabric|knit"
    r"|design|upper|leggings|shell|waistband|fit|integration)\b)"
)
_SLOWLY = re.compile(r"\b(?:slowly|gently|gradually|softly|subtly|leisurely|in slow[- ]motion)\b")
_QUICKLY = re.compile(r"\b(?:quickly|rapidly|swiftly|briskly|dramatically)\b")
_SLOW_BEFORE = re.compile(r"\b(?:slow|gentle|subtle|gradual|slight|leisurely)(?: [\w'-]+){0,2} $")
_FAST_BEFORE = re.compile(r"\b(?:fast|quick|rapid|swift|whip|dramatic|brisk)(?: [\w'-]+){0,2} $")
_SLOW_AFTER = re.compile(r"^(?:[ -]\w+){0,4},? (?:slow|at a slow pace)(?=$|[,.;])")
_FAST_AFTER = re.compile(r"^(?:[ -]\w+){0,4},? (?:fast|quick|at a fast pace)(?=$|[,.;])")


@lru_cache(maxsize=4096)
def read_motion(prompt: str) -> Motion:
    """The camera moves, speed and looping that `prompt` asks for; never raises.

    Moves that undo each other ("zoom in and out simultaneously") are dropped and listed in `cancelled`. A prompt
    without any move that is left gets a gentle zoom in, marked `assumed`.
    """
    text = re.sub(r"\s+", " ", prompt.lower().replace("’", "'")).strip()
    found: list[tuple[int, CameraMove]] = []
    speed: Speed | None = None
    for begin, end, verb in _places(text):
        for move in _moves_of(verb, text, end):
            found.append((begin, move))
        speed = speed or _speed_near(text, begin, end)
    speed = speed or _speed_anywhere(text)
    named = tuple(dict.fromkeys(move for _, move in found))
    cancelled = tuple(m for m in named if any(frozenset((m, other)) in _OPPOSITES for other in named))
    moves = tuple(move for move in named if move not in cancelled)
    loop = _LOOP.search(text) is not None
    if moves:
        return Motion(moves=moves, speed=speed or Speed.NORMAL, loop=loop, cancelled=cancelled)
    if STATIC_CAMERA.search(text) and not named:
        return Motion(moves=(), loop=loop)
    return Motion(moves=(CameraMove.ZOOM_IN,), speed=Speed.SLOW, loop=loop, assumed=True, cancelled=cancelled)


def _places(text: str) -> list[tuple[int, int, _Verb]]:
    """(begin, end, verb) of every phrase that names a move, in order, none overlapping."""
    places: list[tuple[int, int, _Verb]] = []
    for verb in _VERBS:
        for match in verb.pattern.finditer(text):
            begin, end = match.span()
            if any(b < end and begin < e for b, e, _ in places):
                continue
            before = text[max(0, begin - _LOOK_BACK_CHARS) : begin]
            if _NOT_AFTER.search(before) or not _moves_of(verb, text, end):
                continue
            places.append((begin, end, verb))
    return sorted(places, key=lambda place: place[0])


@lru_cache(maxsize=1024)
def _canonical(word: str) -> str:
    return next(name for pattern, name in _DIRECTIONS if re.fullmatch(pattern, word))


def _moves_of(verb: _Verb, text: str, end: int) -> list[CameraMove]:
    match = _DIRECTION.match(text, end)
    names: list[str] = []
    if match and _canonical(match["first"]) in verb.meanings:
        names.append(_canonical(match["first"]))
        second = _SECOND.match(text, match.end())
        if second and _canonical(second["second"]) in verb.meanings:
            names.append(_canonical(second["second"]))
    else:
        clause = _CLAUSE_END.split(text[end:], maxsplit=1)[0]
        later = _LATER.search(clause)
        if later:
            names.append(_canonical(later["side"] or later["span"] or later["turn"]))
    moves = [verb.meanings[name] for name in names if name in verb.meanings]
    if not moves and "" in verb.meanings:
        moves = [verb.meanings[""]]
    return moves


def _speed_near(text: str, begin: int, end: int) -> Speed | None:
    before, after = text[max(0, begin - _LOOK_BACK_CHARS) : begin], text[end:]
    before = re.split(r"[,.;]", before)[-1]
    if _SLOW_BEFORE.search(before) or _SLOW_AFTER.match(after):
        return Speed.SLOW
    if _FAST_BEFORE.search(before) or _FAST_AFTER.match(after):
        return Speed.FAST
    return None


def _speed_anywhere(text: str) -> Speed | None:
    """Adverbs are never part of a product's name, so they count wherever they stand; the first one decides."""
    slow, fast = _SLOWLY.search(text), _QUICKLY.search(text)
    if slow and (not fast or slow.start() < fast.start()):
        return Speed.SLOW
    return Speed.FAST if fast else None
