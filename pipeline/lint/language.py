"""Whether a prompt is written in a language that an encoder was trained on.

Told by the alphabet, and by the small words that no text of a language does without. A prompt of a few words, names of
products among them, is taken for English unless there is proof: a missed foreign prompt costs a clip, a false alarm the
trust in every other one. Where the library `lingua` is installed (extra `language`), it judges what is left open.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from pipeline.lint.vocabulary import VERBS, word_set

#: Share of the letters from which another alphabet decides.
_FOREIGN_SHARE = 0.3
#: Small words of a language that prove it, where nothing is English.
_PROOF = 2
#: With `lingua`: fewest words to judge by, and how sure it has to be.
_LEAST_WORDS, _SURE = 5, 0.9

_ALPHABETS = {
    "CYRILLIC": "Russian",
    "CJK": "Chinese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "ARABIC": "Arabic",
    "HEBREW": "Hebrew",
    "GREEK": "Greek",
    "DEVANAGARI": "Hindi",
    "THAI": "Thai",
}

#: Words that only English has of these languages.
_ENGLISH = word_set(
    "the of with and to are from by its while into through under behind slow slowly soft light shot background"
    " white black red blue around across toward towards for this that"
)

#: Small words by language; such as English has too (`die`, `in`, `on`, `camera`) are left out.
_SMALL = {
    "German": (
        "der das den dem des und mit auf aus sich ist ein eine einen einem einer im am zum zur von nach langsam"
        " sanft während über bei durch wird weiches nicht kamera fährt"
    ),
    "French": (
        "le la les un une des du au aux et sur avec dans en est se lentement doucement vers pendant qui caméra ses"
    ),
    "Spanish": (
        "el la los las un una del al y con en sobre por se lentamente hacia mientras su cámara suavemente gira"
    ),
    "Italian": (
        "il lo la gli le un una del della dei degli delle e con su sul nel nella si lentamente verso mentre telecamera"
    ),
    "Portuguese": ("o os um uma do da dos das e com em no na se devagar lentamente enquanto câmera câmara sobre ao"),
    "Dutch": ("de het een van en op met naar zich langzaam terwijl aan uit wordt deze zachtjes"),
    "Swedish": ("den det en ett och på med mot sakta långsamt av från över åt medan kameran"),
    "Polish": ("i w na z do się jest powoli oraz przez kamera podczas"),
    "Turkish": ("bir ve ile için yavaşça kamera doğru üzerinde olan"),
}
#: Beside these, languages that `lingua` tells apart.
_RARER = ("Czech", "Danish", "Finnish", "Hungarian", "Indonesian", "Romanian", "Vietnamese")
_SMALL_WORDS = {language: word_set(text) for language, text in _SMALL.items()}

#: Letters with marks that English borrows words with.
_BORROWED = word_set(
    "café cafés crème brûlée décor naïve façade jalapeño jalapeños piñata entrée sauté sautéed appliqué purée"
    " soufflé über crêpe crêpes pâté rosé résumé fiancée fiancé matinée macramé piqué hermès lancôme nestlé"
    " citroën škoda señor açaí"
)
_WORD = re.compile(r"[^\W\d_]+")


def foreign_language(prompt: str) -> str | None:
    """The language, by its English name, of a prompt that is not English; None where nothing proves that."""
    letters = [char for char in prompt if char.isalpha()]
    other = Counter(name for char in letters if (name := _alphabet(char)) != "LATIN")
    if letters and sum(other.values()) > _FOREIGN_SHARE * len(letters):
        # Japanese has Chinese letters too, no other the other way round.
        japanese = other.keys() & {"HIRAGANA", "KATAKANA"}
        return "Japanese" if japanese else _ALPHABETS.get(other.most_common(1)[0][0], "another language")
    written = _WORD.findall(prompt)
    if any(word in _ENGLISH or word in _english_motion() for word in map(str.lower, written)):
        return None
    # `La Vie Est Belle` is a name, whatever language it is in.
    found = [word.lower() for place, word in enumerate(written) if not place or word[0].islower()]
    proofs = {language: len(small.intersection(found)) for language, small in _SMALL_WORDS.items()}
    language, count = max(proofs.items(), key=lambda item: item[1])
    if count >= _PROOF:
        return language
    marked = [word for word in found if not word.isascii() and word not in _BORROWED]
    if len(marked) >= _PROOF and len(found) > _PROOF:
        return language if count else "another language"
    return _by_library(prompt) if len(found) >= _LEAST_WORDS else None


@cache
def _alphabet(char: str) -> str:
    return "LATIN" if char.isascii() else unicodedata.name(char, "LATIN").split()[0].split("-")[0]


@cache
def _english_motion() -> frozenset[str]:
    verbs = {verb for kind in VERBS.values() for verb in kind}
    stems = {verb[:-1] if verb.endswith("e") else verb for verb in verbs} | {verb + verb[-1] for verb in verbs}
    return frozenset(stem + "ing" for stem in stems)


@cache
def _detector() -> Any:
    if find_spec("lingua") is None:
        return None
    library = import_module("lingua")
    # All of them would take a gigabyte of memory.
    languages = [getattr(library.Language, name.upper()) for name in (*_SMALL, "English", *_RARER)]
    return library.LanguageDetectorBuilder.from_languages(*languages).build()


def _by_library(prompt: str) -> str | None:
    detector = _detector()
    if detector is None:
        return None
    best = detector.compute_language_confidence_values(prompt)[0]
    name = str(best.language.name).capitalize()
    return name if best.value >= _SURE and name != "English" else None
