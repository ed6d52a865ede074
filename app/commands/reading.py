"""Rows from files: .npy, .npz, .json, .csv."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ReadingError(Exception):
    """A file that holds no rows; the text says what would be right."""


def read_rows(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays by input name; a lone one is named "".

    Args:
        path: ``.npz`` or a JSON object hold named arrays; ``.npy``, a JSON list, or ``.csv`` (numbers, with or without
            one header line) one array; ``-`` is JSON from standard input.

    Raises:
        ReadingError: it cannot be read as rows.
    """
    try:
        if str(path) == "-":
            return _from_json(json.loads(sys.stdin.read()))
        match path.suffix:
            case ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    found = {name: arrays[name] for name in arrays.files}
                return {"": next(iter(found.values()))} if list(found) == ["arr_0"] else found
            case ".npy":
                return {"": np.load(path, allow_pickle=False)}
            case ".csv":
                return {"": _from_csv(path)}
            case ".json":
                return _from_json(json.loads(path.read_text()))
    except OSError as error:
        raise ReadingError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, zipfile.BadZipFile, KeyError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ReadingError(f"{path} does not hold rows of numbers: {text}") from None
    raise ReadingError(f"{path}: rows are read from .npy, .npz, .json, .csv or - (JSON from standard input)")


def _from_json(value: Any) -> dict[str, NDArray[Any]]:
    # A request's body is rows too.
    if isinstance(value, dict) and "inputs" in value:
        value = value["inputs"]
    named = value if isinstance(value, dict) else {"": value}
    arrays = {name: np.asarray(rows) for name, rows in named.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise ValueError(f"{name or 'the list'} is not a list of rows of numbers")
    return arrays


def _from_csv(path: Path) -> NDArray[Any]:
    first = path.read_text().split("\n", 1)[0]
    header = any(c.isalpha() and c not in "eEnNaAiIfF" for c in first)
    return np.loadtxt(path, delimiter=",", skiprows=int(header), ndmin=2)
