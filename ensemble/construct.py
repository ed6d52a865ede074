"""Making ensembles: perturbed members of one model, or several separately trained models."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ensemble import members as member_weights
from ensemble.calibration.state import Calibration
from ensemble.data import Data, first_rows
from ensemble.ensemble import Ensemble
from ensemble.errors import ModelError, RecipeError, first_line
from ensemble.members import Members, Progress
from ensemble.origin import Origin
from ensemble.perturbation import Learned, Material, Perturbation, Recipe
from ensemble.perturbation.stacked import Stacked
from ensemble.program.capture import Captured, capture, evaluating
from ensemble.program.program import Program
from ensemble.several import in_turn, interleaved, model_seed, one_of, taken_apart
from ensemble.tasks import Head, Task, heads

MAX_MEMBERS = 1 << 20
_KEPT_EXAMPLE_ROWS = 4


def perturb(
    model: nn.Module | Sequence[nn.Module],
    recipe: Recipe | Sequence[Recipe],
    *,
    members: int,
    example: Any = None,
    data: Any = None,
    seed: int = 0,
    task: Task = "raw",
    noise_variance: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    live: bool = False,
    progress: Progress | None = None,
) -> Ensemble:
    """Make an ensemble of perturbed members of one trained model, or of several.

    Of K separately trained models (a deep ensemble, each of whose members becomes several) member i is the member
    i // K of model i mod K, whose own seed is a function of ``seed`` and its place alone. Such members are kept in full
    wherever the models differ.

    Args:
        model: any ``nn.Module``; it is read in evaluation mode and left as it was. Or at least two of one architecture.
        recipe: how members differ from it, such as ``Gaussian(scale=0.02)``. Of several models, one for all or one
            for each.
        members: how many.
        example: what the model is called with: a tensor, a tuple of positional arguments or a dict of named ones.
            The first dimension of every tensor is the batch. The first rows of ``data`` by default.
        data: what a recipe that learns its members learns from: inputs, given as the example is, or (inputs, targets).
        seed: member i is a function of the weights, the recipe, the seed and i alone (and of the data, where the
            recipe learns).
        task: "classification" (the model returns logits, (batch, ..., classes): the last dimension are the classes),
            "regression" (values), "gaussian" (mean and positive variance) or "raw" (anything).
        noise_variance: of a regression's observations, target².
        metadata: free JSON values to keep with it, such as {"class_names": [...]}.
        device: where the members live; the model's own by default.
        dtype: of the floating weights; the model's own by default.
        live: keep the module's code instead of exporting it, for models that export cannot capture.
        progress: called with (members done, members in all).

    Raises:
        ModelError, ExportError: the model cannot be made into an ensemble; the text says why.
        RecipeError: the recipe selects nothing in this model, or numbers are out of range.
        MemoryLimitError: the members do not fit; the text says what would.
        InputError: data that do not fit the model.

    Example:
        >>> ens = perturb(model, Gaussian(scale=0.02), members=256, example=x, task="classification")
        >>> ens.predict(x).mutual_information
    """
    models, recipes = _several(model, recipe)
    check_count(members, seed)
    if len(models) > members:
        raise RecipeError(f"{len(models)} models need at least as many members, however: {members}.")
    if example is None:
        example = first_rows(data)
    captured = capture(models[0], example, live=live)
    head = sole_head(task, captured)
    place = place_of(device, captured)
    learns = any(isinstance(one, Learned) for one in recipes) and data is not None
    options: dict[str, Any] = {
        "device": place,
        "dtype": dtype,
        "task": task,
        "noise_variance": noise_variance,
        "data": Data.of(captured.program, data, task, head) if learns else None,
    }
    if len(models) == 1:
        used, drawn = make_members(captured, recipes[0], count=members, seed=seed, progress=progress, **options)
    else:
        used, drawn = _make_members_in_turn(
            captured, models, recipes, count=members, seed=seed, progress=progress, **options
        )
    made = assemble(
        captured, used, drawn, seed=seed, device=place, task=task, noise_variance=noise_variance, metadata=metadata
    )
    if live or dtype is not None:
        made.try_one()
    made.check_variances()
    return made


def _several(
    model: nn.Module | Sequence[nn.Module], recipe: Recipe | Sequence[Recipe]
) -> tuple[list[nn.Module], list[Recipe]]:
    """The models and their recipes.

    Raises:
        ModelError, RecipeError: something else.
    """
    models: list[Any] = list(model) if isinstance(model, list | tuple) else [model]
    if not models or not all(isinstance(one, nn.Module) for one in models):
        kind = f"{type(model).__name__} of {_kinds(models)}" if isinstance(model, list | tuple) else _kinds(models)
        raise ModelError(f"model must be a torch.nn.Module, or several of them in a list, however: {kind}.")
    recipes: list[Any] = list(recipe) if isinstance(recipe, list | tuple) else [recipe]
    if not recipes or not all(isinstance(one, Recipe) for one in recipes):
        raise RecipeError(f"recipe must be one such as Gaussian(scale=0.02), however: {recipe!r}.")
    if len(recipes) not in (1, len(models)):
        raise RecipeError(f"There are {len(recipes)} recipes for {len(models)} models; give one, or one for each.")
    return models, recipes


def _kinds(values: Sequence[Any]) -> str:
    return ", ".join(sorted({type(value).__name__ for value in values})) or "nothing"


def _make_members_in_turn(
    captured: Captured,
    models: Sequence[nn.Module],
    recipes: Sequence[Recipe],
    *,
    count: int,
    seed: int,
    progress: Progress | None,
    **options: Any,
) -> tuple[Recipe, Members]:
    """Members of several models, the first of which is captured."""
    with contextlib.ExitStack() as modes:
        for model in models:
            modes.enter_context(evaluating(model))
        each = taken_apart(captured, models)
        parts, used = [], []
        for number, one in enumerate(each):
            settled, part = make_members(
                one,
                recipes[number % len(recipes)],
                count=in_turn(count, number, len(models)),
                seed=model_seed(seed, number),
                progress=one_of(progress, number, len(models)),
                **options,
            )
            parts.append(part)
            used.append(settled.kept())
    return Stacked(tuple(used[: len(recipes)]), len(models)), interleaved(parts)


def sole_head(task: Task, captured: Captured) -> Head | None:
    """What a model predicts, where that is one thing; None where it makes several predictions.

    Raises:
        ModelError: the outputs do not fit the task.
    """
    found = heads(task, captured.program.outputs)
    return found[0] if len(found) == 1 else None


def make_members(
    captured: Captured,
    recipe: Recipe,
    *,
    count: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype | None = None,
    task: Task = "raw",
    noise_variance: float | None = None,
    data: Data | None = None,
    progress: Progress | None = None,
) -> tuple[Recipe, Members]:
    """Members of a model that is captured already, and the recipe as it was settled for it.

    Raises:
        As :func:`perturb`.
    """
    recipe = recipe.settled(captured.program)
    names = recipe.select(captured.weights, captured.trainable)
    if isinstance(recipe, Learned):
        material = Material(
            captured.program,
            captured.weights,
            tuple(names),
            count,
            seed,
            device,
            task,
            noise_variance,
            data,
            progress,
        )
        recipe = recipe.planned(material)
        return recipe, recipe.make(material).to(device, dtype)
    assert isinstance(recipe, Perturbation)
    return recipe, member_weights.draw(
        recipe,
        captured.program,
        captured.weights,
        names,
        count=count,
        seed=seed,
        device=device,
        dtype=dtype,
        progress=progress,
    )


def assemble(
    captured: Captured,
    recipe: Recipe,
    drawn: Members,
    *,
    seed: int,
    device: torch.device,
    task: Task,
    noise_variance: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    report: Mapping[str, Any] | None = None,
) -> Ensemble:
    """An ensemble of members that :func:`make_members` gave."""
    names = recipe.select(captured.weights, captured.trainable)
    reference = {name: captured.weights[name].cpu().clone() for name in names}
    program = _placed(captured, drawn, device)
    origin = _origin(captured, recipe.kept(), seed, reference)
    return Ensemble(
        program,
        drawn,
        origin,
        task=task,
        noise_variance=noise_variance,
        metadata=metadata,
        calibration=calibration,
        report=report,
    )


def stack(
    models: Sequence[nn.Module],
    *,
    example: Any,
    task: Task = "raw",
    noise_variance: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    live: bool = False,
) -> Ensemble:
    """Make an ensemble of separately trained models of one architecture (a deep ensemble, arXiv 1612.01474).

    Args:
        models: at least two modules of one class.
        example, task, noise_variance, metadata, device, live: as for :func:`perturb`.

    Raises:
        ModelError, ExportError: the models cannot be stacked; the text says why.
        MemoryLimitError: the members do not fit.
    """
    if len(models) < 2:
        raise ModelError(f"An ensemble needs at least two models, however: {len(models)}.")
    captured = capture(models[0], example, live=live)
    heads(task, captured.program.outputs)
    place = place_of(device, captured)
    with contextlib.ExitStack() as modes:
        for model in models:
            modes.enter_context(evaluating(model))
        stacked = member_weights.stack(models, captured.weights, device=place)
        taken_apart(captured, models)
    program = _placed(captured, stacked, place)
    origin = _origin(captured, None, 0, {})
    made = Ensemble(program, stacked, origin, task=task, noise_variance=noise_variance, metadata=metadata)
    if live:
        made.try_one()
    made.check_variances()
    return made


def _placed(captured: Captured, members: Members, device: torch.device) -> Program:
    dtypes = members.dtypes
    unchanged = device == captured.example[0].device and all(
        dtype == captured.weights[name].dtype for name, dtype in dtypes.items()
    )
    return captured.program if unchanged else captured.program.to(device, dtypes)


def _origin(captured: Captured, recipe: Recipe | None, seed: int, reference: dict[str, Tensor]) -> Origin:
    return Origin(
        recipe=recipe,
        seed=seed,
        reference=reference,
        unused={name: tensor.to("cpu", copy=True) for name, tensor in captured.unused.items()},
        state_names=captured.state_names,
        example=[tensor[:_KEPT_EXAMPLE_ROWS].cpu() for tensor in captured.example],
        trainable=tuple(name for name in captured.weights if name in captured.trainable),
    )


def place_of(device: str | torch.device | None, captured: Captured) -> torch.device:
    """Where members are to live: where the model is by default.

    Raises:
        ModelError: there is no such device.
    """
    if device is None:
        return captured.example[0].device
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        # What is not compiled in is an assertion to PyTorch.
        raise ModelError(f"There is no device {device!r} here; cpu always is. ({first_line(error)[:200]})") from error
    return place


def check_count(members: int, seed: int) -> None:
    """Raise unless these can be a number of members and a seed."""
    if isinstance(members, bool) or not isinstance(members, int) or not 1 <= members <= MAX_MEMBERS:
        raise RecipeError(f"members must be an integer between 1 and {MAX_MEMBERS}, however: {members!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise RecipeError(f"seed must be an integer between 0 and 2**63 - 1, however: {seed!r}.")
