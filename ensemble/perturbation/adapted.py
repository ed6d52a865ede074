"""Members that each trained a little further, from a start and on rows of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.memory import available
from ensemble.perturbation.base import Perturbation, as_patterns, choose
from ensemble.perturbation.learned import Learned, Material
from ensemble.perturbation.low_rank import MAX_RANK

if TYPE_CHECKING:
    from ensemble.data import Data
    from ensemble.losses import Loss
    from ensemble.members import Members
    from ensemble.program.program import Program, Weights
    from ensemble.training import Schedule

_EPOCHS = 10
_RATES = (2.5e-3, 2e-2)
# Of the memory that is free, what data may take.
_ROOM = 0.25


@dataclass(frozen=True)
class Adapted(Learned, name="adapted"):
    """Every member fine-tuned from a start of its own, on its own resample of the data, all in one vectorised loop.

    Steps of Adam with decoupled weight decay, on the negative log-likelihood of the task or a loss of your own; the
    learning rate falls to 0 along half a cosine. Needs ``data=(inputs, targets)``, best what the model was trained on.
    Dropout is off, and batch normalisation keeps its statistics, since a model is captured in evaluation mode.

    What a member costs is ``steps`` gradients of ``batch_size`` rows; how much less time than one member after the
    other that takes depends on the model, and is most for small ones.

    Args:
        steps: gradient steps of each member, ≥ 0; as many as take it through the rows ten times by default.
        lr: the learning rate at first, > 0; between an eighth of what the model was trained with and the whole of it.
        bootstrap: train each member on as many rows as there are, drawn with replacement; else on all.
        start: a recipe whose members training starts from; the trained weights by default.
        rank: train only additive factors of this rank for each matrix that the model uses in products, and keep the
            trained weights shared (LoRA); vectors are trained in full. In full by default.
        batch_size: rows of one step, ≥ 1.
        weight_decay: share of a weight that decays in a step at a learning rate of 1, ≥ 0.
        early_stopping: keep those weights of each member that did best on the rows that its resample left out (on a
            tenth of the rows, which it is then not trained on, without bootstrap). Without it members that are trained
            for long become surer than they may be.
        check_every: steps between two looks at these rows, ≥ 1; a tenth of the steps by default.
        patience: looks without a better one after which a member stops, ≥ 1; by default none does.
        seconds: about how long training may take, > 0: as many steps as fit, at most ``steps``, judged by a few trial
            steps. The recipe that is kept with the ensemble has that number as its ``steps``, and no ``seconds``, so
            that it makes the same members again on any machine.
        loss: a function of one member's flat outputs (a sequence of tensors) and the targets, which gives a number for
            each row; the negative log-likelihood of the task by default (for a regression without a noise variance the
            squared error). Of a saved ensemble's recipe its name alone.
        include: patterns of the names of the weights to train; all floating-point parameters by default.
        exclude: patterns of the names to leave as they are.

    Raises:
        RecipeError: numbers out of range, a start that is no perturbation, or patterns that are not text.

    Example:
        >>> Adapted(steps=200, lr=0.01, start=Gaussian(scale=0.1))
    """

    dear: ClassVar[bool] = True

    steps: int | None = None
    lr: float = 5e-3
    bootstrap: bool = True
    start: Perturbation | None = None
    rank: int | None = None
    batch_size: int = 32
    weight_decay: float = 0.0
    early_stopping: bool = True
    check_every: int | None = None
    patience: int | None = None
    seconds: float | None = None
    loss: Loss | str | None = None
    include: str | tuple[str, ...] = ("*",)
    exclude: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._schedule(1)
        for name in ("bootstrap", "early_stopping"):
            if not isinstance(getattr(self, name), bool):
                raise RecipeError(f"{name} must be True or False, however: {getattr(self, name)!r}.")
        if self.start is not None and not isinstance(self.start, Perturbation):
            raise RecipeError(f"start must be a recipe such as Gaussian(scale=0.1), however: {self.start!r}.")
        rank = self.rank
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK):
            raise RecipeError(f"rank must be an integer between 1 and {MAX_RANK}, however: {rank!r}.")
        if self.patience is not None and not self.early_stopping:
            raise RecipeError(
                "patience needs early_stopping=True: without rows held back nothing gets better or worse."
            )
        seconds = self.seconds
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf
        ):
            raise RecipeError(f"seconds must be a finite number > 0, however: {seconds!r}.")
        if self.loss is not None and not isinstance(self.loss, str) and not callable(self.loss):
            raise RecipeError(f"loss must be a function of outputs and targets, however: {self.loss!r}.")
        object.__setattr__(self, "lr", float(self.lr))
        object.__setattr__(self, "weight_decay", float(self.weight_decay))
        object.__setattr__(self, "include", as_patterns(self.include, "include"))
        object.__setattr__(self, "exclude", as_patterns(self.exclude, "exclude"))

    @classmethod
    def candidates(cls) -> Iterable[Mapping[str, Any]]:
        """Learning rates far apart: a high one leaves the trained weights for others as good, a low one stays near.

        The low one first, since not every model bears the high one.
        """
        return [{"lr": lr, "early_stopping": True} for lr in _RATES]

    def settings(self) -> dict[str, Any]:
        """As of any recipe; of a loss its name, since code is not kept."""
        return {**super().settings(), "loss": _called(self.loss)}

    def select(self, weights: Mapping[str, Tensor], trainable: Collection[str]) -> list[str]:
        candidates = [name for name in weights if name in trainable and weights[name].is_floating_point()]
        include, exclude = as_patterns(self.include, "include"), as_patterns(self.exclude, "exclude")
        return choose(list(weights), candidates, include, exclude)

    def within(self, seconds: float) -> Self:
        return dataclasses.replace(self, seconds=seconds if self.seconds is None else min(seconds, self.seconds))

    def planned(self, material: Material) -> Self:
        from ensemble.training import steps_within

        work = self._work(material)
        steps = self._schedule(len(work.data)).steps
        if self.seconds is not None:
            steps = steps_within(
                self.seconds,
                work.program,
                work.members,
                work.data,
                work.loss,
                self._schedule(len(work.data)),
                early_stopping=self.early_stopping,
            )
        return dataclasses.replace(self, steps=steps, seconds=None)

    def make(self, material: Material) -> Members:
        from ensemble.training import train

        if self.seconds is not None:
            return self.planned(material).make(material)
        work = self._work(material)
        trained = train(
            work.program,
            work.members,
            work.data,
            work.loss,
            self._schedule(len(work.data)),
            seed=material.seed,
            bootstrap=self.bootstrap,
            early_stopping=self.early_stopping,
            progress=material.progress,
        )
        return trained.members if work.half is None else trained.members.to(material.device, work.half)

    def _work(self, material: Material) -> _Work:
        from ensemble.training.start import starting

        if material.data is None or material.data.targets is None:
            raise RecipeError("adapted learns from examples: give data=(inputs, targets).")
        loss = self._loss(material)
        half, program, weights = _exact(material)
        data = _near(material.data, material.device)
        inputs = tuple(t.to(spec.dtype) for t, spec in zip(data.inputs, program.inputs, strict=True))
        members = starting(
            program,
            weights,
            material.names,
            () if self.start is None else self.start.select(weights, material.names),
            self.start,
            rank=self.rank,
            count=material.count,
            seed=material.seed,
            device=material.device,
        )
        return _Work(program, members, dataclasses.replace(data, inputs=inputs), loss, half)

    def _schedule(self, rows: int) -> Schedule:
        from ensemble.training import Schedule

        steps = max(1, rows // self.batch_size) * _EPOCHS if self.steps is None else self.steps
        return Schedule(steps, self.lr, self.batch_size, self.weight_decay, self.check_every, self.patience)

    def _loss(self, material: Material) -> Loss:
        from ensemble.losses import negative_log_likelihood
        from ensemble.tasks import heads

        if isinstance(self.loss, str):
            raise RecipeError(
                f"loss={self.loss!r} is the name of a function that was given when members were made, and no function. "
                "Give loss=, a function of the outputs and the targets that gives a number for each row."
            )
        if self.loss is not None:
            return self.loss
        # Without noise it has no density; the squared error has the same minimum.
        noise_variance = material.noise_variance or None
        return negative_log_likelihood(material.task, heads(material.task, material.program.outputs), noise_variance)


@dataclass(frozen=True)
class _Work:
    """What is trained, where and on what; and the dtype of half precision that its members are given back in."""

    program: Program
    members: Members
    data: Data
    loss: Loss
    half: torch.dtype | None


def _near(data: Data, device: torch.device) -> Data:
    """The data where the members are, if there is room beside them; else rows are fetched as they are needed."""
    free = available(device)
    return data.to(device) if free is None or data.nbytes < _ROOM * free else data


def _exact(material: Material) -> tuple[torch.dtype | None, Program, Weights]:
    """The model where its members will live, in float32 where it is in half of that; and the dtype that this was."""
    weights = {name: weight.to(material.device) for name, weight in material.weights.items()}
    kinds = {weight.dtype for weight in weights.values() if weight.is_floating_point()}
    half = None
    if len(kinds) == 1 and kinds <= {torch.float16, torch.bfloat16}:
        # A step changes a weight by less than such numbers differ.
        (half,) = kinds
        weights = {name: w.float() if w.is_floating_point() else w for name, w in weights.items()}
    if half is None and all(weights[name].device == weight.device for name, weight in material.weights.items()):
        return None, material.program, weights
    return half, material.program.to(material.device, {name: w.dtype for name, w in weights.items()}), weights


def _called(loss: Loss | str | None) -> str | None:
    """How a loss is called."""
    if loss is None or isinstance(loss, str):
        return loss
    name = getattr(loss, "__qualname__", type(loss).__qualname__)
    return f"{getattr(loss, '__module__', type(loss).__module__)}.{name}"
