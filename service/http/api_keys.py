"""API keys: reading the key file, making a new key, and the API key check.

Only hashes are stored. A key is 256 random bits, which nobody can guess, so one round of SHA-256 is
enough; slow hashes are for passwords that people make up. The file has one line a key, `name role
hash`; `#` begins a comment. Role `use` may send requests to models, `metrics` may read /metrics,
and `admin` may do both and load and unload models.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

Role: TypeAlias = Literal["use", "metrics", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
KEY_PREFIX = "unroll-"  # makes a leaked key recognizable

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


class ApiKeysError(Exception):
    """The key file cannot be used; the message is one line."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key as the server stores it: its hash, from which the key cannot be recovered."""

    name: str
    role: Role
    digest: bytes  # SHA-256

    def allows(self, role: Role) -> bool:
        """Whether the key may do what `role` may do."""
        return self.role in {role, "admin"}

    def line(self) -> str:
        """The key's line in the file."""
        return f"{self.name} {self.role} sha256:{self.digest.hex()}"


def new_key(name: str, role: Role) -> tuple[str, ApiKey]:
    """A fresh key and the entry to store for it. Raises ApiKeysError for an invalid name."""
    if not _NAME.fullmatch(name):
        raise ApiKeysError(
            "the name of a key must have 1 to 64 letters, digits, dots, dashes or underscores"
        )
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    return secret, ApiKey(name, role, _digest(secret))


def read_api_keys(path: Path) -> list[ApiKey]:
    """The keys of a file. Raises ApiKeysError."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ApiKeysError(f"{path}: {cause}") from error
    keys = [_parse(path, i, line) for i, line in enumerate(lines, 1) if line.split("#")[0].strip()]
    names = [key.name for key in keys]
    if len(set(names)) < len(names):
        raise ApiKeysError(f"{path}: two keys have the same name; give each a name of its own")
    if not keys:
        raise ApiKeysError(
            f"{path}: the file has no key, so every request would be rejected; add one with "
            "`python -m service keys`"
        )
    return keys


def known_key(keys: Sequence[ApiKey], given: str) -> ApiKey | None:
    """The entry of the given key, or None. Compares with every entry, each in constant time."""
    digest = _digest(given)
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def _parse(path: Path, number: int, line: str) -> ApiKey:
    # Messages never show the line: somebody may have pasted a key into it by mistake.
    parts = line.split("#", maxsplit=1)[0].split()
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]) or not _HASH.fullmatch(parts[2]):
        raise ApiKeysError(
            f"{path}: line {number}: a line must be `name role sha256:<64 hexadecimal digits>`"
        )
    for role in ROLES:
        if parts[1] == role:
            return ApiKey(parts[0], role, bytes.fromhex(parts[2].removeprefix("sha256:")))
    raise ApiKeysError(f"{path}: line {number}: the role must be one of {', '.join(ROLES)}")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
