"""Files of a saved ensemble: read within bounds and checked, written as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from torch import Tensor

from ensemble.errors import ArtifactError

MAX_JSON_BYTES = 256 * 2**20


def write_directory(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a directory as a whole: beside its place, then renamed into it, so that nobody ever loads half of one.

    Raises:
        OSError: nothing was changed.
    """
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    new, old = staging / "new", staging / "old"
    try:
        new.mkdir(mode=0o755)
        for name, content in files.items():
            (new / name).write_bytes(content)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        # Should the old one not have found its way back, it stays where it is.
        if target.exists() or not old.exists():
            shutil.rmtree(staging, ignore_errors=True)


def read_verified(directory: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    """A file that must be of the size and hash that its entry in the manifest states.

    Raises:
        ArtifactError: it is not, or :func:`read_plain` refuses it.
    """
    most = MAX_JSON_BYTES if name.endswith(".json") else entry["bytes"]
    content = read_plain(directory, name, limit=min(entry["bytes"], most))
    if len(content) != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ArtifactError(
            f"{name} is not what manifest.json says (size or SHA-256 differ): damaged or exchanged. Copy it again from "
            "where it was built, or build it again."
        )
    return content


def read_plain(directory: Path, name: str, limit: int) -> bytes:
    """A plain file of at most ``limit`` bytes.

    Raises:
        ArtifactError: it is missing, a link, larger, or unreadable.
    """
    file = directory / name
    if file.is_symlink() or not file.is_file():
        raise ArtifactError(f"{name} is missing, or not a plain file (links are not followed).")
    try:
        if file.stat().st_size > limit:
            raise ArtifactError(f"{name} is larger than the {limit} bytes that it may have: damaged or exchanged.")
        return file.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{name} cannot be read ({error.strerror}); check its permissions.") from error


def parse_json(name: str, content: bytes) -> Any:
    """What a JSON file holds.

    Raises:
        ArtifactError: it is not JSON.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} is not JSON: damaged, or not a saved ensemble.") from error


def parse_tensors(name: str, content: bytes) -> dict[str, Tensor]:
    """What a safetensors file holds.

    Raises:
        ArtifactError: it is in another format.
    """
    try:
        return read_tensors(content)
    except (SafetensorError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{name} is not in the safetensors format; pickled weights (.pt, .bin) are never loaded. Build it again."
        ) from error
