"""Members that requests bring: of a perturbation that they ask for, or of weights that come with them.

What a request brings is checked when it comes, from names and shapes, and becomes an :class:`Own`, which the batcher
hands through to the call. Requests whose members have the same kind share calls, each with its own; those that ask for
the very same perturbation are one variant in it. Drawn members are kept for a while, given ones never.
"""

from __future__ import annotations

import asyncio
import dataclasses
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ensemble
from app.batching import Call, Outcome, OutOfMemory, non_finite_rows
from app.errors import BadRequest
from app.protocol import Bringable, InferRequest, Perturbed, Question, WeightSpec
from app.served import DATATYPES, Served, is_out_of_memory, to_tensor
from ensemble.memory import human
from ensemble.perturbation import recipes
from ensemble.variants.variants import Kind

# Bytes of weights that are looked at where requests are received; more, or of a new kind, on another thread.
_QUICK_BYTES = 2**18
# Kinds of perturbations and weights that are known to be quick.
_MOST_KNOWN = 4096
# Own weights of the variants of a call that are made at once, beside those that are kept.
_AT_ONCE_BYTES = 128 * 2**20
# Recipes within recipes are no single values.
_NOT_SETTABLE = frozenset({"parts", "weights", "recipe"})
_NOT_PERMITTED = "this service permits no perturbations in requests (--max-perturbed-members is 0)"
_NO_WEIGHTS = "this service permits no weights in requests (--allow-weights)"
_OWN = "the model's own members"


@dataclass(frozen=True)
class Limits:
    """What requests may bring.

    Attributes:
        members: of a perturbation, or of weights.
        perturbed_bytes: own weights of a perturbation.
        kept_bytes: perturbations that are kept, of each model.
        weights: whether weights may come.
        weight_bytes: of all weights of a request.
    """

    members: int = 256
    perturbed_bytes: int = 32 * 2**20
    kept_bytes: int = 256 * 2**20
    weights: bool = False
    weight_bytes: int = 4 * 2**20


class Kept:
    """Drawn members by what they were drawn from; the least recently used go first. For one thread.

    Args:
        limit: bytes.

    Attributes:
        nbytes: of what is kept.
        hits, misses: how often something was there, or not.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._found: OrderedDict[Any, tuple[dict[str, Tensor], int]] = OrderedDict()
        self.nbytes = self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._found)

    def described(self) -> dict[str, int]:
        """How many there are, and how often they helped."""
        return {"count": len(self), "bytes": self.nbytes, "hits": self.hits, "misses": self.misses}

    def get(self, key: Any) -> dict[str, Tensor] | None:
        """What is kept under a key, now the most recently used; None if there is nothing."""
        if key not in self._found:
            self.misses += 1
            return None
        self.hits += 1
        self._found.move_to_end(key)
        return self._found[key][0]

    def put(self, key: Any, weights: dict[str, Tensor], nbytes: int) -> None:
        """Keep something, unless it alone is more than the limit."""
        if nbytes > self._limit or key in self._found:
            return
        self._found[key] = weights, nbytes
        self.nbytes += nbytes
        while self.nbytes > self._limit:
            _, (_, size) = self._found.popitem(last=False)
            self.nbytes -= size


@dataclass(frozen=True, eq=False)
class Own:
    """What belongs to one request alone.

    Attributes:
        model: what it asks, held until it is answered.
        kind: of its members.
        key: what its members are drawn from; equal ones are the same members. Of given ones it is unlike any other.
        given: its weights, if they came with it.
        details: what the answer says so that it can be replayed.
    """

    model: Served
    kind: Kind
    key: Any
    given: dict[str, Tensor] | None
    details: dict[str, Any]


class Variants:
    """What requests bring, of every model; of a model that is gone nothing is left.

    Args:
        limits: of all of them.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._models: weakref.WeakKeyDictionary[Served, ModelVariants] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._models)

    def of(self, model: Served) -> ModelVariants:
        """Those of one model."""
        if model not in self._models:
            self._models[model] = ModelVariants(model, self._limits)
        return self._models[model]


