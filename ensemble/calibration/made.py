"""The members of an average over settings: each setting's share of them, with the weights that they carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from ensemble.calibration.averaging import slots
from ensemble.calibration.families import Average, Cell, Family
from ensemble.calibration.state import Calibration
from ensemble.calibration.trials import Trials, unperturbed
from ensemble.members import Members
from ensemble.perturbation import Perturbation, Recipe
from ensemble.perturbation.low_rank import LowRank
from ensemble.perturbation.mixture import Mixture
from ensemble.tasks import Task

# Settings that an average keeps, each with a pair of members at least.
_MOST_SLOTS = 32
# Of the net alone each slot is a noise variance, and so many describe what is known of it.
_SINGLE_SLOTS = 8
# Members with less than this share of an equal weight are left out.
_LEAST_WEIGHT = 0.01


@dataclasses.dataclass(frozen=True)
class Made:
    """Members, and what goes with them."""

    recipe: Recipe
    members: Members
    calibration: Calibration


def members_of(trials: Trials, chosen: Average, count: int) -> Made:
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
    return Made(settled, members, _calibrated(trials.task, chosen, noise))


def _all_members_of(trials: Trials, chosen: Average) -> Made:
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
    return Made(best.trial.recipe, members, _calibrated(trials.task, chosen, own_noise))


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
            return dataclasses.replace(recipe, **{name: 0.0})
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
