"""Other members of an ensemble's model: of another recipe or seed, or with weights that somebody brings.

The model is a function of its weights already, so nothing is exported again and nothing that all members share is
copied. What differs from the ensemble is one set of members' own weights, a variant. Variants of one kind, with as many
members and own weights of the same shapes, are evaluated together, each on rows of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ensemble.condense import condense
from ensemble.errors import InputError, RecipeError
from ensemble.members import Members, bytes_of, draw_own, own_shapes
from ensemble.outputs import Outputs
from ensemble.perturbation import Perturbation
from ensemble.perturbation.factors import Factors, Shape
from ensemble.prediction import Prediction
from ensemble.program.program import Program, plain
from ensemble.structured import LEFT, RIGHT, factorable, factored_program, structures
from ensemble.tasks import heads
from ensemble.variants.grouped import as_rows, evaluate_groups, pad
from ensemble.vectorised import evaluate

if TYPE_CHECKING:
    from ensemble.ensemble import Ensemble

MAX_RANK = 256
# Own weights of the variants in one call stay below this.
_STACKED_BYTES = 64 * 2**20
# A rewritten program is small, but for its number there is no bound.
_MOST_PROGRAMS = 32
_MOST_KINDS = 1024

# What members have of their own: each (members, *shape); of a factored weight its factors.
OwnWeights = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What variants have in common that can be evaluated together.

    Args:
        count: members of each.
        own: name, dtype and shape of each tensor that a member has of its own.
        factored: weights of which these are factors, with their form, rank and shape.
        mixture: the members' weights in the mixture; None if all are equal.
    """

    count: int
    own: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
    factored: tuple[tuple[str, Shape], ...] = ()
    mixture: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        # It tells requests apart, many times for each.
        object.__setattr__(self, "_hash", hash((self.count, self.own, self.factored, self.mixture)))

    def __hash__(self) -> int:
        found: int = self.__dict__["_hash"]
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of one variant's own weights."""
        return self.count * bytes_of({name: (dtype, shape) for name, dtype, shape in self.own})

    @property
    def differing(self) -> list[str]:
        """Names of the weights that differ between members."""
        forms = dict(self.factored)
        sides = {name + side for name in forms for side in (LEFT, RIGHT)}
        return [*(name for name, _, _ in self.own if name not in sides), *forms]

    @property
    def weights(self) -> Tensor | None:
        """The members' weights in the mixture, (members,) float64."""
        return None if self.mixture is None else torch.tensor(self.mixture, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What becomes of given tensors: of which dtype and shape they are for one member, and which are multiplied out."""

    kind: Kind
    tensors: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
    materialised: tuple[str, ...]


class Variants:
    """Makes variants of one ensemble and evaluates them.

    One thread at a time may draw and evaluate; :meth:`perturbed` and :meth:`brought` may be called beside it.

    Args:
        made: the ensemble.

    Attributes:
        trained: the trained weights by name, as far as they are known.
    """

    def __init__(self, made: Ensemble) -> None:
        self._program = made.program
        self._device = made.device
        self._recipe = made.origin.recipe
        self._dtypes = made.members.dtypes
        self._sizes = {name: tuple(empty.shape) for name, empty in made.program.empty_weights().items()}
        shared = made.members.shared
        # As trained, from which members are drawn; and where and as what the members are, which they share.
        self.trained = {**shared, **made.origin.reference}
        self._placed = {
            name: shared[name] if name in shared else weight.to(self._device, self._dtypes[name])
            for name, weight in self.trained.items()
        }
        self._trainable = _trainable(made)
        self._outputs = Outputs(made.task, tuple(heads(made.task, made.program.outputs)), made.noise_variance)
        self._kinds: dict[tuple[Perturbation, int], tuple[Perturbation, Kind]] = {}
        self._programs: OrderedDict[tuple[tuple[str, Shape], ...], Program] = OrderedDict()
        if made.members.factored:
            self._programs[tuple(sorted(made.members.factored.items()))] = made.running
        self._forms: dict[tuple[tuple[str, Shape], ...], dict[str, Shape]] = {}
        self._plans: dict[Any, _Plan] = {}
        self._buffers: dict[str, Tensor] = {}

    @property
    def statistics(self) -> Collection[str]:
        """Names of what may be asked of variants, for which nothing was fitted."""
        return self._outputs.described()

    def perturbed(self, recipe: Perturbation, members: int) -> tuple[Perturbation, Kind]:
        """The recipe as it is settled for this model, and the kind of variant that it gives. Nothing is drawn.

        Raises:
            RecipeError: the recipe does not fit the model, or the model's trained weights are not known.
        """
        key = recipe, members
        found = self._kinds.get(key)
        if found is None:
            if self._trainable is None:
                raise RecipeError(_NO_REFERENCE if self._recipe is None else _SAVED_BEFORE)
            settled = recipe.settled(self._program)
            names = settled.select(self.trained, self._trainable)
            sizes = {name: tuple(self.trained[name].shape) for name in names}
            forms = self._factorable(structures(settled, {name: self.trained[name] for name in names}))
            mixture = settled.mixture(members)
            kind = self._kind(members, sizes, forms, None if mixture is None else tuple(mixture.tolist()))
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            self._kinds[key] = found = settled, kind
        return found

    def draw(self, recipe: Perturbation, kind: Kind, seed: int) -> dict[str, Tensor]:
        """A variant's own weights: those that :func:`ensemble.perturb` draws with the same values, bit for bit.

        Args:
            recipe, kind: from :meth:`perturbed`.

        Raises:
            MemoryLimitError: they do not fit.
        """
        shapes = {name: (dtype, shape) for name, dtype, shape in kind.own}
        return draw_own(
            recipe, self.trained, shapes, dict(kind.factored), count=kind.count, seed=seed, device=self._device
        )

    def brought(self, weights: Mapping[str, Tensor]) -> tuple[Kind, dict[str, Tensor]]:
        """A variant with weights that are given; all others are as trained.

        Args:
            weights: by name, of the weight's shape, or (members, *shape). Instead of a weight the factors of what is
                added to it may be given, W + L Rᵀ: L, (rows, rank), under the name + ".left" and R, (columns, rank),
                under the name + ".right", all dimensions of W after the first being its columns.

        Returns:
            The kind of variant, and its own weights.

        Raises:
            InputError: a name that is none, a wrong shape or dtype, numbers that are not finite, or members of
                different numbers.
        """
        if not weights:
            raise InputError("weights must hold at least one tensor.")
        signature = tuple((name, tensor.shape, tensor.is_floating_point()) for name, tensor in weights.items())
        plan = self._plans.get(signature)
        if plan is None:
            plan = self._plan(weights)
            if len(self._plans) >= _MOST_KINDS:
                self._plans.clear()
            self._plans[signature] = plan
        own: dict[str, Tensor] = {}
        for name, dtype, shape in plan.tensors:
            tensor = weights[name].detach().to(self._device, dtype)
            # The sum of what is finite may not be, but never the other way round.
            if not math.isfinite(float(tensor.sum())) and not bool(tensor.isfinite().all()):
                raise InputError(f"The weight {name!r} must hold finite numbers of {plain(dtype)}.")
            own[name] = tensor if tensor.ndim > len(shape) else tensor.expand(plan.kind.count, *shape)
        for name in plan.materialised:
            pair = Factors("additive", own.pop(name + LEFT), own.pop(name + RIGHT))
            own[name] = pair.materialise(self._placed[name]).to(self._dtypes[name])
        return plan.kind, {name: own[name] for name, _, _ in plan.kind.own}

    def _plan(self, weights: Mapping[str, Tensor]) -> _Plan:
        full, factors = self._sorted_out(weights)
        count = _count(weights, {**full, **factors})
        bases = {name: name if name in full else _factor_of(name)[0] for name in weights}
        forms = {
            bases[name]: Shape("additive", shape[1], self._sizes[bases[name]])
            for name, shape in factors.items()
            if name.endswith(LEFT)
        }
        kept = self._factorable(forms)
        # Whose use has no factored form, so that members are dense.
        materialised = tuple(name for name in forms if name not in kept)
        sizes = full | {name: form.size for name, form in forms.items()}
        tensors = tuple(
            (name, self._dtypes[bases[name]], full[name] if name in full else factors[name]) for name in weights
        )
        return _Plan(self._kind(1 if count is None else count, sizes, kept), tensors, materialised)

    def members(self, kind: Kind, own: OwnWeights) -> Members:
        """A variant as members; what they share is not copied."""
        sides = {name + side for name, _ in kind.factored for side in (LEFT, RIGHT)}
        shared = {n: w for n, w in self._placed.items() if n not in own or n in sides}
        return Members(kind.count, shared, dict(own), dict(kind.factored), kind.weights)

    def predict(
        self,
        kind: Kind,
        variants: Sequence[OwnWeights],
        inputs: Sequence[Sequence[Tensor]],
        statistics: Sequence[str] | None = None,
        *,
        confidence_level: float | None = None,
        levels: Sequence[float] | None = None,
        target: Any = None,
    ) -> Prediction:
        """Statistics of every variant's rows; what was fitted to the ensemble is not used.

        Args:
            kind, variants, inputs: as for :meth:`evaluate`.
            statistics, confidence_level, levels, target: as for :meth:`ensemble.Ensemble.predict`, of all rows.

        Returns:
            Of all rows, those of one variant after those of another, in the order of the variants.

        Raises:
            InputError, StatisticError: as there.
        """
        counts = [rows[0].shape[0] for rows in inputs]
        starts = [sum(counts[:place]) for place in range(len(counts))]
        found: dict[str, dict[str, Tensor]] = {}
        for places, chunks in self.evaluate(kind, variants, inputs):
            index = torch.tensor([starts[place] + row for place in places for row in range(counts[place])])
            asked = self._outputs.asked(
                statistics,
                sum(counts[place] for place in places),
                mixture=kind.weights,
                confidence_level=confidence_level,
                levels=levels,
                target=_of_rows(target, index),
            )
            part = condense(asked, chunks)
            if len(places) == len(counts) and places == sorted(places):
                found = part
                continue
            for head, named in part.items():
                for name, values in named.items():
                    into = found.setdefault(head, {})
                    if name not in into:
                        into[name] = values.new_empty((sum(counts), *values.shape[1:]))
                    into[name][index.to(values.device)] = values
        return Prediction(found, kind.count, len(self._outputs.heads) > 1)

    def evaluate(
        self, kind: Kind, variants: Sequence[OwnWeights], inputs: Sequence[Sequence[Tensor]]
    ) -> Iterator[tuple[list[int], Iterator[tuple[Tensor, ...]]]]:
        """Run the members of every variant on the variant's rows.

        Args:
            kind: of all of them.
            variants: their own weights.
            inputs: of each its flat inputs, (its rows, ...), on the device.

        Yields:
            Some of the variants, by their places, as many as are evaluated together; and chunks of their flat outputs,
            each (some members, rows, ...), which hold the rows of one of these variants after those of another. They
            are to be read before the next is asked for.
        """
        for places in _together([rows[0].shape[0] for rows in inputs], kind.nbytes):
            if len(places) == 1:
                (place,) = places
                members = dataclasses.replace(self.members(kind, variants[place]), mixture=None)
                yield places, evaluate(self._running(kind), members, list(inputs[place]))
            else:
                yield places, self._grouped(kind, [variants[p] for p in places], [inputs[p] for p in places])

    def _grouped(
        self, kind: Kind, variants: Sequence[OwnWeights], inputs: Sequence[Sequence[Tensor]]
    ) -> Iterator[tuple[Tensor, ...]]:
        padded, counts = pad(inputs)
        stacked = {name: self._stacked(name, [own[name] for own in variants]) for name, _, _ in kind.own}
        program = self._running(kind)
        for outputs in evaluate_groups(program, self._placed, stacked, padded):
            yield as_rows(outputs, program.outputs, counts)

    def _stacked(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """As ``torch.stack``, into memory that is used again: to get it anew takes longer than to fill it."""
        first = tensors[0]
        size = len(tensors) * first.numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != first.dtype:
            if sum(kept.nbytes for kept in self._buffers.values()) > _STACKED_BYTES:
                # Of other kinds.
                self._buffers.clear()
            self._buffers[name] = buffer = torch.empty(size, dtype=first.dtype, device=first.device)
        into = buffer[:size].view(len(tensors), *first.shape)
        return torch.stack(list(tensors), out=into)

    def _running(self, kind: Kind) -> Program:
        if not kind.factored:
            return self._program
        if kind.factored not in self._programs:
            self._programs[kind.factored] = factored_program(self._program, dict(kind.factored))
            if len(self._programs) > _MOST_PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(kind.factored)
        return self._programs[kind.factored]

    def _factorable(self, wanted: Mapping[str, Shape]) -> dict[str, Shape]:
        """Those of the weights that the program uses in products alone; found out once."""
        key = tuple(sorted(wanted.items()))
        found = self._forms.get(key)
        if found is None:
            found, _ = factorable(self._program, wanted)
            if len(self._forms) >= _MOST_KINDS:
                self._forms.clear()
            self._forms[key] = found
        return found

    def _kind(
        self,
        members: int,
        sizes: Mapping[str, tuple[int, ...]],
        forms: Mapping[str, Shape],
        mixture: tuple[float, ...] | None = None,
    ) -> Kind:
        shapes = own_shapes(dict(sorted(sizes.items())), forms, self._dtypes)
        own = tuple((name, dtype, shape) for name, (dtype, shape) in shapes.items())
        return Kind(members, own, tuple(sorted(forms.items())), mixture)

    def _sorted_out(
        self, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Whole weights and factors by their names, with the shape that a member's has."""
        full: dict[str, tuple[int, ...]] = {}
        factors: dict[str, tuple[int, ...]] = {}
        for name, tensor in weights.items():
            if name in self._dtypes:
                full[name] = self._sizes[name]
                continue
            base, side = _factor_of(name)
            if base not in self._dtypes:
                raise InputError(f"{name!r} is no weight of this model; it has {_listing(self._dtypes)}.")
            if base not in self.trained:
                raise InputError(f"{name!r} is added to a trained weight, and {_NO_REFERENCE}")
            size = self._sizes[base]
            if len(size) < 2:
                raise InputError(f"{base!r} is a vector and has no factors; give it whole.")
            if tensor.ndim < 2 or not 1 <= (rank := tensor.shape[-1]) <= MAX_RANK:
                raise InputError(f"{name!r} must be (rows, rank) with a rank from 1 to {MAX_RANK}.")
            factors[name] = (size[0] if side == LEFT else math.prod(size[1:]), rank)
            if base in weights:
                raise InputError(f"{base!r} must be given whole or as factors, not both.")
            other = base + (RIGHT if side == LEFT else LEFT)
            if other not in weights or weights[other].shape[-1:] != tensor.shape[-1:]:
                raise InputError(f"{name!r} must come with {other!r} of the same rank.")
        if missing := [name for name in self._dtypes if name not in self.trained and name not in full]:
            raise InputError(f"{_listing(missing)} must be given too: {_NO_REFERENCE}")
        for name, tensor in weights.items():
            shape = full[name] if name in full else factors[name]
            dtype = self._dtypes[name if name in full else _factor_of(name)[0]]
            if not dtype.is_floating_point or not tensor.is_floating_point():
                what = f"is {plain(dtype)} and stays as it is" if not dtype.is_floating_point else "must be floats"
                raise InputError(f"The weight {name!r} {what}, however: {plain(tensor.dtype)}.")
            own = tuple(tensor.shape)
            if shape not in (own, own[1:]) or 0 in own:
                many = ", ".join(["members", *map(str, shape)])
                raise InputError(
                    f"The weight {name!r} must have shape {list(shape)}, or [{many}], however: {list(own)}."
                )
        return full, factors


_NO_REFERENCE = (
    "this ensemble's members were trained separately or given, so that there are no trained weights that all of them "
    "come from."
)
_SAVED_BEFORE = (
    "this ensemble was saved by a version that did not keep which of its weights are parameters; build it again."
)


def _trainable(made: Ensemble) -> frozenset[str] | None:
    """Names of the model's parameters; None where they, or what they were as trained, are not known."""
    recipe, known = made.origin.recipe, {**made.members.shared, **made.origin.reference}
    if recipe is None or any(name not in known for name in made.members.dtypes):
        return None
    if made.origin.trainable is not None:
        return frozenset(made.origin.trainable)
    settings = recipe.settings()
    everything = settings.get("include") == ["*"] and not settings.get("exclude")
    return frozenset(made.origin.reference) if everything else None


def _factor_of(name: str) -> tuple[str, str]:
    """Which weight's factor this is by its name, and on which side; the name itself and nothing if it is none."""
    for side in (LEFT, RIGHT):
        if name.endswith(side):
            return name.removesuffix(side), side
    return name, ""


def _count(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """How many members the tensors are of; None if none has a dimension of members.

    Raises:
        InputError: they are of different numbers.
    """
    counts = {name: weights[name].shape[0] for name, shape in shapes.items() if weights[name].ndim > len(shape)}
    if len(set(counts.values())) > 1:
        raise InputError(f"All weights with a dimension of members must have as many of them, however: {counts}.")
    return next(iter(counts.values()), None)


def _together(rows: Sequence[int], nbytes: int) -> Iterator[list[int]]:
    """Places of the variants that go into one call: few of their rows would be made up, and their weights fit."""
    most = max(1, _STACKED_BYTES // max(1, nbytes))
    places: list[int] = []
    for place in sorted(range(len(rows)), key=lambda place: rows[place]):
        if places and (len(places) >= most or rows[place] > 2 * rows[places[0]]):
            yield places
            places = []
        places.append(place)
    if places:
        yield places


def _of_rows(target: Any, index: Tensor) -> Any:
    if isinstance(target, Mapping):
        return {name: _of_rows(tensor, index) for name, tensor in target.items()}
    return target[index.to(target.device)] if isinstance(target, Tensor) else target


def _listing(names: Mapping[str, object] | Sequence[str], most: int = 8) -> str:
    shown = ", ".join(map(repr, list(names)[:most]))
    return f"{shown}, ... ({len(names)} in all)" if len(names) > most else shown
