"""What the metrics look up: which models there are, the memory of the device, and what the service was made of."""

from __future__ import annotations

import platform

import torch

from app.collector import DeviceMemory, ModelState
from app.repository import Repository
from app.variants import Variants
from app.version import VERSION


def model_states(repository: Repository, variants: Variants) -> list[ModelState]:
    """Every version that is there; it is ready if something answers for it."""
    states = []
    # A copy, since models come and go on another thread.
    for entry in list(repository.entries.values()):
        if (model := entry.model) is None:
            states.append(ModelState(entry.name, entry.version, ready=False))
            continue
        made, kept = model.ensemble, variants.kept(model)
        states.append(
            ModelState(
                entry.name,
                entry.version,
                True,
                len(made),
                made.members.nbytes,
                model.max_batch,
                entry.compiling,
                len(kept),
                kept.nbytes,
                kept.hits,
                kept.misses,
            )
        )
    return states


def device_memory(device: torch.device) -> list[DeviceMemory]:
    """Of the device that the models are on; nothing for the CPU, whose memory is the process's."""
    if device.type != "cuda":
        return []
    number = torch.cuda.current_device() if device.index is None else device.index
    return [
        DeviceMemory(
            f"cuda:{number}",
            torch.cuda.get_device_properties(number).total_memory,
            torch.cuda.memory_reserved(number),
            torch.cuda.memory_allocated(number),
        )
    ]


def build(device: torch.device) -> dict[str, str]:
    """What the service was made of."""
    return {
        "version": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
    }
