"""Models that the tests share: one of each kind that the library promises to take, with a batch to call it with.

``reference.py`` beside this file gives what a member must answer, without the library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


@dataclass(frozen=True)
class Scenario:
    """One model.

    Args:
        name: of the test.
        model: makes the module, in training mode, as a user has it after training.
        inputs: makes a call's (args, kwargs) of so many rows.
        live: whether ``vmap`` takes the module's own code too.
        include: what the recipe perturbs.
    """

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    live: bool = True
    include: tuple[str, ...] = ("*",)


def floats(*shape: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, *shape, generator=torch.Generator().manual_seed(rows))


def integers(high: int, *shape: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randint(high, (rows, *shape), generator=torch.Generator().manual_seed(rows))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))


class ConvNet(nn.Module):
    """Convolutions and batch normalisation with statistics that were moved by training."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.BatchNorm2d(8, affine=False),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Linear(8, 3)
        for layer in self.features:
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).flatten(1))


class Recurrent(nn.Module):
    """A recurrent layer and the mean of what it says."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 2)

    def forward(self, sequence: Tensor) -> Tensor:
        return self.head(self.layer(sequence)[0].mean(1))


class Encoder(nn.Module):
    """A transformer encoder with learned positions and a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
        self.tokens, self.positions = nn.Embedding(20, 16, padding_idx=0), nn.Parameter(torch.randn(5, 16))
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(self.tokens(tokens) + self.positions, src_key_padding_mask=mask)
        return self.head(hidden[:, 0])


class Attention(nn.Module):
    """Scaled dot product attention with a causal mask kept as a non-persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool).tril(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.project(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, self.mask).transpose(1, 2).flatten(2))


class Pair(NamedTuple):
    """Two outputs with names."""

    policy: Tensor
    value: Tensor


class ManyInputs(nn.Module):
    """A dict, a tuple, a keyword, a default and a constant go in; nested names come out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Linear(2, 5)
        self.index = nn.Embedding(7, 5)

    def forward(
        self,
        features: dict[str, Tensor],
        pair: tuple[Tensor, Tensor],
        bias: Tensor | None = None,
        *,
        kind: Tensor,
        scale: float = 1.0,
    ) -> dict[str, Any]:
        hidden = self.left(features["a"]) + self.right(features["b"]) * scale + self.index(kind)
        hidden = hidden + pair[0] * pair[1]
        if bias is not None:
            hidden = hidden - bias
        return {"hidden": hidden, "heads": (hidden.sum(1), [hidden.tanh(), None]), "version": 3}


class ManyOutputs(nn.Module):
    """A named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.policy, self.value = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Pair:
        hidden = self.body(x).relu()
        return Pair(self.policy(hidden), self.value(hidden).squeeze(-1))


class Tied(nn.Module):
    """A language model whose output layer is its embedding, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.out = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight
        self.again = self.body

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.again(self.body(self.embed(tokens)).tanh()))


class Odd(nn.Module):
    """Constants that are not registered, unused weights, and attribute names that modules of fx use themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.code, self.meta = nn.Linear(4, 4), nn.Parameter(torch.randn(4)), nn.Linear(4, 4)
        self.unused = nn.Linear(2, 2)
        self.named = nn.ParameterDict({"a b": torch.randn(4), "naïve/1": torch.randn(4)})
        self.constant = torch.tensor([1.0, -2.0, 3.0, 0.5])
        self.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))
        self.register_buffer("table", torch.arange(4.0).neg(), persistent=False)

    def forward(self, forward: Tensor) -> Tensor:
        hidden = self.graph(forward) * self.constant + self.code + self.table + torch.tensor([0.1, 0.2, 0.3, 0.4])
        return self.meta(hidden) * self.named["a b"] + self.named["naïve/1"] * self.scale.float()


class GaussianHead(nn.Module):
    """Mean and variance."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, raw = self.out(self.body(x).tanh()).unbind(-1)
        return {"variance": F.softplus(raw) + 1e-3, "mean": mean}


