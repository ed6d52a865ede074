"""``ensembled inspect``: what a saved ensemble is, and whether it is intact."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import ensemble
from app.commands.wording import in_words
from app.engine import DeviceError, pick_device
from app.planning import batch_sizes
from app.processors import default_threads
from ensemble.backends.workshop import Workshop
from ensemble.memory import human
from ensemble.planning.optimize import PRECISIONS, Precision
from ensemble.program.program import TensorSpec, plain
from ensemble.storage.artifact import read_manifest

DESCRIPTION = """\
Show what a saved ensemble is: task, recipe, members, inputs, statistics, weights, memory. It is loaded as the service
would load it, so every hash is verified, and the vectorised call is checked against the loop over its members. Ways of
running are kept for a device, dtype, precision, largest batch and number of threads: give those of the service."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="directory of a saved ensemble, such as models/digits/1"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="find the fastest ways of running on this machine now, and keep them for the service",
    )
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        default="cpu",
        help="cpu, cuda, cuda:1 or auto, as for serve (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "float64"),
        help="of the weights, as for serve (default: as they were saved)",
    )
    parser.add_argument(
        "--max-batch", metavar="ROWS", type=int, default=64, help="the service's largest batch (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, help="threads of one operation, as the service is given them"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="as the service is given it (default: %(default)s)"
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="TensorFloat-32 on an NVIDIA GPU, as the service is given it",
    )
    parser.add_argument(
        "--cache-dir", metavar="DIR", type=Path, help="where plans are kept (default: ~/.cache/ensembled)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--plot", metavar="FILE", type=Path, help="draw what fitting found, likelihood against scale: .png .svg .pdf"
    )


def main(args: argparse.Namespace) -> int:
    """Inspect; 1 if the ensemble is not intact."""
    torch.set_num_threads(max(1, args.threads or default_threads()))
    try:
        manifest = read_manifest(args.path)
        device = pick_device(args.device)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = args.tf32
        made = ensemble.load(args.path, device=device, dtype=getattr(torch, args.dtype) if args.dtype else None)
        sizes = batch_sizes(max(1, args.max_batch))
        _plan(made, sizes, args.cache_dir, args.precision, measure=args.measure)
        error = made.check()
        if args.plot:
            ensemble.FitReport(made.report).plot(args.plot)
    except (ensemble.EnsembledError, DeviceError) as problem:
        print(f"ensembled inspect: {problem}", file=sys.stderr)
        return 1
    about = {
        "path": str(args.path),
        "created_by": manifest.created_by,
        "task": made.task,
        "members": len(made),
        "seed": made.origin.seed,
        "recipe": manifest.recipe,
        "device": str(made.device),
        "dtype": args.dtype or manifest.dtype,
        "noise_variance": made.noise_variance,
        "operations": _operations(made),
        "checked_against_loop": {"relative_error": error},
        "bytes_on_disk": sum(entry["bytes"] for entry in manifest.files.values()),
        "bytes_of_weights": made.members.nbytes,
        "calibration": None if made.calibration is None else made.calibration.described(),
        "report": made.report,
        "metadata": made.metadata,
        "inputs": [_described(spec) for spec in made.program.inputs],
        "outputs": [_described(spec) for spec in made.program.outputs],
        "statistics": {
            name: {"description": s.description, "unit": s.unit, "default": s.default, "shape": [-1, *shape]}
            for name, (s, shape) in made.described_statistics().items()
        },
        "plan": [way.described() for way in made.plan.ways] if made.plan else [],
        "backends_not_used": made.plan.failures if made.plan else {},
        "weights": [dataclasses.asdict(row) for row in ensemble.compatibility(made)],
        # Found out at the latest by the report on the weights.
        "looped_because": made.looped_because or None,
    }
    if args.json:
        print(json.dumps(about))
    else:
        _show(about)
    return 0


