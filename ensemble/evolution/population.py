"""Evolution strategies: training with scores alone, by members that are made of seeds.

A population is the trained (reference) weights and, at each step, N members around them. Whoever evaluates members
needs the reference weights, the seed and their numbers; whoever updates needs everybody's fitness. No gradient and no
member's weights ever travel, and no member's matrix is ever formed: perturbations are of low rank, in antithetic pairs,
and the update is a few matrix products over their factors, drawn again.

Source: Salimans et al., arXiv 1703.03864; of low-rank perturbations, EGGROLL, arXiv 2511.16652.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ensemble.errors import InputError, ModelError, RecipeError
from ensemble.evolution.antithetic import Noise
from ensemble.evolution.ascent import SHAPINGS, Ascent, Optimizer, Shaping, State, shape_fitness
from ensemble.members import Members
from ensemble.perturbation.base import as_patterns
from ensemble.perturbation.factors import Factors
from ensemble.perturbation.low_rank import LowRank
from ensemble.program.capture import capture
from ensemble.structured import LEFT, RIGHT, factorable, factored_program, structures
from ensemble.vectorised import evaluate

# A number, or a function of the step.
Schedule = float | Callable[[int], float]

MAX_MEMBERS = 1 << 24
# Weights of members that are drawn at a time, and that are kept from the evaluation for the update.
_DRAWN_BYTES = 32 * 2**20
_KEPT_BYTES = 256 * 2**20


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
        # Its choice of weights and its factors; its scale, which is relative to each weight, plays no part.
        recipe = LowRank(1, rank=rank, include=as_patterns(include, "include"), exclude=as_patterns(exclude, "exclude"))
        captured = capture(model, example)
        trained = {n: captured.weights[n].detach() for n in recipe.select(captured.weights, captured.trainable)}
        self._noise = Noise(rank, {name: tuple(weight.shape) for name, weight in trained.items()})
        self._factored, _ = factorable(captured.program, structures(recipe, trained))
        program = captured.program
        self._program = factored_program(program, self._factored) if self._factored else program
        self._aliases = program.aliases
        self._dtypes = {name: weight.dtype for name, weight in trained.items()}
        self._fixed = {n: w.detach().clone() for n, w in captured.weights.items() if n not in trained}
        self._unused = {name: tensor.detach().clone() for name, tensor in captured.unused.items()}
        self._state_names = captured.state_names
        self.device = captured.example[0].device
        # In float32 at least, since most of a small step would be rounded away in a shorter dtype.
        exact = {n: w.to(torch.promote_types(w.dtype, torch.float32), copy=True) for n, w in trained.items()}
        self.state = State(0, exact)
        # Noise of the present step that was drawn to evaluate, by its first pair, kept for the update.
        self._kept: dict[int, dict[str, Tensor]] = {}
        _ = self.sigma, self.learning_rate

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        numbers = sum(weight.numel() for weight in self.state.weights.values())
        return f"Population({self.count} members around {numbers:,} weights, step {self.step}, seed={self.seed})"

    @property
    def step(self) -> int:
        """How many updates were made."""
        return self.state.step

    @property
    def sigma(self) -> float:
        """σ of the present step."""
        return _scheduled("sigma", self._sigma, self.step)

    @property
    def learning_rate(self) -> float:
        """That of the present step."""
        return _scheduled("learning_rate", self._learning_rate, self.step)

    @property
    def step_seed(self) -> int:
        """What the noise of the present step is drawn from: a function of the seed and the step."""
        text = f"{self.seed}\0{self.step}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"population").digest(), "little") >> 1

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
        inputs = self._program.bind(args, kwargs, self.device)
        parts = [outputs for _, outputs in self._outputs(inputs, self._range(members), chunk)]
        return self._program.results.pack([torch.cat(each) for each in zip(*parts, strict=True)])

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
        inputs = self._program.bind(args, kwargs, self.device)
        found = []
        for part, outputs in self._outputs(inputs, self._range(members), chunk):
            fitness = score(self._program.results.pack(list(outputs)))
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
        shaped = shape_fitness(self._checked(fitness), self.shaping)
        # Antithetic members have the same noise with opposite signs.
        worth = ((shaped[::2] - shaped[1::2]) / (self.count * self.sigma)).to(self.device)
        found = {name: torch.zeros_like(weight) for name, weight in self.state.weights.items()}
        for pairs in self._grid(range(self.count)):
            noise = self._draw(pairs)
            for name, total in found.items():
                total += self._noise.weighted(name, noise, worth[pairs.start : pairs.stop].to(total.dtype))
        return found

    def update(self, fitness: Tensor | Sequence[float]) -> None:
        """Move the reference weights by what the members of the present step were worth, and go on to the next.

        Args:
            fitness: of all members, in order, (N,), the higher the better.

        Raises:
            InputError: another number of scores, or one that is not finite. Nothing has changed then.
        """
        self.state = self._ascent.advance(self.state, self.gradient(fitness), self.learning_rate)
        self._kept = {}

    def weights(self) -> dict[str, Tensor]:
        """The reference weights as a state dict of the model: copies, in the model's dtypes."""
        every = {**self._unused, **self._fixed, **self._reference()}
        return {name: every[self._aliases.get(name, name)].clone() for name in self._state_names}

    def member(self, index: int) -> dict[str, Tensor]:
        """One member of the present step as a state dict of the model.

        Raises:
            InputError: there is no such member.
        """
        part = self._range(range(index, index + 1))
        own = {n: t.squeeze(0).to(self._dtypes[n]) for n, t in self._materialised(part, list(self._dtypes)).items()}
        every = {**self._unused, **self._fixed, **own}
        return {name: every[self._aliases.get(name, name)].clone() for name in self._state_names}

    def state_dict(self) -> dict[str, Any]:
        """All that changes while it trains, and the settings that the noise follows from: numbers, text and tensors.

        ``torch.save`` and ``torch.load(..., weights_only=True)`` keep it.
        """
        tensors = {
            part: {name: tensor.cpu().clone() for name, tensor in getattr(self.state, part).items()}
            for part in ("weights", "first", "second")
        }
        return {**self._settings(), "step": self.step, **tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, as if nothing had come between.

        Raises:
            InputError: it is of a population with other settings, or of another model. Nothing has changed then.
        """
        expected = self._settings()
        tensors = ("weights", "first", "second")
        if not isinstance(state, Mapping) or {*expected, "step", *tensors} != set(state):
            raise InputError(f"The state of a population has {[*expected, 'step', *tensors]}.")
        if wrong := {name: state[name] for name, value in expected.items() if state[name] != value}:
            ours = {name: expected[name] for name in wrong}
            raise InputError(f"The state is of a population with {wrong}; this one has {ours}.")
        if not _integer(state["step"], 0, 2**62):
            raise InputError(f"step must be a number of updates, however: {state['step']!r}.")
        loaded: dict[str, dict[str, Tensor]] = {}
        for part in tensors:
            given = state[part]
            wanted = self.state.weights if part == "weights" or given else {}
            if not isinstance(given, Mapping) or given.keys() != wanted.keys():
                raise InputError(f"{part!r} of the state are not those of this model: {sorted(wanted)[:5]}.")
            for name, tensor in given.items():
                if not isinstance(tensor, Tensor) or tensor.shape != wanted[name].shape:
                    raise InputError(f"{part!r} of the state: {name!r} must have shape {list(wanted[name].shape)}.")
            loaded[part] = {n: t.to(self.device, wanted[n].dtype, copy=True) for n, t in given.items()}
        self.state = State(state["step"], **loaded)
        self._kept = {}

    def _settings(self) -> dict[str, Any]:
        return {"members": self.count, "seed": self.seed, "rank": self.rank, "optimizer": self._ascent.optimizer}

    def _reference(self) -> dict[str, Tensor]:
        return {name: weight.to(self._dtypes[name]) for name, weight in self.state.weights.items()}

    def _range(self, members: range | None) -> range:
        if members is None:
            return range(self.count)
        fine = isinstance(members, range) and members.step == 1 and 0 <= members.start < members.stop <= self.count
        if not fine:
            raise InputError(f"members must be a range within range(0, {self.count}), however: {members!r}.")
        return members

    def _checked(self, fitness: Tensor | Sequence[float]) -> Tensor:
        try:
            found = torch.as_tensor(fitness).detach().to("cpu", torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"fitness must be {self.count} numbers, however: {error}.") from None
        if tuple(found.shape) != (self.count,):
            raise InputError(f"fitness must be one number for each of {self.count} members, got {list(found.shape)}.")
        if not bool(found.isfinite().all()):
            index = int((~found.isfinite()).nonzero()[0])
            raise InputError(
                f"The fitness of member {index} is {float(found[index])}; give a member that failed a low number."
            )
        return found

    def _grid(self, members: range) -> Iterator[range]:
        """The pairs of these members in pieces, always cut at the same places."""
        size = max(1, _DRAWN_BYTES // max(1, self._noise.nbytes))
        first, last = members.start // 2, (members.stop - 1) // 2
        for start in range(first - first % size, last + 1, size):
            yield range(start, min(start + size, self.count // 2))

    def _draw(self, pairs: range) -> dict[str, Tensor]:
        if pairs.start not in self._kept:
            noise = {name: t.to(self.device) for name, t in self._noise.draw(self.step_seed, pairs).items()}
            if (1 + len(self._kept)) * _DRAWN_BYTES > _KEPT_BYTES:
                return noise
            self._kept[pairs.start] = noise
        return self._kept[pairs.start]

    def _materialised(self, part: range, names: Sequence[str]) -> dict[str, Tensor]:
        """Full weights of some members, (members, *shape)."""
        (pairs,) = self._grid(part)
        noise, found = self._draw(pairs), {}
        for name in names:
            weight = self.state.weights[name]
            both = self._noise.both(name, noise, self.sigma)
            cut = [t[part.start - 2 * pairs.start : part.stop - 2 * pairs.start].to(weight.dtype) for t in both]
            found[name] = Factors("additive", *cut).materialise(weight) if len(cut) == 2 else weight + cut[0]
        return found

    def _outputs(
        self, inputs: Sequence[Tensor], members: range, chunk: int | None
    ) -> Iterator[tuple[range, tuple[Tensor, ...]]]:
        reference = self._reference()
        dense = [name for name in reference if name not in self._factored]
        for pairs in self._grid(members):
            part = range(max(members.start, 2 * pairs.start), min(members.stop, 2 * pairs.stop))
            noise = self._draw(pairs)
            stacked = {n: t.to(self._dtypes[n]) for n, t in self._materialised(part, dense).items()}
            for name in self._factored:
                for side, factor in zip((LEFT, RIGHT), self._noise.both(name, noise, self.sigma), strict=True):
                    cut = factor[part.start - 2 * pairs.start : part.stop - 2 * pairs.start]
                    stacked[name + side] = cut.to(self._dtypes[name])
            shared = {**self._fixed, **{name: reference[name] for name in self._factored}}
            start = part.start
            drawn = Members(len(part), shared, stacked, self._factored)
            for outputs in evaluate(self._program, drawn, inputs, chunk=chunk):
                stop = start + outputs[0].shape[0]
                yield range(start, stop), outputs
                start = stop


def _scheduled(name: str, schedule: Schedule, step: int) -> float:
    value = schedule(step) if callable(schedule) else schedule
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise RecipeError(f"{name} must be a finite number above 0, however: {value!r} at step {step}.")
    return float(value)


def _integer(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
