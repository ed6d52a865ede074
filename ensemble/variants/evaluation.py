"""Many variants of one kind, each on rows of its own, in as few calls as memory allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ensemble.condense import condense
from ensemble.members import Members
from ensemble.outputs import Outputs
from ensemble.prediction import Prediction
from ensemble.structured import LEFT, RIGHT
from ensemble.variants.grouped import as_rows, evaluate_groups, pad
from ensemble.variants.kind import Kind, OwnWeights
from ensemble.variants.programs import Programs
from ensemble.vectorised import evaluate

# Own weights of the variants in one call stay below this.
_STACKED_BYTES = 64 * 2**20


class Evaluation:
    """Evaluates variants of one model. For one thread at a time.

    Args:
        programs: that run them.
        shared: what all members share, where they have nothing of their own.
        outputs: of the model, without what was fitted to other members.
    """

    def __init__(self, programs: Programs, shared: Mapping[str, Tensor], outputs: Outputs) -> None:
        self._programs = programs
        self._shared = shared
        self._outputs = outputs
        self._buffers: dict[str, Tensor] = {}

    def members(self, kind: Kind, own: OwnWeights) -> Members:
        """A variant as members; what they share is not copied."""
        sides = {name + side for name, _ in kind.factored for side in (LEFT, RIGHT)}
        shared = {n: w for n, w in self._shared.items() if n not in own or n in sides}
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
        """As :meth:`Variants.predict`."""
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
        """As :meth:`Variants.evaluate`."""
        for places in _together([rows[0].shape[0] for rows in inputs], kind.nbytes):
            if len(places) == 1:
                (place,) = places
                members = dataclasses.replace(self.members(kind, variants[place]), mixture=None)
                yield places, evaluate(self._programs.running(kind), members, list(inputs[place]))
            else:
                yield places, self._grouped(kind, [variants[p] for p in places], [inputs[p] for p in places])

    def _grouped(
        self, kind: Kind, variants: Sequence[OwnWeights], inputs: Sequence[Sequence[Tensor]]
    ) -> Iterator[tuple[Tensor, ...]]:
        padded, counts = pad(inputs)
        stacked = {name: self._stacked(name, [own[name] for own in variants]) for name, _, _ in kind.own}
        program = self._programs.running(kind)
        for outputs in evaluate_groups(program, self._shared, stacked, padded):
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
