"""What adaptation minimises, by name: each loss as a scalar of one model's outputs on one task's examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ensemble.errors import InputError
from ensemble.losses import cross_entropy, gaussian
from ensemble.tasks import Head, Task

Name = Literal["cross_entropy", "mse", "gaussian_nll"]
# Of a model that makes several predictions, of some of them by their names; or whatever a function takes.
Targets = Tensor | Mapping[str, Tensor]
# A name, or a function of what the model returns and the targets.
Loss = str | Callable[[Any, Any], Tensor]
Judge = Callable[[Sequence[Tensor], Any], Tensor]

# Those that fit a task, its default first.
OF_TASK: dict[Task, tuple[Name, ...]] = {
    "classification": ("cross_entropy",),
    "regression": ("mse",),
    "gaussian": ("gaussian_nll", "mse"),
    "raw": ("mse",),
}
LOSSES: tuple[Name, ...] = ("cross_entropy", "mse", "gaussian_nll")


def named(loss: str) -> Callable[[Sequence[Tensor], Tensor], Tensor]:
    """A loss by its name, of outputs that have their rows first.

    Returns:
        A function of the outputs (one, or mean and variance) and the targets of one task.

    Raises:
        InputError: there is no such loss; from the function, targets of another shape than the output.
    """
    match loss:
        case "cross_entropy":
            return lambda outputs, targets: cross_entropy(_wide(outputs[0]), targets).mean()
        case "mse":
            return lambda outputs, targets: (_like(outputs[0], targets) - targets).square().mean()
        case "gaussian_nll":
            return _gaussian
    raise InputError(f"loss must be one of {', '.join(LOSSES)}, or a function, however: {loss!r}.")


def of_task(loss: str | None, task: Task, heads: Sequence[Head]) -> Judge:
    """A loss by its name, of the flat outputs of an ensemble's model.

    Args:
        loss: by default that of the task.

    Returns:
        A function of the outputs and the targets. Of targets by name it is the sum over the predictions that have one.

    Raises:
        InputError: there is no such loss, or the task does not have it.
    """
    fitting = OF_TASK[task]
    if loss is None and task == "raw":
        raise InputError("Outputs of the task 'raw' may mean anything, so give loss=: 'mse', or a function.")
    name = fitting[0] if loss is None else loss
    if name not in fitting:
        raise InputError(f"The loss of the task {task!r} must be {' or '.join(fitting)}, however: {name!r}.")
    function, by_name = named(name), {head.name: head for head in heads}

    def one(head: Head, outputs: Sequence[Tensor], targets: Tensor) -> Tensor:
        return function([outputs[i].movedim(head.batch_dim, 0) for i in head.outputs], targets)

    def judge(outputs: Sequence[Tensor], targets: Targets) -> Tensor:
        if isinstance(targets, Mapping):
            return torch.stack([one(by_name[key], outputs, some) for key, some in targets.items()]).sum()
        return one(heads[0], outputs, targets)

    return judge


def scalar(loss: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """A caller's loss; of several numbers the mean."""

    def whole(outputs: Any, targets: Any) -> Tensor:
        value = loss(outputs, targets)
        if not isinstance(value, Tensor):
            raise InputError(f"loss must give a tensor, however: {type(value).__name__}.")
        return value.mean() if value.ndim else value

    return whole


def _gaussian(outputs: Sequence[Tensor], targets: Tensor) -> Tensor:
    if len(outputs) != 2:
        raise InputError(
            f"gaussian_nll needs a model that gives (mean, variance), this one gives {len(outputs)} tensor."
        )
    return gaussian(_like(outputs[0], targets), _wide(outputs[1]), targets).mean()


def _wide(output: Tensor) -> Tensor:
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _like(output: Tensor, targets: Tensor) -> Tensor:
    # Broadcasting (rows, 1) against (rows,) would compare every row with every target.
    if output.shape != targets.shape:
        raise InputError(f"Targets must have the output's shape {list(output.shape)}, however: {list(targets.shape)}.")
    return _wide(output)
