"""The Gaussian posterior of a layer's weights: the curvature of the likelihood on data, and a prior.

The curvature is the generalised Gauss-Newton matrix, which is the Fisher information for the likelihoods of all tasks:
the sum over rows of Λ ⊗ a aᵀ, with a what the layer reads (and 1, for the bias) and Λ the information that the outputs
hold on what it gives. It is added up in float64 over batches of data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from ensemble.data import Data
from ensemble.errors import RecipeError
from ensemble.learning.layers import Layer, shifted
from ensemble.learning.room import require_room
from ensemble.members import Progress
from ensemble.program.program import Program, Weights
from ensemble.random import standard_normal
from ensemble.tasks import Head, Task

# A full matrix has at most so many rows where the choice is left to us: 34 MB, and seconds to decompose.
MOST_FULL = 2048
_BATCH_BYTES = 64 * 2**20
_MOST_ROWS = 1024
_COTANGENTS = 64


class Posterior:
    """Of one linear layer.

    Args:
        program: an exported one.
        weights: the trained weights, on the device that the program is for.
        layer: which.
        full: the whole matrix; else the Kronecker product of two, as if Λ and a were independent over the data.

    Raises:
        RecipeError: the layer is no linear one.
        MemoryLimitError: the matrices do not fit.
    """

    def __init__(self, program: Program, weights: Weights, layer: Layer, *, full: bool) -> None:
        if layer.settings is not None:
            raise RecipeError(f"The last layer {layer.name!r} is a convolution; laplace takes a linear layer.")
        self.layer, self.full = layer, full
        self._program, self._weights = shifted(program, layer), weights
        self._batch_rows = _rows(program)
        weight = weights[layer.weight]
        self.device = torch.device("cpu") if weight.device.type == "mps" else weight.device
        parts = [weight.to(self.device).double()]
        if layer.bias is not None:
            parts.append(weights[layer.bias].to(self.device).double().unsqueeze(1))
        # (outputs, width): the bias is the weight of a feature that is always 1.
        self.trained = torch.cat(parts, 1)
        outputs, width = self.trained.shape
        size = 8 * 4 * ((outputs * width) ** 2 if full else outputs**2 + width**2)
        require_room(
            size,
            self.device,
            f"The curvature of the layer {layer.name!r}",
            'give covariance="kron"' if full else "give layer=, the name of a narrower one",
        )
        exact: Any = {"dtype": torch.float64, "device": self.device}
        if full:
            self._whole = torch.zeros((outputs**2, width**2), **exact)
        else:
            self._left = torch.zeros((outputs, outputs), **exact)
            self._right = torch.zeros((width, width), **exact)
        self._rows = 0

    def add_up(
        self, data: Data, task: Task, head: Head, noise_variance: float | None, progress: Progress | None = None
    ) -> None:
        """Pass the data through the model.

        Args:
            data: inputs.
            task: classification, regression or gaussian.
            head: the model's one prediction.
            noise_variance: of a regression.
            progress: called with (rows done, in all).

        Raises:
            RecipeError: the layer's value is not one row of numbers for each row of inputs.
        """
        done = 0
        for batch in data.batches(self._batch_rows):
            features, information = self._batch(batch.to(self._weights[self.layer.weight].device).inputs, task, head)
            if task == "regression":
                assert noise_variance is not None
                information = information / noise_variance
            self._add(features, information)
            done += len(batch)
            if progress:
                progress(done, len(data))

    def _batch(self, inputs: Sequence[Tensor], task: Task, head: Head) -> tuple[Tensor, Tensor]:
        """What the layer reads, (rows, width), and Λ, (rows, outputs, outputs), in float64."""
        outputs = self.trained.shape[0]
        own = {name: self._weights[name] for name in self._program.weight_names}
        kind = self._weights[self.layer.weight].dtype
        with self._program.exclusively(), torch.no_grad():
            *given, activation = self._program(own, [*inputs, torch.zeros((), dtype=kind, device=inputs[0].device)])
            flat = activation.shape[:-1]
            if self._direct(head):
                jacobian = None
            elif flat != (inputs[0].shape[0],):
                raise RecipeError(
                    f"The layer {self.layer.name!r} gives values of shape {[*flat, outputs]} for {inputs[0].shape[0]} "
                    "rows, which are no outputs yet; laplace needs one row of values for each row of inputs there."
                )
            else:
                at = torch.zeros((*flat, outputs), dtype=kind, device=inputs[0].device)
                jacobian = self._jacobian(own, inputs, at, head)
        features = activation.reshape(-1, activation.shape[-1]).to(self.device).double()
        if self.layer.bias is not None:
            features = torch.cat([features, features.new_ones((len(features), 1))], 1)
        if jacobian is None:
            # What it gives are the outputs: the last dimension are classes, or values that are independent.
            value = given[head.outputs[0]].reshape(-1, outputs).to(self.device).double()
            if task == "classification":
                return features, _categorical(value)
            return features, torch.eye(outputs, dtype=value.dtype, device=value.device).expand(len(value), -1, -1)
        values = [given[index].movedim(head.batch_dim, 0).to(self.device).double() for index in head.outputs]
        return features, _information(task, values, jacobian.to(self.device).double())

    def _direct(self, head: Head) -> bool:
        """Whether what the layer gives is the prediction itself."""
        assert self._program.graph is not None
        results = next(n for n in reversed(self._program.graph.nodes) if n.op == "output").args[0]
        value = results[head.outputs[0]]
        return (
            len(head.outputs) == 1
            and value.target is torch.ops.aten.add.Tensor
            and any(
                argument.op == "placeholder" and argument.name == "layer_shift" for argument in value.all_input_nodes
            )
        )

    def _jacobian(self, own: Weights, inputs: Sequence[Tensor], at: Tensor, head: Head) -> Tensor:
        """Derivatives of the head's outputs, flat and one after the other: (rows, outputs, layer's outputs)."""

        def outputs(shift: Tensor) -> Tensor:
            given = self._program(own, [*inputs, shift])
            return torch.cat([given[i].movedim(head.batch_dim, 0).reshape(len(at), -1) for i in head.outputs], 1)

        value, pull = vjp(outputs, at)[:2]
        # The rows are independent, so all are pulled back at once.
        each = torch.eye(value.shape[1], dtype=value.dtype, device=value.device)
        found: Tensor = torch.vmap(lambda row: pull(row.expand_as(value))[0], chunk_size=_COTANGENTS)(each)
        return found.movedim(0, 1)

    def _add(self, features: Tensor, information: Tensor) -> None:
        self._rows += len(features)
        if not self.full:
            self._left += information.sum(0)
            self._right.addmm_(features.mT, features)
            return
        size = max(1, _BATCH_BYTES // (8 * features.shape[1] ** 2))
        for start in range(0, len(features), size):
            a = features[start : start + size]
            squares = (a.unsqueeze(2) * a.unsqueeze(1)).flatten(1)
            self._whole.addmm_(information[start : start + size].reshape(len(a), -1).mT, squares)

    def decompose(self) -> None:
        """Eigenvalues and vectors of the curvature, once the data have passed.

        Raises:
            RecipeError: it is not finite.
        """
        outputs, width = self.trained.shape
        if not all(bool(part.isfinite().all()) for part in ([self._whole] if self.full else [self._left, self._right])):
            raise RecipeError(
                f"What the layer {self.layer.name!r} reads, or the outputs, are not finite for some rows of the data: "
                "look for NaN or infinity in them."
            )
        if self.full:
            whole = self._whole.view(outputs, outputs, width, width).transpose(1, 2).reshape(outputs * width, -1)
            self.values, self._vectors = torch.linalg.eigh(whole)
            del self._whole
        else:
            left, self._vectors = torch.linalg.eigh(self._left / max(1, self._rows))
            right, self._other_vectors = torch.linalg.eigh(self._right)
            self.values = left.clamp_min(0).unsqueeze(1) * right.clamp_min(0)
        # Rounding makes an eigenvalue of a singular matrix a little less than nothing.
        self.values = self.values.clamp_min(0)

    def evidence_precision(self) -> float:
        """The prior precision δ of greatest marginal likelihood: γ(δ) = δ |θ|², with γ = Σ λ / (λ + δ).

        The left side falls and the right one grows with δ, so there is one.
        """
        square = float(self.trained.square().sum())
        low, high = math.log(1e-12), math.log(1e12)
        for _ in range(100):
            middle = (low + high) / 2
            precision = math.exp(middle)
            well_determined = float((self.values / (self.values + precision)).sum())
            low, high = (middle, high) if well_determined > precision * square else (low, middle)
        return math.exp((low + high) / 2)

    def draw(self, seed: int, members: range, precision: float, scale: float) -> dict[str, Tensor]:
        """Weights of some members, (members, *shape), by name: trained + scale · (H + δ)^(-1/2) ε.

        The symmetric root, which does not depend on the eigenvectors that a library finds.
        """
        layer, (outputs, width) = self.layer, self.trained.shape
        features = width - (layer.bias is not None)
        noise = [standard_normal(seed, members, layer.weight, (outputs, features))]
        if layer.bias is not None:
            noise.append(standard_normal(seed, members, layer.bias, (outputs, 1)))
        own = torch.cat(noise, 2).to(self.device).double()
        root = (self.values + precision).rsqrt()
        if self.full:
            rotated = (own.flatten(1) @ self._vectors) * root
            own = (rotated @ self._vectors.mT).view_as(own)
        else:
            rotated = (self._vectors.mT @ own @ self._other_vectors) * root
            own = self._vectors @ rotated @ self._other_vectors.mT
        own = self.trained + scale * own
        found = {layer.weight: own[..., :features]}
        if layer.bias is not None:
            found[layer.bias] = own[..., -1]
        return {name: weight.to(self._weights[name].dtype) for name, weight in found.items()}


def _rows(program: Program) -> int:
    return max(1, min(_MOST_ROWS, _BATCH_BYTES // max(1, program.activation_bytes)))


def residual_variance(program: Program, weights: Weights, data: Data, head: Head) -> float:
    """Mean squared error of a trained regression on its data: the noise variance of greatest likelihood, target²."""
    assert data.targets is not None
    device = next(iter(weights.values())).device
    total, count = 0.0, 0
    for batch in data.batches(_rows(program)):
        with program.exclusively(), torch.no_grad():
            value = program(weights, batch.to(device).inputs)[head.outputs[0]].movedim(head.batch_dim, 0)
        assert batch.targets is not None
        total += float((value.cpu().double() - batch.targets.double()).square().sum())
        count += value.numel()
    return total / count


def _categorical(logits: Tensor) -> Tensor:
    p = logits.softmax(-1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def _information(task: Task, values: Sequence[Tensor], jacobian: Tensor) -> Tensor:
    """Jᵀ F J for each row, F the Fisher information of the outputs.

    Args:
        values: the head's outputs, each (rows, ...).
        jacobian: their derivatives, (rows, all outputs, layer's outputs).
    """
    if task == "classification":
        classes = values[0].shape[-1]
        fisher = _categorical(values[0].reshape(len(values[0]), -1, classes))
        j = jacobian.reshape(len(fisher), -1, classes, jacobian.shape[-1])
        return torch.einsum("rsca,rscd,rsdb->rab", j, fisher, j)
    weights = torch.ones_like(values[0]).reshape(len(values[0]), -1)
    if task == "gaussian":
        variance = values[1].reshape(len(weights), -1)
        weights = torch.cat([1 / variance, 0.5 / variance.square()], 1)
    return torch.einsum("rsa,rs,rsb->rab", jacobian, weights, jacobian)
