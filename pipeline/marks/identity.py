"""Who signs marks: a certificate with its key, in a folder that only this user may read."""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.marks.problems import SigningError
from pipeline.private import private_folder, write_private
from pipeline.problems import BadInputError

#: What a test certificate says of itself, wherever a certificate's subject is shown.
TEST_ORGANIZATION = "TEST CERTIFICATE, proves nothing"
#: Says in the folder what else is there.
FACTS = "identity.json"
#: Other files; certificates that were replaced lie in `_RETIRED`, so that old marks are still known.
_CHAIN, _KEY, _RETIRED = "chain.pem", "key.pem", "retired"
_TEST_DAYS = 365
_INSTALL = "Install what signs: pip install 'clipmill[marks]'."


@dataclass(frozen=True, kw_only=True)
class SigningIdentity:
    """A certificate and its key."""

    #: PEM: the signer's certificate first, then those that vouch for it.
    chain: bytes
    #: PEM, PKCS #8, not encrypted.
    key: bytes
    #: By C2PA's names: `es256`, `es384`, `es512`, `ps256`, `ed25519`.
    algorithm: str
    #: Whose it is: its subject's organisation, and common name.
    organization: str
    common_name: str
    #: Whether it is one that `clipmill marks setup` made, for which nobody vouches.
    is_test: bool
    #: UTC epoch seconds.
    valid_from: int
    valid_until: int
    #: An RFC 3161 authority that is asked for the time of every mark; empty: none is.
    timestamp_url: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over chain and timestamp authority: another one, other marks."""
        return hashlib.sha256(self.chain + b"\0" + self.timestamp_url.encode()).hexdigest()

    def problem_at(self, now: float) -> str:
        """Why it may not sign at a time in UTC epoch seconds; empty where it may."""
        if now < self.valid_from:
            return f"the certificate is valid from {_day(self.valid_from)} only"
        if now >= self.valid_until:
            return f"the certificate has expired on {_day(self.valid_until)}"
        return ""


def load(folder: Path) -> SigningIdentity | None:
    """The identity in a folder; None where none was set up. Raises `BadInputError` for one that cannot be used."""
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        chain, key = (folder / _CHAIN).read_bytes(), (folder / _KEY).read_bytes()
    except FileNotFoundError as error:
        if not (folder / FACTS).exists():
            return None
        raise BadInputError("marks", f"{error.filename} is gone", "Run `clipmill marks setup` again.") from error
    except PermissionError as error:
        message = f"{error.filename} may not be read by this user"
        raise BadInputError("marks", message, "Run as the user who set it up, or set up one's own.") from error
    except ValueError as error:
        message = f"{folder / FACTS} is not as `clipmill marks setup` writes it"
        raise BadInputError("marks", message, "Run `clipmill marks setup` again.") from error
    try:
        return SigningIdentity(
            chain=chain,
            key=key,
            algorithm=str(facts["algorithm"]),
            organization=str(facts["organization"]),
            common_name=str(facts["common_name"]),
            is_test=bool(facts["is_test"]),
            valid_from=int(facts["valid_from"]),
            valid_until=int(facts["valid_until"]),
            timestamp_url=str(facts.get("timestamp_url") or ""),
        )
    except (KeyError, TypeError, ValueError) as error:
        message = f"{folder / FACTS} is not as `clipmill marks setup` writes it"
        raise BadInputError("marks", message, "Run `clipmill marks setup` again.") from error


def keep(folder: Path, identity: SigningIdentity) -> None:
    """Put an identity into the folder, for this user only; the certificate before is kept, its key is not.

    Raises `OSError`.
    """
    private_folder(folder)
    facts = {
        "version": 1,
        "algorithm": identity.algorithm,
        "organization": identity.organization,
        "common_name": identity.common_name,
        "is_test": identity.is_test,
        "valid_from": identity.valid_from,
        "valid_until": identity.valid_until,
        "timestamp_url": identity.timestamp_url,
    }
    # The facts last: whoever reads meanwhile finds the new ones with the new key, or none.
    (folder / FACTS).unlink(missing_ok=True)
    _retire(folder)
    write_private(folder / _CHAIN, identity.chain.decode())
    write_private(folder / _KEY, identity.key.decode())
    write_private(folder / FACTS, json.dumps(facts, indent=2) + "\n")


def forget(folder: Path) -> bool:
    """Delete the key, and keep the certificate to know its marks by; False where there is none. Raises `OSError`."""
    if not (folder / _CHAIN).exists():
        return False
    (folder / FACTS).unlink(missing_ok=True)
    (folder / _KEY).unlink(missing_ok=True)
    _retire(folder)
    return True


def own_certificates(folder: Path) -> bytes:
    """All certificates that this folder has signed with, as PEM; empty where there are none or they may not be read."""
    found = []
    for path in [folder / _CHAIN, *sorted((folder / _RETIRED).glob("*.pem"))]:
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return b"\n".join(found)


def _retire(folder: Path) -> None:
    """Put the certificate aside that is there, if one is."""
    old = folder / _CHAIN
    if old.exists():
        chain = old.read_bytes()
        private_folder(folder / _RETIRED)
        write_private(folder / _RETIRED / f"{hashlib.sha256(chain).hexdigest()[:16]}.pem", chain.decode())
        old.unlink()


def from_files(certificates: Path, key: Path, passphrase: str | None, timestamp_url: str = "") -> SigningIdentity:
    """One's own certificate (PEM, with those that vouch for it) and its key. Raises `BadInputError` and `OSError`."""
    x509, serialization = _cryptography()
    try:
        chain = x509.load_pem_x509_certificates(certificates.read_bytes())
    except ValueError as error:
        message = f"{certificates} has no certificates in PEM: {error}"
        raise BadInputError("certificate", message, "Give a file that begins with the signer's certificate.") from error
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), passphrase.encode() if passphrase else None)
    except TypeError as error:
        remedy = "Name its passphrase in CLIPMILL_MARKS_PASSPHRASE, for this one command."
        if passphrase:
            remedy = "Leave CLIPMILL_MARKS_PASSPHRASE out."
        raise BadInputError("key", f"{key}: {error}", remedy) from error
    except ValueError as error:
        message = f"{key} is no private key in PEM, or has another passphrase"
        raise BadInputError("key", message, "Give the key of the certificate.") from error
    leaf = chain[0]
    if _public(serialization, leaf.public_key()) != _public(serialization, private.public_key()):
        message = f"{key} is not the key of the first certificate in {certificates}"
        raise BadInputError("key", message, "Put the signer's certificate first, and give its own key.")
    return _identity(chain, private, is_test=False, timestamp_url=timestamp_url)


