"""Saved ensembles changed by someone who knows the format: after a change the hashes are made right again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

import ensemble


def rehash(directory: Path) -> None:
    """Make the manifest agree with the files beside it."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        content = (directory / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    path.write_text(json.dumps(manifest))


def change_json(directory: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place; what ``change`` returns, if anything, replaces it."""
    path = directory / name
    data = json.loads(path.read_text())
    changed = change(data)
    path.write_text(json.dumps(data if changed is None else changed))
    if name != "manifest.json":
        rehash(directory)


def change_tensors(directory: Path, name: str, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change a safetensors file in place."""
    tensors = load_file(directory / name)
    change(tensors)
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, directory / name)
    rehash(directory)


def replace(directory: Path, name: str, content: bytes) -> None:
    """Put other bytes in the place of a file."""
    (directory / name).write_bytes(content)
    rehash(directory)


def refused(directory: Path, text: str | None = None) -> str:
    """Loading must be refused with one readable line; returns it."""
    with pytest.raises(ensemble.ArtifactError, match=text) as caught:
        ensemble.load(directory)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message
