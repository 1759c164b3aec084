"""Ed25519 signatures (RFC 8032) with the user's own key, computed by the package `cryptography`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medaug.errors import UserError
from medaug.inputs import read_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ALGORITHM = "Ed25519"
_LARGEST = 1 << 16  # bytes of a file with a key
_MAKE = "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"
_MAKE_PUBLIC = "make it with `openssl pkey -in key.pem -pubout -out public.pem`"


@dataclass(frozen=True)
class Signer:
    """Signs with a private key."""

    key: Ed25519PrivateKey

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Read an unencrypted private key in PEM.

        Raises:
            UserError: the file cannot be read, it holds another kind of key, or `cryptography` is not installed.
        """
        need_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = _loaded(path, "private", _MAKE)
        if not isinstance(key, Ed25519PrivateKey):
            raise UserError(f"not a private key for {ALGORITHM}", _MAKE, path=path)
        return cls(key)

    def sign(self, message: bytes) -> dict[str, str]:
        """The signature of a message: the algorithm, and the public key and the signature in hexadecimal."""
        public = self.key.public_key().public_bytes_raw().hex()
        return {"algorithm": ALGORITHM, "public_key": public, "value": self.key.sign(message).hex()}


def load_public_key(path: Path) -> str:
    """Read a public key in PEM, as 64 hexadecimal digits.

    Raises:
        UserError: the file cannot be read, it holds another kind of key, or `cryptography` is not installed.
    """
    need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = _loaded(path, "public", _MAKE_PUBLIC)
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"not a public key for {ALGORITHM}", _MAKE_PUBLIC, path=path)
    return key.public_bytes_raw().hex()


def is_signed_by(signature: Mapping[str, str], message: bytes, public_key: str) -> bool:
    """Whether a signature is valid for a message and a public key (hexadecimal).

    Raises:
        UserError: `cryptography` is not installed.
    """
    need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        value = bytes.fromhex(signature.get("value", ""))
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(value, message)
    except (InvalidSignature, ValueError):
        return False
    return signature.get("algorithm") == ALGORITHM


def need_cryptography() -> None:
    """Raise an error if `cryptography` is not installed, which signing and checking signatures need.

    Raises:
        UserError: names the command that installs it.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise UserError(
            "signatures need the package cryptography", "install it: pip install 'medaug[signing]'"
        ) from None


def _loaded(path: Path, kind: str, remedy: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    content = read_bytes(path, _LARGEST)
    load: Callable[[bytes], Any] = serialization.load_pem_public_key
    if kind == "private":
        load = lambda data: serialization.load_pem_private_key(data, None)  # noqa: E731
    try:
        return load(content)
    except TypeError:
        raise UserError("is protected by a password", "use a key without a password", path=path) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"not a {kind} key in PEM", remedy, path=path) from None
