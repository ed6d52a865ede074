"""Room for what a recipe works with, asked before it is allocated (what members take is asked elsewhere)."""

from __future__ import annotations

import torch

from ensemble import memory
from ensemble.errors import MemoryLimitError


def require_room(nbytes: int, device: torch.device, what: str, cure: str) -> None:
    """Refuse work that will not fit.

    Args:
        nbytes: that it takes.
        device: where.
        what: takes them, as the subject of a sentence.
        cure: what to do about it.

    Raises:
        MemoryLimitError: more than is free.
    """
    free = memory.available(device)
    if free is not None and nbytes > free:
        raise MemoryLimitError(
            f"{what} would take {memory.human(nbytes)} on {device}, of which {memory.human(free)} is free: {cure}."
        )
