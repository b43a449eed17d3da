"""The URL of a picture, read once: whoever connects gets its parts and reads no text again."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin

import idna

MAX_URL_CHARACTERS = 4096
DEFAULT_PORTS = {"http": 80, "https": 443}
#: Schemes of pictures in buckets.
BUCKET_SCHEMES = ("s3", "gs")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::([0-9]{0,5}))?")
#: Characters that no URL has, half ones among them.
_NOWHERE = re.compile(r"[\x00-\x1f\x7f-\xa0\\\u2028\u2029\ud800-\udfff]")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
#: A last label that makes a name an address, in one of the notations that C libraries read (decimal, octal, hex).
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
#: What may stand in a path and a query as it is; a percent sign belongs to what is quoted already.
_AS_IT_IS = "%/:?=&+$,;@!*'()~-._[]"
_MAX_SHOWN = 200


class FetchRefusedError(Exception):
    """A picture is not fetched, or was not got; says what is wrong and what to do, not of which URL."""

    def __init__(self, message: str, remedy: str) -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}. {remedy}")


def scheme_of(image: str) -> str | None:
    """The scheme of a URI, small; None where `image` is a path."""
    found = _SCHEME.match(image)
    return found[1].lower() if found else None


def is_remote(image: str) -> bool:
    """Whether `image` is the URL of a picture that can be fetched."""
    return scheme_of(image) in (*DEFAULT_PORTS, *BUCKET_SCHEMES)


def shown(image: str) -> str:
    """`image` as it may be shown and kept: of a URI neither credentials nor query nor fragment, else as it is."""
    begins = _SCHEME.match(image)
    if begins is None:
        return image
    rest, *query = re.split(r"[?#]", image[begins.end() :], maxsplit=1)
    authority, slash, path = rest.partition("/")
    text = begins[0] + authority.rpartition("@")[2] + slash + path
    text = text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"
    return text + ("?…" if query else "")


@dataclass(frozen=True, kw_only=True)
class PictureUrl:
    """An http or https URL in parts, none of which has to be read again."""

    scheme: str
    #: A name in ASCII, small, without the dot of the root, or an address without brackets.
    host: str
    port: int
    #: Path and query in ASCII, what needs it quoted.
    target: str

    @property
    def authority(self) -> str:
        """Host and port as the header `Host` has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def text(self) -> str:
        """The whole URL: with what may be secret."""
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def shown(self) -> str:
        """The URL without its query."""
        return shown(self.text)

    @property
    def key(self) -> str:
        """SHA-256 of the whole URL in hex, which tells nothing of it."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def parse_url(text: str) -> PictureUrl:
    """An http or https URL as it is written in a catalog. Raises `FetchRefusedError`."""
    if len(text) > MAX_URL_CHARACTERS:
        raise FetchRefusedError(f"the URL has more than {MAX_URL_CHARACTERS} characters", "Give a shorter one.")
    # `urlsplit` would drop line ends, and browsers take a backslash for a slash.
    if bad := next(filter(_NOWHERE.fullmatch, text), None):
        raise FetchRefusedError(f"no URL has the character {bad!r}", "Correct it, or quote it as %5C.")
    found = _URL.match(text)
    if found is None:
        scheme = scheme_of(text)
        what = f"pictures are not fetched by {scheme[:20]}://" if scheme else "it is no whole URL"
        raise FetchRefusedError(what, "Give one that begins with https://.")
    scheme, authority, target = found[1].lower(), found[2], found[3]
    if "@" in authority:
        raise FetchRefusedError("it has credentials", "Leave user and password out: none are sent.")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise FetchRefusedError("its host cannot be read", "Write it as https://host/path.")
    port = int(parts[3]) if parts[3] else DEFAULT_PORTS[scheme]
    if not 0 < port < 2**16:
        raise FetchRefusedError(f"there is no port {port}", "Give one of 1 to 65535.")
    host = _address_6(parts[1]) if parts[1] else _host(parts[2])
    target = target if target.startswith("/") else "/" + target
    return PictureUrl(scheme=scheme, host=host, port=port, target=quote(target, safe=_AS_IT_IS))


def redirected(url: PictureUrl, location: str) -> PictureUrl:
    """Where an answer of `url` with this `Location` leads. Raises `FetchRefusedError`."""
    try:
        joined = urljoin(url.text, location)
    except ValueError as error:
        raise FetchRefusedError("it redirects to what is no URL", "Give the URL of the picture itself.") from error
    # Judged as it was sent: `urljoin` drops line ends.
    if any(c < " " or c in "\\\x7f" for c in location):
        raise FetchRefusedError("it redirects to what is no URL", "Give the URL of the picture itself.")
    found = parse_url(joined)
    if url.scheme == "https" and found.scheme != "https":
        raise FetchRefusedError("it redirects from https to http", "Give the URL of the picture itself.")
    return found


def _address_6(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError as error:
        raise FetchRefusedError("its address cannot be read", "Write it as https://[2001:db8::1]/path.") from error


def _host(text: str) -> str:
    if not text.isascii():
        try:
            text = idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            raise FetchRefusedError("its host is no name", "Write the name as a browser shows it.") from error
    host = text.lower().removesuffix(".")
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        pass
    labels = host.split(".")
    # 2130706433, 0x7f.1, 0177.0.0.1: each library reads these as it likes.
    if _NUMBER.fullmatch(labels[-1]):
        raise FetchRefusedError("its address is in no usual notation", "Write four decimal numbers, or a name.")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise FetchRefusedError("its host is no name", "Write it as https://host/path.")
    return host
