"""The bodies that are sent.

A V2 model says in its metadata what it takes, so bodies can be made for any model: each input with its
name, its datatype and its shape. A small pool of distinct bodies is encoded before the test starts and sent
in turn, because encoding while sending would cost the generator time, and one body alone would let a cache
answer.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.loadtest.config import LoadTestError

POOL = 64
FREE_DIMENSION = 8

_DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}

Array = NDArray[Any]


def bodies(
    metadata: Mapping[str, Any],
    *,
    rows: int,
    outputs: Sequence[str] = (),
    seed: int = 0,
    data: Mapping[str, Array] | None = None,
) -> list[bytes]:
    """Encoded V2 requests for the model that `metadata` describes.

    Args:
        metadata: The answer to `GET /v2/models/{name}`.
        rows: Rows in each request.
        outputs: Names of the outputs to ask for; none asks for the model's default.
        seed: Of the random values, or of the order in which rows of `data` are taken.
        data: Rows to send, per input; without it values are random: floats in [0, 1), integers 0 or 1, and a
            dimension that the model leaves free (beyond the first, which is the rows) is 8.

    Returns:
        `POOL` bodies, or fewer if `data` has not that many rows.
    """
    try:
        inputs = [(str(i["name"]), str(i["datatype"]), [int(d) for d in i["shape"]]) for i in metadata["inputs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise LoadTestError(f"the model's metadata is not V2: {error!r} in its inputs") from error
    for name, datatype, shape in inputs:
        _check(name, datatype, shape, rows)
    generator = np.random.default_rng(seed)
    if data is None:
        batches = [
            [_random(datatype, [rows, *shape[1:]], generator) for _, datatype, shape in inputs] for _ in range(POOL)
        ]
    else:
        columns = [_column(data, spec, alone=len(inputs) == 1) for spec in inputs]
        batches = [[column[chosen] for column in columns] for chosen in _chosen(columns, rows, generator)]
    names = [(name, datatype) for name, datatype, _ in inputs]
    return [encode(names, tensors, outputs) for tensors in batches]


def encode(inputs: Sequence[tuple[str, str]], tensors: Sequence[Array], outputs: Sequence[str]) -> bytes:
    """One V2 body: inputs are (name, datatype), tensors their values in the same order."""
    body: dict[str, Any] = {
        "inputs": [
            {
                "name": name,
                "shape": list(tensor.shape),
                "datatype": datatype,
                "data": np.ascontiguousarray(tensor).reshape(-1),
            }
            for (name, datatype), tensor in zip(inputs, tensors, strict=True)
        ]
    }
    if outputs:
        body["outputs"] = [{"name": name} for name in outputs]
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def is_answer(body: bytes) -> bool:
    """Whether `body` is a V2 answer: a JSON object with outputs.

    A body above 64 KiB is looked at from outside only, because parsing it would take time from the generator.
    """
    if not (body.startswith(b"{") and body.rstrip().endswith(b"}") and b'"outputs"' in body):
        return False
    if len(body) > 65536:
        return True
    try:
        return isinstance(orjson.loads(body).get("outputs"), list)
    except orjson.JSONDecodeError:
        return False


def load_data(path: Path) -> dict[str, Array]:
    """The arrays of a .npz file by name, or the one of a .npy file under the name ``""``."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise LoadTestError(f"{path} cannot be read as numpy arrays: {error}") from error


def load_body(path: Path) -> bytes:
    """The JSON of a file, as it is."""
    try:
        body = path.read_bytes()
        orjson.loads(body)
    except OSError as error:
        raise LoadTestError(f"{path} cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise LoadTestError(f"{path} must hold JSON, however: {error}") from error
    return body


def _check(name: str, datatype: str, shape: list[int], rows: int) -> None:
    if datatype not in _DTYPES:
        raise LoadTestError(
            f"input {name!r} is {datatype}, which these JSON bodies cannot carry: must be one of {', '.join(_DTYPES)}"
        )
    if not shape or shape[0] not in (-1, rows):
        raise LoadTestError(f"input {name!r} has shape {shape}, which does not take rows={rows}")


def _random(datatype: str, shape: list[int], generator: np.random.Generator) -> Array:
    shape = [FREE_DIMENSION if size == -1 else size for size in shape]
    if datatype in ("FP32", "FP64"):
        return generator.random(shape, dtype=_DTYPES[datatype])
    return generator.integers(0, 2, shape).astype(_DTYPES[datatype])


def _column(data: Mapping[str, Array], spec: tuple[str, str, list[int]], *, alone: bool) -> Array:
    name, datatype, shape = spec
    if name in data:
        column = data[name]
    elif alone and len(data) == 1:
        column = next(iter(data.values()))
    else:
        raise LoadTestError(f"data has no array named like the input {name!r}, however: {', '.join(sorted(data))}")
    fits = column.ndim == len(shape) and all(
        want in (-1, have) for want, have in zip(shape[1:], column.shape[1:], strict=True)
    )
    if not fits or len(column) == 0:
        raise LoadTestError(f"data for input {name!r} must have shape {shape}, however: {list(column.shape)}")
    if not np.can_cast(column.dtype, _DTYPES[datatype], "same_kind"):
        raise LoadTestError(f"data for input {name!r} must be {datatype}, however: {column.dtype}")
    return column.astype(_DTYPES[datatype])


def _chosen(columns: list[Array], rows: int, generator: np.random.Generator) -> Array:
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise LoadTestError(f"data must have as many rows for each input, however: {sorted(lengths)}")
    length = lengths.pop()
    requests = min(POOL, -(-length // rows))
    return np.resize(generator.permutation(length), (requests, rows))
