"""Weights that a few gradient steps on a caller's own examples made: of one module, or of every member of an ensemble.

    adapted = adapt(model, (x, y), "mse", steps=5, lr=0.01, create_graph=True)   # x: (tasks, shots, ...)
    loss = (adapted(queries) - targets).square().mean()                          # queries: (tasks, rows, ...)
    loss.backward()                                                              # through all five steps

What the steps do is in :mod:`~ensemble.adaptation.inner_loop`, what an ensemble's members need in
:mod:`~ensemble.adaptation.adaptable`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ensemble.adaptation.adaptable import Adaptable
from ensemble.adaptation.adapted import AdaptedMembers
from ensemble.adaptation.inner_loop import (
    Before,
    Layout,
    Steps,
    all_at_once,
    descend,
    not_differentiable,
    one_by_one,
    step_sizes,
)
from ensemble.adaptation.objectives import LOSSES, Loss, named, scalar
from ensemble.ensemble import Ensemble
from ensemble.errors import InputError, ModelError, RecipeError
from ensemble.perturbation.base import choose

Rates = float | Tensor | Mapping[str, float | Tensor]


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

        with _told():
            if self._vectorised:
                return all_at_once(answer, together, layout, rows, "different")
            return one_by_one(answer, together, layout, rows, tasks, 1)


@overload
def adapt(
    members: Ensemble,
    support: tuple[Any, Tensor],
    loss: Loss | None = ...,
    steps: int = ...,
    lr: Rates = ...,
    *,
    weights: str | Sequence[str] = ...,
    factors: bool = ...,
    create_graph: bool = ...,
    first_order: bool = ...,
    vectorised: bool = ...,
    before: Before | None = ...,
) -> AdaptedMembers: ...


@overload
def adapt(
    members: nn.Module,
    support: tuple[Any, Tensor],
    loss: Loss | None = ...,
    steps: int = ...,
    lr: Rates = ...,
    *,
    weights: str | Sequence[str] = ...,
    factors: bool = ...,
    create_graph: bool = ...,
    first_order: bool = ...,
    vectorised: bool = ...,
    before: Before | None = ...,
) -> AdaptedModule: ...


def adapt(
    members: Ensemble | nn.Module,
    support: tuple[Any, Tensor],
    loss: Loss | None = None,
    steps: int = 1,
    lr: Rates = 0.01,
    *,
    weights: str | Sequence[str] = "*",
    factors: bool = False,
    create_graph: bool = False,
    first_order: bool = False,
    vectorised: bool = True,
    before: Before | None = None,
) -> AdaptedMembers | AdaptedModule:
    """Take gradient steps on examples: the inner loop of MAML, for many tasks and members at once.

    Each task has its own examples and gets its own weights; each member of an ensemble takes its own steps. Neither the
    module nor the ensemble changes.

    Args:
        members: an ensemble, all of whose members adapt, or a module, as it is (its mode included).
        support: (inputs, targets): inputs as the model is called with them (a tensor, a tuple, or a dict), every tensor
            (tasks, shots, ...); targets (tasks, shots, ...).
        loss: "cross_entropy" (targets are class indices), "mse", "gaussian_nll" (the model gives mean and variance), or
            a function of the model's outputs and the targets of one task that gives a scalar, or numbers of which the
            mean is taken. Of an ensemble by default that of its task.
        steps: how many, ≥ 0.
        lr: step size: a number above 0, a tensor, or one of them for each adapted weight by name. Tensors broadcast to
            the weight, and gradients flow to them.
        weights: patterns of the names that adapt, the others stay: of a module among its parameters that require a
            gradient; of an ensemble by default the weights in which its members differ.
        factors: of an ensemble whose members have factors, adapt the factors instead of the full weight of each member.
        create_graph: keep the graph, so that what follows can be differentiated in the weights and in ``lr``.
        first_order: with ``create_graph``, take the gradients of the steps for constants (FOMAML).
        vectorised: False runs task after task and member after member, which is what the vectorised call is checked
            against; an ensemble's model that ``vmap`` refuses does so by itself.
        before: called before each step with its number; what it raises ends the loop.

    Returns:
        The adapted weights, which are called with queries (tasks, rows, ...).

    Raises:
        InputError: examples, targets or step sizes that do not fit.
        RecipeError: patterns that match no weight.
        ModelError: the model has no gradient, or cannot run for many tasks at once.
        MemoryLimitError: an ensemble's adapted weights do not fit; the text says what would.

    Example:
        >>> adapted = ensemble.adapt(model, (x, y), "mse", steps=1, lr=0.01, create_graph=True)
        >>> (adapted(queries) - targets).square().mean().backward()
    """
    _check(support, steps)
    if isinstance(members, Ensemble):
        prepared = Adaptable.of(members, weights=weights, factors=factors)
        return prepared.adapt(
            support,
            loss,
            steps,
            lr,
            create_graph=create_graph,
            first_order=first_order,
            vectorised=vectorised,
            before=before,
        )
    if not isinstance(members, nn.Module):
        raise ModelError(f"members must be an Ensemble or a torch.nn.Module, however: {type(members).__name__}.")
    if factors:
        raise InputError("factors=True is for ensembles whose members have factors.")
    judge = _judge(loss)
    trainable = {name: p for name, p in members.named_parameters() if p.requires_grad}
    try:
        names = choose(list(trainable), trainable, (weights,) if isinstance(weights, str) else tuple(weights), ())
    except RecipeError as error:
        raise RecipeError(str(error).replace("left to perturb", "left to adapt")) from None
    start: dict[str, Tensor] = {name: trainable[name] for name in names}
    every: dict[str, Tensor] = {**dict(members.named_parameters()), **dict(members.named_buffers())}
    fixed = {name: tensor for name, tensor in every.items() if name not in start}
    sizes = Steps(steps, step_sizes(lr, start), first_order, before)
    inputs, targets = support
    args: tuple[Any, ...] = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, Mapping) else (inputs,)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    rows = (args, kwargs, targets)
    _check_tasks(rows, len(targets))

    def one(own: dict[str, Tensor], examples: Any) -> tuple[dict[str, Tensor], Tensor]:
        positional, keywords, wanted = examples
        still = {name: tensor for name, tensor in own.items() if name not in start}

        def objective(changing: Mapping[str, Tensor]) -> Tensor:
            return judge(functional_call(members, {**still, **changing}, positional, keywords), wanted)

        return descend(objective, {name: own[name] for name in start}, sizes)

    layout = Layout(frozenset(), None)
    with torch.enable_grad() if create_graph else torch.no_grad(), _told():
        if vectorised:
            found, losses = all_at_once(one, {**fixed, **start}, layout, rows, "different")
        else:
            found, losses = one_by_one(one, {**fixed, **start}, layout, rows, len(targets), 1)
    return AdaptedModule(found, losses, members, fixed, vectorised)


def _judge(loss: Loss | None) -> Callable[[Any, Tensor], Tensor]:
    """The loss of a module's outputs as a scalar."""
    if loss is None:
        raise InputError(f"A module has no task, so give loss=: one of {', '.join(LOSSES)}, or a function.")
    if callable(loss):
        return scalar(loss)
    function = named(loss)

    def judge(outputs: Any, targets: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            return function((outputs,), targets)
        if isinstance(outputs, Mapping) and outputs.keys() == {"mean", "variance"}:
            return function((outputs["mean"], outputs["variance"]), targets)
        if isinstance(outputs, Sequence) and all(isinstance(output, Tensor) for output in outputs):
            return function(tuple(outputs), targets)
        raise InputError(f"{loss!r} takes tensors, this model gives a {type(outputs).__name__}: give loss= a function.")

    return judge


def _check(support: object, steps: object) -> None:
    if not isinstance(support, tuple) or len(support) != 2 or not isinstance(support[1], Tensor):
        raise InputError("support must be (inputs, targets), with targets a tensor (tasks, shots, ...).")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise InputError(f"steps must be a number of steps from 0 up, however: {steps!r}.")


def _check_tasks(rows: Any, tasks: int) -> None:
    shapes = [list(leaf.shape) for leaf in pytree.tree_leaves(rows) if isinstance(leaf, Tensor)]
    if not tasks or any(len(shape) < 2 or shape[0] != tasks for shape in shapes):
        raise InputError(
            f"Every tensor must begin with (tasks, rows), of {tasks} tasks and at least one, however: {shapes}."
        )


@contextlib.contextmanager
def _told() -> Any:
    """What fails inside ``vmap`` and gradients, in words."""
    try:
        yield
    except RuntimeError as error:
        if refusal := not_differentiable(error):
            raise refusal from error
        if str(error).startswith("vmap:") or "Batching rule not implemented" in str(error):
            raise ModelError(
                f"The model cannot run for many tasks at once: {str(error).splitlines()[0]} (vectorised=False runs one "
                "task after the other)"
            ) from error
        raise
