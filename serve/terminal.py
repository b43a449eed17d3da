"""What reaches a terminal, at one place: text that others wrote is shown and never obeyed.

Ids, prompts, file names and errors come from manifests, disks and other machines. A control sequence in one would
retitle or rewrite the terminal of whoever looks at it, an override of direction would show another name than the one
that is there, and markup would colour it or end the command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

#: Control characters but for line feed and tab, DEL, C1 (a terminal may take U+009B for ESC and a bracket), marks and
#: overrides of direction, separators of lines, halves of characters, and tags that nobody sees.
_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e007f"
)
_SHOWN = re.compile(f"[{_UNSAFE}]")


def visible(text: str) -> str:
    """`text` with everything that a terminal would obey in place of showing it as a character that is shown."""
    return _SHOWN.sub(_picture, text)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON that a terminal may be given as it is: what it would obey is escaped, which changes no value."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _SHOWN.sub(lambda found: json.dumps(found[0])[1:-1], text)


class PlainConsole(Console):
    """A console that shows text as it is: markup is read only where a call says `markup=True`, and controls never."""

    def __init__(self, **options: Any) -> None:
        """`options`: those of rich's `Console`."""
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything that is printed, those of rich's own cursor control unchanged."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        # Unicode has a picture of each: U+241B shows ESC.
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"
