"""``fit``: from a trained model and rows it has not seen to an ensemble whose spread, noise and intervals are right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ensemble.calibration import thresholds
from ensemble.calibration.averaging import gain, slots
from ensemble.calibration.budget import Budget, seconds
from ensemble.calibration.families import Average, Cell, Family, average, families
from ensemble.calibration.likelihood import row_log_likelihood
from ensemble.calibration.report import Finding, describe
from ensemble.calibration.split import MOST_SELECTING, divide
from ensemble.calibration.state import Calibration, IntervalScore, SetScore
from ensemble.calibration.trials import Trials, unperturbed
from ensemble.construct import assemble, check_count, sole_head
from ensemble.data import Data, first_rows
from ensemble.ensemble import Ensemble
from ensemble.errors import EnsembledError, InputError, ModelError, RecipeError
from ensemble.members import Members
from ensemble.perturbation import Perturbation, Recipe
from ensemble.perturbation.low_rank import LowRank
from ensemble.perturbation.mixture import Mixture
from ensemble.program.capture import capture
from ensemble.tasks import Head, Task

# Called with what is being done, in words, and the share of the budget that is spent.
Progress = Callable[[str, float], None]
# Members that a setting is judged by: more tell little more.
_TRIED_MEMBERS = 64
# Where that takes so long that there is not time for so many settings, fewer, but no fewer than this.
_LEAST_TRIED = 8
_LEAST_TRIALS = 10
# Settings that an average keeps, each with a pair of members at least.
_MOST_SLOTS = 32
# Of the net alone each slot is a noise variance, and so many describe what is known of it.
_SINGLE_SLOTS = 8
# Standard errors by which rows tell one thing from another.
_SURELY = 2.0
# Members with less than this share of an equal weight are left out.
_LEAST_WEIGHT = 0.01
_NOTHING_TO_LEARN_FROM = (
    "{name} learns from data: give the training rows as data, and rows that the model was not trained on as validation."
)
# Share of the budget that is kept for making the ensemble and its thresholds.
_RESERVE = 0.15
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
            instead, usually the training rows.
        task: "classification" (targets are class indices), "regression" or "gaussian" (targets are values).
        recipe: "auto" compares all recipes that say what to try and keeps the best; a name ("rank1"), a recipe whose
            other settings are kept (``Rank1(scale=0.1, include="head.*")``: its scale is searched), or several of
            these.
        budget: how long it may take: "60s", "5m", or seconds. At least the net alone and one setting are tried.
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
    clock = Budget(seconds(budget))
    check_count(members, seed)
    _check_options(task, confidence_level, risk, interval_score, set_score)
    asked = families(recipe)
    tell = _teller(progress, clock)
    tell("capturing the model")
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be a torch.nn.Module, however: {type(model).__name__}.")
    if example is None:
        example = first_rows(data)
    captured = capture(model, example, live=live)
    head = sole_head(task, captured)
    if head is None:
        raise ModelError("A model with several outputs cannot be fitted; make an ensemble for each of them.")
    place = torch.device(device) if device is not None else captured.example[0].device
    given = Data.of(captured.program, data, task, head)
    held = None if validation is None else Data.of(captured.program, validation, task, head)
    _check_targets(given if held is None else held, "data" if held is None else "validation")
    rows = divide(
        given,
        held,
        conformal=conformal,
        confidence_level=confidence_level,
        seed=seed,
        learns=recipe != "auto" and all(family.learned for family in asked),
        most=_most_rows(head, min(members, _TRIED_MEMBERS)),
    )
    trials = Trials(captured, task, head, rows.selection, learning=rows.learning, seed=seed, device=place)
    named = isinstance(recipe, str | Recipe) and recipe != "auto"
    aside = 0 if rows.conformal is None else len(rows.conformal)
    made, finding = _best(trials, asked, members, clock, tell, named=named, aside=aside)
    if named and not asked[0].trials:
        raise RecipeError(asked[0].failure or f"{asked[0].name} was not tried: the budget was spent before.")
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
    elif risk is not None:
        raise InputError("risk= needs rows that are set aside: give conformal= a share above 0.")
    report = describe(finding, rows, task, clock, calibration, notes)
    return _assembled(trials, made, calibration, metadata, report)


@dataclasses.dataclass(frozen=True)
class _Made:
    """Members, and what goes with them."""

    recipe: Recipe
    members: Members
    calibration: Calibration


def _best(
    trials: Trials,
    asked: list[Family],
    members: int,
    clock: Budget,
    tell: Callable[[str], None],
    *,
    named: bool,
    aside: int,
) -> tuple[_Made, Finding]:
    """Compare the recipes within the budget and make the members of the one to keep.

    One that the caller named is kept, too, where the rows do not tell it from the net alone: what it is for may lie
    away from them.
    """
    tell("the net alone")
    alone = Family("single", trials=[trials.single()])
    single = alone.trials[0]
    # In the end all members see all held-out rows.
    last = single.seconds * members * (1 + aside / len(trials.rows))
    reserve = min(max(_RESERVE * clock.total, last), 0.5 * max(0.0, clock.left))
    tried = tried_members(members, single.seconds, clock.left - reserve)
    _search(trials, asked, members, tried, clock, reserve, tell)
    baseline = average(alone, single, trials.task)
    found = [average(family, single, trials.task) for family in asked if family.trials]
    found.sort(key=lambda one: one.log_likelihood, reverse=True)
    notes: list[str] = []
    chosen, why = baseline, "No recipe makes the held-out rows likelier than the net alone."
    for one in found:
        ours, error = gain(one.left_out, baseline.left_out)
        tolerated = _SURELY * error if named else 0.0
        if ours <= -tolerated:
            break
        tell(f"members of {one.family.name}")
        made = _members_of(trials, one, members)
        reached = _reached(trials, made)
        if reached >= baseline.fitted - tolerated:
            why = _why(ours, error, len(found))
            return made, Finding(baseline, tuple(found), tuple(asked), one, why, reached, tuple(notes))
        notes.append(
            f"{one.family.name} promised {ours:.4f} nats, but with {members} members the rows are less likely than "
            "under the net alone."
        )
    made = _members_of(trials, chosen, members)
    reached = _reached(trials, made)
    return made, Finding(baseline, tuple(found), tuple(asked), chosen, why, reached, tuple(notes))


def _why(ours: float, error: float, compared: int) -> str:
    if ours <= 0:
        return (
            "It was asked for, and the held-out rows hardly tell it from the net alone: "
            f"{ours:+.4f} ± {error:.4f} nats each, left out of the weights."
        )
    return (
        f"Left out of the weights, the held-out rows are likelier by {ours:.4f} ± {error:.4f} nats each than "
        f"under the net alone{', and likelier than under any other recipe' if compared > 1 else ''}."
    )


def tried_members(members: int, one: float, left: float) -> int:
    """How many members a setting is judged by: as many as tell enough, fewer where a model takes long.

    Args:
        one: seconds that one member takes for the selection rows.
        left: seconds that there are to compare settings.
    """
    return min(members, max(_LEAST_TRIED, min(_TRIED_MEMBERS, int(left / _LEAST_TRIALS / max(one, 1e-9)))))


def _search(
    trials: Trials,
    asked: list[Family],
    members: int,
    tried: int,
    clock: Budget,
    reserve: float,
    tell: Callable[[str], None],
) -> None:
    """Try settings, each recipe's in turn, for as long as there is time for another."""
    # Those with factors first, which are the fastest.
    drawn = sorted((f for f in asked if not f.learned), key=lambda f: f.candidates[0].structure((2, 2)) is None)
    cheap = [family for family in asked if family.learned and not family.dear]
    dear = [family for family in asked if family.dear]
    if trials.learning is None:
        for family in (*cheap, *dear):
            family.failure = _NOTHING_TO_LEARN_FROM.format(name=family.name)
        cheap, dear = [], []
    first = True
    # What trains gets whatever time the others leave.
    for group, share in ((drawn, 0.4 if cheap or dear else 1.0), (cheap, 0.4 if dear else 1.0), (dear, 1.0)):
        end = clock.spent + share * (clock.left - reserve)
        waiting = {id(family): list(family.candidates) for family in group}
        while any(waiting.values()):
            for family in group:
                queue = waiting[id(family)]
                if not queue:
                    continue
                # A setting takes about as long as the one before.
                last = family.trials or [trial for other in group for trial in other.trials]
                needed = last[-1].seconds if last else 0.0
                if not first and clock.spent + needed > end:
                    family.cut_short = True
                    queue.clear()
                    continue
                left = (end - clock.spent) / sum(map(len, waiting.values()))
                candidate = queue.pop(0)
                tell(f"{family.name} {_short(candidate)}")
                count = tried if isinstance(candidate, Perturbation) else members
                if _try(trials, family, candidate, count, left if family.dear else end - clock.spent):
                    first = False
                else:
                    queue.clear()


