"""Weights that a few gradient steps on a caller's own examples made: of one module, or of every member of an ensemble.

    adapted = adapt(model, (x, y), "mse", steps=5, lr=0.01, create_graph=True)   # x: (tasks, shots, ...)
    loss = (adapted(queries) - targets).square().mean()                          # queries: (tasks, rows, ...)
    loss.backward()                                                              # through all five steps

What the steps do is in :mod:`~ensemble.adaptation.inner_loop`; what they are taken on in
:mod:`~ensemble.adaptation.module` and :mod:`~ensemble.adaptation.members`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from torch import Tensor, nn

from ensemble.adaptation.adaptable import Adaptable
from ensemble.adaptation.inner_loop import Before, Rates
from ensemble.adaptation.members import AdaptedMembers, adapt_members
from ensemble.adaptation.module import AdaptedModule, adapt_module
from ensemble.adaptation.objectives import Loss, Targets
from ensemble.ensemble import Ensemble
from ensemble.errors import InputError, ModelError


@overload
def adapt(
    members: Ensemble,
    support: tuple[Any, Targets],
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
    support: tuple[Any, Targets],
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
    support: tuple[Any, Targets],
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
            (tasks, shots, ...); targets (tasks, shots, ...), of a model that makes several predictions by their names,
            for all of them or some.
        loss: "cross_entropy" (targets are class indices), "mse", "gaussian_nll" (the model gives mean and variance), or
            a function of the model's outputs and the targets of one task that gives a scalar, or numbers of which the
            mean is taken. Of an ensemble by default that of its task; of several predictions the sum of their losses.
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
        adaptable = Adaptable.of(members, weights=weights, factors=factors)
        return adapt_members(
            adaptable,
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
    return adapt_module(
        members,
        support,
        loss,
        steps,
        lr,
        weights=weights,
        create_graph=create_graph,
        first_order=first_order,
        vectorised=vectorised,
        before=before,
    )


def _check(support: object, steps: object) -> None:
    targets = support[1] if isinstance(support, tuple) and len(support) == 2 else None
    each = list(targets.values()) if isinstance(targets, Mapping) else [targets]
    if not each or not all(isinstance(tensor, Tensor) for tensor in each):
        raise InputError(
            "support must be (inputs, targets), with targets a tensor (tasks, shots, ...), or one for each of some "
            "outputs by name."
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise InputError(f"steps must be a number of steps from 0 up, however: {steps!r}.")
