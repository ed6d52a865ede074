"""What an ensemble was given by fitting, as one value that is saved with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ensemble.errors import ArtifactError, ModelError
from ensemble.tasks import Head

IntervalScore = Literal["normalised", "cqr"]
SetScore = Literal["lac", "aps"]
# Of each member; the others are scores of rows, ascending.
_OF_MEMBERS = ("noise_variances", "variance_factors")
_TENSORS = (*_OF_MEMBERS, "interval_scores", "set_scores", "epistemic")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was fitted on data that the members were not made from. Of models with one output.

    Args:
        temperature: a classification's logits are divided by it; > 0.
        noise_variances: of a regression, target², one for each member, (members,); None for the ensemble's one.
        variance_factors: of a gaussian model, what the variance that each member states is multiplied by, (members,);
            None for 1.
        confidence_level: of intervals and sets where none is asked for, in (0, 1).
        interval_score: what ``interval_scores`` are: "normalised", |y − mean| / std, or "cqr", conformalised quantile
            regression on the mixture's quantiles at ``confidence_level``.
        interval_scores: of n calibration rows, ascending along the first dimension, (n, *target); (n,) is one threshold
            for all elements of a target.
        set_score: what ``set_scores`` are: "lac", 1 − p of the true class, or "aps", the summed probability of the
            classes down to the true one.
        set_scores: of n calibration rows, ascending along the first dimension, (n, *target): (n,) where a row is of one
            class.
        epistemic: the epistemic part of n calibration rows, ascending, (n,): mutual information of a classification,
            epistemic variance (its mean over the target's elements) of any other task.
        risk: that answers which do not abstain keep to: the share of errors of a classification, the mean squared
            error of a regression, target².
        abstain_above: the total uncertainty above which a row abstains: predictive entropy of a classification, total
            variance of any other task (the mean over the target's elements).
    """

    temperature: float = 1.0
    noise_variances: Tensor | None = None
    variance_factors: Tensor | None = None
    confidence_level: float = 0.9
    interval_score: IntervalScore | None = None
    interval_scores: Tensor | None = None
    set_score: SetScore | None = None
    set_scores: Tensor | None = None
    epistemic: Tensor | None = None
    risk: float | None = None
    abstain_above: float | None = None

    def settings(self) -> dict[str, Any]:
        """All but the tensors, as plain JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _TENSORS}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        return {name: tensor for name in _TENSORS if (tensor := getattr(self, name)) is not None}

    def words(self, statistic: str) -> str:
        """What a statistic was fitted on, in a few words; an empty text for one that was not fitted."""

        def conformal(score: str | None, scores: Tensor | None, beyond: str) -> str:
            rows = 0 if scores is None else len(scores)
            return (
                f"fitted on {rows} rows, score {score}; confidence_level {self.confidence_level:g} unless another is "
                f"asked for; {beyond} above {rows / (rows + 1):.4g}"
            )

        match statistic:
            case "prediction_interval":
                return conformal(self.interval_score, self.interval_scores, "infinite")
            case "prediction_set":
                return conformal(self.set_score, self.set_scores, "every class")
            case "ood_score" if self.epistemic is not None:
                return f"fitted on {len(self.epistemic)} rows"
            case "abstain" if self.abstain_above is not None:
                risk = "" if self.risk is None else f", risk {self.risk:.4g}"
                return f"bound {self.abstain_above:.4g}{risk}"
        return ""

    def described(self) -> dict[str, Any]:
        """The settings, with the number of rows in the place of each tensor of scores, as plain JSON values."""
        rows = {f"{name}_rows": len(t) for name, t in self.tensors().items() if name not in _OF_MEMBERS}
        return {**self.settings(), **rows}

    def check(self, head: Head, members: int) -> None:
        """That it goes with an ensemble.

        Args:
            head: the model's one prediction.
            members: how many members there are.

        Raises:
            ModelError: it was fitted for another model.
        """
        wanted: dict[str, list[tuple[int, ...]]] = {
            "noise_variances": [(members,)],
            "variance_factors": [(members,)],
            "interval_scores": [head.trailing, ()],
            "set_scores": [head.trailing[:-1], ()],
            "epistemic": [()],
        }
        for name, tensor in self.tensors().items():
            shape = tuple(tensor.shape) if name in _OF_MEMBERS else tuple(tensor.shape[1:])
            if not tensor.numel() or shape not in wanted[name]:
                raise ModelError(
                    f"The calibration's {name} have the shape {list(tensor.shape)}, which does not go with {members} "
                    f"members and rows of {list(head.trailing)}; fit this ensemble itself."
                )

    @classmethod
    def from_parts(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Calibration:
        """The inverse of :meth:`settings` and :meth:`tensors`, of values from a file.

        Raises:
            ArtifactError: a value that fitting would not have given.
        """
        names = {field.name for field in dataclasses.fields(cls)} - set(_TENSORS)
        checks: dict[str, Callable[[Any], bool]] = {
            "temperature": lambda v: _number(v) and v > 0,
            "confidence_level": lambda v: _number(v) and 0 < v < 1,
            "interval_score": lambda v: v is None or v in get_args(IntervalScore),
            "set_score": lambda v: v is None or v in get_args(SetScore),
            "risk": lambda v: v is None or (_number(v) and v >= 0),
            "abstain_above": lambda v: v is None or _number(v),
        }
        if set(settings) != names or not set(tensors) <= set(_TENSORS):
            raise ArtifactError("The calibration holds other fields than this version writes. Fit the ensemble again.")
        if wrong := [name for name, fine in checks.items() if not fine(settings[name])]:
            raise ArtifactError(f"The calibration has wrong values: {', '.join(wrong)}. Fit the ensemble again.")
        for name, tensor in tensors.items():
            if tensor.ndim == 0 or not tensor.is_floating_point() or bool(tensor.isnan().any()):
                raise ArtifactError(f"The calibration's {name} are no numbers. Fit the ensemble again.")
            if name not in _OF_MEMBERS and bool((tensor[1:] < tensor[:-1]).any()):
                raise ArtifactError(f"The calibration's {name} are not ascending. Fit the ensemble again.")
        for name in _OF_MEMBERS:
            if name in tensors and bool((tensors[name] < 0).any()):
                raise ArtifactError(f"The calibration's {name} are negative. Fit the ensemble again.")
        for kind in ("interval", "set"):
            if (settings[f"{kind}_score"] is None) != (f"{kind}_scores" not in tensors):
                raise ArtifactError(f"The calibration has not both {kind}_score and {kind}_scores.")
        fields: dict[str, Any] = {**settings, **{name: tensor.to(torch.float64) for name, tensor in tensors.items()}}
        return cls(**fields)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
