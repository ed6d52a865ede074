"""Calls compiled by TorchInductor: one kernel for what eager PyTorch does in several passes over memory.

The vmapped call is traced once for a number of rows and members into plain operations and compiled for exactly those;
other batch sizes are padded to the next one. On a processor this takes a C++ compiler and seconds to a minute a shape,
so it is done ahead (PyTorch keeps what it compiled on disk, in ``TORCHINDUCTOR_CACHE_DIR``), and every failure only
means that there is no such call.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ensemble.errors import ModelError
from ensemble.members import Members
from ensemble.program import Program

# (own weights of ``chunk`` members, flat inputs of ``rows`` rows) -> flat outputs (chunk, rows, ...).
Call = Callable[[dict[str, Tensor], Sequence[Tensor]], tuple[Tensor, ...]]
# Activations of a compiled chunk should stay in the processor's cache.
_CACHE_BYTES = 16 * 2**20

# Its warnings are about tuning and mean nothing to whoever runs an ensemble; errors become a ModelError.
logging.getLogger("torch._inductor").setLevel(logging.ERROR)


def chunk_for(program: Program, members: int, rows: int) -> int:
    """How many members a compiled call should take: a divisor of all of them whose activations stay in the cache."""
    most = max(1, _CACHE_BYTES // max(1, program.activation_bytes * rows))
    return max(size for size in range(1, members + 1) if members % size == 0 and size <= most)


def compile_call(program: Program, members: Members, inputs: Sequence[Tensor], chunk: int) -> Call:
    """Compile the call for the shapes of these inputs and for ``chunk`` members.

    Args:
        program: an exported one.
        members: its weights.
        inputs: flat inputs, on the members' device.
        chunk: how many members at once.

    Raises:
        ModelError: it cannot be compiled here; the text says why.
    """
    own_names = [name for name in program.weight_names if name in members.stacked]
    shared = {name: weight for name, weight in members.shared.items() if name in program.weight_names}

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        common = dict(zip(shared, tensors, strict=False))
        own = dict(zip(own_names, tensors[len(shared) :], strict=False))
        rest = tensors[len(shared) + len(own_names) :]

        def one(mine: dict[str, Tensor]) -> tuple[Tensor, ...]:
            return program({**common, **mine}, rest)

        return torch.vmap(one, randomness="error")(own)

    first = members.slice(0, chunk)
    arguments = [*shared.values(), *(first[name] for name in own_names), *inputs]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with program.exclusively(), torch.no_grad():
                traced = make_fx(flat, tracing_mode="fake")(*arguments)
            # What was traced has nothing to do with the program any more, so calls go on while it is compiled.
            with torch.no_grad():
                # It takes any sequence of tensors, whatever its annotation says.
                compiled: Any = torch._inductor.compile(traced, arguments)  # type: ignore[arg-type]
                compiled(*arguments)
    except Exception as error:
        # The compiler is a world of its own: it may raise anything, a missing g++ among it.
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"This call cannot be compiled here: {line[:200]}") from error

    def call(own: dict[str, Tensor], batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(compiled(*shared.values(), *(own[name] for name in own_names), *batch))

    return call
