"""Thresholds from rows that were used for nothing else: intervals, sets, out-of-distribution scores, abstention."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ensemble.calibration.conformal import aps, cqr, lac, normalised
from ensemble.calibration.state import Calibration, IntervalScore, SetScore
from ensemble.data import Data
from ensemble.ensemble import Ensemble

_ROWS = 256
# A share of the mean square, or nats, below which members differ by float32's rounding alone.
_AGREED = 1e-10
# Below every uncertainty, so that all rows abstain.
NEVER_ANSWERS = -1.0


def fitted(
    made: Ensemble,
    rows: Data,
    calibration: Calibration,
    *,
    interval_score: IntervalScore,
    set_score: SetScore,
    risk: float | None,
) -> tuple[Calibration, list[str]]:
    """A calibration with what these rows say.

    Args:
        made: the ensemble with the calibration so far.
        rows: used for nothing else, with targets.
        calibration: noise and temperature.
        interval_score, set_score: of the thresholds.
        risk: that answers which do not abstain are to keep to; None for no abstention.

    Returns:
        The calibration, and what a user should know.
    """
    assert rows.targets is not None
    classes = made.task == "classification"
    names = ["mean", "mutual_information", "predictive_entropy"]
    names = names if classes else ["mean", "std", "epistemic_variance", "total_variance"]
    found = predicted(made, rows, names)
    targets = rows.targets
    if classes:
        score = {"lac": lac, "aps": aps}[set_score]
        scores = score(found["mean"], targets)
        uncertainty = per_row(found["predictive_entropy"])
        loss = per_row((found["mean"].argmax(-1) != targets).double())
        calibration = dataclasses.replace(calibration, set_score=set_score, set_scores=scores.sort(0).values)
        epistemic = per_row(found["mutual_information"])
    else:
        if interval_score == "cqr":
            tail = (1 - calibration.confidence_level) / 2
            levels = (tail, 1 - tail)
            ends = predicted(made, rows, ["quantiles"], levels=levels)["quantiles"]
            scores = cqr(ends[..., 0], ends[..., 1], targets)
        else:
            scores = normalised(found["mean"], found["std"], targets)
        uncertainty = per_row(found["total_variance"])
        loss = per_row((found["mean"].double() - targets.double()).square())
        calibration = dataclasses.replace(
            calibration, interval_score=interval_score, interval_scores=scores.sort(0).values
        )
        epistemic = per_row(found["epistemic_variance"])
    notes = []
    size = 1.0 if classes else float(found["mean"].double().square().max() + uncertainty.max())
    if float(epistemic.max()) > _AGREED * size:
        calibration = dataclasses.replace(calibration, epistemic=epistemic.sort().values)
    else:
        # Its rounding would be compared.
        notes.append("The members agree on every row, as the net alone does, so that ood_score tells nothing.")
    if risk is None:
        return calibration, notes
    most = 1.0 if classes else float(loss.max())
    above = abstain_above(uncertainty, loss, risk, most)
    if above is None:
        notes.append(f"No row can be answered at a risk of {risk:g}: every row abstains. Ask for a higher risk.")
    threshold = NEVER_ANSWERS if above is None else above
    return dataclasses.replace(calibration, risk=float(risk), abstain_above=threshold), notes


def abstain_above(uncertainty: Tensor, loss: Tensor, risk: float, most: float) -> float | None:
    """The largest uncertainty up to which answers keep to a risk.

    Of the k least uncertain rows the summed loss, and one row more with the greatest loss there is, must stay below
    risk · (k + 1): the correction of conformal risk control (Angelopoulos et al., arXiv 2208.02814), for a row to come.

    Args:
        uncertainty, loss: of each row, (rows,).
        risk: mean loss that is allowed.
        most: the greatest loss that there is.

    Returns:
        None where no threshold does.
    """
    order = uncertainty.argsort(stable=True)
    count = torch.arange(1, len(order) + 1, dtype=torch.float64)
    kept = (loss[order].double().cumsum(0) + most) / (count + 1) <= risk
    # Rows of equal uncertainty are answered together.
    ends = torch.ones(len(order), dtype=torch.bool)
    ends[:-1] = uncertainty[order][1:] > uncertainty[order][:-1]
    allowed = (kept & ends).nonzero()
    return float(uncertainty[order][int(allowed[-1])]) if len(allowed) else None


def predicted(
    made: Ensemble, rows: Data, names: Sequence[str], levels: Sequence[float] | None = None, size: int = _ROWS
) -> dict[str, Tensor]:
    """Statistics of many rows, a batch at a time, on the CPU."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    inputs = [spec.name for spec in made.program.inputs]
    for some in rows.batches(size):
        named = dict(zip(inputs, some.inputs, strict=True))
        for name, tensor in made.predict(named, statistics=list(names), levels=levels).flat().items():
            found[name].append(tensor.cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def per_row(elements: Tensor) -> Tensor:
    """(rows, ...) -> (rows,) float64: the mean over a row's elements."""
    return elements.double().reshape(len(elements), -1).mean(1)
