"""The one thread that owns the models.

``functional_call`` swaps tensors on the module that it is given, so two threads in one model would read each other's
weights. Everything that touches a model, loading included, runs on this thread, one call after the other, while the
event loop goes on answering.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from app.settings import DEVICE

T = TypeVar("T")


class DeviceError(Exception):
    """A device that this machine does not have; the text says what it has."""


class Engine:
    """A thread that runs one call at a time.

    Args:
        threads: how many threads one operation of PyTorch may use; its own choice by default.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine", initializer=self._begin)

    def _begin(self) -> None:
        torch.set_grad_enabled(False)
        if self._threads is not None:
            torch.set_num_threads(self._threads)

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """Run a call on the thread and wait for what it returns or raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def close(self) -> None:
        """Finish what was begun, and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def pick_device(setting: str) -> torch.device:
    """The device of a setting; "auto" takes CUDA where there is one.

    Raises:
        DeviceError: it is none, or CUDA is asked for and there is none.
    """
    if not DEVICE.fullmatch(setting):
        raise DeviceError(f"device must be cpu, cuda, cuda:N or auto, however: {setting!r}")
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(setting)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise DeviceError(
            f"device {setting!r} is not there: PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA "
            "devices; use --device cpu or auto"
        )
    return device
