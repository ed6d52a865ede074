"""``fit``: from a trained model and rows it has not seen to an ensemble whose spread, noise and intervals are right."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ensemble.calibration import thresholds
from ensemble.calibration.budget import Budget, seconds
from ensemble.calibration.families import AUTO, SEVERAL, families
from ensemble.calibration.made import Made
from ensemble.calibration.report import describe
from ensemble.calibration.search import TRIED_MEMBERS, compare
from ensemble.calibration.split import MOST_SELECTING, divide
from ensemble.calibration.state import Calibration, IntervalScore, SetScore
from ensemble.calibration.trials import Trials
from ensemble.construct import assemble, check_count, place_of, sole_head
from ensemble.data import Data, first_rows
from ensemble.ensemble import Ensemble
from ensemble.errors import InputError, ModelError, RecipeError
from ensemble.perturbation import Recipe
from ensemble.program.capture import capture
from ensemble.tasks import Head, Task

# Called with what is being done, in words, and the share of the budget that is spent.
Progress = Callable[[str, float], None]
# Numbers that a trial may hold at once, which bounds the rows that settings are compared on.
_MOST_NUMBERS = 3e7


def fit(
    model: nn.Module,
    data: Any,
    *,
    task: Task,
    recipe: str | Recipe | Sequence[str | Recipe] = "auto",
    budget: str | float = "60s",
    confidence_level: float = 0.9,
    validation: Any = None,
    members: int = 128,
    seed: int = 0,
    example: Any = None,
    conformal: float = 0.4,
    interval_score: IntervalScore = "normalised",
    set_score: SetScore = "lac",
    risk: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    live: bool = False,
    progress: Progress | None = None,
) -> Ensemble:
    """Make an ensemble of one trained model whose scale, noise and thresholds are fitted to held-out rows.

    The rows are split at random. On one part recipes and their settings are compared by the log-likelihood of the
    mixture that the members are; likely settings are averaged, weighted by their likelihood, so that members carry
    weights (the net alone, scale 0, is always among them). The other part is used for nothing but the conformal
    thresholds of intervals and sets, the scores of ``ood_score``, and ``risk``. What was found is in the ensemble's
    ``report`` (:class:`~ensemble.calibration.report.FitReport` shows it).

    Args:
        model: any trained ``nn.Module``; it is read in evaluation mode and left as it was.
        data: (inputs, targets) of rows that the model was **not trained on**: on its training rows it is surer than it
            may be, and so would be what is fitted. With ``validation`` what recipes that learn their members learn from
            instead, usually the training rows; inputs alone are enough for some, such as perturb_and_correct. Without
            it such a recipe gets a third of the rows if it is asked for by name.
        task: "classification" (targets are class indices), "regression" or "gaussian" (targets are values).
        recipe: "auto" compares all recipes that say what to try and keeps the best, or what trains its members where
            the rows do not surely (by two standard errors) speak against it; a name ("rank1"), a recipe whose other
            settings are kept (``Rank1(scale=0.1, include="head.*")``: its scale is searched), or several of these.
        budget: how long comparing settings and making the members may take: "60s", "5m", or seconds. Capturing the
            model comes before, which takes seconds. At least the net alone and one setting are tried.
        confidence_level: of intervals and sets where none is asked for.
        validation: (inputs, targets) of rows that neither the model nor a recipe is trained on.
        members: how many; fewer where the net alone is best. Of a recipe that trains its members the settings share
            them, and all are kept, unless they have next to no weight; with the net itself they may be two more.
        seed: of the members and of the split.
        example: what the model is called with; the first rows of ``data`` by default.
        conformal: share of the held-out rows (at most 10,000 rows) set aside for thresholds; 0 for none, where there
            are few rows and no intervals are wanted.
        interval_score: "normalised" or "cqr", of a regression's intervals (:class:`Calibration`).
        set_score: "lac" or "aps", of a classification's sets.
        risk: that answers which do not abstain are to keep to: the share of errors, or the mean squared error
            (target²).
        metadata, device, live: as for :func:`ensemble.perturb`.
        progress: called with (what is being done, share of the budget that is spent).

    Raises:
        InputError: data that do not fit the model, too few rows, or numbers out of range.
        ModelError, ExportError: the model cannot be made into an ensemble, or predicts several things.
        RecipeError: no such recipe, or none that was asked for fits.
        MemoryLimitError: the members do not fit.

    Example:
        >>> ens = fit(model, (held_out_inputs, held_out_targets), task="regression", budget="30s")
        >>> ens.report["kept"]["recipe"], ens.predict(x, statistics=["mean", "prediction_interval"])
    """
    allowed = seconds(budget)
    check_count(members, seed)
    _check_options(task, confidence_level, risk, conformal, interval_score, set_score)
    asked = families(recipe)
    if progress:
        progress("capturing the model", 0.0)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be one torch.nn.Module, however: {type(model).__name__}. (Of several: {SEVERAL})")
    if example is None:
        example = _as_the_weights(first_rows(data), model)
    captured = capture(model, example, live=live)
    if not captured.weights:
        raise ModelError("The model has no weights, so that its members would all be the same.")
    head = sole_head(task, captured)
    if head is None:
        raise ModelError("A model with several outputs cannot be fitted; make an ensemble for each of them.")
    place = place_of(device, captured)
    given = Data.of(captured.program, data, task, head)
    held = None if validation is None else Data.of(captured.program, validation, task, head)
    _check_targets(given if held is None else held, "data" if held is None else "validation")
    rows = divide(
        given,
        held,
        conformal=conformal,
        confidence_level=confidence_level,
        seed=seed,
        learns=recipe != AUTO and any(family.learns_from != "nothing" for family in asked),
        most=_most_rows(head, min(members, TRIED_MEMBERS)),
    )
    clock = Budget(allowed)
    tell = _teller(progress, clock)
    trials = Trials(captured, task, head, rows.selection, learning=rows.learning, seed=seed, device=place)
    named = isinstance(recipe, str | Recipe) and recipe != AUTO
    aside = 0 if rows.conformal is None else len(rows.conformal)
    made, finding = compare(trials, asked, members, clock, tell, named=named, aside=aside)
    if named and not asked[0].trials:
        name, failure = asked[0].name, asked[0].failure or "the budget was spent before"
        raise RecipeError(failure if name in failure else f"{name} was not tried: {failure}.")
    tell("thresholds on rows set aside")
    calibration = dataclasses.replace(made.calibration, confidence_level=confidence_level)
    final = _assembled(trials, made, calibration, metadata)
    final.check_variances()
    notes = [*rows.notes, *finding.notes]
    if rows.conformal is not None:
        calibration, further = thresholds.fitted(
            final, rows.conformal, calibration, interval_score=interval_score, set_score=set_score, risk=risk
        )
        notes += further
    report = describe(finding, rows, task, clock, calibration, notes)
    return _assembled(trials, made, calibration, metadata, report)


def _assembled(
    trials: Trials,
    made: Made,
    calibration: Calibration,
    metadata: Mapping[str, Any] | None,
    report: Mapping[str, Any] | None = None,
) -> Ensemble:
    noise, mixture = calibration.noise_variances, made.members.mixture
    mean = None
    if noise is not None:
        mean = float(noise.mean() if mixture is None else (noise * mixture).sum())
    return assemble(
        trials.captured,
        made.recipe,
        made.members,
        seed=trials.seed,
        device=trials.device,
        task=trials.task,
        noise_variance=mean,
        metadata=metadata,
        calibration=calibration,
        report=report,
    )


def _check_targets(held: Data, what: str) -> None:
    if held.targets is None:
        raise InputError(f"{what} must be (inputs, targets); there are no targets.")


def _most_rows(head: Head, members: int) -> int:
    size = 1
    for length in head.trailing:
        size *= length
    return int(min(MOST_SELECTING, max(500, _MOST_NUMBERS // (size * members))))


def _check_options(
    task: Task,
    level: float,
    risk: float | None,
    conformal: float,
    interval_score: IntervalScore,
    set_score: SetScore,
) -> None:
    if task == "raw":
        raise ModelError("Fitting needs to know what the outputs are: classification, regression or gaussian.")
    if not isinstance(level, int | float) or isinstance(level, bool) or not 0 < level < 1:
        raise InputError(f"confidence_level must be between 0 and 1, such as 0.9, however: {level!r}.")
    if risk is not None:
        most, what = (
            (1, "a share of errors between 0 and 1") if task == "classification" else (math.inf, "a number above 0")
        )
        if not isinstance(risk, int | float) or isinstance(risk, bool) or not 0 < risk < most:
            raise InputError(f"risk must be {what}, however: {risk!r}.")
        if conformal == 0:
            raise InputError("risk= needs rows that are set aside: give conformal= a share above 0.")
    for name, value, known in (
        ("interval_score", interval_score, ("normalised", "cqr")),
        ("set_score", set_score, ("lac", "aps")),
    ):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, however: {value!r}.")


def _as_the_weights(example: Any, model: nn.Module) -> Any:
    """Rows of data as the model takes them: tables are float64, as a rule, and most models are not."""
    kinds = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    if len(kinds) != 1:
        return example
    (kind,) = kinds

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(kind) if tensor.is_floating_point() else tensor

    if isinstance(example, dict):
        return {name: cast(tensor) for name, tensor in example.items()}
    return tuple(map(cast, example)) if isinstance(example, tuple) else cast(example)


def _teller(progress: Progress | None, clock: Budget) -> Callable[[str], None]:
    def tell(text: str) -> None:
        if progress:
            progress(text, min(1.0, clock.spent / clock.total))

    return tell
