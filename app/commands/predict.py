"""``ensembled predict``: ask a saved ensemble, or a running service, about rows in a file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from app.commands.asking import Asking, AskingError, of_saved, of_service
from app.commands.reading import ReadingError, read_rows, read_several

DESCRIPTION = """\
Ask an ensemble about rows in a file and print what it says, a line a row.

TARGET is a saved ensemble (models/digits/1) or the base of a running service (http://127.0.0.1:8000). ROWS is a .npy,
.npz (arrays named like the inputs), .json or .csv file, or - for JSON on standard input. A service is sent the key of
ENSEMBLED_API_KEY, if that is set.

The output log_prob is about a target of each row: --target names the array or column of the file that holds it."""

EPILOG = """\
examples:
  ensembled predict models/digits/1 rows.npy
  ensembled predict http://127.0.0.1:8000 rows.json --model digits --outputs label,mutual_information
  ensembled predict models/mine/1 rows.csv --outputs quantiles,prediction_interval --levels 0.1,0.9 \\
      --confidence-level 0.95
  ensembled predict models/mine/1 test.csv --outputs mean,log_prob --target price
  echo '[[0.5, 1.5, 2.5]]' | ensembled predict models/mine/1 - --json"""


# Which outputs an option is about.
_ABOUT = {
    "levels": ("quantiles",),
    "confidence_level": ("prediction_interval", "prediction_set", "credible_interval"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("target", metavar="TARGET", help="directory of a saved ensemble, or URL of a service")
    parser.add_argument("rows", metavar="ROWS", type=Path, help="file of rows, or -")
    parser.add_argument("--outputs", metavar="A,B", help="statistics to ask for (default: the task's)")
    parser.add_argument(
        "--levels", type=_levels, metavar="P,P", help="of quantiles, each between 0 and 1 (default: 0.05,0.5,0.95)"
    )
    parser.add_argument(
        "--confidence-level",
        type=_level,
        metavar="P",
        help="of intervals and sets (default: what was fitted for, or 0.9)",
    )
    parser.add_argument(
        "--target",
        dest="targets",
        metavar="NAME",
        help="for log_prob: array or column of the targets, by name or number from 0, in a .npz, .csv or .json file; "
        "of a model with several outputs OUTPUT=NAME,OUTPUT=NAME",
    )
    parser.add_argument("--model", metavar="NAME", help="model of the service (default: its default model)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--device", default="cpu", help="where a saved ensemble runs (default: cpu)")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds to wait for a service")


def main(args: argparse.Namespace) -> int:
    """Predict; 1 if the target cannot answer."""
    try:
        asking = _asking(args)
        if args.target.startswith(("http://", "https://")):
            answer = of_service(args.target, args.model, args.timeout, asking)
        elif args.model:
            raise AskingError("--model is for a running service; a directory is one model")
        else:
            answer = of_saved(Path(args.target), args.device, asking)
    except (AskingError, ReadingError) as error:
        print(f"ensembled predict: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(answer))
    else:
        # Above the table, since a title is broken to the table's width.
        print(*(f"{key} {answer[key]}" for key in ("model", "version", "members", "seed") if key in answer))
        Console(highlight=False, markup=False).print(_table(answer, args.levels))
    return 0


def _asking(args: argparse.Namespace) -> Asking:
    """What the arguments ask.

    Raises:
        AskingError: they do not go together.
        ReadingError: the file holds no such rows.
    """
    outputs = [name.strip() for name in args.outputs.split(",")] if args.outputs else None
    parameters = {name: getattr(args, name) for name in _ABOUT if getattr(args, name) is not None}
    for name in parameters:
        if not {output.rpartition(".")[2] for output in outputs or ()} & set(_ABOUT[name]):
            raise AskingError(f"--{name.replace('_', '-')} is of {' or '.join(_ABOUT[name])}: ask for it by --outputs")
    if args.targets is None:
        return Asking(read_rows(args.rows), outputs, parameters)
    named = (
        [part.rpartition("=") for part in args.targets.split(",")] if "=" in args.targets else [("", "", args.targets)]
    )
    inputs, targets = read_several(args.rows, [array.strip() for _, _, array in named])
    by_output = dict(zip((output.strip() for output, _, _ in named), targets, strict=True))
    return Asking(inputs, outputs, parameters, by_output)


def _level(text: str) -> float:
    try:
        level = float(text)
    except ValueError:
        level = -1.0
    if not 0 < level < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, such as 0.9, however: {text!r}")
    return level


def _levels(text: str) -> list[float]:
    return [_level(part) for part in text.split(",")]


def _table(answer: dict[str, Any], levels: list[float] | None) -> Table:
    table = Table()
    arrays = {name: np.array(values, dtype=object) for name, values in answer["outputs"].items()}
    table.add_column("row", justify="right")
    for name in arrays:
        asked = levels if levels and name.rpartition(".")[2] == "quantiles" else []
        table.add_column(" ".join([name, *(f"{level:g}" for level in asked)]), justify="right")
    for row in range(len(next(iter(arrays.values())))):
        table.add_row(str(row), *(_cell(array[row]) for array in arrays.values()))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, np.ndarray):
        flat = value.ravel()
        shown = " ".join(_cell(v) for v in flat[:10])
        return f"{shown} …" if flat.size > 10 else shown
    return f"{value:.4g}" if isinstance(value, float) else str(value)
