"""What a worker does: hold one way of running one model's members, prepare it, and time it when it is asked to."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import MODELS, RECIPES
from benchmarks.speed import ours, peers
from benchmarks.speed.environment import BRIEF
from benchmarks.speed.reference import difference

# Runs in one visit; more say nothing new.
_MOST = 50
# Seconds; for a longer call it makes no difference what the run before it left in the caches.
_LONG = 1.0


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of running members.

    Args:
        title: for tables.
        recipe: of its members.
        copies: how many times over it holds its weights, at most, while it prepares and runs.
        package: what must be installed; None for what this project needs anyway.
        whole: it runs all members at once, so that activations of all of them are held.
        environment: variables of its process, where they are not set already.
    """

    title: str
    recipe: str
    copies: float
    package: str | None = None
    whole: bool = True
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


# In the order of the tables' columns. This library has its threads wait as its service does, the others as they would.
WAYS = {
    "loop": Way("loop over modules", "dense", 1, whole=False),
    "dense": Way("ensembled, dense", "dense", 1.5, whole=False, environment=BRIEF),
    "low_rank": Way("ensembled, LowRank", "low_rank", 1.5, whole=False, environment=BRIEF),
    "rank1": Way("ensembled, Rank1", "rank1", 1.5, whole=False, environment=BRIEF),
    "vmap": Way("vmap", "dense", 1),
    "openvino": Way("OpenVINO", "dense", 3, "openvino"),
    "onnxruntime": Way("ONNX Runtime", "dense", 4, "onnxruntime"),
    "compile": Way("torch.compile(vmap)", "dense", 1.5),
    "jax": Way("JAX jit(vmap)", "dense", 2, "jax"),
}
PEERS: dict[str, Callable[[Any, int], peers.Prepare]] = {
    "loop": peers.loop,
    "vmap": peers.vmap,
    "compile": peers.compiled,
    "onnxruntime": peers.onnxruntime,
    "openvino": peers.openvino,
    "jax": peers.jax,
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A call that gave the right answers.

    Args:
        error: largest difference from the loop over members, relative to the largest magnitude.
        checked: members that were compared.
        seconds: until the first answer, compiling included.
        call: seconds of one more call.
        note: how it runs, if that is not said by its name.
    """

    error: float
    checked: int
    seconds: float
    call: float
    note: str


class Running:
    """One way of running one model's members, in a process of its own.

    Args:
        model: of :data:`benchmarks.models.MODELS`.
        way: of :data:`WAYS`.
        count: how many members.
        batches: numbers of rows.
        reference: the file of :func:`benchmarks.speed.reference.write` for this model and recipe.
        planning: seconds that this library may take for its plan, for each batch size.
    """

    def __init__(
        self, model: str, way: str, count: int, batches: Sequence[int], reference: Path, planning: float
    ) -> None:
        self.model, self.way, self.count, self.batches = model, way, count, sorted(batches)
        self.reference, self.planning = reference, planning
        self.calls: dict[int, peers.Call] = {}
        self.prepare_call: peers.Prepare | None = None
        self.planned: ours.Planned | None = None

    def start(self) -> float:
        """Make and hold the members; seconds."""
        begun = time.perf_counter()
        self.case = MODELS[self.model]()
        if self.way in RECIPES:
            self.planned = ours.Planned(self.case, self.way, self.count, self.batches, self.planning)
            self.prepare_call = self.planned.prepare
        else:
            self.prepare_call = PEERS[self.way](self.case, self.count)
        return time.perf_counter() - begun

    @torch.no_grad()
    def prepare(self, rows: int) -> Prepared:
        """Make a call for so many rows, and check what it gives.

        Raises:
            RefusedError: it gives other answers than the loop.
        """
        assert self.prepare_call is not None
        if self.planned is None:
            # The last call may hold weights of its own.
            self.calls.clear()
            gc.collect()
        begun = time.perf_counter()
        call = self.prepare_call(self.case.inputs(rows))
        outputs = peers.as_array(call())
        seconds = time.perf_counter() - begun
        error, checked = difference(outputs, self.reference, rows)
        del outputs
        self.calls[rows] = call
        note = self.planned.note(rows) if self.planned else ""
        (once,) = self._timed(call, 0.0)
        return Prepared(error, checked, seconds, once, note)

    @torch.no_grad()
    def run(self, rows: int, seconds: float) -> list[float]:
        """Seconds of each of a few runs, on caches that a run before them warmed.

        Args:
            rows: of what was prepared; of a peer, what was prepared last.
            seconds: about how long.
        """
        call = self.calls[rows]
        gc.collect()
        gc.disable()
        try:
            first = self._timed(call, 0.0)
            return first if first[0] > max(_LONG, seconds) else self._timed(call, seconds)
        finally:
            gc.enable()

    def _timed(self, call: peers.Call, seconds: float) -> list[float]:
        times: list[float] = []
        begun = time.perf_counter()
        while not times or (time.perf_counter() - begun < seconds and len(times) < _MOST):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return times