def make_test_identity(name: str, timestamp_url: str = "", now: float | None = None) -> SigningIdentity:
    """A new certificate that says of itself that it is a test, valid for a year. Raises `BadInputError`."""
    x509, _ = _cryptography()
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    begin = datetime.datetime.fromtimestamp(time.time() if now is None else now, datetime.UTC)
    keys = {"root": ec.generate_private_key(ec.SECP256R1()), "leaf": ec.generate_private_key(ec.SECP256R1())}

    def subject(who: str) -> Any:
        names = ((NameOID.ORGANIZATION_NAME, TEST_ORGANIZATION), (NameOID.COMMON_NAME, who))
        return x509.Name([x509.NameAttribute(oid, text) for oid, text in names])

    root_name = subject("clipmill test root")
    issuer, own = keys["root"], keys["leaf"]
    made = []
    for name_of, key, is_root in ((subject(name), own, False), (root_name, issuer, True)):
        usage = x509.KeyUsage(not is_root, False, False, False, False, is_root, is_root, False, False)
        # Not before a while ago: clocks of two machines differ.
        builder = (
            x509.CertificateBuilder(root_name, name_of, key.public_key(), x509.random_serial_number())
            .not_valid_before(begin - datetime.timedelta(minutes=5))
            .not_valid_after(begin + datetime.timedelta(days=_TEST_DAYS))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=0 if is_root else None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
        )
        if not is_root:
            # What C2PA asks of a signer's certificate (specification 2.2, 14.5.1).
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, critical=False)
        made.append(_signed(builder, issuer))
    return _identity(made, own, is_test=True, timestamp_url=timestamp_url)


def _signed(builder: Any, key: Any) -> Any:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256())


def _identity(chain: list[Any], private: Any, *, is_test: bool, timestamp_url: str) -> SigningIdentity:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    def named(oid: Any) -> str:
        found = chain[0].subject.get_attributes_for_oid(oid)
        return str(found[0].value) if found else ""

    return SigningIdentity(
        chain=b"".join(one.public_bytes(Encoding.PEM) for one in chain),
        key=private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        algorithm=_algorithm(private),
        organization=named(NameOID.ORGANIZATION_NAME),
        common_name=named(NameOID.COMMON_NAME),
        is_test=is_test,
        valid_from=int(chain[0].not_valid_before_utc.timestamp()),
        valid_until=int(chain[0].not_valid_after_utc.timestamp()),
        timestamp_url=timestamp_url,
    )


def _algorithm(private: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(private, ec.EllipticCurvePrivateKey):
        names = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
        if private.curve.name in names:
            return names[private.curve.name]
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size >= 2048:
        return "ps256"
    message = f"C2PA takes no key of this kind ({type(private).__name__.strip('_')})"
    raise BadInputError("key", message, "Get one of P-256, P-384, P-521, Ed25519, or RSA of 2048 bits and more.")


def _public(serialization: Any, key: Any) -> bytes:
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(encoding, form))


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise BadInputError("marks", "the library of certificates is not installed", _INSTALL) from error
    return x509, serialization


def c2pa_library() -> Any:
    """The module `c2pa`, which signs and reads manifests. Raises `SigningError` where it is not installed."""
    try:
        import c2pa
    except ImportError as error:
        raise SigningError(f"what signs marks is not installed ({error})", _INSTALL) from error
    return c2pa


def _day(at: int) -> str:
    return time.strftime("%d %b %Y", time.gmtime(at))
