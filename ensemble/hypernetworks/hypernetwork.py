"""A network that gives the weights of another one: ready-made, in the forms that :func:`~ensemble.generate` takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ensemble.errors import InputError, ModelError
from ensemble.perturbation.base import as_patterns, choose
from ensemble.perturbation.factors import columns

# Of a chunk's embedding.
_EMBEDDING = 16


class Hypernetwork(nn.Module):
    """A multilayer perceptron from a code to the weights of a target network (arXiv 1609.09106).

    Whatever the code, it begins near the target's weights as they are when it is made, and learns how codes differ:
    heads start with small weights, and the trained values as their biases. Three forms:

    * full: a head for each weight, hidden × numbers parameters each;
    * ``rank=r``: low-rank deltas on the target's own matrices, and its vectors in full; far fewer parameters, and no
      matrix is ever formed for a code;
    * ``chunk=n``: one head of n numbers for all, asked once for each chunk of the target's weights with a learned
      embedding of the chunk beside the code (the paper's section 3.1); fewer parameters than the target may have. It
      begins at random weights of the target's magnitude.

    Args:
        target: whose weights it gives; left as it is.
        code_size: numbers in a code.
        hidden: widths of the hidden layers.
        rank: of low-rank deltas; full weights by default.
        chunk: numbers in a chunk; none by default.
        include, exclude: patterns of the parameters to give; all by default.

    Raises:
        ModelError: sizes that are no positive integers, or both a rank and chunks.
        RecipeError: patterns that match nothing.
        InputError: it is called with codes of another size.

    **Shape:** codes (n, code_size), or (n,) where that is 1, to {name: (n, *shape) or (left, right)}; with ``chunk`` to
    (n, chunks, chunk).

    Example:
        >>> Hypernetwork(torch.nn.Linear(8, 3), code_size=2, rank=1)(torch.zeros(5, 2))["weight"][0].shape
        torch.Size([5, 3, 1])
    """

    def __init__(
        self,
        target: nn.Module,
        code_size: int,
        *,
        hidden: Sequence[int] = (64,),
        rank: int | None = None,
        chunk: int | None = None,
        include: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not isinstance(target, nn.Module):
            raise ModelError(f"target must be a torch.nn.Module, however: {type(target).__name__}.")
        if not isinstance(hidden, Sequence):
            raise ModelError(f"hidden must be the widths of the hidden layers, such as (64,), however: {hidden!r}.")
        sizes = [("code_size", code_size), ("rank", rank), ("chunk", chunk), *(("hidden", width) for width in hidden)]
        for name, value in sizes:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ModelError(f"{name} must be a positive integer, however: {value!r}.")
        if rank is not None and chunk is not None:
            raise ModelError("rank= gives low-rank deltas and chunk= gives full weights in chunks; choose one of them.")
        parameters = {name: p.detach() for name, p in target.named_parameters() if p.is_floating_point()}
        names = choose(list(parameters), parameters, as_patterns(include, "include"), as_patterns(exclude, "exclude"))
        weights = {name: parameters[name] for name in names}
        self.code_size = code_size
        self.shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        self.rank, self.chunk = rank, chunk
        inputs = code_size
        if chunk is not None:
            count = -(-sum(weight.numel() for weight in weights.values()) // chunk)
            self.embedding = nn.Parameter(torch.randn(count, _EMBEDDING))
            inputs += _EMBEDDING
        widths = [inputs, *hidden]
        layers = [[nn.Linear(a, b), nn.Tanh()] for a, b in itertools.pairwise(widths)]
        self.body = nn.Sequential(*(layer for pair in layers for layer in pair))
        self.heads = nn.ModuleList()
        if chunk is not None:
            self.heads.append(nn.Linear(widths[-1], chunk))
            self._scale(torch.cat([weight.flatten() for weight in weights.values()]))
        else:
            for weight in weights.values():
                self.heads.extend(self._head(widths[-1], weight))

    def _head(self, width: int, weight: Tensor) -> list[nn.Linear]:
        if self.rank is None or weight.ndim < 2:
            head = nn.Linear(width, weight.numel())
            with torch.no_grad():
                head.weight.mul_(0.1 * weight.square().mean().sqrt())
                head.bias.copy_(weight.flatten())
            return [head]
        rank = min(self.rank, weight.shape[0], columns(weight.shape, "additive"))
        left, right = (
            nn.Linear(width, weight.shape[0] * rank),
            nn.Linear(width, columns(weight.shape, "additive") * rank),
        )
        with torch.no_grad():
            # The delta is zero, and its gradient is not.
            left.weight.zero_()
            left.bias.zero_()
        return [left, right]

    def _scale(self, weights: Tensor) -> None:
        """Chunks of the magnitude that the target's weights have."""
        with torch.no_grad():
            found = self(torch.randn(8, self.code_size)).square().mean().sqrt()
            (head,) = self.heads
            assert isinstance(head, nn.Linear)
            for parameter in (head.weight, head.bias):
                parameter.mul_(weights.square().mean().sqrt() / found)

    def forward(self, code: Tensor) -> Tensor | dict[str, Tensor | tuple[Tensor, Tensor]]:
        code = code.unsqueeze(1) if code.ndim == 1 else code
        if code.ndim != 2 or code.shape[1] != self.code_size:
            raise InputError(f"Codes must have shape [n, {self.code_size}], however: {list(code.shape)}.")
        if self.chunk is not None:
            rows, chunks = code.shape[0], self.embedding.shape[0]
            each = code.unsqueeze(1).expand(rows, chunks, code.shape[1])
            which = self.embedding.unsqueeze(0).expand(rows, chunks, _EMBEDDING)
            chunked: Tensor = self.heads[0](self.body(torch.cat([each, which], 2)))
            return chunked
        hidden = self.body(code)
        found: dict[str, Tensor | tuple[Tensor, Tensor]] = {}
        heads = iter(self.heads)
        for name, shape in self.shapes.items():
            first: Tensor = next(heads)(hidden)
            if self.rank is None or len(shape) < 2:
                found[name] = first.reshape(-1, *shape)
                continue
            second: Tensor = next(heads)(hidden)
            found[name] = (
                first.reshape(-1, shape[0], first.shape[1] // shape[0]),
                second.reshape(-1, math.prod(shape[1:]), second.shape[1] // math.prod(shape[1:])),
            )
        return found
