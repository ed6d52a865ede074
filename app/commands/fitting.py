"""``ensembled build --data``: what is fitted to the rows of a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from torch import nn

import ensemble
from app.commands.dataset import rows_and_targets
from ensemble.calibration.families import AUTO
from ensemble.perturbation import recipes

_OPTIONS = ("target", "validation", "budget", "confidence_level", "conformal", "risk", "no_fit")


class BuildError(Exception):
    """What was asked for, the source, or a file beside it, cannot be used; the text says why."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    group = parser.add_argument_group("fitting to data")
    group.add_argument("--data", type=Path, metavar="FILE", help="rows with targets to fit to: .npz, .csv or .json")
    group.add_argument("--target", metavar="NAME", help="array or column of the targets, by name or number from 0")
    group.add_argument(
        "--validation", type=Path, metavar="FILE", help="rows to fit to; --data are then what recipes learn from"
    )
    group.add_argument("--budget", metavar="TIME", help="how long comparing may take, such as 90s or 5m (default: 60s)")
    group.add_argument(
        "--confidence-level", type=float, metavar="P", help="of intervals and sets, unless asked for (default: 0.9)"
    )
    group.add_argument(
        "--conformal", type=float, metavar="SHARE", help="of the rows, for intervals and sets alone (default: 0.4)"
    )
    group.add_argument(
        "--risk", type=float, help="that answers which do not abstain keep to: share of errors, or squared error"
    )
    group.add_argument(
        "--no-fit", action="store_true", help="only give --data to the recipe, which has the settings as given"
    )


def check(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """That the arguments go together.

    Raises:
        BuildError: they do not.
    """
    if args.data is None:
        if args.recipe == AUTO:
            raise BuildError("--recipe auto compares recipes on held-out rows: give --data FILE, or another recipe")
        if given := [name for name in _OPTIONS if getattr(args, name) not in (None, False)]:
            raise BuildError(f"--{given[0].replace('_', '-')} is about --data FILE, which is not given")
        return
    if args.no_fit:
        if args.recipe in (None, AUTO):
            raise BuildError("--no-fit needs --recipe NAME")
        return
    if args.noise_variance is not None:
        raise BuildError("--noise-variance is fitted to --data; leave it out, or add --no-fit")
    if args.recipe in (None, AUTO):
        if settings:
            raise BuildError("--scale and --set are settings of one recipe: give --recipe NAME, or leave them out")
        return
    searched = {name for candidate in recipes[args.recipe].candidates() for name in candidate}
    if both := sorted(searched & set(settings)):
        option = "--scale" if both[0] == "scale" else f"--set {both[0]}"
        raise BuildError(f"{option} is fitted to --data; leave it out, or add --no-fit")


def read(args: argparse.Namespace) -> tuple[Any, Any]:
    """What --data and --validation hold; None where they are not given.

    Raises:
        ReadingError: no rows with targets.
    """
    files = (args.data, args.validation)
    data, validation = (None if f is None else rows_and_targets(f, args.target, args.task) for f in files)
    return data, validation


def fitted(
    model: nn.Module,
    data: Any,
    validation: Any,
    settings: dict[str, Any],
    args: argparse.Namespace,
    console: Console,
    common: dict[str, Any],
) -> ensemble.Ensemble:
    """Fit, and say what was found.

    Raises:
        ensemble.EnsembledError, BuildError: it cannot be done; the text says why.
    """
    names = ("budget", "confidence_level", "conformal", "risk")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("fitting", total=1.0)
        made = ensemble.fit(
            model,
            data,
            task=args.task,
            validation=validation,
            recipe=_recipe(args.recipe, settings),
            members=args.members,
            seed=args.seed,
            progress=lambda text, share: bar.update(task, description=text, completed=share),
            **given,
            **{name: value for name, value in common.items() if name != "task"},
        )
    print(ensemble.FitReport(made.report).table(), file=sys.stderr)
    return made


def _recipe(name: str, settings: dict[str, Any]) -> str | ensemble.Recipe:
    """A name, or a recipe with these settings and any others."""
    if not settings:
        return name
    first: dict[str, Any] = dict(next(iter(recipes[name].candidates()), {}))
    try:
        return recipes[name].from_settings(first | settings)
    except TypeError:
        raise BuildError(f"the recipe {name!r} needs more settings: give --set NAME=VALUE") from None
