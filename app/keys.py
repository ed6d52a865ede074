"""The keys that open the service: made, hashed, compared.

The service keeps SHA-256 hashes only. That is a fast hash, which is right for long random keys (`ensembled key` makes
one of 256 bits) and wrong for passwords; hence the least length below.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.settings import Settings

__all__ = ["KeyFileError", "Keys", "WeakKey", "check_strength", "hash_line", "key_header", "keys_of", "make_key"]

log = logging.getLogger("app.keys")

SHORTEST = 16
LONGEST = 256
_FEWEST_DIFFERENT = 6
_MOST_BYTES_IN_FILE = 2**20
# Seconds between looks at the file.
_LOOK_EVERY = 1.0
# What a header carries, and what no shell or log breaks in two.
_KEY = re.compile(r"[\x21-\x7e]+")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_HASH = re.compile(r"[0-9a-fA-F]{64}")


class WeakKey(ValueError):  # noqa: N818 - says what is wrong with it
    """A key that could be guessed or cannot be sent; the text never shows it."""


class KeyFileError(Exception):
    """The file of keys cannot be used; the text says which line, and shows none."""


def make_key() -> str:
    """A new random key of 256 bits."""
    return secrets.token_urlsafe(32)


def check_strength(key: str) -> str:
    """The key, once it is known to be neither short nor repetitive, and can be sent in a header.

    Raises:
        WeakKey: it is not.
    """
    if not _KEY.fullmatch(key):
        raise WeakKey("a key is made of printable ASCII characters without spaces")
    if not SHORTEST <= len(key) <= LONGEST:
        raise WeakKey(f"a key has {SHORTEST} to {LONGEST} characters; `ensembled key` makes one")
    if len(set(key)) < _FEWEST_DIFFERENT:
        raise WeakKey("a key is random, and does not repeat so few characters; `ensembled key` makes one")
    return key


def hash_line(key: str, name: str = "") -> str:
    """A key's line in the file of keys.

    Raises:
        WeakKey: as :func:`check_strength`.
        ValueError: the name has other characters than letters, digits and . _ @ -
    """
    if name and not _NAME.fullmatch(name):
        raise ValueError("a name is 1 to 64 of the characters A-Z a-z 0-9 . _ @ -")
    return f"{_digest(check_strength(key)).hex()} {name}".rstrip()


def key_header() -> dict[str, str]:
    """The header with the key that the environment has for commands that ask a service; empty if it has none."""
    key = os.environ.get("ENSEMBLED_API_KEY")
    return {"X-API-Key": key} if key and _KEY.fullmatch(key) else {}


@dataclass(frozen=True)
class _Known:
    digest: bytes
    name: str


class Keys:
    """Who may ask.

    Args:
        key: one key, in clear.
        file: with a line ``SHA256-HEX [NAME]`` for each key; ``#`` begins a comment. It is read again when it changes,
            so a key is added or taken away without a restart. A change that cannot be read is logged and passed over;
            a file without a key lets nobody in.

    Raises:
        WeakKey: the key could be guessed.
        KeyFileError: the file cannot be read, or holds no key.
    """

    def __init__(self, key: str | None = None, file: Path | None = None) -> None:
        self._own = [_Known(_digest(check_strength(key)), "key")] if key is not None else []
        self._file = file
        self._stamp = _stamp(file) if file else None
        self._listed = _read(file) if file else []
        if file and not self._listed:
            raise KeyFileError(f"the file of keys {file} holds no key; `ensembled key` prints a line for it")
        self._looked = time.monotonic()

    def __bool__(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._own) or self._file is not None

    def __repr__(self) -> str:
        return f"Keys({len(self._own) + len(self._listed)} hashes)"

    def owner(self, key: str) -> str | None:
        """The name of a key; None if it opens nothing. Takes as long for every key of a length."""
        self._look()
        digest, found = _digest(key), None
        # No early end: how long it takes says nothing about where the key stands.
        for known in (*self._own, *self._listed):
            if hmac.compare_digest(digest, known.digest):
                found = known.name or known.digest.hex()[:8]
        return found

    def _look(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked < _LOOK_EVERY:
            return
        self._looked = now
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._listed = _read(self._file)
        except KeyFileError as error:
            log.error("the keys of before stay valid: %s", error)
        else:
            log.info("the file of keys was read again", extra={"keys": len(self._listed)})


def keys_of(settings: Settings) -> Keys:
    """The keys that a service asks for.

    Raises:
        KeyFileError: as :class:`Keys`.
    """
    return Keys(settings.api_key.get_secret_value() if settings.api_key else None, settings.api_keys_file)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Differs when the file does; a file that is replaced by another keeps neither its number nor its time."""
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _read(file: Path) -> list[_Known]:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_BYTES_IN_FILE + 1)
    except OSError as error:
        raise KeyFileError(f"the file of keys {file} cannot be read: {error.strerror}") from None
    if len(content) > _MOST_BYTES_IN_FILE:
        raise KeyFileError(f"the file of keys {file} is larger than {_MOST_BYTES_IN_FILE} bytes")
    known = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) > 2 or not _HASH.fullmatch(words[0]) or (words[1:] and not _NAME.fullmatch(words[1])):
            raise KeyFileError(
                f"the file of keys {file}, line {number}: a line is the SHA-256 of a key in 64 hex digits, then a name "
                "if you like; `ensembled key` prints one"
            )
        known.append(_Known(bytes.fromhex(words[0]), words[1] if words[1:] else ""))
    return known
