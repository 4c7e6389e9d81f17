"""The API keys of the settings and the keys file, and their limits. Knows no HTTP.

A key is identified by its SHA-256 digest, so neither settings nor files need to hold the key itself. A fast
hash is enough because keys are random (`new_key`, 256 bits): a slow hash protects only keys that can be
guessed.
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
    """One key. A limit is None if there is none.

    `max_pixels` bounds width x height x frames of one request. A key with `admin` may pause and resume
    devices and change the log level.
    """

    name: str
    digest: bytes
    max_queued: int | None = None
    max_pixels: int | None = None
    admin: bool = False

    @property
    def owner(self) -> str:
        """The name stored with the key's jobs: the start of its digest, which does not reveal the key."""
        return self.digest.hex()[:32]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    hash: str = Field(pattern=f"^{HASH_PREFIX}[0-9a-f]{{64}}$")
    max_queued: int | None = Field(None, ge=1)
    max_pixels: int | None = Field(None, ge=1)
    admin: bool = False


class KeyRing:
    """All keys. It is empty, and false, if no key is required."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = tuple(keys)
        self._by_owner = {key.owner: key for key in self._keys}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, key: str) -> ApiKey | None:
        """Return the entry of a key, or None. Takes the same time for every key, known or not."""
        digest = digest_of(key)
        found = None
        for known in self._keys:
            if hmac.compare_digest(digest, known.digest):
                found = known
        return found

    def of_owner(self, owner: str | None) -> ApiKey | None:
        """Return the key of an owner name; None if `owner` is None or the key was removed."""
        return None if owner is None else self._by_owner.get(owner)


def digest_of(key: str) -> bytes:
    """Return the SHA-256 digest of the key in UTF-8; lone surrogates, which UTF-8 excludes, are allowed."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def format_hash(key: str) -> str:
    """Return a key's hash as settings and keys files hold it: `sha256:` and 64 hexadecimal digits."""
    return HASH_PREFIX + digest_of(key).hex()


def new_key() -> str:
    """Return a new random key of 256 bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def load_keys(settings: Settings) -> KeyRing:
    """Return the keys of FRAMEFIT_API_KEYS, which are admin keys, and those of FRAMEFIT_KEYS_FILE.

    Raises `ConfigError` if the file cannot be read or parsed.
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
        raise ConfigError(
            f"{PREFIX}KEYS_FILE: {path}: the file must hold [keys.NAME] tables and nothing else"
        )
    for name, table in tables.items():
        try:
            entry = _Entry.model_validate(table)
        except ValidationError as error:
            # The message does not quote the value: it may be a key.
            first = error.errors(include_input=False)[0]
            where = ".".join(("keys", name, *map(str, first["loc"])))
            raise ConfigError(f"{PREFIX}KEYS_FILE: {path}: {where}: {first['msg']}") from None
        digest = bytes.fromhex(entry.hash.removeprefix(HASH_PREFIX))
        yield ApiKey(name, digest, entry.max_queued, entry.max_pixels, entry.admin)
