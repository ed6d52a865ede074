"""Layers refitted for every member by least squares, so that members agree with the trained model on data.

The normal equations are added up in float64 over batches of data and solved for many members in one call. Members are
worked at in groups whose equations fit in a bounded part of memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ensemble.data import Data
from ensemble.errors import RecipeError
from ensemble.learning.layers import Layer, listing, upto
from ensemble.learning.room import require_room
from ensemble.members import Members, Progress
from ensemble.memory import require
from ensemble.program.program import Program, Weights
from ensemble.structured import factored_program
from ensemble.vectorised import evaluate

_EQUATIONS_BYTES = 512 * 2**20
_BATCH_BYTES = 64 * 2**20
_MOST_ROWS = 1024


def corrected(
    program: Program,
    weights: Weights,
    perturbed: Members,
    layers: Sequence[Layer],
    data: Data,
    ridge: float,
    progress: Progress | None = None,
) -> Members:
    """Refit layers for perturbed members.

    Args:
        program: an exported one.
        weights: the trained weights, by name, on the device that the program is for.
        perturbed: members whose activations before ``layers`` differ; the layers themselves are shared.
        layers: which to refit, none of which feeds another.
        data: calibration inputs.
        ridge: relative to the mean eigenvalue of each member's normal equations.
        progress: called with rows done and in all, those of each group of members counted.

    Returns:
        The members with the layers' weights stacked.

    Raises:
        RecipeError: activations are not finite.
        MemoryLimitError: they do not fit, before anything is allocated.
    """
    names = [name for layer in layers for name in layer.weights]
    device = weights[names[0]].device
    require([(weights[name].dtype, weights[name].shape) for name in names], perturbed.count, device)
    each = sum(_equations_bytes(layer, weights) for layer in layers)
    require_room(
        each,
        device,
        f"The normal equations of {listing(layers)} for one member",
        "choose a layer that narrower ones follow",
    )
    size = max(1, min(perturbed.count, _EQUATIONS_BYTES // each))
    stacked = {name: weights[name].new_empty((perturbed.count, *weights[name].shape)) for name in names}
    groups = range(0, perturbed.count, size)
    for turn, start in enumerate(groups):
        stop = min(perturbed.count, start + size)
        group = dataclasses.replace(perturbed, count=stop - start, stacked=perturbed.slice(start, stop), mixture=None)
        equations = [_Equations(layer, weights, group.count) for layer in layers]
        done = turn * len(data)
        for rows in _add_up(program, weights, group, equations, data):
            done += rows
            if progress:
                progress(done, len(groups) * len(data))
        for own in equations:
            for name, weight in own.solved(ridge).items():
                stacked[name][start:stop] = weight
    shared = {name: weight for name, weight in perturbed.shared.items() if name not in stacked}
    return dataclasses.replace(perturbed, shared=shared, stacked={**perturbed.stacked, **stacked})


def _equations_bytes(layer: Layer, weights: Weights) -> int:
    """Of one member, with what solving them takes."""
    weight = weights[layer.weight]
    width = math.prod(weight.shape[1:]) + 1
    return 8 * (4 * width * width + 3 * width * weight.shape[0])


def _add_up(
    program: Program, weights: Weights, group: Members, equations: Sequence[_Equations], data: Data
) -> Iterator[int]:
    """Run the data through the trained model and the members, up to the layers; yields rows done."""
    trained = upto(program, [own.layer.x for own in equations])
    members = factored_program(trained, group.factored) if group.factored else trained
    device = next(iter(weights.values())).device
    rows = max(1, min(_MOST_ROWS, _BATCH_BYTES // max(1, program.activation_bytes)))
    for batch in data.batches(rows):
        inputs = batch.to(device).inputs
        with trained.exclusively(), torch.no_grad():
            wanted = trained({name: weights[name] for name in trained.weight_names}, inputs)
        targets = [own.products(value.unsqueeze(0)) for own, value in zip(equations, wanted, strict=True)]
        start = 0
        for outputs in evaluate(members, _reading(group, members), inputs):
            for own, target, value in zip(equations, targets, outputs, strict=True):
                own.add(start, value, target)
            start += outputs[0].shape[0]
        yield len(batch)


def _reading(group: Members, program: Program) -> Members:
    """The same members with only what a program reads."""
    read = set(program.weight_names)
    return dataclasses.replace(
        group,
        shared={name: weight for name, weight in group.shared.items() if name in read},
        stacked={name: weight for name, weight in group.stacked.items() if name in read},
    )


class _Equations:
    """The normal equations of one layer, for each member of a group.

    Args:
        layer: a linear layer, or a convolution of one group.
        weights: the trained weights.
        count: members.
    """

    def __init__(self, layer: Layer, weights: Weights, count: int) -> None:
        self.layer = layer
        self.weight = weights[layer.weight]
        self.bias = None if layer.bias is None else weights[layer.bias]
        # Apple's devices have no float64.
        self.device = torch.device("cpu") if self.weight.device.type == "mps" else self.weight.device
        self.matrix = self.weight.to(self.device).double().flatten(1)
        outputs, self.width = self.matrix.shape
        free = int(self.bias is not None)
        exact: Any = {"dtype": torch.float64, "device": self.device}
        self.gram = torch.zeros((count, self.width + free, self.width + free), **exact)
        self.right = torch.zeros((count, self.width + free, outputs), **exact)

    def features(self, x: Tensor) -> Tensor:
        """What the layer multiplies: (members, batch, ...) -> (members, rows, width) float64."""
        members, _batch = x.shape[:2]
        x = x.to(self.device).double()
        if self.layer.settings is None:
            return x.reshape(members, -1, self.width)
        stride, padding, dilation, *_ = self.layer.settings
        # A convolution with one kernel for each place of the patch gives the patches, in any number of dimensions.
        patch = torch.eye(self.width, dtype=x.dtype, device=x.device).view(self.width, *self.weight.shape[1:])
        nothing = [0] * len(stride)
        patches: Tensor = torch.ops.aten.convolution.default(
            x.flatten(0, 1), patch, None, stride, padding, dilation, False, nothing, 1
        )
        return patches.movedim(1, -1).reshape(members, -1, self.width)

    def products(self, x: Tensor) -> Tensor:
        """The trained model's value before the bias, (1, rows, outputs)."""
        return self.features(x) @ self.matrix.mT

    def add(self, start: int, x: Tensor, target: Tensor) -> None:
        """Add a batch for members from ``start`` on."""
        rows = target.shape[1]
        size = max(1, _BATCH_BYTES // (8 * rows * self.width))
        for first in range(0, x.shape[0], size):
            a = self.features(x[first : first + size])
            missing = target - a @ self.matrix.mT
            if self.bias is not None:
                a = torch.cat([a, a.new_ones((*a.shape[:2], 1))], -1)
            at = slice(start + first, start + first + a.shape[0])
            self.gram[at].baddbmm_(a.mT, a)
            self.right[at].baddbmm_(a.mT, missing)

    def solved(self, ridge: float) -> dict[str, Tensor]:
        """The members' weights, (count, *shape), by name.

        Raises:
            RecipeError: a member's activations are not finite.
        """
        gram, right = self.gram, self.right
        size = gram.diagonal(dim1=1, dim2=2).sum(1)
        if not bool(size.isfinite().all()) or not bool(right.isfinite().all()):
            raise RecipeError(
                f"What the layer {self.layer.name!r} reads is not finite for some calibration inputs: look for NaN or "
                "infinity in data, or lower scale."
            )
        if self.bias is not None:
            # The bias is free: centred equations for the rest.
            rows = gram[0, -1, -1]
            mean, mean_missing = gram[:, :-1, -1] / rows, right[:, -1] / rows
            size = size - rows
            gram = gram[:, :-1, :-1] - rows * mean.unsqueeze(2) * mean.unsqueeze(1)
            right = right[:, :-1] - rows * mean.unsqueeze(2) * mean_missing.unsqueeze(1)
        # What activations in their own precision cannot tell from nothing: without this the sum of what a layer
        # normalisation gives, which is 0 but for rounding, would be fitted with huge weights.
        rounding = max(torch.finfo(self.weight.dtype).eps ** 2, torch.finfo(gram.dtype).eps * self.width) * size
        delta = _least_squares(gram, right, ridge, rounding)
        found = {self.layer.weight: (self.matrix + delta.mT).view(-1, *self.weight.shape)}
        if self.bias is not None:
            shift = mean_missing - (mean.unsqueeze(1) @ delta).squeeze(1)
            assert self.layer.bias is not None
            found[self.layer.bias] = self.bias.to(self.device).double() + shift
        return {name: weight.to(self.weight.device, self.weight.dtype) for name, weight in found.items()}


def _least_squares(gram: Tensor, right: Tensor, ridge: float, rounding: Tensor) -> Tensor:
    """Solve (G + λ) X = C for each member, λ relative to the mean eigenvalue; of least norm where that is singular.

    Args:
        gram: G, (members, width, width), symmetric.
        right: C, (members, width, outputs).
        ridge: λ in units of the mean eigenvalue of G.
        rounding: eigenvalues up to which they count as 0, (members,).
    """
    size = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
    if bool((size > rounding).all()):
        lower, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(size.unsqueeze(1).expand(gram.shape[:2])))
        if not bool(failed.any()):
            return torch.cholesky_solve(right, lower)
    values, vectors = torch.linalg.eigh(gram)
    inverse = torch.where(values > rounding.unsqueeze(1), 1 / (values + size.unsqueeze(1)), 0.0)
    found: Tensor = vectors @ (inverse.unsqueeze(2) * (vectors.mT @ right))
    return found
