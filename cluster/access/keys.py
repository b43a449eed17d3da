"""Keys: 256 random bits in a text that is recognised as a key, of which the store has a hash only.

    clipmill_k7f3q2mzx5ab_<43 characters of secret><6 of checksum>

The prefix and the checksum (CRC-32) let secret scanners find keys that were published by accident, and let the gateway
refuse a mistyped one without asking the store. The twelve characters are the key's id, by which it is looked up.

The hash is plain SHA-256. A slow hash (scrypt, Argon2) protects secrets that people think of, because those can be
guessed one after the other; nobody guesses 256 random bits, and a slow hash would make every request slow.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass
from enum import StrEnum

from cluster.access.scopes import Scope, expanded
from pipeline.problems import BadInputError

#: How every key begins.
KEY_PREFIX = "clipmill_"
#: How the ids of keys begin, outside the text.
KEY_ID_PREFIX = "key_"
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_ID_LENGTH = 12
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_BITS = 256
#: Characters that 256 bits and a CRC-32 take, in letters and digits.
_SECRET_LENGTH, _SUM_LENGTH = 43, 6
_TEXT = re.compile(
    rf"({KEY_PREFIX}([a-z2-7]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH}}})([0-9A-Za-z]{{{_SUM_LENGTH}}})"
)
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
#: The longest that a key may be valid for, in seconds: ten years.
LONGEST_S = 10 * 366 * 86_400


class KeyState(StrEnum):
    """Whether a key opens anything."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, kw_only=True)
class AccessKey:
    """A key as the store has it, without its text. Times are UTC epoch seconds."""

    id: str
    #: Whose work is seen and handed in with it.
    owner: str
    #: For people.
    name: str
    scopes: frozenset[Scope]
    created_at: int
    #: None: never.
    expires_at: int | None = None
    revoked_at: int | None = None
    #: When it was last used, up to an hour late; None: never.
    used_at: int | None = None
    #: Id of the key that was made in its place.
    replaced_by: str | None = None

    def state(self, now: int) -> KeyState:
        """Whether it opens anything at `now`."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        return KeyState.ACTIVE if self.expires_at is None or now < self.expires_at else KeyState.EXPIRED

    @property
    def all_scopes(self) -> frozenset[Scope]:
        """All scopes that it has, those within others among them."""
        return expanded(self.scopes)


@dataclass(frozen=True, kw_only=True)
class KeyText:
    """The text of a key, which whoever has it may ask with."""

    text: str
    key_id: str

    @property
    def digest(self) -> str:
        """What the store has of it."""
        return digest_of(self.text)

    def __repr__(self) -> str:
        # Not in logs, nor in tracebacks with the values of variables.
        return f"KeyText({self.key_id})"


def new_key_text() -> KeyText:
    """A text that nobody can guess, and its key's id."""
    name = "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
    body = f"{KEY_PREFIX}{name}_{_in_letters(secrets.randbits(_SECRET_BITS), _SECRET_LENGTH)}"
    return KeyText(text=body + _sum_of(body), key_id=KEY_ID_PREFIX + name)


def read_key_text(text: str) -> KeyText | None:
    """The key that a text is; None where it is none, or a mistyped one."""
    found = _TEXT.fullmatch(text)
    if found is None or not hmac.compare_digest(_sum_of(found[1]), found[3]):
        return None
    return KeyText(text=text, key_id=KEY_ID_PREFIX + found[2])


def digest_of(text: str) -> str:
    """SHA-256 of a secret of high entropy, in hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def same_digest(one: str, other: str) -> bool:
    """Whether two digests are equal, in a time that does not tell how much of them is."""
    return hmac.compare_digest(one, other)


def check_owner(owner: str) -> str:
    """`owner`, where it can be an owner's name. Raises `BadInputError`."""
    if not _OWNER.fullmatch(owner):
        message = f"{owner[:80]!r} cannot be the name of an owner"
        raise BadInputError("owner", message, "Use up to 64 letters, digits and . _ @ + -, such as team-shoes.")
    return owner


def _sum_of(body: str) -> str:
    return _in_letters(zlib.crc32(body.encode()), _SUM_LENGTH)


def _in_letters(number: int, length: int) -> str:
    found = ""
    for _ in range(length):
        number, rest = divmod(number, len(_LETTERS))
        found = _LETTERS[rest] + found
    return found
