"""``ensembled predict``: ask a saved ensemble, or a running service, about rows in a file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from app.commands.reading import ReadingError, read_rows
from app.keys import key_header

DESCRIPTION = """\
Ask an ensemble about rows in a file and print what it says, a line a row.

TARGET is a saved ensemble (models/digits/1) or the base of a running service (http://127.0.0.1:8000). ROWS is a .npy,
.npz (arrays named like the inputs), .json or .csv file, or - for JSON on standard input. A service is sent the key of
ENSEMBLED_API_KEY, if that is set."""

EPILOG = """\
examples:
  ensembled predict models/digits/1 rows.npy
  ensembled predict http://127.0.0.1:8000 rows.json --model digits --outputs label,mutual_information
  echo '[[0.5, 1.5, 2.5]]' | ensembled predict models/mine/1 - --json"""


# Of a saved ensemble; a larger file is asked in slices.
_ROWS_AT_ONCE = 256


class PredictError(Exception):
    """The target cannot answer; the text says why."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("target", metavar="TARGET", help="directory of a saved ensemble, or URL of a service")
    parser.add_argument("rows", metavar="ROWS", type=Path, help="file of rows, or -")
    parser.add_argument("--outputs", metavar="A,B", help="statistics to ask for (default: the task's)")
    parser.add_argument("--model", metavar="NAME", help="model of the service (default: its default model)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--device", default="cpu", help="where a saved ensemble runs (default: cpu)")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds to wait for a service")


def main(args: argparse.Namespace) -> int:
    """Predict; 1 if the target cannot answer."""
    outputs = [name.strip() for name in args.outputs.split(",")] if args.outputs else None
    ask = _ask_service if args.target.startswith(("http://", "https://")) else _ask_saved
    try:
        answer = ask(args, _body(read_rows(args.rows), outputs))
    except (PredictError, ReadingError) as error:
        print(f"ensembled predict: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(answer))
    else:
        # Above the table, since a title is broken to the table's width.
        print(*(f"{key} {answer[key]}" for key in ("model", "version", "members", "seed") if key in answer))
        Console(highlight=False, markup=False).print(_table(answer))
    return 0


def _body(rows: dict[str, NDArray[Any]], outputs: list[str] | None) -> bytes:
    for name, array in rows.items():
        if not np.isfinite(array).all():
            raise PredictError(f"{name or 'the file'} holds NaN or infinity, for which JSON has no word")
    inputs: Any = {name: array.tolist() for name, array in rows.items()}
    body: dict[str, Any] = {"inputs": inputs[""] if list(inputs) == [""] else inputs}
    if outputs:
        body["outputs"] = outputs
    return orjson.dumps(body)


def _ask_saved(args: argparse.Namespace, body: bytes) -> dict[str, Any]:
    """The way of a request through the service, without the service."""
    import ensemble
    from app.engine import DeviceError, pick_device
    from app.errors import ServiceError
    from app.protocol import decode_predict, encode_predict
    from app.served import wrap

    if args.model:
        raise PredictError("--model is for a running service; a directory is one model")
    path = Path(args.target)
    try:
        made = ensemble.load(path, device=pick_device(args.device))
        whole = path.resolve()
        served = wrap(whole.parent.name, whole.name, made, _ROWS_AT_ONCE)
        asked = decode_predict(body, served.inputs, served.outputs, served.defaults)
        arrays = served.infer(asked.inputs, [output.name for output in asked.outputs])
    except (ensemble.EnsembledError, ServiceError, DeviceError) as error:
        raise PredictError(str(error)) from error
    answer: dict[str, Any] = orjson.loads(encode_predict(served.name, served.version, asked, arrays, served.details))
    return answer


def _ask_service(args: argparse.Namespace, body: bytes) -> dict[str, Any]:
    import httpx

    path = f"/v1/models/{quote(args.model, safe='')}/predict" if args.model else "/predict"
    headers = {"Content-Type": "application/json", **key_header()}
    try:
        reply = httpx.post(args.target.rstrip("/") + path, content=body, headers=headers, timeout=args.timeout)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PredictError(f"{args.target} does not answer: {str(error) or type(error).__name__}") from None
    try:
        answer = reply.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not (answer.keys() & {"outputs", "error"}):
        raise PredictError(
            f"{args.target} answered {reply.status_code}, but not as ensembled does; is it the base URL?"
        )
    if reply.status_code != 200:
        raise PredictError(f"{args.target} answered {reply.status_code}: {answer.get('error', '')}")
    return answer


def _table(answer: dict[str, Any]) -> Table:
    table = Table()
    arrays = {name: np.array(values, dtype=object) for name, values in answer["outputs"].items()}
    table.add_column("row", justify="right")
    for name in arrays:
        table.add_column(name, justify="right")
    for row in range(len(next(iter(arrays.values())))):
        table.add_row(str(row), *(_cell(array[row]) for array in arrays.values()))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, np.ndarray):
        flat = value.ravel()
        shown = " ".join(_cell(v) for v in flat[:10])
        return f"{shown} …" if flat.size > 10 else shown
    return f"{value:.4g}" if isinstance(value, float) else str(value)
