"""Requests to arrays and answers to bytes: this codec, a pydantic model with `list[float]`, and the json of Python.

python -m benchmarks.protocol

Every way decodes the same numbers to the same array, which is checked before anything is timed, and encodes the same
answer. One core, nothing else: a figure is how many requests the codec alone would let through in a second.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from app.protocol import InferRequest, TensorSpec, decode_infer, decode_predict, encode_infer, encode_predict
from benchmarks.machine import describe

NAME, CLASSES = "input", 10
DETAILS = {"members": 128, "seed": 0}
DATATYPES = {"mean": "FP32", "std": "FP32", "label": "INT64"}
REPEATS = 7


class Tensor(BaseModel):
    """As one writes it with FastAPI."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Request(BaseModel):
    inputs: list[Tensor]


class Rows(BaseModel):
    inputs: list[list[float]]


class Answer(BaseModel):
    model: str
    members: int
    outputs: dict[str, list[Any]]


@dataclass(frozen=True)
class Way:
    """One codec on one form of request.

    Attributes:
        form: of the request's body.
        codec: whose it is.
        decode: the body to what `encode` needs, and to the array.
        encode: the answer's body.
        size: bytes of the request.
    """

    form: str
    codec: str
    decode: Callable[[], tuple[Any, NDArray[Any]]]
    encode: Callable[[Any], object]
    size: int


def ways(x: NDArray[np.float32], answer: Mapping[str, NDArray[Any]], numbers: list[float]) -> list[Way]:
    """Every codec on every form that it reads.

    Args:
        x: the numbers, [rows, width].
        answer: arrays to encode.
        numbers: `x` row by row, as they are written.
    """
    rows, width = x.shape
    specs = [TensorSpec(NAME, "FP32", (-1, width))]
    names = list(answer)
    nested = [numbers[start : start + width] for start in range(0, len(numbers), width)]
    tensor = {"name": NAME, "shape": [rows, width], "datatype": "FP32"}
    flat_body = json.dumps({"inputs": [{**tensor, "data": numbers}]}).encode()
    nested_body = json.dumps({"inputs": [{**tensor, "data": nested}]}).encode()
    plain_body = json.dumps({"inputs": nested}).encode()
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": x.nbytes}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    binary_body = head + x.tobytes()

    def v2(body: bytes, length: int | None = None) -> Callable[[], tuple[Any, NDArray[Any]]]:
        def decode() -> tuple[Any, NDArray[Any]]:
            request = decode_infer(body, specs, names, names, length)
            return request, request.inputs[NAME]

        return decode

    def plain() -> tuple[Any, NDArray[Any]]:
        request = decode_predict(plain_body, specs, names, names)
        return request, request.inputs[NAME]

    def encode_v2(request: InferRequest) -> object:
        return encode_infer("mlp", "1", request, answer, DATATYPES, DETAILS)

    def encode_plain(request: InferRequest) -> object:
        return encode_predict("mlp", "1", request, answer, DETAILS)

    def pydantic_v2() -> tuple[Any, NDArray[Any]]:
        first = Request.model_validate_json(flat_body).inputs[0]
        return None, np.array(first.data, dtype=np.float32).reshape(first.shape)

    def pydantic_rows() -> tuple[Any, NDArray[Any]]:
        return None, np.array(Rows.model_validate_json(plain_body).inputs, dtype=np.float32)

    def encode_pydantic(_: Any) -> object:
        outputs = {name: array.tolist() for name, array in answer.items()}
        return Answer(model="mlp", members=DETAILS["members"], outputs=outputs).model_dump_json()

    def json_v2() -> tuple[Any, NDArray[Any]]:
        first = json.loads(flat_body)["inputs"][0]
        return None, np.array(first["data"], dtype=np.float32).reshape(first["shape"])

    def json_rows() -> tuple[Any, NDArray[Any]]:
        return None, np.array(json.loads(plain_body)["inputs"], dtype=np.float32)

    def encode_json(_: Any) -> object:
        outputs = {name: array.tolist() for name, array in answer.items()}
        return json.dumps({"model": "mlp", **DETAILS, "outputs": outputs}).encode()

    return [
        Way("V2, binary", "ensembled", v2(binary_body, len(head)), encode_v2, len(binary_body)),
        Way("V2, JSON, flat", "ensembled", v2(flat_body), encode_v2, len(flat_body)),
        Way("V2, JSON, flat", "pydantic", pydantic_v2, encode_pydantic, len(flat_body)),
        Way("V2, JSON, flat", "json", json_v2, encode_json, len(flat_body)),
        Way("V2, JSON, nested", "ensembled", v2(nested_body), encode_v2, len(nested_body)),
        Way("plain API", "ensembled", plain, encode_plain, len(plain_body)),
        Way("plain API", "pydantic", pydantic_rows, encode_pydantic, len(plain_body)),
        Way("plain API", "json", json_rows, encode_json, len(plain_body)),
    ]