def _plan(
    made: ensemble.Ensemble, sizes: list[int], cache: Path | None, precision: Precision, *, measure: bool
) -> None:
    """Give an ensemble the plan that was kept on this machine, or a new one."""
    with Workshop(cache) as workshop:
        steps = None if measure else made.recall(sizes, workshop, precision)
        if steps is not None:
            made.follow([step for step in steps if workshop.has(made.job(step))], workshop)
    if measure:
        made.optimize(
            sizes,
            precision=precision,
            cache=cache,
            again=True,
            progress=lambda text: print(f"trying {text}", file=sys.stderr),
        )


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": plain(spec.dtype), "shape": list(spec.shape)}


def _operations(made: ensemble.Ensemble) -> int:
    assert made.program.graph is not None
    return sum(node.op == "call_function" for node in made.program.graph.nodes)


def _show(about: dict[str, Any]) -> None:
    # What the metadata says is shown as it is.
    console = Console(highlight=False, markup=False)
    facts = Table(title=about["path"], show_header=False)
    recipe = about["recipe"]
    apart = "generated weights" if "generated" in about["metadata"] else "separately trained models"
    made = in_words(recipe["name"], recipe["settings"]) if recipe else apart
    facts.add_row("task", about["task"])
    facts.add_row("members", f"{about['members']} ({made}, seed {about['seed']})")
    facts.add_row("weights", f"{human(about['bytes_of_weights'])} in memory as {about['dtype']} on {about['device']}")
    facts.add_row("on disk", f"{human(about['bytes_on_disk'])}, every hash verified")
    facts.add_row("graph", f"{about['operations']} operations")
    facts.add_row("check", f"differs from the loop by {about['checked_against_loop']['relative_error']:.1e} (relative)")
    if about["looped_because"]:
        facts.add_row("run by", f"the loop, one member after the other: {about['looped_because']}")
    if about["noise_variance"] is not None:
        facts.add_row("noise variance", f"{about['noise_variance']:.4g}")
    facts.add_row("made by", about["created_by"])
    for key, value in about["metadata"].items():
        facts.add_row(key, json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value)
    console.print(facts)
    for kind in ("inputs", "outputs"):
        table = Table("name", "dtype", "shape (-1: batch)", title=f"model {kind}")
        for spec in about[kind]:
            table.add_row(spec["name"], spec["dtype"], str(spec["shape"]))
        console.print(table)
    statistics = Table("statistic", "unit", "shape", "meaning", title="what may be asked (* by default)")
    for name, s in about["statistics"].items():
        statistics.add_row(name + (" *" if s["default"] else ""), s["unit"], str(s["shape"]), s["description"])
    console.print(statistics)
    weights = Table("weight", "shape", "how", "memory", "why", title="weights")
    for row in about["weights"]:
        weights.add_row(row["name"], str(list(row["shape"])), row["how"], human(row["nbytes"]), row["why"])
    console.print(weights)
    _show_plan(console, about)
    if about["report"]:
        console.print(f"\nwhat fitting found\n{ensemble.FitReport(about['report'])}", soft_wrap=True)


def _show_plan(console: Console, about: dict[str, Any]) -> None:
    if not about["plan"]:
        console.print("ways of running: not measured on this machine yet; the service does it, or --measure")
        return
    columns = ("rows", "way", "members a call", "ms", "loop, ms", "error", "tried")
    plan = Table(*columns, title="ways of running, on this machine")
    for way in about["plan"]:
        tried = ", ".join(f"{t['way']} {t['members_in_one_call']}: {t['ms']:g}" for t in way["tried"][1:])
        name = way["way"] if way["precision"] in (None, "float32") else f"{way['way']}, {way['precision']}"
        error = "" if way["relative_error"] is None else f"{way['relative_error']:.0e}"
        loop = "" if way["loop_ms"] is None else f"{way['loop_ms']:g}"
        plan.add_row(str(way["rows"]), name, str(way["members_in_one_call"]), f"{way['ms']:g}", loop, error, tried)
    console.print(plan)
    for kind, reason in about["backends_not_used"].items():
        console.print(f"{kind} is not used: {reason}")
