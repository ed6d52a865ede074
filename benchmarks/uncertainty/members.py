"""Members that this library makes of the single net: recipes whose settings are fitted, and what ``auto`` keeps."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import ensemble
from benchmarks.uncertainty.data import Parts
from benchmarks.uncertainty.networks import Head, Weights, module
from benchmarks.uncertainty.results import Record
from benchmarks.uncertainty.scores import score
from benchmarks.uncertainty.settings import ADAPTED, AUTO_BUDGET, BUDGET, MEMBERS, SEED, SNAPSHOTS, TRAINING
from benchmarks.uncertainty.training import losses
from ensemble.perturbation.adapted import Adapted
from ensemble.perturbation.swag import Swag
from ensemble.tasks import Task

TASKS: Mapping[Head, Task] = {"point": "regression", "variance": "gaussian", "classes": "classification"}


@dataclasses.dataclass(frozen=True)
class Case:
    """What a method of this library gets: a net, the rows it was trained on, and rows that it was not.

    Args:
        model: the single net.
        parts: of one split.
        head: what the net returns.
        steps: gradient steps that its training took.
    """

    model: nn.Module
    parts: Parts
    head: Head
    steps: int

    @staticmethod
    def of(weights: Weights, parts: Parts, head: Head, steps: int) -> Case:
        return Case(module(weights, 0, head), parts, head, steps)


def known() -> list[str]:
    """The methods of this library that it has."""
    return [*(name for name in STATIC if name in ensemble.perturbation.recipes), *ADAPTED, "auto"]


STATIC = ("gaussian", "low_rank", "rank1", "dropout", "perturb_and_correct", "swag", "laplace")


def fitted(case: Case, recipe: str | ensemble.Recipe, members: int = MEMBERS) -> ensemble.Ensemble:
    """The recipe with its settings chosen on the held-out rows, none of which are set aside for intervals."""
    train, held = (pair if case.head == "classes" else _column(pair) for pair in (case.parts.train, case.parts.held))
    return ensemble.fit(
        case.model,
        train,
        task=TASKS[case.head],
        recipe=recipe,
        budget=AUTO_BUDGET if recipe == "auto" else BUDGET,
        validation=held,
        members=members,
        seed=SEED,
        conformal=0.0,
    )


def scored(case: Case, name: str, table: str, split: int) -> Record:
    """Fit one of ``known()`` to a regression and look at the test rows."""
    record, ens = made(case, name, table, split)
    if ens is None:
        return record
    means, variances = predicted(ens, case.parts.test[0])
    found = score(means, variances, case.parts.test[1], case.parts.unit, ens.members.mixture)
    record.scores = dict(zip(("log_likelihood", "rmse"), found, strict=True))
    return record


def made(case: Case, name: str, table: str, split: int) -> tuple[Record, ensemble.Ensemble | None]:
    """A record without scores, and the ensemble; where it cannot be had the record says why."""
    # What is drawn, solved or averaged takes no gradient step.
    record = Record(table, case.head, name, split, cost=None if name == "auto" else 0.0)
    recipe: str | ensemble.Recipe = name
    count = MEMBERS
    if name in ADAPTED:
        trainings, count = ADAPTED[name]
        steps = int(trainings * case.steps / count)
        recipe = Adapted(steps=steps, lr=TRAINING[case.head].rate / 10)
        record.cost = count * steps / case.steps
    elif name == "swag":
        recipe = Swag(snapshots(case))
        record.cost = SNAPSHOTS / TRAINING[case.head].epochs
    begun = time.perf_counter()
    try:
        ens = fitted(case, recipe, count)
    except Exception as error:
        # Whatever it is, the other methods' figures stand.
        record.reason = str(error) if isinstance(error, ensemble.EnsembledError) else f"{type(error).__name__}: {error}"
        return record, None
    record.seconds = time.perf_counter() - begun
    if name == "auto" and ens.report is not None:
        record.note = str(ens.report["kept"]["recipe"])
    return record, ens


def snapshots(case: Case) -> list[nn.Module]:
    """The net after each of some further epochs at half the learning rate that it was trained with."""
    x, y = case.parts.train
    schedule = TRAINING[case.head]
    model = copy.deepcopy(case.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.rate / 2, weight_decay=schedule.decay)
    generator = torch.Generator().manual_seed(SEED)
    found = []
    for _ in range(SNAPSHOTS):
        for rows in torch.randperm(len(y), generator=generator).split(schedule.batch):
            outputs = model(x[rows])
            raw = outputs if isinstance(outputs, Tensor) else torch.cat([outputs[0], outputs[1].log()], -1)
            optimizer.zero_grad()
            losses(case.head, raw.unsqueeze(0), y[rows].unsqueeze(0)).sum().backward()
            optimizer.step()
        found.append(copy.deepcopy(model))
    return found


def predicted(made: ensemble.Ensemble, x: Tensor) -> tuple[Tensor, Tensor]:
    """Every member's mean and variance, each (members, rows)."""
    names = ["members"] if made.task == "regression" else ["members", "member_variances"]
    found = made.predict(x, statistics=names)
    # (rows, members, 1)
    means = found["members"].squeeze(-1).T
    assert made.calibration is not None
    if made.task == "gaussian":
        return means, found["member_variances"].squeeze(-1).T
    assert made.calibration.noise_variances is not None
    return means, made.calibration.noise_variances.unsqueeze(1).expand(means.shape)


def _column(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return pair[0], pair[1].unsqueeze(1)
