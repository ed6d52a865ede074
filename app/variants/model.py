"""What requests to one model bring: checked when they come, and evaluated together."""

from __future__ import annotations

import asyncio
import dataclasses
import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import ensemble
from app.batching import Call, Outcome, OutOfMemory, non_finite_rows
from app.errors import BadRequest
from app.protocol import InferRequest, Perturbed, Question
from app.served import Served, is_out_of_memory, to_tensor
from app.variants.kept import Kept
from app.variants.limits import Limits, bringable
from app.variants.recipe import recipe_of, told
from ensemble.memory import human
from ensemble.variants.kind import Kind

# Bytes of weights that are looked at where requests are received; more, or of a new kind, on another thread.
_QUICK_BYTES = 2**18
# Kinds of perturbations and weights that are known to be quick.
_MOST_KNOWN = 4096
# Own weights of a variant that shares calls with others. To make larger ones takes long, others would wait for all of
# them, and being together gains them little.
_SHARING_BYTES = 2 * 2**20
# Own weights of the variants of a call that are made at once, beside those that are kept.
_AT_ONCE_BYTES = 128 * 2**20
_OWN = "the model's own members"


class Drawn(NamedTuple):
    """What members are drawn from; equal ones are the same members."""

    recipe: ensemble.Perturbation
    members: int
    seed: int


@dataclass(frozen=True, eq=False)
class Own:
    """What belongs to one request alone.

    Attributes:
        model: what it asks, held until it is answered.
        kind: of its members.
        source: what they are drawn from, or the weights that came with it, as they were checked.
        details: what the answer says so that it can be replayed.
    """

    model: Served
    kind: Kind
    source: Drawn | dict[str, Tensor]
    details: dict[str, Any]

    @property
    def key(self) -> Hashable:
        """Equal for the same members. Of weights that came each is unlike any other."""
        return self.source if isinstance(self.source, Drawn) else id(self.source)

    @property
    def sharing(self) -> Hashable:
        """What it has in common with those that may share its calls."""
        return self.kind if self.kind.nbytes <= _SHARING_BYTES else (self.kind, self.key)


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
        self.bringable = bringable(model.ensemble, limits)
        self.kept = Kept(limits.kept_bytes)
        # What was found out about perturbations but for their seeds; and which shapes of weights were seen.
        self._known: dict[tuple[Perturbed, tuple[type, ...]], tuple[ensemble.Perturbation, Kind, dict[str, Any]]] = {}
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
        # To Python 1, 1.0 and true are equal.
        key = unseeded, tuple(type(value) for _, value in asked.settings)
        found = self._known.get(key)
        if found is None:
            # A graph may be rewritten.
            found = await asyncio.to_thread(self._found_out, unseeded)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = found
        recipe, kind, replay = found
        details = {"seed": seed, "perturbation": {**replay, "seed": seed, "members": kind.count}}
        return Own(model, kind, Drawn(recipe, kind.count, seed), details)

    def _found_out(self, asked: Perturbed) -> tuple[ensemble.Perturbation, Kind, dict[str, Any]]:
        own = self.ensemble.origin.recipe
        recipe = recipe_of(asked, own)
        members = asked.members or min(len(self.ensemble), self._limits.members)
        try:
            settled, kind = self.ensemble.variants.perturbed(recipe, members)
        except ensemble.EnsembledError as error:
            raise BadRequest(f"the perturbation cannot be made: {error}") from None
        if kind.nbytes > self._limits.perturbed_bytes:
            fits = members * self._limits.perturbed_bytes // kind.nbytes
            fewer = f"{fits} at most" if fits else "fewer weights (include)"
            raise BadRequest(
                f"{members} members of this perturbation have {human(kind.nbytes)} of weights of their own and "
                f"{human(self._limits.perturbed_bytes)} are permitted: ask for {fewer}, or for a recipe with thin "
                "factors such as low_rank or rank1"
            )
        return settled, kind, told(recipe, own)

    def _given(self, model: Served, arrays: Mapping[str, Any]) -> Own:
        try:
            kind, given = self.ensemble.variants.checked({name: to_tensor(array) for name, array in arrays.items()})
        except ensemble.EnsembledError as error:
            raise BadRequest(f"the weights cannot be used: {error}") from None
        if kind.count > self._limits.members:
            raise BadRequest(f"weights may be of {self._limits.members} members at most, however: {kind.count}")
        most = max(self._limits.perturbed_bytes, self._limits.weight_bytes)
        if kind.nbytes > most:
            raise BadRequest(
                f"{kind.count} members of these weights have {human(kind.nbytes)} and {human(most)} are permitted: a "
                "weight without a dimension of members counts once for each of them, and so does one whose factors are "
                "multiplied out, as it is in no product"
            )
        details = {"members": kind.count, "seed": None, "weights": "request"}
        return Own(model, kind, given, details)

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
        source = own.source
        if not isinstance(source, Drawn):
            return self.ensemble.variants.formed(own.kind, source)
        weights = self.kept.get(source)
        if weights is None:
            weights = self.ensemble.variants.draw(source.recipe, own.kind, source.seed)
            self.kept.put(source, weights)
        return weights


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

    def kept(self, model: Served) -> Kept:
        """Drawn members of a model, none if nobody asked for any."""
        found = self._models.get(model)
        return Kept(0) if found is None else found.kept


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
