"""The inner loop of MAML (arXiv 1703.03400): a few gradient steps as a pure function of the weights they begin at.

Nothing is overwritten, so the weights after the last step are differentiable in those before the first, and in the step
sizes (Meta-SGD, arXiv 1707.09835). Tasks and members are two ``vmap`` around the loop of one member on one task: every
step of all of them is one call, and what they share at first, the weights before the first step, stands once.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

from ensemble.errors import InputError, ModelError
from ensemble.program.program import Weights

# What is called before each step, with its number from 0; what it raises ends the loop.
Before = Callable[[int], None]
# Of all weights, or of each by name.
Rates = float | Tensor | Mapping[str, float | Tensor]


@dataclasses.dataclass(frozen=True)
class Steps:
    """How the weights change.

    Args:
        count: how many steps, ≥ 0.
        rates: step size of each weight, a number or a tensor that broadcasts to the weight.
        first_order: take gradients for constants when differentiating through the steps (FOMAML).
        before: called before each step.
    """

    count: int
    rates: Mapping[str, Tensor | float]
    first_order: bool = False
    before: Before | None = None


def descend(objective: Callable[[Weights], Tensor], start: Weights, steps: Steps) -> tuple[dict[str, Tensor], Tensor]:
    """w ← w − rate · ∇ objective(w), a few times, for one member on one task.

    Args:
        objective: weights -> the loss, a scalar.
        start: the weights before the first step.

    Returns:
        The weights after the last one, and the losses before each step and after all, (count + 1,), without gradients.
    """
    weights, losses = dict(start), []
    for number in range(steps.count):
        if steps.before is not None:
            steps.before(number)
        # What is a constant anyway needs no graph behind it.
        with torch.no_grad() if steps.first_order else contextlib.nullcontext():
            gradients, loss = grad_and_value(objective)(weights)
        losses.append(loss.detach())
        weights = {name: weight - steps.rates[name] * gradients[name] for name, weight in weights.items()}
    with torch.no_grad():
        losses.append(objective(weights).detach())
    return weights, torch.stack(losses)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which leading dimensions weights have: of tasks first, then of members.

    Args:
        tasks: names of the weights that differ between tasks.
        members: names of those that differ between members; None where there is one model and no such dimension.
    """

    tasks: frozenset[str]
    members: frozenset[str] | None

    def one(self, weights: Weights, task: int, member: int) -> dict[str, Tensor]:
        """The weights of one member for one task, as views."""
        found = {}
        for name, tensor in weights.items():
            own = tensor[task] if name in self.tasks else tensor
            found[name] = own[member] if name in (self.members or ()) else own
        return found


def all_at_once(
    function: Callable[[dict[str, Tensor], Any], Any], weights: Weights, layout: Layout, rows: Any, randomness: str
) -> Any:
    """Call a function of one member's weights and one task's rows for all of them at once.

    Args:
        function: gives any nesting of tensors.
        weights: by name, with the leading dimensions that the layout says.
        rows: any nesting of tensors, each (tasks, ...).
        randomness: as of ``torch.vmap``.

    Returns:
        What the function gives, each tensor with (tasks, members, ...) in front, or (tasks, ...) without members.
    """
    each = function
    if layout.members is not None:
        own = {name: 0 if name in layout.members else None for name in weights}
        each = torch.vmap(each, in_dims=(own, None), randomness=randomness)
    own = {name: 0 if name in layout.tasks else None for name in weights}
    return torch.vmap(each, in_dims=(own, 0), randomness=randomness)(dict(weights), rows)


def one_by_one(
    function: Callable[[dict[str, Tensor], Any], Any],
    weights: Weights,
    layout: Layout,
    rows: Any,
    tasks: int,
    members: int,
) -> Any:
    """As :func:`all_at_once`, task after task and in each member after member: the reference."""

    def stacked(values: list[Any]) -> Any:
        flat = [pytree.tree_flatten(value) for value in values]
        together = [torch.stack(leaves) for leaves in zip(*(leaves for leaves, _ in flat), strict=True)]
        return pytree.tree_unflatten(together, flat[0][1])

    each = []
    for task in range(tasks):
        own = pytree.tree_map(lambda tensor, number=task: tensor[number], rows)
        results = [function(layout.one(weights, task, member), own) for member in range(members)]
        each.append(stacked(results) if layout.members is not None else results[0])
    return stacked(each)


def step_sizes(lr: Rates, weights: Weights) -> dict[str, Tensor | float]:
    """The step size of each weight.

    Args:
        lr: one for all, or one for each by name: numbers above 0, or tensors that broadcast to the weight (of one
            member and one task).
        weights: by name, of one member and one task.

    Raises:
        InputError: names that are not those of the weights, a number that is not above 0, or a shape that does not fit.
    """
    if isinstance(lr, Mapping):
        if lr.keys() != weights.keys():
            lacking, strange = sorted(weights.keys() - lr.keys()), sorted(lr.keys() - weights.keys())
            raise InputError(
                f"lr must have a step size for each weight that is adapted and no other: {lacking[:5]} are missing, "
                f"{strange[:5]} are not among {list(weights)[:12]}."
            )
        given = dict(lr)
    else:
        given = dict.fromkeys(weights, lr)
    return {name: _step_size(name, given[name], weight) for name, weight in weights.items()}


def _step_size(name: str, rate: object, weight: Tensor) -> Tensor | float:
    if isinstance(rate, Tensor):
        fits = rate.ndim <= weight.ndim and all(
            size in (1, wanted) for size, wanted in zip(reversed(rate.shape), reversed(weight.shape), strict=False)
        )
        if not fits or not rate.is_floating_point():
            raise InputError(
                f"The step size of {name!r} must be a floating-point tensor that broadcasts to {list(weight.shape)}, "
                f"however: {rate.dtype} of shape {list(rate.shape)}."
            )
        return rate.to(weight.device, weight.dtype)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
        raise InputError(f"lr must be a number above 0 or a tensor, however: {rate!r}.")
    return float(rate)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say in words what of a model gradient steps cannot follow.

    Raises:
        ModelError: an operation has no gradient, or the model changes its own buffers.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "derivative for" in text or "is not differentiable" in text or "does not require grad" in text:
            raise ModelError(
                f"The model cannot be adapted, since an operation has no gradient: {text.splitlines()[0]}"
            ) from error
        if "in-place" in text or "running_mean" in text:
            raise ModelError(
                "The model changes its own buffers while it runs, which tasks would share: call model.eval(), or use a "
                "normalisation that keeps no statistics (track_running_stats=False, GroupNorm)."
            ) from error
        raise
