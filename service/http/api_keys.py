"""API keys: who may ask for what. Only their hashes are kept.

A key is 256 random bits, so one round of SHA-256 is all that guessing needs to be hopeless; slow
hashes are for passwords that people make up. The file has a line a key, `name role hash`; a `#`
begins a comment. Roles: `use` asks models, `metrics` reads /metrics, `admin` does these and loads
and unloads models.
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
KEY_PREFIX = "unroll-"  # so that a key that leaked is known for one

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


class ApiKeysError(Exception):
    """A file of keys that cannot be used; one line."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, which cannot be had from this."""

    name: str
    role: Role
    digest: bytes  # SHA-256

    def allows(self, role: Role) -> bool:
        """Whether it is for this."""
        return self.role in {role, "admin"}

    def line(self) -> str:
        """As it stands in the file."""
        return f"{self.name} {self.role} sha256:{self.digest.hex()}"


def new_key(name: str, role: Role) -> tuple[str, ApiKey]:
    """A fresh key, and what is kept of it. Raises ApiKeysError for a name that is none."""
    if not _NAME.fullmatch(name):
        raise ApiKeysError("a name has 1 to 64 letters, digits, dots, dashes and underscores")
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
        raise ApiKeysError(f"{path}: every key has a name of its own")
    if not keys:
        raise ApiKeysError(f"{path}: there is no key in it; nobody could ask for anything")
    return keys


def known_key(keys: Sequence[ApiKey], given: str) -> ApiKey | None:
    """The key that was given. Every key is compared, and each in constant time."""
    digest = _digest(given)
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def _parse(path: Path, number: int, line: str) -> ApiKey:
    # What a line holds is not told: it may be a key that somebody wrote here by mistake.
    parts = line.split("#", maxsplit=1)[0].split()
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]) or not _HASH.fullmatch(parts[2]):
        raise ApiKeysError(f"{path}: line {number}: it must be `name role sha256:<64 digits>`")
    for role in ROLES:
        if parts[1] == role:
            return ApiKey(parts[0], role, bytes.fromhex(parts[2].removeprefix("sha256:")))
    raise ApiKeysError(f"{path}: line {number}: a role is one of {', '.join(ROLES)}")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
