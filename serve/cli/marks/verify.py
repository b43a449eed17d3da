"""`clipmill verify`: who made a file, what it is, when, and whether its pixels are those that were signed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from pipeline.families import FAMILIES
from pipeline.marks.identity import own_certificates
from pipeline.marks.problems import MarkError
from pipeline.marks.source_type import DigitalSourceType
from pipeline.marks.verdict import MarkState, MarkVerdict, PixelState, Trust
from pipeline.marks.verify import TrustLists, records_in
from pipeline.marks.verify import verify as verdict_of
from pipeline.problems import BadInputError
from serve.cli.common import Exit, Home, Json, console, exit_on_error, fail, print_json, say_error, settings_for

_SUFFIXES = frozenset({".mp4", ".mov", ".jpg", ".jpeg", ".png"})
_COLOURS = {MarkState.VALID: "bold green", MarkState.PLAIN: "yellow", MarkState.FOREIGN: "yellow"}
_TRUST = {
    Trust.OWN: "by a certificate of this home",
    Trust.LISTED: "by a certificate that --trust vouches for",
    Trust.UNKNOWN: "nobody here vouches for that: anybody can sign under any name",
}
_PIXELS = {
    PixelState.SAME: "those of {of}",
    PixelState.CHANGED: "some of them changed since {of}",
    PixelState.ALIKE: "others than {of}, and they look the same from afar",
    PixelState.OTHER: "not those of {of}",
    PixelState.UNKNOWN: "",
}


def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="MP4, JPEG or PNG files, or folders of them.")],
    trust: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM: certificates that vouch for signers besides this home's.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Know clips again by the <id>.json there (default: beside each file)."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Check marks of files: who, what, when, and whether the pixels are those that were signed.

    Exit 0 where every file is signed and unchanged since. Nothing is asked of a network.
    """
    with exit_on_error():
        settings = settings_for(home)
        lists = TrustLists(own=own_certificates(settings.marks), listed=_listed(trust))
        if against is not None and not against.is_dir():
            raise BadInputError("against", f"{against} is no folder", "Name one that `--out` wrote.")
        records = cache(records_in)
        found: list[MarkVerdict] = []
        faults: list[str] = []
        for path in _files(files):
            try:
                found.append(verdict_of(path, lists, records(against or path.parent)))
            except MarkError as error:
                faults.append(str(error.problem))
        if as_json:
            print_json({"files": [one.to_json() for one in found], "not_read": faults})
        else:
            for one in found:
                _print(one)
            for fault in faults:
                say_error(fault)
    whole = not faults and all(one.state is MarkState.VALID for one in found)
    raise typer.Exit(Exit.DONE if whole else Exit.SOME_FAILED)


def _files(given: list[Path]) -> Iterator[Path]:
    for path in given:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(one for one in path.iterdir() if one.suffix.lower() in _SUFFIXES and one.is_file())
        if not inside:
            fail(Exit.USAGE, f"{path} has no MP4, JPEG or PNG files")
        yield from inside


def _listed(path: Path | None) -> bytes:
    if path is None:
        return b""
    data = path.read_bytes()
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise BadInputError("trust", f"{path} has no certificates in PEM", "Give a file with some.")
    return data


def _print(found: MarkVerdict) -> None:
    colour = _COLOURS.get(found.state, "bold red")
    state = found.state.value.replace("_", "-")
    console.print(Text.assemble((str(found.path), "bold"), "  ", (state, colour), f": {found.says}"), soft_wrap=True)
    for name, text in _lines(found):
        console.print(f"  {name:<7}{text}", markup=False, soft_wrap=True)


def _lines(found: MarkVerdict) -> Iterator[tuple[str, str]]:
    if found.signer is not None:
        who = found.signer.common_name or "somebody without a name"
        of = f" ({found.signer.organization})" if found.signer.organization else ""
        yield "who", f"{who}{of}, {_TRUST[found.signer.trust]}"
    if what := _what(found):
        yield "what", what
    if when := _when(found):
        yield "when", when
    if found.facts.content_key:
        yield "key", found.facts.content_key
    if found.still is not None:
        yield "still", _still(found)
    if text := _PIXELS[found.pixels]:
        of = "its content key" if found.compared_with == "its mark" else found.compared_with
        yield "pixels", text.format(of=of)


def _what(found: MarkVerdict) -> str:
    term = found.source_type.rpartition("/")[2]
    known = {one.value: one.words for one in DigitalSourceType}
    family = FAMILIES.get(found.facts.family)
    parts = [known.get(term, term), family.title if family else found.facts.family]
    if found.profile:
        parts.append(f"made for {found.profile}")
    return " · ".join(part for part in parts if part)


def _when(found: MarkVerdict) -> str:
    parts = [f"rendered {found.facts.rendered_at}"] if found.facts.rendered_at else []
    if found.signer is not None and found.signer.stamped_at:
        parts.append(f"marked {found.signer.stamped_at} by a timestamp authority")
    elif found.marked_at:
        parts.append(f"marked {found.marked_at} by the signer's own clock")
    return ", ".join(parts)


def _still(found: MarkVerdict) -> str:
    assert found.still is not None
    kept = {
        None: "it had no manifest of its own",
        True: "its own manifest is kept, and whole",
        False: "its own manifest is kept, and was not whole",
    }[found.still.manifest_whole]
    return f"SHA-256 {found.still.sha256[:16] or 'unknown'}…, {kept}"
