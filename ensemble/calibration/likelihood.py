"""How likely members make targets: the log-likelihood of each row under the mixture that the members are.

log p(y | x) = log Σ_i w_i p_i(y | x), a logmeanexp over members, never the likelihood of their mean. A target with
several
elements counts as one observation: its elements, each a mixture by itself, are averaged, since they depend on each
    other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ensemble.calibration.state import Calibration
from ensemble.errors import ModelError
from ensemble.tasks import Head, Task

# A variance below this cannot be told from no noise at all.
TINY = 1e-30


def row_log_likelihood(
    task: Task,
    head: Head,
    outputs: Sequence[Tensor],
    targets: Tensor,
    calibration: Calibration,
    mixture: Tensor | None = None,
) -> Tensor:
    """Log-likelihood of each row.

    Args:
        task: what the outputs mean; not "raw".
        head: the prediction.
        outputs: flat outputs of all members, each (members, rows, ...) as the program gives them.
        targets: (rows, ...), class indices of a classification.
        calibration: noise variances of a regression, factors of stated variances, or temperature.
        mixture: weights of the members, (members,); equal by default.

    Returns:
        (rows,) float64, nats for each element of the target.

    Raises:
        ModelError: a task without a likelihood, or a regression without noise variances.
    """
    value = outputs[head.outputs[0]].movedim(1 + head.batch_dim, 1)

    def of_members(numbers: Tensor) -> Tensor:
        return numbers.to(value.device, torch.float64).view(-1, *[1] * (value.ndim - 1))

    match task:
        case "classification":
            each = class_log_likelihood(value, targets, calibration.temperature)
        case "gaussian":
            variance = outputs[head.outputs[1]].movedim(1 + head.batch_dim, 1).double()
            if calibration.variance_factors is not None:
                variance = variance * of_members(calibration.variance_factors)
            each = normal_log_density(value.double(), variance, targets.double())
        case "regression" if calibration.noise_variances is not None:
            each = normal_log_density(value.double(), of_members(calibration.noise_variances), targets.double())
        case _:
            raise ModelError(f"Outputs of the task {task!r} have no likelihood: their noise is not known.")
    return per_row(mixed(each, mixture))


def class_log_likelihood(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature)[target], (members, rows, ...) float64."""
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    index = targets.expand(logits.shape[:-1]).unsqueeze(-1)
    return (scaled.gather(-1, index).squeeze(-1) - scaled.logsumexp(-1)).double()


def normal_log_density(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """log N(target; mean, variance), broadcast."""
    safe = variance.clamp_min(TINY)
    return -0.5 * ((targets - mean).square() / safe + safe.log() + math.log(2 * math.pi))


def mixed(each: Tensor, mixture: Tensor | None = None) -> Tensor:
    """Log of the weighted mean over the first dimension of what is given as logarithms."""
    if mixture is None:
        return each.logsumexp(0) - math.log(len(each))
    weights = mixture.to(each.device, torch.float64).log().view(-1, *[1] * (each.ndim - 1))
    return (each + weights).logsumexp(0)


def per_row(elements: Tensor) -> Tensor:
    """(rows, ...) -> (rows,): the mean over a row's elements."""
    return elements.reshape(len(elements), -1).mean(1)
