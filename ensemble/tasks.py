"""What the numbers that a model returns mean.

A task turns the flat outputs of a model into heads, and a head's outputs into a :class:`Sample`: for each member a
value (a probability, a mean) and, where there is one, the variance of the target that the member states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ensemble.errors import ModelError
from ensemble.program.program import TensorSpec

Task = Literal["classification", "regression", "gaussian", "raw"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclasses.dataclass(frozen=True)
class Head:
    """One prediction of a model.

    Args:
        name: the output's name.
        outputs: which of the flat outputs it is made of: one, or mean and variance.
        trailing: shape of one row.
        batch_dim: which dimension of the outputs is the batch.
    """

    name: str
    outputs: tuple[int, ...]
    trailing: tuple[int, ...]
    batch_dim: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """Members' predictions.

    Args:
        value: (members, batch, ...) in float32 or better.
        variance: what the members themselves say of the target's variance, if they do; of the value's shape, or
            (members, 1, ...) where each has one for all rows.
        logits: of a classification what the value is the softmax of.
        log_likelihood: of targets that were given, (members, batch, ...).
    """

    value: Tensor
    variance: Tensor | None
    logits: Tensor | None = None
    log_likelihood: Tensor | None = None

    def members(self, index: Tensor) -> Sample:
        """Those of some members, (some,) int64."""

        def some(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return Sample(self.value[index], some(self.variance), some(self.logits), some(self.log_likelihood))


def heads(task: Task, outputs: Sequence[TensorSpec]) -> list[Head]:
    """The predictions that a model of this task makes.

    Raises:
        ModelError: the outputs do not fit the task.
    """
    if task not in TASKS:
        raise ModelError(f"task must be one of {', '.join(TASKS)}, however: {task!r}.")
    if task == "gaussian":
        # By name where the model returns a dict, in any order; else mean first.
        order = {spec.name: i for i, spec in enumerate(outputs)}
        pair = (order["mean"], order["variance"]) if order.keys() == {"mean", "variance"} else (0, 1)
        if len(outputs) != 2 or outputs[0].shape != outputs[1].shape:
            raise ModelError(
                "A gaussian model returns (mean, variance) of equal shape, or a dict with these two; this one returns "
                f"{ {spec.name: list(spec.shape) for spec in outputs} }."
            )
        return [Head("output", pair, outputs[0].trailing, outputs[0].batch_dim)]
    for spec in outputs:
        if spec.dtype.is_complex:
            raise ModelError(f"The output {spec.name!r} is complex; return its torch.view_as_real.")
        if task == "classification" and (not spec.trailing or spec.trailing[-1] < 2):
            raise ModelError(
                f"Classification needs logits with at least two classes in the last dimension; {spec.name!r} has "
                f"shape {list(spec.shape)}. (For one sigmoid output return torch.stack([-z, z], -1) / 2.)"
            )
        if task != "raw" and not spec.dtype.is_floating_point:
            raise ModelError(f"The output {spec.name!r} is {spec.dtype}; the task {task} needs floating point.")
    return [Head(spec.name, (i,), spec.trailing, spec.batch_dim) for i, spec in enumerate(outputs)]


def sample(
    task: Task,
    head: Head,
    outputs: Sequence[Tensor],
    *,
    temperature: float = 1.0,
    noise_variances: Tensor | None = None,
    variance_factors: Tensor | None = None,
) -> Sample:
    """What members say.

    Args:
        outputs: flat outputs, each with a leading member dimension.
        temperature: what a classification's logits are divided by.
        noise_variances: of a regression, target², one for each of these members, (members,).
        variance_factors: of a gaussian model, what the variance of each of these members is multiplied by, (members,).
    """

    def rows_first(index: int) -> Tensor:
        tensor = outputs[index].movedim(1 + head.batch_dim, 1)
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    value = rows_first(head.outputs[0])
    match task:
        case "classification":
            logits = value if temperature == 1 else value / temperature
            p = logits.softmax(-1)
            return Sample(p, p * (1 - p), logits)
        case "gaussian":
            variance = rows_first(head.outputs[1])
            if variance_factors is not None:
                factors = variance_factors.to(variance.device, variance.dtype)
                variance = variance * factors.view(-1, *[1] * (value.ndim - 1))
            return Sample(value, variance)
        case "regression" if noise_variances is not None:
            noise = noise_variances.to(value.device)
            return Sample(value, noise.view(-1, *[1] * (value.ndim - 1)))
    return Sample(value, None)
