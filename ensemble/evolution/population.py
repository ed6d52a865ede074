"""Evolution strategies: training with scores alone, by members that are made of seeds.

A population is the trained (reference) weights and, at each step, N members around them. Whoever evaluates members
needs the reference weights, the seed and their numbers; whoever updates needs everybody's fitness. No gradient and no
member's weights ever travel, and no member's matrix is ever formed: perturbations are of low rank, in antithetic pairs,
and the update is a few matrix products over their factors, drawn again.

Source: Salimans et al., arXiv 1703.03864; of low-rank perturbations, EGGROLL, arXiv 2511.16652.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ensemble.errors import InputError, ModelError, RecipeError
from ensemble.evolution.ascent import Ascent, Optimizer, State
from ensemble.evolution.checkpoint import from_dict, to_dict
from ensemble.evolution.drawing import Drawing, step_seed
from ensemble.evolution.fitness import SHAPINGS, Shaping, checked, shape_fitness
from ensemble.evolution.network import Network
from ensemble.evolution.schedule import Schedule, scheduled
from ensemble.vectorised import evaluate

MAX_MEMBERS = 1 << 24


class Population:
    """A model in training by an evolution strategy.

    Member i of a step has W + σ E_i. Of a weight of two and more dimensions E_i = A_i B_iᵀ / √rank, with A_i (outputs,
    rank) and B_i (inputs, rank) standard normal; of a vector E_i is standard normal itself. Members 2k and 2k+1 are
    antithetic: E_{2k+1} = -E_{2k}. Each element of E_i has mean 0 and variance 1, and different elements are
    uncorrelated, so σ is the standard deviation of the noise on each weight, in the weight's own unit.

    From the fitness f_i of all N members, the higher the better, an update estimates the gradient of the mean fitness
    around W,

        g = 1 / (N σ) Σ_i u_i E_i,     u = the shaped f,

    and climbs it: W ← W + learning_rate (direction(g) - weight_decay W). The sum is Σ_k (u_2k - u_2k+1) A_k B_kᵀ, a few
    matrix products over the factors of some members at a time.

    Everything is a function of the model, the settings, the seed and the fitness. Populations that were made alike and
    are given the same fitness stay the same, so processes may share the members: each evaluates its slice, all exchange
    scores. (Products of matrices may round otherwise on another machine; where machines differ let one of them hand
    out :meth:`state_dict` from time to time.)

    Args:
        model: any ``nn.Module``, trained or not; it is read in evaluation mode and left as it was.
        members: members of a step, N, an even number.
        sigma: σ > 0, or a function of the step that gives it.
        learning_rate: > 0, or a function of the step.
        example: what the model is called with: a tensor, a tuple of positional arguments or a dict of named ones. The
            first dimension of every tensor is the batch.
        rank: of the perturbation of a matrix.
        shaping: what is made of the fitness. "centred_ranks": ranks, spread evenly from -0.5 for the worst to 0.5 for
            the best, ties shared, so that only the order counts; "z_scores": less their mean, over their standard
            deviation; "raw": as it is, for which g estimates the gradient itself.
        optimizer: "sgd": direction(g) is the running mean m ← momentum m + g, or g without momentum; "adam": Adam
            (arXiv 1412.6980).
        momentum: of "sgd", 0 ≤ momentum < 1.
        betas: of "adam".
        weight_decay: decoupled (arXiv 1711.05101), ≥ 0.
        include, exclude: patterns of the names that are trained; all floating-point parameters by default.
        live: keep the module's own code where it cannot be exported; members' weights are then formed in full.
        seed: of all noise.

    Raises:
        ModelError, ExportError: the model cannot be captured; the text says why.
        RecipeError: a setting out of range, or patterns that match nothing.

    Example:
        >>> population = Population(model, members=1024, sigma=0.05, learning_rate=0.02, example=x, optimizer="adam")
        >>> for images, labels in batches:
        ...     population.update(population.scores(lambda logits: -loss(logits, labels), images))
        >>> model.load_state_dict(population.weights())
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        members: int,
        sigma: Schedule,
        learning_rate: Schedule,
        example: Any,
        rank: int = 1,
        shaping: Shaping = "centred_ranks",
        optimizer: Optimizer = "sgd",
        momentum: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        include: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        live: bool = False,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ModelError(f"model must be a torch.nn.Module, however: {type(model).__name__}.")
        if not _integer(members, 2, MAX_MEMBERS) or members % 2:
            raise RecipeError(f"members must be an even number between 2 and {MAX_MEMBERS}, however: {members!r}.")
        if not _integer(seed, 0, 2**63 - 1):
            raise RecipeError(f"seed must be an integer between 0 and 2**63 - 1, however: {seed!r}.")
        if shaping not in SHAPINGS:
            raise RecipeError(f"shaping must be one of {', '.join(SHAPINGS)}, however: {shaping!r}.")
        self._ascent = Ascent(optimizer, momentum, betas, weight_decay)
        self.count = members
        self.seed = seed
        self.rank = rank
        self.shaping: Shaping = shaping
        self._sigma, self._learning_rate = sigma, learning_rate
        self._network = Network(model, example, rank, include, exclude, live=live)
        self.state = State(0, self._network.start)
        self._drawing = Drawing(self._network.noise, members // 2, self.device)
        _ = self.sigma, self.learning_rate

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        numbers = sum(weight.numel() for weight in self.state.weights.values())
        return f"Population({self.count} members around {numbers:,} weights, step {self.step}, seed={self.seed})"

    @property
    def device(self) -> torch.device:
        """Where it runs: where the example was."""
        return self._network.device

    @property
    def step(self) -> int:
        """How many updates were made."""
        return self.state.step

    @property
    def sigma(self) -> float:
        """σ of the present step."""
        return scheduled("sigma", self._sigma, self.step)

    @property
    def learning_rate(self) -> float:
        """That of the present step."""
        return scheduled("learning_rate", self._learning_rate, self.step)

    @property
    def step_seed(self) -> int:
        """What the noise of the present step is drawn from: a function of the seed and the step."""
        return step_seed(self.seed, self.step)

    def __call__(self, *args: Any, members: range | None = None, chunk: int | None = None, **kwargs: Any) -> Any:
        """Outputs of some of the present step's members, in one vectorised call.

        Args:
            args, kwargs: what the model's forward takes, or one dict {input name: tensor}.
            members: which, a range without gaps within range(N); all by default.
            chunk: how many to run in one call (0: one after the other); as many as keep activations small by default.

        Returns:
            What the model returns, each tensor with a leading member dimension: (members, batch, ...).

        Raises:
            InputError: inputs that do not fit the signature, or members that there are not.
        """
        inputs = self._network.program.bind(args, kwargs, self.device)
        parts = [outputs for _, outputs in self._outputs(inputs, self._range(members), chunk)]
        return self._network.program.results.pack([torch.cat(each) for each in zip(*parts, strict=True)])

    def scores(
        self,
        score: Callable[[Any], Tensor],
        *args: Any,
        members: range | None = None,
        chunk: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The fitness of some of the present step's members on a batch, some members at a time.

        Args:
            score: given the outputs of some members, as a call returns them, gives one number for each: (members,), the
                higher the better.
            args, kwargs, members, chunk: as for a call.

        Returns:
            (members,) on the model's device.

        Raises:
            InputError: as for a call, or a score of another shape.
        """
        if not callable(score):
            raise InputError(f"The first argument is the function that scores, however: {type(score).__name__}.")
        inputs = self._network.program.bind(args, kwargs, self.device)
        found = []
        for part, outputs in self._outputs(inputs, self._range(members), chunk):
            fitness = score(self._network.program.results.pack(list(outputs)))
            if not isinstance(fitness, Tensor) or tuple(fitness.shape) != (len(part),):
                shape = list(fitness.shape) if isinstance(fitness, Tensor) else type(fitness).__name__
                raise InputError(f"score must give a tensor of {len(part)} numbers, one a member, however: {shape}.")
            found.append(fitness.detach())
        return torch.cat(found)

    def gradient(self, fitness: Tensor | Sequence[float]) -> dict[str, Tensor]:
        """The estimated gradient g, of the shaped fitness.

        Args:
            fitness: of all members of the present step, in order, (N,).

        Returns:
            {name: tensor of the weight's shape}.

        Raises:
            InputError: another number of scores, or one that is not finite.
        """
        shaped = shape_fitness(checked(fitness, self.count), self.shaping)
        # Antithetic members have the same noise with opposite signs.
        worth = ((shaped[::2] - shaped[1::2]) / (self.count * self.sigma)).to(self.device)
        found = {name: torch.zeros_like(weight) for name, weight in self.state.weights.items()}
        for pairs, noise in self._drawing(self.step_seed, range(self.count)):
            for name, total in found.items():
                total += self._network.noise.weighted(name, noise, worth[pairs.start : pairs.stop].to(total.dtype))
        return found

    def update(self, fitness: Tensor | Sequence[float]) -> None:
        """Move the reference weights by what the members of the present step were worth, and go on to the next.

        Args:
            fitness: of all members, in order, (N,), the higher the better.

        Raises:
            InputError: another number of scores, or one that is not finite. Nothing has changed then.
        """
        self.state = self._ascent.advance(self.state, self.gradient(fitness), self.learning_rate)

    def weights(self) -> dict[str, Tensor]:
        """The reference weights as a state dict of the model: copies, in the model's dtypes."""
        return self._network.state_dict(self.state.weights)

    def member(self, index: int) -> dict[str, Tensor]:
        """One member of the present step as a state dict of the model.

        Raises:
            InputError: there is no such member.
        """
        if not _integer(index, 0, self.count - 1):
            raise InputError(f"Members are 0 .. {self.count - 1}, however: {index!r}.")
        ((pairs, noise),) = self._drawing(self.step_seed, range(index, index + 1))
        return self._network.member(self.state.weights, noise, index - 2 * pairs.start, self.sigma)

    def state_dict(self) -> dict[str, Any]:
        """All that changes while it trains, and the settings that the noise follows from: numbers, text and tensors.

        ``torch.save`` and ``torch.load(..., weights_only=True)`` keep it.
        """
        return to_dict(self.state, self._settings)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, as if nothing had come between.

        Raises:
            InputError: it is of a population with other settings, or of another model. Nothing has changed then.
        """
        self.state = from_dict(state, self._settings, self.state.weights)

    @property
    def _settings(self) -> dict[str, Any]:
        return {"members": self.count, "seed": self.seed, "rank": self.rank, "optimizer": self._ascent.optimizer}

    def _range(self, members: range | None) -> range:
        if members is None:
            return range(self.count)
        fine = isinstance(members, range) and members.step == 1 and 0 <= members.start < members.stop <= self.count
        if not fine:
            raise InputError(f"members must be a range within range(0, {self.count}), however: {members!r}.")
        return members

    def _outputs(
        self, inputs: Sequence[Tensor], members: range, chunk: int | None
    ) -> Iterator[tuple[range, tuple[Tensor, ...]]]:
        for pairs, noise in self._drawing(self.step_seed, members):
            first = 2 * pairs.start
            start, stop = max(members.start, first), min(members.stop, 2 * pairs.stop)
            some = self._network.members(self.state.weights, noise, slice(start - first, stop - first), self.sigma)
            for outputs in evaluate(self._network.program, some, inputs, chunk=chunk):
                stop = start + outputs[0].shape[0]
                yield range(start, stop), outputs
                start = stop


def _integer(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
