"""Requests that are wrong, each in another way, and the statuses that they may be answered with."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable
from typing import Any

from benchmarks.soak.truth import FEATURES, READER, TOKENS
from benchmarks.soak.wire import head

PLAIN = f"/v1/models/{READER}/predict"
V2 = f"/v2/models/{READER}/infer"
_ROW: dict[str, list[Any]] = {"features": [[0.5] * FEATURES], "tokens": [[1] * TOKENS]}
Wrong = tuple[bytes, tuple[int, ...]]


def _sent(path: str, body: bytes, *lines: str, method: str = "POST", statuses: tuple[int, ...] = (400,)) -> Wrong:
    return head(path, len(body), *lines, method=method) + body, statuses


def _plain(**changes: object) -> Wrong:
    return _sent(PLAIN, json.dumps({"inputs": _ROW, **changes}).encode())


def _v2(**changes: object) -> Wrong:
    tensors = [
        {"name": "features", "shape": [1, FEATURES], "datatype": "FP32", "data": _ROW["features"][0]} | changes,
        {"name": "tokens", "shape": [1, TOKENS], "datatype": "INT64", "data": _ROW["tokens"][0]},
    ]
    return _sent(V2, json.dumps({"inputs": tensors}).encode())


_GOOD = json.dumps({"inputs": _ROW}).encode()

KINDS: dict[str, Callable[[random.Random], Wrong]] = {
    "no body": lambda r: _sent(PLAIN, b""),
    "no JSON": lambda r: _sent(PLAIN, r.randbytes(r.randint(1, 200))),
    "cut off": lambda r: _sent(PLAIN, _GOOD[: r.randint(1, len(_GOOD) - 1)]),
    "deep": lambda r: _sent(PLAIN, b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "a list": lambda r: _sent(PLAIN, b"[1]"),
    "NaN": lambda r: _sent(PLAIN, _GOOD.replace(b"0.5", b"NaN", 1)),
    "1e999": lambda r: _sent(PLAIN, _GOOD.replace(b"0.5", b"1e999", 1)),
    "text for a number": lambda r: _sent(PLAIN, _GOOD.replace(b"0.5", b'"a"', 1)),
    "a fraction for a token": lambda r: _plain(inputs=_ROW | {"tokens": [[1.5] * TOKENS]}),
    "beyond 64 bits": lambda r: _plain(inputs=_ROW | {"tokens": [[2**70] * TOKENS]}),
    "an input is missing": lambda r: _plain(inputs={"features": _ROW["features"]}),
    "rows that differ in number": lambda r: _plain(inputs=_ROW | {"tokens": [[1] * TOKENS] * 2}),
    "no rows": lambda r: _plain(inputs={"features": [], "tokens": []}),
    "rows of another shape": lambda r: _plain(inputs=_ROW | {"features": [[0.5] * r.choice([0, 1, 99])]}),
    "an unknown key": lambda r: _plain(colour="red"),
    "an unknown output": lambda r: _plain(outputs=["magic"]),
    "no members": lambda r: _plain(parameters={"members": r.choice([0, -1, 10**9, True, "all"])}),
    "a negative tolerance": lambda r: _plain(parameters={"tolerance": -r.random()}),
    "a senseless time": lambda r: _sent(PLAIN, _GOOD, f"x-request-timeout: {r.choice(['-1', 'soon', 'nan', '1e9'])}"),
    "more rows than may wait": lambda r: _plain(
        inputs={"features": _ROW["features"] * 300, "tokens": _ROW["tokens"] * 300}
    ),
    "an unknown model": lambda r: _sent("/v1/models/nobody/predict", _GOOD, statuses=(404,)),
    "an unknown version": lambda r: _sent(f"/v1/models/{READER}/versions/99/predict", _GOOD, statuses=(404,)),
    "an unknown path": lambda r: _sent("/" + r.randbytes(8).hex(), _GOOD, statuses=(404,)),
    "another method": lambda r: _sent(PLAIN, b"", method=r.choice(["GET", "PUT", "DELETE"]), statuses=(405,)),
    "an unknown coding": lambda r: _sent(PLAIN, _GOOD, "content-encoding: br", statuses=(415,)),
    "damaged gzip": lambda r: _sent(PLAIN, gzip.compress(_GOOD)[:-6], "content-encoding: gzip"),
    "inflates beyond all bounds": lambda r: _sent(
        PLAIN, zlib.compress(b" " * 2**23), "content-encoding: deflate", statuses=(413,)
    ),
    "announces too much": lambda r: (head(PLAIN, 10**10), (413,)),
    "sends too much": lambda r: _sent(PLAIN, b" " * (2**20 + 1), statuses=(413,)),
    "V2: too few numbers": lambda r: _v2(data=[0.5] * (FEATURES - 1)),
    "V2: another datatype": lambda r: _v2(datatype=r.choice(["FP64", "INT32", "BYTES", "FP99", 7])),
    "V2: another shape": lambda r: _v2(shape=[-1, FEATURES]),
    "V2: no data": lambda r: _v2(data=None),
    "V2: more bytes than there are": lambda r: _v2(data=[], parameters={"binary_data_size": 10**6}),
    "V2: a senseless length": lambda r: _sent(V2, _GOOD, f"inference-header-content-length: {r.choice(['-1', 'x'])}"),
    "V2: a length beyond the body": lambda r: _sent(V2, _GOOD, "inference-header-content-length: 999999"),
    "no HTTP": lambda r: (b"\x16\x03\x01" + r.randbytes(20) + b"\r\n\r\n", (400,)),
    "two lengths": lambda r: (head(PLAIN, 5, "content-length: 7") + b"1234567", (400,)),
    "a head without end": lambda r: (head(PLAIN, 0, "x-a: " + "b" * 2**17), (431,)),
}