def seconds(calls: list[Callable[[], object]], each: float) -> list[float]:
    """Processor time of each call, the best of several runs: whatever else the machine does only adds.

    The calls take turns, so that a machine that slows down slows all of them.
    """
    timers = [timeit.Timer(call, timer=time.thread_time) for call in calls]
    # The first calls are slower, and count for nothing.
    numbers = [max(1, round(each / (timer.timeit(5) / 5))) for timer in timers]
    best = [math.inf] * len(calls)
    for _ in range(REPEATS):
        for index, (timer, number) in enumerate(zip(timers, numbers, strict=True)):
            best[index] = min(best[index], timer.timeit(number) / number)
    return best


def measure(rows: int, width: int, digits: str, each: float) -> Table:
    """One table.

    Args:
        rows, width: of the request.
        digits: "few" that tell one float32 from the next, as JavaScript and NumPy print them; or "all" that a Python
            float has, as most Python clients send.
        each: seconds for one run.
    """
    generator = np.random.default_rng(0)
    x = generator.random((rows, width), dtype=np.float32)
    numbers = [float(str(value)) for value in x.ravel()] if digits == "few" else x.ravel().tolist()
    answer: dict[str, NDArray[Any]] = {
        "mean": generator.random((rows, CLASSES), dtype=np.float32),
        "std": generator.random((rows, CLASSES), dtype=np.float32),
        "label": generator.integers(0, CLASSES, rows),
    }
    table = Table("request", "codec", "bytes", "decode, µs", "encode, µs", "requests a second", "times pydantic")
    table.title = f"{rows} × {width} FP32, {digits} digits"
    found = ways(x, answer, numbers)
    calls: list[Callable[[], object]] = []
    for way in found:
        request, array = way.decode()
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, x)
        calls += [way.decode, lambda way=way, request=request: way.encode(request)]
    times = seconds(calls, each)
    lines = list(zip(found, times[::2], times[1::2], strict=True))
    both = {(way.form, way.codec): decode + encode for way, decode, encode in lines}
    for way, decode, encode in lines:
        peer = both.get((way.form, "pydantic"), both["V2, JSON, flat", "pydantic"])
        table.add_row(
            way.form,
            way.codec,
            f"{way.size:,}",
            f"{1e6 * decode:.1f}",
            f"{1e6 * encode:.1f}",
            f"{1 / (decode + encode):,.0f}",
            f"{peer / (decode + encode):.1f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--width", type=int, default=784, help="numbers in a row (default: 784)")
    parser.add_argument("--seconds", type=float, default=0.05, help=f"for each of {REPEATS} runs (default: 0.05)")
    args = parser.parse_args()
    console = Console(width=110, highlight=False)
    console.print(describe(("numpy", "orjson", "pydantic")))
    for rows in args.rows:
        for digits in ("few", "all"):
            console.print(measure(rows, args.width, digits, args.seconds))


if __name__ == "__main__":
    main()
