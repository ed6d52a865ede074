"""TorchInductor, ahead of time: fused kernels in C++ on a processor, in Triton on a GPU.

What it compiles is a package with a shared library, run without Python's share of a call. It needs a C++ compiler, on a
GPU too: what starts the kernels is written in C++.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble.backends import toolchain
from ensemble.backends.chunks import with_any_weights
from ensemble.backends.declined import Declined
from ensemble.backends.job import Job
from ensemble.backends.tracing import trace
from ensemble.errors import first_line
from ensemble.members import Members

DEVICE = ""
SUFFIXES = (".pt2",)
PRECISIONS = ("float32",)
QUICK = False
chunks = with_any_weights


def missing(device: torch.device) -> str:
    """Why it cannot be used here; empty if it can."""
    return toolchain.lacking(device)


def build(job: Job, target: Path) -> None:
    """Compile a job to ``target`` with the suffix. Runs in the worker."""
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    if job.threads:
        torch.set_num_threads(job.threads)
    if job.device == "cuda":
        _prepare_for_cuda(job)
    traced, tensors = trace(job)
    with torch.no_grad():
        program = torch.export.export(traced, tuple(tensors))
        options = {"max_autotune": True} if job.device == "cuda" else {}
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(target.with_suffix(SUFFIXES[0])), inductor_configs=options
        )


def _prepare_for_cuda(job: Job) -> None:
    if (home := toolchain.cuda_home()) is not None:
        os.environ["CUDA_HOME"] = str(home)
    products, convolutions = job.tf32
    # Not by the newer settings: Inductor reads these as well, and PyTorch refuses to tell them once both were set.
    torch.set_float32_matmul_precision("high" if products else "highest")
    torch.backends.cudnn.allow_tf32 = convolutions


class Compiled:
    """A package that was loaded, with the weights that it is called with."""

    def __init__(self, job: Job, target: Path, members: Members, precision: str) -> None:
        package: Any = torch._inductor.aoti_load_package(str(target.with_suffix(SUFFIXES[0])))
        # The package's own call flattens and packs arguments, which takes longer than a small model.
        self._run = package.loader.run
        shared = [members.shared[spec.name] for spec in job.shared]
        # Views, which take longer to make than a small model to run.
        self._weights = {
            start: [*shared, *(members.stacked[spec.name][start : start + job.chunk] for spec in job.own)]
            for start in range(0, members.count, job.chunk)
        }

    def __call__(self, start: int, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs of members [start, start + chunk).

        Raises:
            Declined: these inputs make it fail, such as by an index that is out of range.
        """
        try:
            with torch.no_grad():
                return tuple(self._run([*self._weights[start], *(tensor.contiguous() for tensor in inputs)]))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Of the compiled code's own; what PyTorch says of the same inputs is for people.
            raise Declined(first_line(error)) from None
