"""``ensembled build``: from a trained model in Python code to a saved ensemble."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import ensemble
from app.commands import fitting
from app.commands.dataset import rows_alone
from app.commands.fitting import BuildError
from app.commands.reading import ReadingError
from app.commands.wording import in_words
from app.engine import DeviceError, pick_device
from app.repository import NAME, VERSION
from ensemble.calibration.families import AUTO
from ensemble.memory import human
from ensemble.perturbation import recipes
from ensemble.tasks import TASKS

DESCRIPTION = """\
Make an ensemble of perturbed members of one trained model, check it against the loop over its members, and save it
where ensembled serve finds it.

SOURCE is FILE.py:NAME or package.module:NAME. NAME is a module, or a function without arguments that returns
  model                            or
  (model, example)                 or
  (model, example, metadata)       or
  a list of models in place of one: separately trained members, stacked as they are; with --recipe each becomes
  several members.
The example is what the model is called with (a tensor, a tuple of positional or a dict of named arguments), the first
dimension of each tensor being the batch. The file is run, so it must be your own.

With --data the recipe's scale, the noise and the thresholds of intervals and sets are fitted to the rows of a file,
which the model must not have been trained on; the recipe itself is chosen unless it is given. With --validation these
are the held-out rows, and those of --data (as a rule the training rows) are what recipes learn from that learn their
members. A .npz or .json file holds inputs and targets as named arrays, a .csv file one row a line, the target being its
last column, or the one that is called so, or --target."""

EPILOG = """\
examples:
  ensembled build mymodel.py:trained models/mine/1 --task classification --scale 0.05 --members 128
  ensembled build mymodel.py:Net models/mine/2 --weights net.safetensors --example rows.npy --task regression \\
      --set exclude='["head.*"]'
  ensembled build mymodel.py:trained models/mine/3 --task regression --data held_out.csv --target price --budget 2m
  ensembled build mymodel.py:trained models/mine/4 --task classification --data train.npz --validation held_out.npz"""


_LONGEST_REASON = 300
# Not what several models become, and not what needs snapshots, which no option holds.
_ASKED = sorted(recipes.keys() - {"stacked", "swag"})


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="SOURCE", help="FILE.py:NAME or package.module:NAME")
    parser.add_argument("out", metavar="OUT", type=Path, help="new directory MODELS/NAME/VERSION")
    parser.add_argument(
        "--task",
        choices=TASKS,
        default="raw",
        help="what the outputs are: logits with the classes last, values, (mean, variance), or anything (default: raw)",
    )
    parser.add_argument("--members", type=int, default=128, metavar="N", help="how many (default: 128)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the members' noise (default: 0)")
    parser.add_argument(
        "--recipe",
        choices=[AUTO, *_ASKED],
        help="how members are made (default: gaussian, with --data auto: the best of all)",
    )
    parser.add_argument("--scale", type=float, help="the recipe's scale: noise relative to each weight")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another setting of the recipe, its value as JSON or plain text; may be repeated",
    )
    fitting.configure(parser)
    parser.add_argument("--noise-variance", type=float, help="of a regression's observations, target²")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="state dict to load first: .safetensors or .pt")
    parser.add_argument("--example", type=Path, metavar="FILE", help="rows to capture the model with: .npy .npz .json")
    parser.add_argument("--metadata", type=Path, metavar="FILE.json", help="free JSON object to keep with the ensemble")
    parser.add_argument("--device", default=None, help="where to build (default: where the model is)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "float64"), help="of the weights")
    parser.add_argument("--overwrite", action="store_true", help="replace an ensemble that is there")
    parser.add_argument("--no-example", action="store_true", help="store no rows of the example")


def main(args: argparse.Namespace) -> int:
    """Build; 1 if the model cannot be made into an ensemble."""
    console = Console(stderr=True, highlight=False)
    try:
        made = _build(args, console)
        console.print("checking against the loop over members ...")
        difference = made.check()
        made.save(args.out, overwrite=args.overwrite, keep_example=not args.no_example)
    except (ensemble.EnsembledError, BuildError, ReadingError, DeviceError) as error:
        print(f"ensembled build: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"ensembled build: {args.out} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    recipe = made.origin.recipe
    how = "separately trained" if recipe is None else in_words(recipe.name, recipe.settings())
    for line in (
        f"{len(made)} members, {how}; seed {made.origin.seed}, {made.task}, {human(made.members.nbytes)}",
        f"differs from the loop by {difference:.1e} (relative)",
        f"saved in {args.out}",
    ):
        print(line, file=sys.stderr)
    print(f"look at it:  ensembled inspect {args.out}", file=sys.stderr)
    whole = args.out.resolve()
    if VERSION.fullmatch(whole.name) and NAME.fullmatch(whole.parent.name):
        print(f"serve it:    ensembled serve --models {args.out.parent.parent}", file=sys.stderr)
    else:
        print("to serve it, save it as MODELS/NAME/VERSION, such as models/mine/1", file=sys.stderr)
    return 0


def _build(args: argparse.Namespace, console: Console) -> ensemble.Ensemble:
    # Before the model is trained, not after.
    if args.out.exists() and not args.overwrite:
        raise BuildError(f"{args.out} exists; --overwrite replaces it")
    device = None if args.device is None else pick_device(args.device)
    settings = dict(_setting(text) for text in args.set) | ({} if args.scale is None else {"scale": args.scale})
    fitting.check(args, settings)
    chosen = args.recipe
    args.recipe = args.recipe or (AUTO if args.data else "gaussian")
    if settings and not args.data:
        _recipe(args.recipe, settings)
    data, validation = fitting.read(args)
    console.print(f"running {args.source} ...", markup=False, soft_wrap=True)
    models, example, metadata = _source(args.source)
    if len(models) > 1 and args.weights:
        raise BuildError(f"--weights is for one model; {args.source} gives {len(models)}, with their weights")
    if len(models) > 1 and data is not None and not args.no_fit:
        raise BuildError(
            f"{args.source} gives {len(models)} models, and one is fitted: give one, or leave --data out "
            "(with --no-fit it is what a recipe makes the members of each model from)"
        )
    if args.weights:
        _load_weights(models[0], args.weights)
    if args.example:
        example = rows_alone(args.example)
    if example is None and data is None:
        raise BuildError("an example is needed: return (model, example) from the source, or give --example FILE")
    if args.metadata:
        metadata = _metadata(args.metadata)
    common: dict[str, Any] = {
        "example": example,
        "task": args.task,
        "metadata": metadata,
        "device": device,
    }
    if data is not None and not args.no_fit:
        made = fitting.fitted(models[0], data, validation, settings, args, console, common)
        return made.to(dtype=getattr(torch, args.dtype)) if args.dtype else made
    common["noise_variance"] = args.noise_variance
    if len(models) > 1 and chosen is None and not settings:
        made = ensemble.stack(models, **common)
        return made.to(dtype=getattr(torch, args.dtype)) if args.dtype else made
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"drawing {args.members} members", total=None)
        return ensemble.perturb(
            models if len(models) > 1 else models[0],
            _recipe(args.recipe, settings),
            members=args.members,
            seed=args.seed,
            data=data,
            dtype=getattr(torch, args.dtype) if args.dtype else None,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            **common,
        )


def _recipe(name: str, settings: dict[str, Any]) -> ensemble.Recipe:
    try:
        return recipes[name].from_settings(settings)
    except TypeError:
        # A dataclass says in terms of __init__ what is missing.
        raise BuildError(f"the recipe {name!r} needs more settings: give --scale, or --set NAME=VALUE") from None


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BuildError(f"--set takes NAME=VALUE, however: {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _source(text: str) -> tuple[list[nn.Module], Any, dict[str, Any]]:
    """Models, example (or None) and metadata that a source gives."""
    where, colon, name = text.rpartition(":")
    if not colon or not name:
        raise BuildError(f"SOURCE is FILE.py:NAME or package.module:NAME, however: {text!r}")
    found = getattr(_module(where), name, None)
    if found is None:
        raise BuildError(f"{where} has no {name!r}")
    try:
        value = found() if callable(found) and not isinstance(found, nn.Module) else found
    except (Exception, SystemExit) as error:
        raise BuildError(f"{text} failed: {type(error).__name__}: {error}") from error
    parts = value if isinstance(value, tuple) else (value,)
    first, example, metadata = (*parts, None, None, None)[:3]
    models = first if isinstance(first, list) else [first]
    if len(parts) > 3 or not models or not all(isinstance(model, nn.Module) for model in models):
        raise BuildError(
            f"{text} must give a model, (model, example) or (model, example, metadata), however: {_kind(value)}"
        )
    if not isinstance(metadata, dict | None):
        raise BuildError(f"the metadata of {text} must be a dict, however: {_kind(metadata)}")
    return models, example, metadata or {}


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_kind(part) for part in value)})"
    return f"{type(value).__name__} {value.__name__}" if isinstance(value, type) else type(value).__name__


def _module(where: str) -> Any:
    try:
        if not where.endswith(".py"):
            sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(where)
        path = Path(where)
        if not path.is_file():
            raise BuildError(f"there is no file {where}")
        # A file may be called as a module that is in use, such as ensemble.py.
        name = path.stem if path.stem not in sys.modules else f"{path.stem}_to_build"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # What the file imports from beside itself, and classes that look themselves up by their module.
        sys.path.insert(0, str(path.parent.absolute()))
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    except BuildError:
        raise
    except (Exception, SystemExit) as error:
        raise BuildError(f"{where} cannot be run: {type(error).__name__}: {error}") from error


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except OSError as error:
        raise BuildError(f"the weights in {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise BuildError(f"the weights in {path} cannot be read: {_line(error)}") from error
    except Exception as error:
        # PyTorch's own text tells how to read what it refused all the same.
        raise BuildError(
            f"the weights in {path} are no plain state dict: to read them would run code from the file, which is never "
            "done, or they are damaged; save model.state_dict(), best as .safetensors"
        ) from error
    try:
        model.load_state_dict(state)
    except Exception as error:
        raise BuildError(f"the weights in {path} do not fit the model: {_line(error)}") from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} …"


def _metadata(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BuildError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise BuildError(f"{path} must hold a JSON object")
    return found