class ModelVariants:
    """What requests to one model bring, and what calls with it are made on.

    Args:
        model: which. It is not held, so that it goes when nobody asks it any more.
        limits: of each request, and of what is kept.

    Attributes:
        name, version, ensemble: of the model.
        max_batch: rows in one call; lowered when memory runs out.
        bringable: what the protocol may read.
        kept: drawn members; the engine's thread alone changes them.
    """

    def __init__(self, model: Served, limits: Limits) -> None:
        self.name = model.name
        self.version = model.version
        self.ensemble = model.ensemble
        self.max_batch = model.max_batch
        self._limits = limits
        self.bringable = _bringable(model.ensemble, limits)
        self.kept = Kept(limits.kept_bytes)
        # What was found out about perturbations but for their seeds; and which shapes of weights were seen.
        self._known: dict[Perturbed, tuple[ensemble.Perturbation, Kind, dict[str, Any]]] = {}
        self._seen: set[Any] = set()

    async def own(self, model: Served, request: InferRequest) -> Own | None:
        """What a request brings, checked; None if it brings nothing.

        Raises:
            BadRequest: it asks for what cannot be, or is over a limit; the text says which.
        """
        if request.perturbation is None and not request.weights:
            return None
        if request.perturbation is not None and request.weights:
            raise BadRequest("a request may bring a perturbation or weights, however: both")
        question = request.options.question
        if question.tolerance is not None:
            raise BadRequest(f"tolerance is for {_OWN}; leave it out beside a perturbation or weights")
        known = self.ensemble.variants.statistics
        for output in request.outputs:
            if output.name not in known:
                raise BadRequest(
                    f"output {output.name!r} is of what was fitted to {_OWN}, and cannot be asked for beside a "
                    "perturbation or weights"
                )
        if request.perturbation is not None:
            return await self._perturbed(model, request.perturbation)
        if question.members is not None:
            raise BadRequest(f"members is for {_OWN}; weights bring as many as they have")
        signature = tuple((name, array.shape) for name, array in sorted(request.weights.items()))
        if signature in self._seen and sum(array.nbytes for array in request.weights.values()) <= _QUICK_BYTES:
            return self._given(model, request.weights)
        # A graph may be rewritten, or many numbers are looked at.
        own = await asyncio.to_thread(self._given, model, request.weights)
        if len(self._seen) >= _MOST_KNOWN:
            self._seen.clear()
        self._seen.add(signature)
        return own

    async def _perturbed(self, model: Served, asked: Perturbed) -> Own:
        seed = self.ensemble.origin.seed if asked.seed is None else asked.seed
        unseeded = dataclasses.replace(asked, seed=None)
        found = self._known.get(unseeded)
        if found is None:
            # A graph may be rewritten.
            found = await asyncio.to_thread(self._found_out, unseeded)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[unseeded] = found
        recipe, kind, replay = found
        details = {"seed": seed, "perturbation": {**replay, "seed": seed, "members": kind.count}}
        return Own(model, kind, (recipe, kind.count, seed), None, details)

    def _found_out(self, asked: Perturbed) -> tuple[ensemble.Perturbation, Kind, dict[str, Any]]:
        recipe = self._recipe(asked)
        members = asked.members or min(len(self.ensemble), self._limits.members)
        try:
            settled, kind = self.ensemble.variants.perturbed(recipe, members)
        except ensemble.EnsembledError as error:
            raise BadRequest(f"the perturbation cannot be made: {error}") from None
        if kind.nbytes > self._limits.perturbed_bytes:
            fits = members * self._limits.perturbed_bytes // kind.nbytes
            raise BadRequest(
                f"{members} members of this perturbation have {human(kind.nbytes)} of weights of their own and "
                f"{human(self._limits.perturbed_bytes)} are permitted: ask for {fits} members at most, for a recipe "
                "with factors such as low_rank or rank1, or for fewer weights (include)"
            )
        return settled, kind, {"recipe": settled.name, **_told(settled)}

    def _recipe(self, asked: Perturbed) -> ensemble.Perturbation:
        own = self.ensemble.origin.recipe
        default = own.name if isinstance(own, ensemble.Perturbation) else None
        name = asked.recipe or default
        drawn = [known for known, cls in sorted(recipes.items()) if issubclass(cls, ensemble.Perturbation)]
        if name not in drawn:
            why = "none is given, and the model's own draws no members" if name is None else repr(name[:60])
            raise BadRequest(f"recipe must be one of {', '.join(drawn)}, however: {why}")
        kind = recipes[name]
        fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        given = dict(asked.settings)
        if unknown := sorted(set(given) - set(fields)):
            raise BadRequest(f"the recipe {name!r} has no setting {', '.join(unknown)}; it has {', '.join(fields)}")
        settings = {**(own.settings() if own is not None and name == default else {}), **given}
        needed = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
        if missing := [needs for needs in needed if needs not in settings]:
            raise BadRequest(f"the recipe {name!r} needs {', '.join(missing)}")
        try:
            made = kind.from_settings(settings)
        except (ensemble.EnsembledError, TypeError, ValueError) as error:
            raise BadRequest(f"the recipe {name!r} cannot have these settings: {error}") from None
        assert isinstance(made, ensemble.Perturbation)
        return made

    def _given(self, model: Served, arrays: Mapping[str, Any]) -> Own:
        try:
            kind, weights = self.ensemble.variants.brought({name: to_tensor(array) for name, array in arrays.items()})
        except ensemble.EnsembledError as error:
            raise BadRequest(f"the weights cannot be used: {error}") from None
        if kind.count > self._limits.members:
            raise BadRequest(f"weights may be of {self._limits.members} members at most, however: {kind.count}")
        if kind.nbytes > max(self._limits.perturbed_bytes, self._limits.weight_bytes):
            # Factors of a weight that is in no product, which are multiplied out.
            raise BadRequest(
                f"{kind.count} members of these weights have {human(kind.nbytes)} and "
                f"{human(self._limits.perturbed_bytes)} are permitted"
            )
        details = {"members": kind.count, "seed": None, "weights": "request"}
        return Own(model, kind, object(), weights, details)

    def compute(self, call: Call) -> Outcome:
        """Make one call, each row with the members of the request that it is from. Runs on the engine's thread.

        Raises:
            BadRequest: the model cannot be evaluated on these values.
            OutOfMemory: there is not enough memory for so many at once.
        """
        own, _ = call.owners[0]
        try:
            arrays = self._arrays(call, own)
        except ensemble.InputError as error:
            raise BadRequest(str(error)) from None
        except Exception as error:
            if isinstance(error, ensemble.MemoryLimitError) or is_out_of_memory(error):
                raise OutOfMemory(f"not enough memory for {len(call.owners)} variants") from error
            if not own.model.example_works():
                raise
            raise BadRequest(
                "the model cannot be evaluated on these values and with these members, although it can on its example"
            ) from error
        return Outcome(arrays, own.kind.count, non_finite_rows(arrays))

    def _arrays(self, call: Call, one: Own) -> dict[str, Any]:
        question = call.question
        assert isinstance(question, Question)
        made, kind, model = self.ensemble, one.kind, one.model
        # Requests for the same perturbation are one variant with the rows of all of them.
        owns: dict[Any, Own] = {}
        rows: dict[Any, list[int]] = {}
        start = 0
        for own, count in call.owners:
            owns.setdefault(own.key, own)
            rows.setdefault(own.key, []).extend(range(start, start + count))
            start += count
        tensors = {spec.name: to_tensor(call.inputs[spec.name]) for spec in model.inputs}
        flat = made.program.bind((tensors,), {}, made.device)
        target = model.target_of(call)
        keys = list(owns)
        at_once = max(1, _AT_ONCE_BYTES // max(1, kind.nbytes))
        found: dict[str, Any] = {}
        for first in range(0, len(keys), at_once):
            some = keys[first : first + at_once]
            places = [rows[key] for key in some]
            order = [row for place in places for row in place]
            prediction = made.variants.predict(
                kind,
                [self._weights(owns[key]) for key in some],
                [[_rows(tensor, place) for tensor in flat] for place in places],
                list(call.outputs),
                confidence_level=question.confidence_level,
                levels=question.levels,
                target=_target_rows(target, order),
            )
            for name, tensor in prediction.flat().items():
                array = tensor.cpu().numpy()
                if order == list(range(call.rows)):
                    found[name] = array
                    continue
                into = found.setdefault(name, np.empty((call.rows, *array.shape[1:]), array.dtype))
                into[order] = array
        return {name: found[name] for name in call.outputs}

    def _weights(self, own: Own) -> dict[str, Tensor]:
        if own.given is not None:
            return own.given
        weights = self.kept.get(own.key)
        if weights is None:
            recipe, _, seed = own.key
            weights = self.ensemble.variants.draw(recipe, own.kind, seed)
            self.kept.put(own.key, weights, own.kind.nbytes)
        return weights


def _rows(tensor: Tensor, rows: list[int]) -> Tensor:
    if rows[-1] - rows[0] + 1 == len(rows):
        return tensor[rows[0] : rows[-1] + 1]
    return tensor[torch.tensor(rows, device=tensor.device)]


def _target_rows(target: Any, rows: list[int]) -> Any:
    if target is None:
        return None
    if isinstance(target, Mapping):
        return {name: tensor[rows] for name, tensor in target.items()}
    return target[rows]


def _bringable(made: ensemble.Ensemble, limits: Limits) -> Bringable:
    drawn = [kind for kind in recipes.values() if issubclass(kind, ensemble.Perturbation)]
    named = frozenset(f.name for kind in drawn for f in dataclasses.fields(kind))  # type: ignore[arg-type]
    settings = named - _NOT_SETTABLE
    sizes = {name: tuple(empty.shape) for name, empty in made.program.empty_weights().items()}
    refusals = {}
    if not limits.members:
        refusals["perturbation"] = _NOT_PERMITTED
    if not limits.weights:
        refusals["weights"] = _NO_WEIGHTS
    weights = {
        name: WeightSpec(name, DATATYPES[made.members.dtypes[name]], (-1, *size))
        for name, size in sizes.items()
        if limits.weights and made.members.dtypes[name].is_floating_point
    }
    return Bringable(settings, limits.members, weights, limits.weight_bytes, refusals, frozenset(sizes))


def _told(recipe: ensemble.Perturbation) -> dict[str, Any]:
    """The settings that are not the recipe's own defaults, as JSON values; one pattern as text."""
    defaults = {f.name: f.default for f in dataclasses.fields(recipe)}  # type: ignore[arg-type]
    found = {}
    for name, value in recipe.settings().items():
        if getattr(recipe, name) != defaults[name]:
            found[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    return found