def _try(trials: Trials, family: Family, candidate: Recipe, count: int, left: float) -> bool:
    # What is drawn can be drawn again in any number; what is learned is judged as it will be kept.
    if family.dear:
        count = max(1, count // len(family.candidates))
    limit = getattr(candidate, "seconds", 0)
    if limit is None or (isinstance(limit, float) and limit > left > 0):
        candidate = dataclasses.replace(candidate, seconds=max(left, 1.0))  # type: ignore[type-var]
    try:
        family.trials.append(trials.of(candidate, count))
    except EnsembledError as error:
        if not family.trials:
            family.failure = str(error)
        return False
    return True


def _members_of(trials: Trials, chosen: Average, count: int) -> _Made:
    """The members of an average: each pair belongs to one of its settings, as many pairs as the setting is worth."""
    if chosen.family.dear:
        return _all_members_of(trials, chosen)
    cells, alone = chosen.cells, chosen.family.name == "single"
    if not alone and not chosen.family.learned and _still(chosen.family.candidates[0]) is None:
        # The net alone has no form among such members.
        cells = tuple(cell for cell in cells if cell.trial.recipe is not None)
    pairs = max(1, count // 2)
    most = min(pairs, _SINGLE_SLOTS if alone else _MOST_SLOTS)
    places = slots(torch.tensor([cell.weight for cell in cells], dtype=torch.float64), most)
    if alone:
        # Its members are all the same net: no more of them than there are noise variances.
        places = places if any(cell.noise is not None for cell in cells) else places[:1]
        count = min(count, max(1, 2 * len(places))) if len(places) > 1 else 1
    used = [cells[place] for place, _ in places]
    shares = tuple(weight for _, weight in places)
    recipe = _joined_recipe(used, shares, chosen.family)
    if isinstance(recipe, Perturbation):
        settled, members = trials.make(recipe, count)
    else:
        settled, members = recipe, _learned_members(trials, used, shares, count)
    noise = [used[member // 2 % len(used)].noise or 0.0 for member in range(count)]
    return _Made(settled, members, _calibrated(trials.task, chosen, noise))


def _all_members_of(trials: Trials, chosen: Average) -> _Made:
    """Every member that was made for any setting, each with its share of what its setting is worth; and the net alone.

    The noise variances that were compared are shared out among a setting's members.
    """
    settings: dict[int, list[Cell]] = {}
    for cell in chosen.cells:
        settings.setdefault(id(cell.trial), []).append(cell)
    layout = next(cells[0].trial.members for cells in settings.values() if cells[0].trial.members is not None)
    assert layout is not None
    parts: list[Members] = []
    weights, noise = [], []
    for cells in settings.values():
        own = cells[0].trial.members or unperturbed(trials.captured, trials.device, min(2, len(cells)), layout)
        share = sum(cell.weight for cell in cells)
        each = torch.tensor([cell.weight for cell in cells], dtype=torch.float64)
        places = slots(each / share if share > 0 else torch.full_like(each, 1 / len(each)), own.count)
        parts.append(own)
        weights += [share * weight for _, weight in places]
        noise += [cells[place].noise or 0.0 for place, _ in places]
    # What little weight a net that no row speaks for has is not worth its members' work.
    mixture = torch.tensor(weights, dtype=torch.float64)
    kept = (mixture > _LEAST_WEIGHT / len(mixture)).nonzero().flatten()
    stacked = {name: torch.cat([part.stacked[name] for part in parts])[kept] for name in layout.stacked}
    mixture = mixture[kept] / mixture[kept].sum()
    members = Members(len(kept), layout.shared, stacked, layout.factored, mixture)
    best = max((c for c in chosen.cells if c.trial.recipe is not None), key=lambda cell: cell.weight)
    assert best.trial.recipe is not None
    own_noise = [noise[place] for place in kept.tolist()]
    return _Made(best.trial.recipe, members, _calibrated(trials.task, chosen, own_noise))


def _calibrated(task: Task, chosen: Average, noise: Sequence[float]) -> Calibration:
    """Temperature, or each member's noise variance or factor."""
    if task == "classification":
        return Calibration(temperature=chosen.temperature)
    each = torch.tensor(noise, dtype=torch.float64)
    return Calibration(variance_factors=each) if task == "gaussian" else Calibration(noise_variances=each)


def _joined_recipe(used: list[Cell], shares: tuple[float, ...], family: Family) -> Recipe:
    """One recipe of which member i has the setting of its place."""
    if family.learned:
        best = max(zip(used, shares, strict=True), key=lambda one: (one[0].trial.recipe is not None, one[1]))[0]
        return best.trial.recipe or family.candidates[0]
    # The net alone, in the form of the family's own recipes, so that members keep their factors.
    like = next((trial.recipe for trial in family.trials if trial.recipe is not None), None)
    still = LowRank(0.0) if like is None else _still(like)
    parts = tuple(part for cell in used if isinstance(part := cell.trial.recipe or still, Perturbation))
    if len(set(parts)) == 1 and max(shares) - min(shares) < 1e-12:
        return parts[0]
    return Mixture(parts, shares)


def _still(recipe: Recipe) -> Recipe | None:
    """The same recipe where it perturbs nothing; None if it has no such settings."""
    for name in ("scale", "p"):
        if hasattr(recipe, name):
            return dataclasses.replace(recipe, **{name: 0.0})  # type: ignore[type-var]
    return None


def _learned_members(trials: Trials, used: list[Cell], shares: tuple[float, ...], count: int) -> Members:
    """Members of several settings of a recipe that learns, each where its place is."""
    made: dict[int, Members] = {id(cell.trial): cell.trial.members for cell in used if cell.trial.members is not None}
    like = next(iter(made.values()), None)
    still = unperturbed(trials.captured, trials.device, 1, like)
    layout = like or still
    each = [used[member // 2 % len(used)] for member in range(count)]
    sources = [made.get(id(cell.trial), still) for cell in each]
    own = [member if source is not still else 0 for member, source in enumerate(sources)]
    stacked = {
        name: torch.stack([source.stacked[name][index] for source, index in zip(sources, own, strict=True)])
        for name in layout.stacked
    }
    weights = torch.tensor(
        [
            shares[member // 2 % len(used)] * (float(s.mixture[i]) * s.count if s.mixture is not None else 1.0)
            for member, (s, i) in enumerate(zip(sources, own, strict=True))
        ],
        dtype=torch.float64,
    )
    # A place has a pair more than another where they do not come out even.
    sizes = torch.zeros(len(used), dtype=torch.float64)
    places = [member // 2 % len(used) for member in range(count)]
    for place in places:
        sizes[place] += 1
    weights = weights / sizes[places]
    weights = weights / weights.sum()
    even = bool((weights - 1 / count).abs().max() < 1e-12)
    return Members(count, layout.shared, stacked, layout.factored, None if even else weights)


def _reached(trials: Trials, made: _Made) -> float:
    """Mean log-likelihood of the selection rows under members as they will be kept."""
    found = []
    for outputs, some in trials.outputs(made.members, trials.rows):
        assert some.targets is not None
        found.append(
            row_log_likelihood(
                trials.task,
                trials.head,
                outputs,
                some.targets,
                made.calibration,
                made.members.mixture,
            )
        )
    return float(torch.cat(found).mean())


def _assembled(
    trials: Trials,
    made: _Made,
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
    task: Task, level: float, risk: float | None, interval_score: IntervalScore, set_score: SetScore
) -> None:
    if task == "raw":
        raise ModelError("Fitting needs to know what the outputs are: classification, regression or gaussian.")
    if not isinstance(level, int | float) or isinstance(level, bool) or not 0 < level < 1:
        raise InputError(f"confidence_level must be between 0 and 1, such as 0.9, however: {level!r}.")
    if risk is not None and (not isinstance(risk, int | float) or isinstance(risk, bool) or not risk > 0):
        raise InputError(f"risk must be a number above 0, however: {risk!r}.")
    for name, value, known in (
        ("interval_score", interval_score, ("normalised", "cqr")),
        ("set_score", set_score, ("lac", "aps")),
    ):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, however: {value!r}.")


def _teller(progress: Progress | None, clock: Budget) -> Callable[[str], None]:
    def tell(text: str) -> None:
        if progress:
            progress(text, min(1.0, clock.spent / clock.total))

    return tell


def _short(recipe: Recipe) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in recipe.settings().items() if isinstance(value, float))
