"""Templates as answers, the files they load, and what a browser may do with a page of the gateway."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Response
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from pipeline.units import format_bytes, format_duration

_HERE = Path(__file__).parent
#: What a page may load and send: from its own gateway only, nothing that stands within the page itself.
PAGE_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
#: Pages tell of the present, and of one owner's.
_PAGE_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
#: Under one version a file never changes.
_KEPT = "public, max-age=31536000, immutable"


@cache
def static_files() -> Mapping[str, bytes]:
    """Files that pages load, by name."""
    return {
        path.name: path.read_bytes() for path in sorted((_HERE / "static").iterdir()) if path.suffix in _MEDIA_TYPES
    }


@cache
def static_version() -> str:
    """A name for all files together as they are, so that a browser never mixes those of two versions."""
    digest = hashlib.sha256()
    for name, data in static_files().items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:12]


def static_answer(version: str, name: str) -> Response | None:
    """The file of this name as an answer; None where there is none."""
    data = static_files().get(name)
    if data is None:
        return None
    # A page of before the last upgrade gets the file as it is now, and asks again the next time.
    kept = _KEPT if version == static_version() else "no-cache"
    return Response(data, media_type=_MEDIA_TYPES[Path(name).suffix], headers={"Cache-Control": kept})


def page(template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """The page that a template makes of `values`."""
    return HTMLResponse(_environment().get_template(template).render(**values), status, _PAGE_HEADERS)


def moment(epoch_s: int | None) -> Markup:
    """A time in UTC epoch seconds as an element that scripts show in the reader's own zone; empty for None."""
    if epoch_s is None:
        return Markup("")
    try:
        when = datetime.fromtimestamp(epoch_s, UTC)
    except (OverflowError, ValueError, OSError):
        return Markup("")
    exact, words = f"{when:%Y-%m-%dT%H:%M:%SZ}", f"{when.day} {when:%b %Y, %H:%M} UTC"
    return Markup('<time datetime="{}">{}</time>').format(exact, words)


def count(number: int, one: str, many: str = "") -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


@cache
def _environment() -> jinja2.Environment:
    # Autoescaping is set by hand: jinja2's default leaves templates called *.j2 unescaped.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": format_bytes, "duration": format_duration, "moment": moment}
    environment.globals |= {"count": count, "static": f"/static/{static_version()}"}
    return environment
