"""What TorchInductor compiles with, looked for where PyTorch looks: a compiler, its headers, and on a GPU CUDA's."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

_COMPILER = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
_TOOLKIT = Path("/usr/local/cuda")
# Of a toolkit's parts: its runtime, what that includes of the compiler's, and of the C++ library.
_CUDA_HEADERS = ("cuda_runtime_api.h", "crt/host_defines.h", "nv/target")


def lacking(device: torch.device) -> str:
    """What is not there to compile for a device with, and what to do; empty if all is."""
    named = os.environ.get("CXX")
    if shutil.which(_COMPILER if named is None else named) is None:
        return (
            f"there is no C++ compiler; install {_COMPILER}" if named is None else f"CXX names no compiler: {named!r}"
        )
    if not (Path(torch.__file__).parent / "include" / "torch").is_dir():
        return "PyTorch's headers were removed; install torch again"
    if device.type != "cuda":
        return ""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if torch.version.cuda and cuda_home() is None:
        return (
            "there are no CUDA headers; name a toolkit's directory by CUDA_HOME, or, with CUDA 13, "
            "pip install 'cuda-toolkit[cccl,crt]'"
        )
    return ""


def cuda_home() -> Path | None:
    """The directory of a CUDA toolkit with the headers of what runs on a GPU; None if there is none."""
    return next((home for home in _homes() if all((home / "include" / name).is_file() for name in _CUDA_HEADERS)), None)


def _homes() -> Iterator[Path]:
    """Where a toolkit may be, in PyTorch's order; last where pip puts one, where PyTorch does not look."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if value := os.environ.get(variable):
            yield Path(value)
    if (nvcc := shutil.which("nvcc")) is not None:
        yield Path(nvcc).parent.parent
    yield _TOOLKIT
    packages = importlib.util.find_spec("nvidia")
    major = (torch.version.cuda or "").partition(".")[0]
    for place in (packages.submodule_search_locations or ()) if packages else ():
        yield Path(place) / f"cu{major}"
