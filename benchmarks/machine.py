"""What a figure was measured on: without that it says nothing. And how fast that machine can be at all."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import math
import os
import platform
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ensemble.memory import available

# Sizes of the buffers whose reading is timed: from what fits a core's own cache to what fits none.
SIZES = tuple(2**k for k in (17, 19, 21, 22, 23, 24, 25, 26, 28, 30))
# Products whose speed is measured, (rows, inner, columns): squares, and tall and wide ones as layers have them. Which
# of them a kernel is fastest on differs.
PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048), (1024, 784, 512), (4096, 512, 512), (256, 256, 4096))
# A product that the slowest kernel does in 0.2 s, and how much faster others must be for it to be left out.
_PROBE = (512, 512, 512)
_HOPELESS = 20


def describe(packages: Sequence[str] = ()) -> str:
    """Processor, threads, and versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    versions = [f"{package} {found}" for package in ("torch", *packages) if (found := version(package))]
    return (
        f"{name}, {cores()} cores, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        + ", ".join(versions)
    )


def version(package: str) -> str | None:
    """Of an installed package; None if it is not."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that can still be allocated, as the system and the control group say; 2⁶² where neither does."""
    free = available(torch.device("cpu"))
    return 2**62 if free is None else free


@dataclasses.dataclass(frozen=True)
class Limits:
    """The machine's ceilings, each the best of several ways and runs.

    Args:
        bandwidth: bytes/s of reading a buffer again and again, by the buffer's bytes: small ones come from a cache.
        float32: flop/s of a matrix product, by whichever kernel is fastest.
        bfloat16: the same in bfloat16.
    """

    bandwidth: dict[int, float]
    float32: float
    bfloat16: float

    @property
    def streaming(self) -> float:
        """Bytes/s from memory, which no cache holds."""
        return self.bandwidth[max(self.bandwidth)]

    def reading(self, nbytes: float) -> float:
        """Bytes/s of reading a working set of so many bytes: of the measured size next below, whose share of the
        caches is no smaller, so that what follows from it is a lower bound of time."""
        sizes = sorted(self.bandwidth)
        return self.bandwidth[sizes[max(0, bisect.bisect_right(sizes, nbytes) - 1)]]

    def seconds(self, nbytes: float, flops: float) -> float:
        """The least time for reading so many bytes once and for so many flops in float32."""
        return max(nbytes / self.reading(nbytes), flops / self.float32)

    def best(self, other: Limits) -> Limits:
        """The higher of both."""
        bandwidth = {size: max(speed, other.bandwidth[size]) for size, speed in self.bandwidth.items()}
        # What a larger buffer reaches, a smaller one can.
        for small, large in reversed(list(itertools.pairwise(sorted(bandwidth)))):
            bandwidth[small] = max(bandwidth[small], bandwidth[large])
        return Limits(bandwidth, max(self.float32, other.float32), max(self.bfloat16, other.bfloat16))


def limits(
    seconds: float = 8.0, sizes: Sequence[int] = SIZES, products: Sequence[tuple[int, int, int]] = PRODUCTS
) -> Limits:
    """Measure them, with the threads that PyTorch uses.

    Args:
        seconds: about how long.
        sizes: bytes of the buffers, powers of two; those that would take over a quarter of the free memory are left
            out.
        products: (rows, inner, columns) of the matrix products.
    """
    share = seconds / 2 / len(sizes)
    largest = min(max(sizes), 2 ** int(math.log2(max(2**20, free_memory() // 4))))
    buffer = torch.ones(largest // 4)
    bandwidth = {size: size / min(_reading(buffer[: size // 4], share)) for size in sizes if size <= largest}
    del buffer
    share = seconds / 4 / len(products)
    single = [speed for product in products for speed in _speeds(torch.float32, product, share).values()]
    # Without instructions for it, a large product takes minutes in bfloat16.
    probed = _speeds(torch.bfloat16, _PROBE, 0.0)
    usable = [name for name, speed in probed.items() if speed * _HOPELESS > max(single)]
    large = products if usable else ()
    half = [speed for product in large for speed in _speeds(torch.bfloat16, product, share, usable).values()]
    measured = Limits(bandwidth, max(single), max([*probed.values(), *half]))
    return measured.best(measured)


def _speeds(
    dtype: torch.dtype, product: tuple[int, int, int], seconds: float, among: Collection[str] | None = None
) -> dict[str, float]:
    """Flops a second of each kernel, or of those that are named, for one product."""
    rows, inner, columns = product
    kernels = multiplying(torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype))
    chosen = {name: call for name, call in kernels.items() if among is None or name in among}
    return {name: 2 * math.prod(product) / _fastest(call, seconds / len(chosen)) for name, call in chosen.items()}


@torch.no_grad()
def multiplying(a: Tensor, b: Tensor) -> dict[str, Callable[[], object]]:
    """Kernels that multiply two matrices, by name. The BLAS that PyTorch is built with need not be the fastest: on some
    processors oneDNN's kernels, which compiled calls use, and OpenVINO's take less than half as long.
    """
    calls: dict[str, Callable[[], object]] = {"blas": functools.partial(torch.mm, a, b)}
    # Operators of PyTorch's own compiler, which not every build has.
    with contextlib.suppress(AttributeError, RuntimeError):
        packed = torch.ops.mkldnn._reorder_linear_weight(b.t().contiguous(), len(a))
        call = functools.partial(torch.ops.mkldnn._linear_pointwise, a, packed, None, "none", [], "")
        # Whether it is there, by one row: where the processor lacks instructions for it, all would take minutes.
        torch.ops.mkldnn._linear_pointwise(a[:1], packed, None, "none", [], "")
        calls["onednn"] = call
    if a.dtype == torch.float32 and version("openvino"):
        calls["openvino"] = _in_openvino(a, b)
    return calls


def _in_openvino(a: Tensor, b: Tensor) -> Callable[[], object]:
    from ensemble.backends.openvino import openvino

    ov = openvino()
    given = ov.opset13.parameter(list(a.shape), ov.Type.f32)
    product = ov.opset13.matmul(given, ov.opset13.constant(b.numpy()), False, False)
    settings = {
        # Else it takes bfloat16 where the processor has it.
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = ov.compile_model(ov.Model([product], [given]), "CPU", settings).create_infer_request()
    arrays = [a.numpy()]
    return lambda: request.infer(arrays, share_inputs=True, share_outputs=True)[0]


def _reading(buffer: Tensor, seconds: float) -> list[float]:
    """Several kernels that read a buffer once: which of them is fastest depends on its size."""
    columns = 512
    matrix = buffer.view(-1, columns)
    # As members' weights are read at a batch of one: one product with a vector for each.
    members = buffer.view(-1, min(512, len(matrix)), columns)
    vector = torch.ones(columns)
    each = vector.expand(len(members), columns).unsqueeze(2)
    calls: list[Callable[[], object]] = [
        lambda: torch.sum(buffer),
        lambda: torch.mv(matrix, vector),
        lambda: torch.bmm(members, each),
        lambda: torch.dot(buffer, buffer),
    ]
    return [_fastest(call, seconds / len(calls)) for call in calls]


def _fastest(call: Callable[[], object], seconds: float) -> float:
    call()
    best, begun, runs = math.inf, time.perf_counter(), 0
    while runs < 3 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best
