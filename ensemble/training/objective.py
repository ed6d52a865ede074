"""What members minimise, and its gradients: for many members in one call, or for one alone without ``vmap``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import grad_and_value

from ensemble.errors import EnsembledError, InputError, ModelError
from ensemble.losses import Loss
from ensemble.program.export import first_line
from ensemble.program.program import Program, Weights
from ensemble.vectorised import refused, vmappable

aten = torch.ops.aten
# Weights of some members by name, each (members, *shape).
Stacked = Mapping[str, Tensor]


class Objective:
    """The mean loss of some rows as a function of a member's own weights.

    Args:
        program: the model.
        shared: weights that members share, each of the weight's shape.
        loss: of one member's flat outputs and targets, for each row.
    """

    def __init__(self, program: Program, shared: Weights, loss: Loss) -> None:
        self.program = program
        self._shared = dict(shared)
        self._loss = loss

    def gradients(
        self, weights: Stacked, fixed: Stacked, inputs: Sequence[Tensor], targets: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Of every member's mean loss on rows of its own.

        Args:
            weights: that are trained.
            fixed: that are each member's own too, and stay as they are.
            inputs: each (members, rows, ...).
            targets: (members, rows, ...).

        Returns:
            Gradients as the weights are, and the losses, (members,).

        Raises:
            ModelError: the model cannot run for many members at once, or an operation has no derivative.
            InputError: the loss does not give a number for each row.
        """

        def mean(own: dict[str, Tensor], rest: dict[str, Tensor], x: tuple[Tensor, ...], y: Tensor) -> Tensor:
            return self._of_rows({**own, **rest}, x, y).mean()

        # The gradient is taken within vmap. The other way round, as the gradient of the sum of all members' losses, an
        # operation may lose settings that its gradient alone heeds, such as the padding_idx of an embedding.
        gradient = grad_and_value(mean)
        if len(targets) == 1:
            own, rest = _only(weights), _only(fixed)
            found, loss = self._run(lambda: gradient(own, rest, tuple(t[0] for t in inputs), targets[0]))
            return {name: tensor.unsqueeze(0) for name, tensor in found.items()}, loss.unsqueeze(0)
        many = torch.vmap(gradient, randomness="error")
        result: tuple[dict[str, Tensor], Tensor] = self._run(
            lambda: many(dict(weights), dict(fixed), tuple(inputs), targets)
        )
        return result

    def check(self, weights: Stacked, fixed: Stacked, inputs: Sequence[Tensor], targets: Tensor) -> None:
        """Raise unless the first member's loss is one that can be minimised. Arguments as for :meth:`gradients`.

        Raises:
            InputError: it is no number for each row, or does not depend on the weights.
        """
        own = {name: tensor.clone().requires_grad_() for name, tensor in _only(weights).items()}
        with torch.enable_grad():
            each = self._run(lambda: self._of_rows({**own, **_only(fixed)}, [t[0] for t in inputs], targets[0]))
        if not each.requires_grad:
            raise InputError(
                "The loss does not depend on the weights by operations that have a derivative, so nothing would be "
                "learned: look for argmax, round, detach() or no_grad() in the loss, or in the model."
            )

    def losses(self, weights: Stacked, fixed: Stacked, inputs: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Of every row, without gradients, (members, rows). Arguments as for :meth:`gradients`."""
        with torch.no_grad():
            if len(targets) == 1:
                own = {**_only(weights), **_only(fixed)}
                alone: Tensor = self._run(lambda: self._of_rows(own, [t[0] for t in inputs], targets[0]))
                return alone.unsqueeze(0)
            many = torch.vmap(self._of_rows, randomness="error")
            found: Tensor = self._run(lambda: many({**weights, **fixed}, tuple(inputs), targets))
            return found

    def _of_rows(self, own: Weights, inputs: Sequence[Tensor], targets: Tensor) -> Tensor:
        """The loss of each row, (rows,): its mean where a row has several targets."""
        outputs = self.program({**self._shared, **own}, inputs)
        try:
            each = self._loss(outputs, targets)
        except EnsembledError:
            raise
        except Exception as error:
            # What only vmap cannot do, a plain loop may.
            if isinstance(error, RuntimeError) and refused(self.program, error):
                raise
            raise InputError(
                f"The loss fails on outputs of shape {[list(t.shape) for t in outputs]} and targets of shape "
                f"{list(targets.shape)} ({targets.dtype}): {first_line(error)}."
            ) from error
        if not isinstance(each, Tensor) or each.ndim == 0 or each.shape[0] != len(targets):
            got = f"shape {list(each.shape)}" if isinstance(each, Tensor) else f"a {type(each).__name__}"
            raise InputError(
                f"The loss must give a number for each of the {len(targets)} rows (reduction='none'), however: {got}."
            )
        if not each.is_floating_point():
            raise InputError(f"The loss must be real floating-point numbers, however: {each.dtype}.")
        return each.flatten(1).mean(1) if each.ndim > 1 else each

    def _run(self, call: Callable[[], Any]) -> Any:
        with self.program.exclusively(), vmappable():
            try:
                return call()
            except RuntimeError as error:
                if refusal := refused(self.program, error):
                    raise refusal from error
                if "derivative for" in str(error) and "not implemented" in str(error):
                    raise ModelError(f"Members of this model cannot be trained: {first_line(error)}.") from error
                raise


def differentiable(program: Program) -> Program:
    """The same program without operations that have no derivative, though what they compute has one.

    Assigning to a part of a tensor (``h[:, 0] = 0``) is exported as a copy, for which PyTorch has none.
    """
    if program.graph is None or not any(node.target is aten.copy.default for node in program.graph.nodes):
        return program
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node.target is aten.copy.default:
            onto, source = (copies[argument] for argument in node.args[:2])
            spread = graph.call_function(aten.expand_as.default, (source, onto))
            copies[node] = graph.call_function(aten.type_as.default, (spread, onto))
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return program.running(graph, program.empty_weights())


def _only(weights: Stacked) -> dict[str, Tensor]:
    return {name: tensor[0] for name, tensor in weights.items()}
