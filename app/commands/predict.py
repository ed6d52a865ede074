"""``ensembled predict``: ask a saved ensemble, or a running service, about rows in a file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from app.commands.reading import ReadingError, read_rows

DESCRIPTION = """\
Ask an ensemble about rows in a file and print what it says, a line a row.

TARGET is a saved ensemble (models/digits/1) or the base of a running service (http://127.0.0.1:8000). ROWS is a .npy,
.npz (arrays named like the inputs), .json or .csv file, or - for JSON on standard input."""

EPILOG = """\
examples:
  ensembled predict models/digits/1 rows.npy
  ensembled predict http://127.0.0.1:8000 rows.json --model digits --outputs label,mutual_information
  echo '[[0.5, 1.5, 2.5]]' | ensembled predict models/mine/1 - --json"""


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
        rows = read_rows(args.rows)
        answer = ask(args, rows, outputs)
    except (PredictError, ReadingError) as error:
        print(f"ensembled predict: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(answer))
    else:
        Console(highlight=False).print(_table(answer))
    return 0


def _ask_saved(args: argparse.Namespace, rows: dict[str, NDArray[Any]], outputs: list[str] | None) -> dict[str, Any]:
    import torch

    import ensemble

    try:
        made = ensemble.load(args.target, device=args.device)
        names = [spec.name for spec in made.program.inputs]
        named = {names[0]: rows[""]} if list(rows) == [""] and len(names) == 1 else rows
        if set(named) != set(names):
            raise PredictError(f"this ensemble takes the inputs {names}, the file holds {list(named)}")
        tensors = {
            spec.name: torch.from_numpy(np.ascontiguousarray(named[spec.name])).to(spec.dtype)
            for spec in made.program.inputs
        }
        prediction = made.predict(tensors, statistics=outputs)
    except (ensemble.EnsembledError, RuntimeError) as error:
        raise PredictError(str(error)) from error
    flat = {name: tensor.cpu().tolist() for name, tensor in prediction.flat().items()}
    return {"members": prediction.members, "seed": made.origin.seed, "outputs": flat}


def _ask_service(args: argparse.Namespace, rows: dict[str, NDArray[Any]], outputs: list[str] | None) -> dict[str, Any]:
    import httpx

    inputs: Any = {name: array.tolist() for name, array in rows.items()}
    body: dict[str, Any] = {"inputs": inputs[""] if list(inputs) == [""] else inputs}
    if outputs:
        body["outputs"] = outputs
    path = f"/v1/models/{args.model}/predict" if args.model else "/predict"
    try:
        reply = httpx.post(args.target.rstrip("/") + path, json=body, timeout=args.timeout)
        answer: dict[str, Any] = reply.json()
    except httpx.HTTPError as error:
        raise PredictError(f"{args.target} does not answer: {error or type(error).__name__}") from None
    except ValueError:
        raise PredictError(f"{args.target} answered {reply.status_code} without JSON; is it ensembled?") from None
    if reply.status_code != 200:
        raise PredictError(f"{args.target} answered {reply.status_code}: {answer.get('error', '')}")
    return answer


def _table(answer: dict[str, Any]) -> Table:
    title = " ".join(f"{key} {answer[key]}" for key in ("model", "version", "members", "seed") if key in answer)
    table = Table(title=title)
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
