"""The steps of a module: on the examples of each task, from the weights that it has."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ensemble.adaptation.adaptable import adapting_names
from ensemble.adaptation.inner_loop import (
    Before,
    Layout,
    Rates,
    Steps,
    all_at_once,
    descend,
    explained,
    one_by_one,
    step_sizes,
)
from ensemble.adaptation.objectives import LOSSES, Loss, Targets, named, scalar
from ensemble.errors import InputError, ModelError, first_line


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedModule:
    """A module's weights after the steps, one set for each task.

    Args:
        weights: the adapted ones by name, each (tasks, *shape).
        losses: on the support, before each step and after all, (tasks, steps + 1), without gradients.

    Example:
        >>> adapted = ensemble.adapt(model, (x, y), "mse", steps=5, lr=0.01)
        >>> adapted(queries)                         # (tasks, rows, ...)
    """

    weights: dict[str, Tensor]
    losses: Tensor
    _module: nn.Module
    _fixed: dict[str, Tensor]
    _vectorised: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What each task's weights give on its own rows.

        Args:
            args, kwargs: what the module's forward takes, each tensor (tasks, rows, ...).

        Returns:
            What the module returns, each tensor with the dimension of tasks in front.

        Raises:
            InputError: tensors of another number of tasks.
        """
        rows = (args, kwargs)
        tasks = len(self.losses)
        _check_tasks(rows, tasks)
        layout = Layout(frozenset(self.weights), None)
        together = {**self._fixed, **self.weights}

        def answer(weights: dict[str, Tensor], own: Any) -> Any:
            return functional_call(self._module, weights, own[0], own[1])

        with _vmap_explained(), explained():
            if self._vectorised:
                return all_at_once(answer, together, layout, rows, "different")
            return one_by_one(answer, together, layout, rows, tasks, 1)


def adapt_module(
    module: nn.Module,
    support: tuple[Any, Targets],
    loss: Loss | None,
    steps: int,
    lr: Rates,
    *,
    weights: str | Sequence[str] = "*",
    create_graph: bool = False,
    first_order: bool = False,
    vectorised: bool = True,
    before: Before | None = None,
) -> AdaptedModule:
    """Take the steps; arguments and errors as of :func:`ensemble.adapt`."""
    judge = _judge(loss)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    names = adapting_names(list(trainable), list(trainable), (weights,) if isinstance(weights, str) else weights)
    start: dict[str, Tensor] = {name: trainable[name] for name in names}
    every: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    fixed = {name: tensor for name, tensor in every.items() if name not in start}
    sizes = Steps(steps, step_sizes(lr, start), first_order, before)
    inputs, targets = support
    args: tuple[Any, ...] = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, Mapping) else (inputs,)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    rows = (args, kwargs, targets)
    tasks = len(targets if isinstance(targets, Tensor) else next(iter(targets.values())))
    _check_tasks(rows, tasks)

    def one(own: dict[str, Tensor], examples: Any) -> tuple[dict[str, Tensor], Tensor]:
        positional, keywords, wanted = examples
        still = {name: tensor for name, tensor in own.items() if name not in start}

        def objective(changing: Mapping[str, Tensor]) -> Tensor:
            return judge(functional_call(module, {**still, **changing}, positional, keywords), wanted)

        return descend(objective, {name: own[name] for name in start}, sizes)

    layout = Layout(frozenset(), None)
    with torch.enable_grad() if create_graph else torch.no_grad(), _vmap_explained(), explained():
        if vectorised:
            found, losses = all_at_once(one, {**fixed, **start}, layout, rows, "different")
        else:
            found, losses = one_by_one(one, {**fixed, **start}, layout, rows, tasks, 1)
    return AdaptedModule(found, losses, module, fixed, vectorised)


def _judge(loss: Loss | None) -> Callable[[Any, Any], Tensor]:
    """The loss of a module's outputs as a scalar."""
    if loss is None:
        raise InputError(f"A module has no task, so give loss=: one of {', '.join(LOSSES)}, or a function.")
    if callable(loss):
        return scalar(loss)
    function = named(loss)

    def judge(outputs: Any, targets: Any) -> Tensor:
        if not isinstance(targets, Tensor):
            raise InputError(f"{loss!r} takes targets that are one tensor: give loss= a function.")
        if isinstance(outputs, Tensor):
            return function((outputs,), targets)
        if isinstance(outputs, Mapping) and outputs.keys() == {"mean", "variance"}:
            return function((outputs["mean"], outputs["variance"]), targets)
        if isinstance(outputs, Sequence) and all(isinstance(output, Tensor) for output in outputs):
            return function(tuple(outputs), targets)
        raise InputError(f"{loss!r} takes tensors, this model gives a {type(outputs).__name__}: give loss= a function.")

    return judge


def _check_tasks(rows: Any, tasks: int) -> None:
    shapes = [list(leaf.shape) for leaf in pytree.tree_leaves(rows) if isinstance(leaf, Tensor)]
    if not tasks or any(len(shape) < 2 or shape[0] != tasks for shape in shapes):
        raise InputError(
            f"Every tensor must begin with (tasks, rows), of {tasks} tasks and at least one, however: {shapes}."
        )


@contextlib.contextmanager
def _vmap_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith("vmap:") or "Batching rule not implemented" in str(error):
            raise ModelError(
                f"The model cannot run for many tasks at once: {first_line(error)} (vectorised=False runs one "
                "task after the other)"
            ) from error
        raise
