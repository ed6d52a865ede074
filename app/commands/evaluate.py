"""``ensembled evaluate``: how good a saved ensemble's predictions and their uncertainty are."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

import ensemble
from app.commands.dataset import rows_alone, rows_and_targets
from app.commands.reading import ReadingError
from app.engine import DeviceError, pick_device
from app.processors import default_threads

DESCRIPTION = """\
Judge a saved ensemble on rows with targets that neither the model was trained on nor anything was fitted to:
likelihood, error, calibration, coverage and width of intervals or sets, and with --ood how well its uncertainty tells
rows from elsewhere."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = DESCRIPTION
    parser.add_argument("path", metavar="PATH", type=Path, help="directory of a saved ensemble, such as models/mine/1")
    parser.add_argument("data", metavar="DATA", type=Path, help="rows with targets: .npz, .csv or .json")
    parser.add_argument("--target", metavar="NAME", help="array or column of the targets, by name or number from 0")
    parser.add_argument("--ood", metavar="FILE", type=Path, help="rows that are unlike those: .npy .npz .json .csv")
    parser.add_argument("--confidence-level", type=float, metavar="P", help="of intervals and sets")
    parser.add_argument("--batch", type=int, default=256, metavar="ROWS", help="rows at a time (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the reliability diagram: .png .svg .pdf")


def main(args: argparse.Namespace) -> int:
    """Evaluate; 1 if it cannot be done."""
    torch.set_num_threads(max(1, default_threads()))
    console = Console(stderr=True, highlight=False)
    try:
        made = ensemble.load(args.path, device=pick_device(args.device))
        data = rows_and_targets(args.data, args.target, made.task)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("evaluating", total=None)
            found = ensemble.evaluate(
                made,
                data,
                ood=None if args.ood is None else rows_alone(args.ood),
                confidence_level=args.confidence_level,
                batch_size=args.batch,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        if args.plot:
            found.plot(args.plot)
    except (ensemble.EnsembledError, ReadingError, DeviceError) as error:
        print(f"ensembled evaluate: {error}", file=sys.stderr)
        return 1
    print(found.json() if args.json else found.table())
    return 0
