"""What settings are worth on held-out rows: members made from one captured model, run on the rows, and judged.

All members of a trial are a function of the same seed, so that settings are compared on the same noise.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ensemble.calibration.likelihood import TINY, class_log_likelihood, mixed, normal_log_density, per_row
from ensemble.construct import make_members
from ensemble.data import Data
from ensemble.errors import ModelError
from ensemble.members import Members
from ensemble.perturbation import Learned, Recipe
from ensemble.perturbation.factors import Shape
from ensemble.planning.plan import LOOP
from ensemble.program.capture import Captured
from ensemble.program.program import Program
from ensemble.structured import factored_program
from ensemble.tasks import Head, Task
from ensemble.vectorised import evaluate

TEMPERATURES = tuple(0.4 * 1.2**k for k in range(15))
# Noise variances that are compared, around the likeliest one: so many standard errors of its logarithm. The likelihood
# falls slower above than below.
_NOISE_STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.5)
_COARSE = torch.arange(-3.0, 1.75, 0.25, dtype=torch.float64)
_ROWS = 1024
# Members and rows on which ways of running are compared.
_COMPARED, _COMPARED_ROWS = 4, 64
_BYTES = 64 * 2**20
# Log-likelihood of a row for which members give no number.
_ASTRAY = -1e6


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting on the selection rows.

    Args:
        recipe: as it was settled for the model; None for the trained net alone.
        likelihood: log-likelihood of each row under each variant, (variants, rows) float64. Variants are the noise
            variances of a regression, the factors that a gaussian model's variances are multiplied by, the
            ``TEMPERATURES`` of a classification.
        noise: these noise variances, target², or factors; empty of a classification.
        members: those that were judged, where they are kept and not drawn again.
        seconds: that it took.
    """

    recipe: Recipe | None
    likelihood: Tensor
    noise: tuple[float, ...]
    members: Members | None
    seconds: float


