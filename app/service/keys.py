"""API keys as the operator sets them: which there are, what each may do. Knows no HTTP.

A key is known by its SHA-256 digest alone, so neither settings nor files need hold one. A plain hash is
enough as keys are drawn at random (`new_key`, 256 bits): there is nothing to guess that a slow hash would
protect.
"""

import hashlib
import hmac
import secrets
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.config import HASH_PREFIX, PREFIX, ConfigError, Settings

KEY_PREFIX = "ff_"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key: `owner` is the name its jobs are kept under; limits are None where there is none.

    `max_pixels` bounds width x height x frames of one request. `admin` keys may pause and resume devices.
    """

    name: str
    digest: bytes
    max_queued: int | None = None
    max_pixels: int | None = None
    admin: bool = False

    @property
    def owner(self) -> str:
        """The start of the digest; it does not lead back to the key."""
        return self.digest.hex()[:32]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    hash: str = Field(pattern=f"^{HASH_PREFIX}[0-9a-f]{{64}}$")
    max_queued: int | None = Field(None, ge=1)
    max_pixels: int | None = Field(None, ge=1)
    admin: bool = False


class KeyRing:
    """All keys; empty where everyone may call."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = tuple(keys)
        self._by_owner = {key.owner: key for key in self._keys}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, key: str) -> ApiKey | None:
        """The known key that this is; takes the same time whichever it is, and where it is none."""
        digest = digest_of(key)
        found = None
        for known in self._keys:
            if hmac.compare_digest(digest, known.digest):
                found = known
        return found

    def of_owner(self, owner: str | None) -> ApiKey | None:
        """The key whose jobs are kept under that name; None where keys are off, or it was removed."""
        return None if owner is None else self._by_owner.get(owner)


def digest_of(key: str) -> bytes:
    """SHA-256 of the key's UTF-8 form; half a surrogate pair, which has none, is kept apart."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def format_hash(key: str) -> str:
    """What settings and key files hold in a key's place."""
    return HASH_PREFIX + digest_of(key).hex()


def new_key() -> str:
    """A key nobody can guess."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def load_keys(settings: Settings) -> KeyRing:
    """The keys of FRAMEFIT_API_KEYS, which may do everything, and those of FRAMEFIT_KEYS_FILE.

    Raises `ConfigError` for a file that is not understood.
    """
    keys = []
    for number, given in enumerate(settings.api_keys, 1):
        digest = bytes.fromhex(given.removeprefix(HASH_PREFIX)) if _is_hash(given) else digest_of(given)
        keys.append(ApiKey(f"key-{number}", digest, admin=True))
    if settings.keys_file is not None:
        keys.extend(_read(settings.keys_file))
    return KeyRing(keys)


def _is_hash(given: str) -> bool:
    return given.startswith(HASH_PREFIX)


def _read(path: Path) -> Iterable[ApiKey]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{PREFIX}KEYS_FILE: {path}: {error}") from None
    tables = document.pop("keys", None)
    if document or not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{PREFIX}KEYS_FILE: {path}: it must hold [keys.NAME] tables and nothing else")
    for name, table in tables.items():
        try:
            entry = _Entry.model_validate(table)
        except ValidationError as error:
            # What was given is not quoted: it may be a key.
            first = error.errors(include_input=False)[0]
            where = ".".join(("keys", name, *map(str, first["loc"])))
            raise ConfigError(f"{PREFIX}KEYS_FILE: {path}: {where}: {first['msg']}") from None
        digest = bytes.fromhex(entry.hash.removeprefix(HASH_PREFIX))
        yield ApiKey(name, digest, entry.max_queued, entry.max_pixels, entry.admin)
