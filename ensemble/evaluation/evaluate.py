"""``evaluate``: how good an ensemble's predictions and their uncertainty are on rows that nothing was fitted on."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ensemble.calibration.thresholds import predicted
from ensemble.data import Data
from ensemble.ensemble import Ensemble
from ensemble.errors import InputError, ModelError
from ensemble.evaluation.metrics import (
    Bins,
    aurc,
    auroc,
    brier,
    calibration_error,
    confidence_bins,
    crps,
    mixture_cdf,
    quantile_bins,
)
from ensemble.tasks import Head, Task, heads, sample
from ensemble.vectorised import evaluate as run

_ROWS = 256
_MEANINGS = {
    "nll": "mean negative log-likelihood of the targets under the mixture, nats; lower is better",
    "accuracy": "share of rows whose label is right",
    "brier": "Σ (p − truth)² over classes, from 0 to 2; lower is better",
    "ece": "mean distance between confidence and accuracy",
    "rmse": "root mean squared error of the mean, in the target's unit",
    "crps": "continuous ranked probability score, in the target's unit; lower is better",
    "picp": "share of the targets that the interval or set holds; to be confidence_level",
    "mpiw": "mean width of the interval, in the target's unit; smaller is better at equal picp",
    "set_size": "mean number of classes in the set; smaller is better at equal picp",
    "aurc": "mean loss of the k least uncertain rows, over all k; lower is better",
    "answered": "share of rows that do not abstain",
    "risk": "mean loss of the rows that do not abstain",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Args:
        task: of the ensemble.
        rows: how many were evaluated.
        members: of the ensemble.
        confidence_level: of the interval or set.
        interval: which it was: "prediction_interval", "credible_interval" or "prediction_set"; None without one.
        metrics: by name, as the README and :attr:`meanings` explain them.
        reliability: what was promised and what came: confidence and accuracy, or levels and shares below the quantile.
        notes: what could not be had, and why.
    """

    task: Task
    rows: int
    members: int
    confidence_level: float
    interval: str | None
    metrics: dict[str, float]
    reliability: Bins | None
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    def meaning(self, name: str) -> str:
        """A metric in words."""
        if name.startswith("auroc_"):
            return f"how well {name.removeprefix('auroc_')} tells the other rows from these: 0.5 not at all, 1 always"
        if name == "ece" and self.task != "classification":
            return "mean distance between a quantile's level and the share of targets below it"
        return _MEANINGS[name]

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values; a number that is not finite is None."""
        diagram = None
        if self.reliability is not None:
            diagram = {name: tensor.tolist() for name, tensor in vars(self.reliability).items()}
        return {
            "task": self.task,
            "rows": self.rows,
            "members": self.members,
            "confidence_level": self.confidence_level,
            "interval": self.interval,
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
            "reliability": diagram,
            "notes": list(self.notes),
        }

    def json(self) -> str:
        """As text."""
        return json.dumps(self.as_json(), indent=2, ensure_ascii=False)

    def table(self) -> str:
        """As plain text."""
        width = max(len(name) for name in self.metrics)
        lines = [f"{name.ljust(width)}  {value:>10.4g}  {self.meaning(name)}" for name, value in self.metrics.items()]
        about = f"{self.rows} rows, {self.members} members"
        if self.interval is not None:
            about += f"; {self.interval} at a confidence level of {self.confidence_level:g}"
        return "\n".join([about, *lines, *(f"note: {note}" for note in self.notes)])

    def __str__(self) -> str:
        return self.table()

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the reliability diagram into a file; needs matplotlib.

        Raises:
            EnsembledError: there is no diagram, matplotlib is not installed, or the file cannot be written.
        """
        from ensemble.plotting import figure, written

        if self.reliability is None:
            raise ModelError("There is no reliability diagram without a known noise variance; fit() finds it.")
        with figure(4.4, 4.4) as (made, axes):
            expected, observed, count = vars(self.reliability).values()
            axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="calibrated")
            sizes = 15 + 85 * count.double() / count.max() if self.task == "classification" else 15
            axes.plot(expected, observed, linewidth=1)
            axes.scatter(expected, observed, s=sizes)
            classes = self.task == "classification"
            axes.set_xlabel("confidence" if classes else "level of the quantile")
            axes.set_ylabel("accuracy" if classes else "share of targets below it")
            axes.set_title(f"calibration error {self.metrics['ece']:.3f}", fontsize="medium")
            axes.set_aspect("equal")
            written(made, path)