class Norms(nn.Module):
    """Grouped, transposed and weight-normalised convolutions, every kind of norm, pixel shuffle, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1, groups=2),
            nn.GroupNorm(2, 8),
            nn.SiLU(),
            weight_norm(nn.Conv2d(8, 8, 1)),
            nn.InstanceNorm2d(8, affine=True),
            nn.Hardswish(),
            nn.PixelShuffle(2),
            nn.ConvTranspose2d(2, 4, 2, stride=2, groups=2),
            nn.LayerNorm([4, 32, 32]),
            nn.Upsample(scale_factor=0.5, mode="bilinear"),
            nn.AvgPool2d(2),
            nn.ELU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Volumes(nn.Module):
    """One and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.signal = nn.Sequential(nn.Conv1d(2, 4, 3, dilation=2, padding="same"), nn.BatchNorm1d(4), nn.Mish())
        self.volume = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1, padding_mode="circular"), nn.AvgPool3d(2))
        self.mix = nn.Bilinear(4, 3, 2)

    def forward(self, signal: Tensor, volume: Tensor) -> Tensor:
        return self.mix(self.signal(signal).mean(-1), self.volume(volume).mean((2, 3, 4)))


class Switch(nn.Module):
    """A boolean input, an integer output and a boolean one."""

    def __init__(self) -> None:
        super().__init__()
        self.on, self.off = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor, flag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.where(flag[:, None], self.on(x), self.off(x))
        return y, y.argmax(-1), y.amax(-1) > 0


class Model(nn.Module):
    """One layer and a function of it."""

    def __init__(self, function):
        super().__init__()
        self.fc, self.function = nn.Linear(4, 4), function
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        return self.function(self, x)


def _many(rows: int) -> Any:
    features = {"a": floats(3)(rows), "b": floats(2)(rows)}
    return {"features": features, "pair": (floats(5)(rows), floats(5)(rows)), "kind": integers(7)(rows), "scale": 0.5}


SCENARIOS = {
    scenario.name: scenario
    for scenario in [
        Scenario("mlp", mlp, floats(6)),
        Scenario("cnn", ConvNet, floats(2, 8, 8)),
        Scenario("lstm", lambda: Recurrent(nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True), 10), floats(4, 3),
                 live=False),
        Scenario("gru", lambda: Recurrent(nn.GRU(3, 5, batch_first=True), 5), floats(4, 3), live=False),
        Scenario("rnn", lambda: Recurrent(nn.RNN(3, 5, batch_first=True), 5), floats(4, 3), live=False),
        # The hidden state comes back with the batch in the second dimension.
        Scenario("raw_lstm", lambda: nn.LSTM(3, 5, batch_first=True), floats(4, 3), live=False),
        Scenario("raw_gru", lambda: nn.GRU(3, 5, 2, batch_first=True), floats(4, 3), live=False),
        Scenario("encoder", Encoder, lambda rows: (integers(20, 5)(rows), torch.arange(5).expand(rows, 5) > 3)),
        Scenario("attention", Attention, floats(4, 8)),
        Scenario("many_inputs", ManyInputs, _many),
        Scenario("many_outputs", ManyOutputs, floats(4)),
        Scenario("tied", Tied, integers(11, 3)),
        Scenario("odd", Odd, floats(4)),
        Scenario("gaussian", GaussianHead, floats(3)),
        Scenario("norms", Norms, floats(4, 8, 8)),
        Scenario("volumes", Volumes, lambda rows: (floats(2, 9)(rows), floats(1, 4, 4, 4)(rows))),
        Scenario("switch", Switch, lambda rows: (floats(3)(rows), torch.arange(rows) % 2 == 0)),
        Scenario("some", mlp, floats(6), include=("3.*",)),
    ]
}  # fmt: skip


def seeded(scenario: Scenario, seed: int = 0) -> nn.Module:
    """The scenario's module, with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return scenario.model()
