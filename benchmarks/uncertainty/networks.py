"""The published network: one hidden layer of ReLU units. As a module, and as many of them with stacked weights."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

# What the network returns: a value; a mean and a variance; logits.
Head = Literal["point", "variance", "classes"]
HIDDEN = 50
Weights = dict[str, Tensor]


class Net(nn.Module):
    """One hidden layer.

    Args:
        features: of an input row.
        head: what is returned: (rows, 1), or mean and variance, each (rows, 1), or logits (rows, classes).
        hidden: units.
        classes: of a classifier.
    """

    def __init__(self, features: int, head: Head, hidden: int = HIDDEN, classes: int = 0) -> None:
        super().__init__()
        self.head = head
        self.hidden = nn.Linear(features, hidden)
        self.output = nn.Linear(hidden, outputs(head, classes))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found = self.output(self.hidden(x).relu())
        if self.head != "variance":
            return found
        mean, raw = found.split(1, -1)
        return mean, variance(raw)


def outputs(head: Head, classes: int = 0) -> int:
    """How many outputs the last layer has."""
    return {"point": 1, "variance": 2, "classes": classes}[head]


def variance(raw: Tensor) -> Tensor:
    """What a variance head means, within bounds: of targets with a standard deviation of 1."""
    return raw.clamp(-10, 5).exp()


def fresh(count: int, features: int, out: int, hidden: int, generator: torch.Generator) -> Weights:
    """Weights of ``count`` nets, as ``nn.Linear`` draws them, each (count, ...)."""

    def drawn(*shape: int, bound: float) -> Tensor:
        return (2 * torch.rand(count, *shape, generator=generator) - 1) * bound

    first, second = 1 / math.sqrt(features), 1 / math.sqrt(hidden)
    return {
        "hidden.weight": drawn(hidden, features, bound=first),
        "hidden.bias": drawn(hidden, bound=first),
        "output.weight": drawn(out, hidden, bound=second),
        "output.bias": drawn(out, bound=second),
    }


def run(weights: Weights, x: Tensor, masks: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """All nets at once.

    Args:
        weights: of ``nets`` nets.
        x: (nets, rows, features).
        masks: dropout's factors for the inputs and for the hidden units, which broadcast to (nets, rows, ...).

    Returns:
        What the last layers give, (nets, rows, outputs).
    """
    if masks is not None:
        x = x * masks[0]
    hidden = torch.baddbmm(weights["hidden.bias"].unsqueeze(1), x, weights["hidden.weight"].mT).relu()
    if masks is not None:
        hidden = hidden * masks[1]
    return torch.baddbmm(weights["output.bias"].unsqueeze(1), hidden, weights["output.weight"].mT)


def dropout(
    rate: float, nets: int, rows: int, features: int, hidden: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Masks of inverted dropout on the inputs and on the hidden units."""

    def mask(size: int) -> Tensor:
        return (torch.rand(nets, rows, size, generator=generator) >= rate).float() / (1 - rate)

    return mask(features), mask(hidden)


def module(weights: Weights, index: int, head: Head) -> Net:
    """One of the nets as a module."""
    out, hidden = weights["output.weight"].shape[1:]
    net = Net(weights["hidden.weight"].shape[-1], head, hidden, out)
    net.load_state_dict({name: tensor[index] for name, tensor in weights.items()})
    return net.eval()
