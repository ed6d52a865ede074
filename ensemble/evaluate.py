"""The one vmapped call, over chunks of members; and the plain loop that it must agree with."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ensemble.errors import ModelError
from ensemble.members import Members
from ensemble.program import Program

# Activations of one chunk of members stay below this. (A measured plan per batch size is to take its place.)
_ACTIVATION_BYTES = 256 * 2**20


def evaluate(
    program: Program,
    members: Members,
    inputs: Sequence[Tensor],
    *,
    count: int | None = None,
    chunk: int | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Run members on a batch, some at a time.

    Args:
        program: the model.
        members: its weights.
        inputs: flat inputs, on the members' device.
        count: only the first ``count`` members; all by default.
        chunk: how many members in one call; by default as many as keep their activations small.

    Yields:
        Flat outputs of the next members, each (members in this chunk, batch, ...).

    Raises:
        ModelError: the model does something that cannot be done for many members at once.
    """
    total = members.count if count is None else min(count, members.count)
    step = chunk or default_chunk(program, members, inputs)

    def one(own: dict[str, Tensor], flat: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return program({**members.shared, **own}, flat)

    many = torch.vmap(one, in_dims=(0, None), randomness="error")
    for start in range(0, total, step):
        with program.exclusively(), torch.no_grad(), _vmappable():
            try:
                outputs = many(members.slice(start, min(total, start + step)), tuple(inputs))
            except RuntimeError as error:
                raise _explained(error) from error
        yield outputs


def loop(program: Program, members: Members, inputs: Sequence[Tensor], indices: Sequence[int]) -> tuple[Tensor, ...]:
    """The reference: one member after the other, each with its own full weights.

    Returns:
        Flat outputs, each (len(indices), batch, ...).
    """
    with program.exclusively(), torch.no_grad(), _vmappable():
        each = [program(members.one(index), inputs) for index in indices]
    return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True))


def default_chunk(program: Program, members: Members, inputs: Sequence[Tensor]) -> int:
    """How many members to run in one call so that activations stay below a bound."""
    per_member = program.activation_bytes * inputs[0].shape[0]
    return max(1, min(members.count, _ACTIVATION_BYTES // max(1, per_member)))


@contextlib.contextmanager
def _vmappable() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            # A slow fallback is still right; which way is fastest is measured, not warned about.
            warnings.filterwarnings("ignore", message=".*batching rule.*")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _explained(error: RuntimeError) -> Exception:
    text = str(error)
    if "data-dependent control flow" in text or "vmap: It looks like you're" in text:
        return ModelError(
            "The model branches on, or reads as a Python number, a value that differs between members; replace "
            "that by torch.where or a tensor operation."
        )
    if "Batching rule not implemented" in text or "in-place arithmetic" in text or "randomness" in text:
        return ModelError(f"An operation of this model cannot run for many members at once: {text.splitlines()[0]}")
    return error