def evaluate(
    ensemble: Ensemble,
    data: Any,
    *,
    ood: Any = None,
    confidence_level: float | None = None,
    batch_size: int = _ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judge an ensemble on rows that neither the model was trained nor anything was fitted on.

    Members count by their weights in the mixture. A row of a target with several elements counts as its mean.

    Args:
        ensemble: with one output, and a task that is not "raw".
        data: (inputs, targets).
        ood: inputs of rows that are unlike those, as the model is called with them, for AUROC.
        confidence_level: of intervals and sets; by default what it was fitted for, or 0.9.
        batch_size: rows at a time.
        progress: called with (rows done, rows in all).

    Raises:
        InputError: data that do not fit the model, or no targets.
        ModelError: several outputs, or a task of which it is not known what is right.

    Example:
        >>> found = evaluate(ens, (x, y), ood=noise)
        >>> found["nll"], found["ece"], found["auroc_mutual_information"]
        >>> print(found); found.plot("reliability.png")
    """
    task = ensemble.task
    several = heads(task, ensemble.program.outputs)
    if task == "raw" or len(several) != 1:
        raise ModelError("Only an ensemble with one output, and another task than raw, can be evaluated.")
    (head,) = several
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be a number of rows, however: {batch_size!r}.")
    rows = Data.of(ensemble.program, data, task, head)
    if rows.targets is None:
        raise InputError("data must be (inputs, targets); there are no targets.")
    fitted = ensemble.calibration
    level = confidence_level if confidence_level is not None else fitted.confidence_level if fitted else 0.9
    judge = _judge_classes if task == "classification" else _judge_values
    found = judge(ensemble, head, rows, level, batch_size, progress)
    if ood is None:
        return found
    others = Data.of(ensemble.program, ood)
    scores = ("predictive_entropy", "mutual_information") if task == "classification" else ("std", "epistemic_variance")
    inside = predicted(ensemble, rows, scores, size=batch_size)
    outside = predicted(ensemble, others, scores, size=batch_size)
    found.metrics.update({f"auroc_{name}": auroc(_per_row(inside[name]), _per_row(outside[name])) for name in scores})
    return found


def _judge_classes(
    ens: Ensemble, head: Head, rows: Data, level: float, size: int, progress: Callable[[int, int], None] | None
) -> Evaluation:
    assert rows.targets is not None
    available = ens.available_statistics()
    names = ["mean", "log_prob", "predictive_entropy"]
    names += [name for name in ("prediction_set", "abstain") if name in available]
    found = _collected(ens, rows, names, level, size, progress)
    mean, targets = found["mean"].double(), rows.targets
    classes = mean.shape[-1]
    wrong = (mean.argmax(-1) != targets).double()
    diagram = confidence_bins(mean.reshape(-1, classes), targets.flatten())
    metrics = {
        "nll": -float(found["log_prob"].double().mean()),
        "accuracy": 1 - float(wrong.mean()),
        "brier": float(brier(mean, targets).mean()),
        "ece": calibration_error(diagram),
        "aurc": aurc(_per_row(found["predictive_entropy"]), _per_row(wrong)),
    }
    interval = None
    if "prediction_set" in found:
        interval, sets = "prediction_set", found["prediction_set"]
        metrics["picp"] = float(sets.gather(-1, targets.unsqueeze(-1)).double().mean())
        metrics["set_size"] = float(sets.sum(-1).double().mean())
    _add_abstention(metrics, found, _per_row(wrong))
    return Evaluation(ens.task, len(rows), len(ens), level, interval, metrics, diagram)


def _judge_values(
    ens: Ensemble, head: Head, rows: Data, level: float, size: int, progress: Callable[[int, int], None] | None
) -> Evaluation:
    assert rows.targets is not None
    available = ens.available_statistics()
    interval = "prediction_interval" if "prediction_interval" in available else "credible_interval"
    names = ["mean", "total_variance", interval, *(n for n in ("log_prob", "abstain") if n in available)]
    found = _collected(ens, rows, names, level, size, progress)
    mean, targets = found["mean"].double(), rows.targets.double()
    squared = (mean - targets).square()
    metrics = {"rmse": float(squared.mean().sqrt())}
    notes, diagram = [], None
    if "log_prob" in found:
        metrics = {"nll": -float(found["log_prob"].double().mean()), **metrics}
        scores, cdf = _distribution(ens, head, rows, size)
        metrics["crps"] = float(scores.mean())
        diagram = quantile_bins(cdf)
        metrics["ece"] = float((diagram.expected - diagram.observed).abs().mean())
    else:
        notes.append("nll, crps and ece need the noise variance, which is not known; ensemble.fit() finds it.")
    low, high = found[interval].double().unbind(-1)
    metrics["picp"] = float(((low <= targets) & (targets <= high)).double().mean())
    metrics["mpiw"] = float((high - low).mean())
    if not math.isfinite(metrics["mpiw"]) and interval == "prediction_interval":
        notes.append(f"so few rows were set aside that they vouch for no interval at {level:g}: it is infinite.")
    metrics["aurc"] = aurc(_per_row(found["total_variance"]), _per_row(squared))
    _add_abstention(metrics, found, _per_row(squared))
    return Evaluation(ens.task, len(rows), len(ens), level, interval, metrics, diagram, tuple(notes))


def _add_abstention(metrics: dict[str, float], found: dict[str, Tensor], loss: Tensor) -> None:
    if "abstain" not in found:
        return
    answered = ~found["abstain"]
    metrics["answered"] = float(answered.double().mean())
    if bool(answered.any()):
        metrics["risk"] = float(loss[answered].mean())


def _collected(
    ens: Ensemble,
    rows: Data,
    names: list[str],
    level: float,
    size: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Tensor]:
    """Statistics of all rows, on the CPU."""
    inputs = [spec.name for spec in ens.program.inputs]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    done = 0
    for some in rows.batches(size):
        named = dict(zip(inputs, some.inputs, strict=True))
        target = some.targets if "log_prob" in names else None
        prediction = ens.predict(named, statistics=names, confidence_level=level, target=target)
        for name, tensor in prediction.flat().items():
            found[name].append(tensor.cpu())
        done += len(some)
        if progress:
            progress(done, len(rows))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _distribution(ens: Ensemble, head: Head, rows: Data, size: int) -> tuple[Tensor, Tensor]:
    """CRPS of each target, and the mixture's distribution function at it."""
    fitted, mixture = ens.calibration, ens.members.mixture
    weights = torch.full((len(ens),), 1 / len(ens), dtype=torch.float64) if mixture is None else mixture
    scores, below = [], []
    for some in rows.batches(size):
        placed = some.to(ens.device)
        assert placed.targets is not None
        parts = list(run(ens.running, ens.members, placed.inputs))
        outputs = [torch.cat(each) for each in zip(*parts, strict=True)]
        said = sample(
            ens.task,
            head,
            outputs,
            noise_variances=fitted.noise_variances if fitted else None,
            variance_factors=fitted.variance_factors if fitted else None,
        )
        noise = said.variance if said.variance is not None else said.value.new_tensor(ens.noise_variance or 0.0)
        share = weights.to(said.value.device)
        scores.append(crps(placed.targets, said.value, noise, share).cpu())
        below.append(mixture_cdf(placed.targets, said.value, noise, share).cpu())
    return torch.cat(scores), torch.cat(below)


def _per_row(elements: Tensor) -> Tensor:
    """(rows, ...) -> (rows,): the mean over a row's elements."""
    return elements.double().reshape(len(elements), -1).mean(1)
