"""What one member is trained on: negative log-likelihoods of its task, as functions of its flat outputs and targets.

A loss gives a number for every row, and for every element of the row's target; whoever calls it averages. It holds no
state and decides nothing by the values, so ``torch.func.grad`` and ``vmap`` take it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.tasks import Head, Task

# Called with (flat outputs of one member, targets (rows, ...)); gives (rows, ...), of which the mean is minimised.
Loss = Callable[[Sequence[Tensor], Tensor], Tensor]


def negative_log_likelihood(task: Task, heads: Sequence[Head], noise_variance: float | None = None) -> Loss:
    """The loss of a task: what its members minimise.

    Args:
        task: what the outputs mean.
        heads: the predictions that the model makes; there is one target, so there must be one of them.
        noise_variance: of a regression's observations, target², > 0; without one the loss is the squared error.

    Returns:
        A function of one member's flat outputs and the targets, (rows, ...): class indices of a classification, values
        of any other task. It gives nats for each element of the targets (target² for the squared error), (rows, ...).

    Raises:
        RecipeError: the task has no likelihood, or the model makes several predictions; the caller must give a loss.
    """
    if task == "raw":
        raise RecipeError(
            "Outputs of the task 'raw' have no likelihood: name the task, or give loss=, a function of the outputs and "
            "the targets that gives a number for each row."
        )
    if len(heads) != 1:
        raise RecipeError(
            f"This model makes {len(heads)} predictions ({', '.join(head.name for head in heads)}): give loss=, a "
            "function of its outputs and the targets that gives a number for each row."
        )
    head = heads[0]

    def output(outputs: Sequence[Tensor], which: int) -> Tensor:
        tensor = outputs[head.outputs[which]].movedim(head.batch_dim, 0)
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    match task:
        case "classification":
            return lambda outputs, targets: cross_entropy(output(outputs, 0), targets)
        case "gaussian":
            return lambda outputs, targets: gaussian(output(outputs, 0), output(outputs, 1), targets)
    if noise_variance is None:
        return lambda outputs, targets: (output(outputs, 0) - targets).square()

    def noisy(outputs: Sequence[Tensor], targets: Tensor) -> Tensor:
        mean = output(outputs, 0)
        return gaussian(mean, mean.new_tensor(noise_variance), targets)

    return noisy


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(logits)[target], in nats.

    Args:
        logits: (..., classes).
        targets: class indices, (...) int64.

    Returns:
        Of the shape of the targets.
    """
    return -logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def gaussian(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """−log N(target; mean, variance), in nats, constant included.

    Args:
        mean: (...).
        variance: target², ≥ 0, of the same shape or one that broadcasts to it; one that fell to 0 counts as the
            smallest number of its dtype.
        targets: (...).

    Returns:
        Of the shape of the targets.
    """
    positive = variance.clamp_min(torch.finfo(variance.dtype).tiny)
    return 0.5 * (math.log(2 * math.pi) + positive.log() + (targets - mean).square() / positive)
