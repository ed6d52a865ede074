"""Members of several separately trained models: perturbed members of each, in turn."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ensemble.errors import ModelError
from ensemble.members import Members, Progress, same_architecture
from ensemble.memory import require
from ensemble.perturbation.factors import Factors
from ensemble.program.capture import Captured, close
from ensemble.structured import LEFT, RIGHT

_SLICE_BYTES = 16 * 2**20


def model_seed(seed: int, number: int) -> int:
    """The seed of one model's members: the ensemble's own for the first, so that each has noise of its own."""
    if number == 0:
        return seed
    text = f"{seed}\0model {number}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"ensembled").digest(), "little") >> 1


def taken_apart(captured: Captured, models: Sequence[nn.Module]) -> list[Captured]:
    """The models as the first one was captured, each with its own weights.

    Args:
        captured: the first model.
        models: all of them, in evaluation mode.

    Raises:
        ModelError: another architecture, or a model that gives another answer than the first with its weights.
    """
    same_architecture(models)
    found = []
    for number, model in enumerate(models):
        own = dict([*model.named_parameters(), *model.named_buffers()])
        # Constants are no part of the state, and are the first model's.
        weights = {
            name: own[name].detach().to(weight.device) if name in own else weight
            for name, weight in captured.weights.items()
        }
        found.append(dataclasses.replace(captured, weights=weights))
        _check_answer(found[-1], number, model)
    return found


def _check_answer(captured: Captured, number: int, model: nn.Module) -> None:
    """Models may differ in what is no weight: a constant, a setting; then one program does not fit all."""
    program = captured.program
    with torch.no_grad(), program.exclusively():
        expected = program.results.flatten(program.arguments.call(model, captured.example), "output")
        got = program(captured.weights, captured.example)
    for spec, want, one in zip(program.outputs, expected, got, strict=True):
        if not close(one.to(want.device), want):
            raise ModelError(
                f"Model {number} gives another {spec.name!r} than model 0 with its weights: they differ in something "
                "that is not in the state dict (a constant, a setting), and cannot be one ensemble."
            )


def in_turn(count: int, number: int, models: int) -> int:
    """How many of ``count`` members are of this model."""
    return len(range(number, count, models))


def interleaved(parts: Sequence[Members]) -> Members:
    """One set of members of which member i is that of part i mod K with the number i // K.

    What is the same in all parts stays shared, and factors stay factors where they are on the same trained weight; all
    else is stacked in full. The parts' own weights are taken out of them one by one, so that there is no second copy.

    Args:
        parts: on one device. They are used up.

    Raises:
        MemoryLimitError: the members do not fit.
    """
    first = parts[0]
    count = sum(part.count for part in parts)
    names = [*first.dtypes]
    shared, stacked, factored = {}, {}, {}
    dense = [name for name in names if not _is_shared(parts, name) and not _is_factored(parts, name)]
    device = next(iter({**first.shared, **first.stacked}.values())).device
    require([(_one(first, name).dtype, _one(first, name).shape) for name in dense], count, device)
    for name in names:
        if _is_factored(parts, name):
            factored[name], shared[name] = first.factored[name], first.shared[name]
            for side in (LEFT, RIGHT):
                stacked[name + side] = _woven([part.stacked.pop(name + side) for part in parts], count)
        elif name not in dense:
            shared[name] = first.shared[name]
        else:
            weight = _one(first, name)
            out = torch.empty((count, *weight.shape), dtype=weight.dtype, device=device)
            for number, part in enumerate(parts):
                _fill(out[number :: len(parts)], part, name)
            stacked[name] = out
    return Members(count, shared, stacked, factored, _mixture(parts, count))


def _one(part: Members, name: str) -> Tensor:
    """A weight of one member, for its shape and dtype."""
    return part.shared[name] if name in part.shared else part.stacked[name][0]


def _is_shared(parts: Sequence[Members], name: str) -> bool:
    if any(name not in part.shared or name in part.factored for part in parts):
        return False
    return all(torch.equal(part.shared[name], parts[0].shared[name]) for part in parts[1:])


def _is_factored(parts: Sequence[Members], name: str) -> bool:
    forms = {part.factored.get(name) for part in parts}
    same = len(forms) == 1 and None not in forms
    return same and all(torch.equal(part.shared[name], parts[0].shared[name]) for part in parts[1:])


def _woven(tensors: Sequence[Tensor], count: int) -> Tensor:
    out = tensors[0].new_empty((count, *tensors[0].shape[1:]))
    for number, tensor in enumerate(tensors):
        out[number :: len(tensors)] = tensor
    return out


def _fill(out: Tensor, part: Members, name: str) -> None:
    """Write the full weights of a part's members, and take what they were from out of it."""
    if name in part.factored:
        left, right = part.stacked.pop(name + LEFT), part.stacked.pop(name + RIGHT)
        size = max(1, _SLICE_BYTES // max(1, out[0].numel() * out.element_size()))
        for start in range(0, part.count, size):
            some = slice(start, start + size)
            factors = Factors(part.factored[name].form, left[some], right[some])
            out[some] = factors.materialise(part.shared[name]).to(out.dtype)
    else:
        out[:] = part.stacked.pop(name) if name in part.stacked else part.shared[name]


def _mixture(parts: Sequence[Members], count: int) -> Tensor | None:
    """Each model has as much of the mixture as of the members, and its members what they have among themselves."""
    if all(part.mixture is None for part in parts):
        return None
    out = torch.empty(count, dtype=torch.float64)
    for number, part in enumerate(parts):
        equal = torch.full((part.count,), 1 / part.count, dtype=torch.float64)
        own = equal if part.mixture is None else part.mixture
        out[number :: len(parts)] = own * part.count / count
    return out / out.sum()


def one_of(progress: Progress | None, number: int, models: int) -> Progress | None:
    """What tells of one model's members as a part of all: each model counts for as much."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, models * total)
