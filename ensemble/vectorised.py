"""The one vmapped call, over chunks of members; and the plain loop that it must agree with."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ensemble.errors import InputError, ModelError
from ensemble.members import Members
from ensemble.planning.plan import LOOP
from ensemble.program.program import Program

# Activations of one chunk of members stay below this.
_ACTIVATION_BYTES = 256 * 2**20
_EXPORT_IT = "Export may turn it into operations that can: make the ensemble without live=True."
_settings = threading.Lock()
# PyTorch has no types for it.
_functorch: Any = torch._C._functorch
_calls = 0
_fast = True
# Outputs of small chunks are handed on together up to this size, since condensing them has a cost for each chunk.
_GATHERED_BYTES = 16 * 2**20


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
        chunk: how many members in one call, 0 for one after the other without vmap; by default as many as keep their
            activations small, or 0 where vmap refuses the model.

    Yields:
        Flat outputs of the next members, each (some members, batch, ...); several small chunks are yielded together.

    Raises:
        ModelError: a chunk is asked for, and the model does something that cannot be done for many members at once.
        InputError: a negative chunk.
    """
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 0):
        raise InputError(f"chunk must be a number of members, or 0 for the loop, however: {chunk!r}.")
    total = members.count if count is None else min(count, members.count)
    step = default_chunk(program, members, inputs) if chunk is None else chunk
    if step == LOOP or (chunk is None and program.looped_because):
        yield from gathered(_looped(program, members, inputs, total))
        return
    try:
        yield from gathered(_vmapped(program, members, inputs, total, step))
    except ModelError as error:
        # Refused with the first chunk, or not at all.
        if chunk is not None:
            raise
        program.looped_because = str(error)
        yield from gathered(_looped(program, members, inputs, total))


def gathered(chunks: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Outputs of several small chunks of members handed on together."""
    waiting: list[tuple[Tensor, ...]] = []
    size = 0
    for outputs in chunks:
        waiting.append(outputs)
        size += sum(output.numel() * output.element_size() for output in outputs)
        if size > _GATHERED_BYTES:
            yield _joined(waiting)
            waiting, size = [], 0
    if waiting:
        yield _joined(waiting)


def _vmapped(
    program: Program, members: Members, inputs: Sequence[Tensor], total: int, step: int
) -> Iterator[tuple[Tensor, ...]]:
    def one(own: dict[str, Tensor], flat: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return program({**members.shared, **own}, flat)

    many = torch.vmap(one, in_dims=(0, None), randomness="error")
    for start in range(0, total, step):
        with program.exclusively(), torch.no_grad(), vmappable():
            try:
                outputs = many(members.slice(start, min(total, start + step)), tuple(inputs))
            except RuntimeError as error:
                if refusal := refused(program, error):
                    raise refusal from error
                raise
        yield outputs


def _looped(program: Program, members: Members, inputs: Sequence[Tensor], total: int) -> Iterator[tuple[Tensor, ...]]:
    for index in range(total):
        with program.exclusively(), torch.no_grad(), vmappable():
            outputs = program(members.one(index), inputs)
        yield tuple(output.unsqueeze(0) for output in outputs)


def _joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))


def loop(program: Program, members: Members, inputs: Sequence[Tensor], indices: Sequence[int]) -> tuple[Tensor, ...]:
    """The reference: one member after the other, each with its own full weights.

    Returns:
        Flat outputs, each (len(indices), batch, ...).
    """
    with program.exclusively(), torch.no_grad(), vmappable():
        each = [program(members.whole(index), inputs) for index in indices]
    return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True))


def default_chunk(program: Program, members: Members, inputs: Sequence[Tensor]) -> int:
    """How many members to run in one call so that activations stay below a bound."""
    return max(1, min(members.count, fitting(program, inputs[0].shape[0])))


def fitting(program: Program, rows: int) -> int:
    """How many members' activations on so many rows stay below a bound; 0 if not even one's do."""
    return _ACTIVATION_BYTES // max(1, program.activation_bytes * rows)


def refused(program: Program, error: RuntimeError) -> ModelError | None:
    """What to tell of a call that failed because the model cannot run for many members at once; None if it is not."""
    reason = _reason(error)
    return ModelError(f"{reason} {_EXPORT_IT}" if program.live else reason) if reason else None


@contextlib.contextmanager
def vmappable() -> Iterator[None]:
    """Settings of the whole process; the first of several calls that overlap makes them and the last undoes them."""
    global _calls, _fast
    with _settings:
        if _calls == 0:
            # The fused path of nn.TransformerEncoderLayer has no batching rule. A slow fallback is still right; which
            # way is fastest is measured, not warned about.
            _fast = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            # There is no public switch for it, either.
            _functorch._set_vmap_fallback_warning_enabled(False)
        _calls += 1
    try:
        yield
    finally:
        with _settings:
            _calls -= 1
            if _calls == 0:
                torch.backends.mha.set_fastpath_enabled(_fast)
                _functorch._set_vmap_fallback_warning_enabled(True)


def _reason(error: RuntimeError) -> str | None:
    text = str(error)
    if "data-dependent control flow" in text or "vmap: It looks like you're" in text:
        return (
            "The model branches on, or reads as a Python number, a value that differs between members; replace "
            "that by torch.where or a tensor operation."
        )
    if "dynamic shape" in text:
        return (
            "The size of a value in this model depends on other values (a boolean mask as an index?), so it cannot run "
            "for many members at once; use torch.where, or multiply by the mask."
        )
    if text.startswith("vmap:") or "Batching rule not implemented" in text or "in-place arithmetic" in text:
        return f"An operation of this model cannot run for many members at once: {text.splitlines()[0]}"
    return None
