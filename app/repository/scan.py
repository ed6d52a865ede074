"""What lies in the directory of models, and whether it has changed.

``ROOT/NAME/VERSION/manifest.json`` is a model. Names and versions are limited to what can be a path component and
nothing else, and links that lead out of the directory are not followed.
"""

from __future__ import annotations

import logging
from pathlib import Path

from app.versions import NAME, VERSION
from ensemble import EnsembledError
from ensemble.storage.artifact import read_manifest
from ensemble.storage.manifest import MANIFEST

log = logging.getLogger("app.repository")

# Of each file of a version: its name, when it was changed (ns), its size, and its number in the file system.
Stamp = tuple[tuple[str, int, int, int], ...]


class RepositoryError(Exception):
    """The directory cannot be served; the text says what to do."""


def scan(root: Path, *, again: bool = False) -> dict[str, dict[str, Path]]:
    """Every model below a directory: {name: {version: its directory}}, versions ascending.

    Args:
        root: the directory.
        again: it was looked at before, so what is wrong with a part of it has been told.

    Raises:
        RepositoryError: there is no such directory, no model in it, or it cannot be read.
    """
    try:
        return _scan(root, logging.DEBUG if again else logging.WARNING)
    except OSError as error:
        raise _unreadable(root, error) from error


def scan_model(root: Path, name: str) -> dict[str, Path]:
    """The versions of one model: {version: its directory}, ascending; nothing if there is no such model.

    Raises:
        RepositoryError: the directory of models cannot be read.
    """
    try:
        if not NAME.fullmatch(name) or not (root / name).is_dir():
            return {}
        return _versions(root.resolve(), root / name, logging.WARNING)
    except OSError as error:
        raise _unreadable(root, error) from error


def _unreadable(root: Path, error: OSError) -> RepositoryError:
    return RepositoryError(f"The models in {root} cannot be read: {error.strerror}: {error.filename}.")


def _scan(root: Path, level: int) -> dict[str, dict[str, Path]]:
    if not root.is_dir():
        raise RepositoryError(
            f"There is no directory {root}. Make a model first (ensembled build ... {root}/NAME/1, or make serve in "
            "the source tree), or point --models elsewhere."
        )
    whole = root.resolve()
    found: dict[str, dict[str, Path]] = {}
    for directory in sorted(root.iterdir()):
        if not NAME.fullmatch(directory.name) or not directory.is_dir():
            continue
        if versions := _versions(whole, directory, level):
            found[directory.name] = versions
    if not found:
        raise RepositoryError(
            f"{root} holds no model. A model is a directory NAME/VERSION with a manifest.json, such as "
            f"{root}/digits/1; ensembled build makes one."
        )
    return found


def _versions(whole: Path, directory: Path, level: int) -> dict[str, Path]:
    versions = [v for v in directory.iterdir() if VERSION.fullmatch(v.name) and (v / MANIFEST).is_file()]
    found: dict[str, Path] = {}
    for version in sorted(versions, key=lambda v: int(v.name)):
        if version.resolve().is_relative_to(whole):
            found[version.name] = version
        else:
            about = {"path": str(version)}
            log.log(level, "left out, since it is a link out of the directory of models", extra=about)
    return found


def stamp_of(path: Path) -> Stamp:
    """What tells that the files of a version were replaced, without reading them; empty if they are gone."""
    try:
        return tuple(
            (file.name, status.st_mtime_ns, status.st_size, status.st_ino)
            for file in sorted(path.iterdir())
            for status in [file.stat()]
        )
    except OSError:
        return ()


def complete(path: Path) -> bool:
    """Whether every file that the manifest lists is there in its full size, so that nobody is still writing them."""
    try:
        manifest = read_manifest(path)
        return all((path / name).stat().st_size == entry["bytes"] for name, entry in manifest.files.items())
    except (EnsembledError, OSError):
        return False