class Trials:
    """Judges settings on the same rows, with the same seed.

    Args:
        captured: the model.
        task: what it predicts; not "raw".
        head: the prediction.
        rows: held out from whatever the model was trained on, with targets.
        learning: what recipes learn from; None if there is nothing.
        seed: of the members.
        device: where they are run.
    """

    def __init__(
        self,
        captured: Captured,
        task: Task,
        head: Head,
        rows: Data,
        *,
        learning: Data | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.captured = captured
        self.task = task
        self.head = head
        self.rows = rows
        self.learning = learning
        self.seed = seed
        self.device = device
        self._programs: dict[tuple[tuple[tuple[str, Shape], ...], tuple[str, ...]], Program] = {}
        self._chunks: dict[tuple[tuple[tuple[str, Shape], ...], tuple[str, ...]], int | None] = {}

    def single(self) -> Trial:
        """The trained net alone."""
        begun = time.perf_counter()
        return self._trial(None, unperturbed(self.captured, self.device, 1), begun, keep=False)

    def of(self, recipe: Recipe, count: int) -> Trial:
        """A recipe with so many members.

        Raises:
            EnsembledError: it does not fit the model, its data or the memory.
        """
        begun = time.perf_counter()
        settled, members = self.make(recipe, count)
        return self._trial(settled, members, begun, keep=isinstance(recipe, Learned))

    def make(self, recipe: Recipe, count: int) -> tuple[Recipe, Members]:
        """Members of a recipe; those of a smaller number are among them."""
        return make_members(
            self.captured,
            recipe,
            count=count,
            seed=self.seed,
            device=self.device,
            task=self.task,
            data=self.learning,
        )

    def outputs(self, members: Members, rows: Data) -> Iterator[tuple[tuple[Tensor, ...], Data]]:
        """Flat outputs of all members, each (members, some rows, ...), and those rows, on the members' device."""
        key = tuple(sorted(members.factored.items())), tuple(members.stacked)
        if key not in self._programs:
            program = self.captured.program
            if self.device != self.captured.example[0].device:
                program = program.to(self.device, members.dtypes)
            self._programs[key] = factored_program(program, members.factored) if members.factored else program
        program = self._programs[key]
        size = max(1, min(_ROWS, _BYTES // max(1, program.activation_bytes)))
        for some in rows.batches(size):
            placed = some.to(self.device)
            if key not in self._chunks and members.count >= _COMPARED and len(rows) > 1:
                self._chunks[key] = _chunk(program, members, placed.inputs)
            chunks = list(evaluate(program, members, placed.inputs, chunk=self._chunks.get(key)))
            yield tuple(torch.cat(parts) for parts in zip(*chunks, strict=True)), placed

    def _trial(self, recipe: Recipe | None, members: Members, begun: float, *, keep: bool) -> Trial:
        noise: tuple[float, ...] = ()
        mixture = members.mixture
        if self.task == "classification":
            parts = []
            for outputs, some in self.outputs(members, self.rows):
                assert some.targets is not None
                value = outputs[self.head.outputs[0]].movedim(1 + self.head.batch_dim, 1)
                each = [class_log_likelihood(value, some.targets, t) for t in TEMPERATURES]
                parts.append(torch.stack([per_row(mixed(one, mixture)) for one in each]))
            found = torch.cat(parts, 1)
        else:
            means, variances, targets = self._values(members)
            noise, found = _noise(means, variances, targets, mixture)
        likelihood = found.cpu()
        if not bool(likelihood.isfinite().all()):
            if recipe is None:
                raise ModelError(
                    "The model gives no finite likelihood on the held-out rows: its outputs are NaN or infinite there."
                )
            # Members that went astray are no setting to choose.
            likelihood = torch.where(likelihood.isfinite(), likelihood, _ASTRAY)
        return Trial(recipe, likelihood, noise, members if keep else None, time.perf_counter() - begun)

    def _values(self, members: Members) -> tuple[Tensor, Tensor, Tensor]:
        """All members' means and variances (1 of a regression), (members, rows, ...), and the targets, (rows, ...)."""
        parts: list[list[Tensor]] = [[], []]
        targets = []
        for outputs, some in self.outputs(members, self.rows):
            assert some.targets is not None
            for part, index in zip(parts, self.head.outputs, strict=False):
                part.append(outputs[index].movedim(1 + self.head.batch_dim, 1).double())
            targets.append(some.targets)
        means = torch.cat(parts[0], 1)
        variances = torch.cat(parts[1], 1) if parts[1] else torch.ones((), dtype=torch.float64, device=means.device)
        return means, variances, torch.cat(targets).double()


def _chunk(program: Program, members: Members, inputs: Sequence[Tensor]) -> int | None:
    """One member after the other where that is faster than all at once, as it is for many convolutions."""
    some = [tensor[:_COMPARED_ROWS] for tensor in inputs]
    seconds = {}
    for chunk in (None, LOOP):
        for _ in range(2):
            begun = time.perf_counter()
            for _ in evaluate(program, members, some, count=_COMPARED, chunk=chunk):
                pass
            seconds[chunk] = time.perf_counter() - begun
    return LOOP if seconds[LOOP] < seconds[None] else None


def unperturbed(captured: Captured, device: torch.device, count: int, like: Members | None = None) -> Members:
    """So many copies of the trained net, laid out as other members are.

    Args:
        like: whose layout; by default the smallest weight alone is stacked, since something must be.
    """
    weights = {name: weight.detach().to(device) for name, weight in captured.weights.items()}
    if like is None:
        floating = [name for name in captured.program.weight_names if weights[name].is_floating_point()]
        own = min(floating or captured.program.weight_names, key=lambda name: weights[name].numel())
        stacked = {own: _repeated(weights[own], count)}
        return Members(count, {n: w for n, w in weights.items() if n != own}, stacked)
    return same_layout(like, weights, count)


def same_layout(like: Members, weights: dict[str, Tensor], count: int) -> Members:
    """Copies of a net's weights, stacked where the given members have weights of their own."""
    from ensemble.structured import LEFT, RIGHT

    stacked: dict[str, Tensor] = {}
    for name, shape in like.factored.items():
        left, right = like.stacked[name + LEFT], like.stacked[name + RIGHT]
        neutral = 1.0 if shape.form == "multiplicative" else 0.0
        stacked[name + LEFT] = left.new_full((count, *left.shape[1:]), neutral)
        # A product of rank r of ones is r.
        stacked[name + RIGHT] = right.new_full((count, *right.shape[1:]), neutral / shape.rank)
    for name in like.stacked:
        if name in weights:
            stacked[name] = _repeated(weights[name], count)
    return Members(count, {n: w for n, w in weights.items() if n not in stacked}, stacked, like.factored)


def _repeated(weight: Tensor, count: int) -> Tensor:
    return weight.unsqueeze(0).repeat(count, *[1] * weight.ndim)


def _noise(
    means: Tensor, variances: Tensor, targets: Tensor, mixture: Tensor | None
) -> tuple[tuple[float, ...], Tensor]:
    """What to multiply variances by, around the likeliest, as far apart as so many rows can tell it apart.

    Returns:
        The factors, and the log-likelihood of each row under each, (factors, rows).
    """
    weights = torch.full((len(means),), 1 / len(means)) if mixture is None else mixture
    weights = weights.to(means.device, torch.float64)
    mean = torch.tensordot(weights, means, dims=1)
    stated = torch.tensordot(weights, variances.expand_as(means), dims=1).clamp_min(TINY)
    around = max(float(((targets - mean).square() / stated).mean()), TINY)

    def likelihood(factor: float) -> Tensor:
        return per_row(mixed(normal_log_density(means, variances * factor, targets), mixture))

    heights = torch.stack([likelihood(around * math.exp(g)).mean() for g in _COARSE.tolist()]).cpu()
    best = _peak(_COARSE, heights)
    # Fisher information of a variance's logarithm is half a row's.
    error = math.sqrt(2 / len(targets))
    factors = tuple(around * math.exp(best + step * error) for step in _NOISE_STEPS)
    return factors, torch.stack([likelihood(factor) for factor in factors])


def _peak(places: Tensor, heights: Tensor) -> float:
    """Where the parabola through the highest of evenly spaced points and its neighbours has its top."""
    top = int(heights.argmax())
    if not 0 < top < len(places) - 1:
        return float(places[top])
    left, middle, right = heights[top - 1 : top + 2].tolist()
    bend = left - 2 * middle + right
    step = float(places[1] - places[0])
    return float(places[top]) + (0.5 * (left - right) / bend * step if bend < 0 else 0.0)


def best_temperature(evidence: Tensor) -> tuple[int, float]:
    """The likeliest temperature: the nearest of ``TEMPERATURES``, and itself between them.

    Args:
        evidence: log evidence of each, (temperatures,).
    """
    logs = torch.tensor(TEMPERATURES, dtype=torch.float64).log()
    return int(evidence.argmax()), math.exp(_peak(logs, evidence))
