"""Rows, and rows with their targets, from files: .npy, .npz, .json, .csv."""

from __future__ import annotations

import json
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What the targets are called in a file, where no name is given.
TARGETS = ("target", "targets", "label", "labels", "y")


class ReadingError(Exception):
    """A file that holds no rows; the text says what would be right."""


def read_rows(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of numbers by input name; a lone one is named "".

    Args:
        path: ``.npz`` or a JSON object hold named arrays; ``.npy``, a JSON list, or ``.csv`` (numbers, with or without
            one header line) one array; ``-`` is JSON from standard input.

    Raises:
        ReadingError: it cannot be read as rows.
    """
    return _read(path)


def _read(path: Path, *, whole: bool = False) -> dict[str, NDArray[Any]]:
    """As :func:`read_rows`, and of a request's body everything that could be rows, if it is to be whole."""
    shown = "standard input" if str(path) == "-" else str(path)
    try:
        return {name: _rows(name, array) for name, array in _arrays(path, whole).items()}
    except OSError as error:
        raise ReadingError(f"{shown} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, EOFError, RecursionError, zipfile.BadZipFile, zlib.error) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ReadingError(f"{shown} does not hold rows of numbers: {text}") from None


def read_data(path: Path, target: str | None = None) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Inputs by name (a lone one is named ""), and targets.

    Args:
        path: ``.npz`` or a JSON object with named arrays, the body of a request with its ``target``, or ``.csv``
            (numbers; one input, whose features are all columns but the target's); ``-`` is JSON from standard input.
        target: the array or column of the targets: a name, or a column's number from 0, from −1 backwards; by default
            the only one of ``TARGETS`` that there is, else a table's last column.

    Raises:
        ReadingError: it cannot be read, or there are no such targets.
    """
    inputs, (targets,) = read_several(path, [target])
    return inputs, targets


def read_several(path: Path, targets: Sequence[str | None]) -> tuple[dict[str, NDArray[Any]], tuple[NDArray[Any], ...]]:
    """As :func:`read_data`, with the targets of several predictions.

    Args:
        path: as there.
        targets: arrays or columns, as there.
    """
    kind = path.suffix.lower()
    if kind not in (".npz", ".csv", ".json") and str(path) != "-":
        raise ReadingError(f"{path}: rows with targets are read from .npz or .json (named arrays) or .csv (columns)")
    if kind == ".csv":
        table, names = read_rows(path)[""], _header(path)
        columns = [_column(path, names, table.shape[1], target) for target in targets]
        if table.shape[1] <= len(set(columns)):
            has = "one column" if table.shape[1] == 1 else f"{table.shape[1]} columns"
            raise ReadingError(f"{path} has {has}, so there are no inputs beside the target")
        return {"": np.delete(table, columns, 1)}, tuple(table[:, column] for column in columns)
    arrays = _read(path, whole=True)
    chosen = [_array(path, arrays, target, len(targets)) for target in targets]
    rest = {name: array for name, array in arrays.items() if name not in chosen}
    return {"": next(iter(rest.values()))} if len(rest) == 1 else rest, tuple(arrays[name] for name in chosen)


def _array(path: Path, arrays: dict[str, NDArray[Any]], target: str | None, wanted: int) -> str:
    """The name of the array of targets."""
    found = [name for name in arrays if name in TARGETS] if target is None else [n for n in arrays if n == target]
    if len(found) != 1 or len(arrays) <= wanted:
        called = f"an array called {target!r}" if target is not None else f"one array called {' or '.join(TARGETS)}"
        there = ", ".join(name or "one without a name" for name in arrays)
        raise ReadingError(f"{path} must hold inputs and {called}, however: {there}; --target says which it is")
    return found[0]


def _header(path: Path) -> list[str]:
    """The names of a table's columns; none where its first line holds numbers."""
    lines = path.read_text("utf-8-sig").splitlines()
    first = next((line for line in lines if line.strip()), "")
    return [] if _are_numbers(first) else [cell.strip().strip('"') for cell in first.split(",")]


def _column(path: Path, names: list[str], width: int, target: str | None) -> int:
    if target is None:
        known = [name for name in names if name.lower() in TARGETS]
        return names.index(known[0]) if len(known) == 1 and len(names) == width else width - 1
    if target in names[:width]:
        return names.index(target)
    try:
        number = int(target)
    except ValueError:
        there = f"its columns are {', '.join(names)}" if names else "its first line has no names; give a number from 0"
        raise ReadingError(f"{path} has no column {target!r}; {there}") from None
    if not -width <= number < width:
        raise ReadingError(f"{path} has {width} columns, so there is no column {number}")
    return number % width


def _arrays(path: Path, whole: bool) -> dict[str, Any]:
    if str(path) == "-":
        return _from_json(json.loads(sys.stdin.read()), whole)
    match path.suffix.lower():
        case ".npz" | ".npy":
            # Opened here, since numpy does not close a file whose archive is broken.
            with path.open("rb") as stream:
                loaded = np.load(stream, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    return {"": loaded}
                found = {name: loaded[name] for name in loaded.files}
            return {"": next(iter(found.values()))} if list(found) == ["arr_0"] else found
        case ".csv":
            return {"": _from_csv(path)}
        case ".json":
            return _from_json(json.loads(path.read_text()), whole)
    raise ReadingError(f"{path}: rows are read from .npy, .npz, .json, .csv or - (JSON from standard input)")


def _rows(name: str, value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name or 'it'} is not a list of rows of numbers")
    # What other machines and compilers wrote.
    return array.astype(np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("="), copy=False)


def _from_json(value: Any, whole: bool) -> dict[str, Any]:
    # A request's body is rows too.
    if isinstance(value, dict) and "inputs" in value:
        inputs, target = value["inputs"], value.get("target")
        about = target if isinstance(target, dict) else {} if target is None else {TARGETS[0]: target}
        value = {**(inputs if isinstance(inputs, dict) else {"": inputs}), **about} if whole else inputs
    return value if isinstance(value, dict) else {"": value}


def _from_csv(path: Path) -> NDArray[Any]:
    # Spreadsheets write a mark of UTF-8 before the first cell.
    lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    if lines and not _are_numbers(lines[0]):
        del lines[0]
    if not lines:
        raise ValueError("it has no rows")
    return np.loadtxt(lines, delimiter=",", ndmin=2)


def _are_numbers(line: str) -> bool:
    try:
        return all(isinstance(float(cell), float) for cell in line.split(","))
    except ValueError:
        return False
