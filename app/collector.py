"""Metrics of what is a state, and not counted: models and memory, looked up when the page is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

OF_VERSION = ("model", "version")


@dataclass(frozen=True)
class ModelState:
    """One version of a model, as the repository knows it now.

    Attributes:
        members, weight_bytes, max_batch: 0 while it is not loaded.
        compiling: whether its calls are being compiled.
        kept, kept_bytes: drawn members that are kept for requests that ask for perturbations.
        reused, drawn: how often such members were there, or had to be drawn.
    """

    name: str
    version: str
    ready: bool
    members: int = 0
    weight_bytes: int = 0
    max_batch: int = 0
    compiling: bool = False
    kept: int = 0
    kept_bytes: int = 0
    reused: int = 0
    drawn: int = 0


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of an accelerator, bytes: all of it, what PyTorch holds, and what tensors take of that."""

    device: str
    total: int
    reserved: int
    allocated: int


class States(Collector):
    """What is looked up and not counted."""

    def __init__(self, models: Callable[[], Iterable[ModelState]], devices: Callable[[], Iterable[DeviceMemory]]):
        self._models = models
        self._devices = devices

    def describe(self) -> Iterable[Metric]:
        # Without it the registry would collect once when this is registered, before there are models.
        return self._models_of([])

    def collect(self) -> Iterator[Metric]:
        yield from self._models_of(list(self._models()))
        devices = list(self._devices())
        for name, text in (
            ("total", "Memory of the device."),
            ("reserved", "Memory of the device that PyTorch holds."),
            ("allocated", "Memory of the device that tensors take."),
        ):
            family = GaugeMetricFamily(f"ensembled_device_memory_{name}_bytes", text, labels=["device"])
            for device in devices:
                family.add_metric([device.device], getattr(device, name))
            if devices:
                yield family

    def _models_of(self, states: Sequence[ModelState]) -> Iterator[Metric]:
        loaded = [state for state in states if state.ready]
        for name, text, shown in (
            ("model_ready", "1 if the version can answer.", [(s, s.ready) for s in states]),
            ("model_compiling", "1 while its calls are being compiled.", [(s, s.compiling) for s in loaded]),
            ("model_members", "Members of a loaded version.", [(s, s.members) for s in loaded]),
            ("model_weight_bytes", "Bytes of its weights.", [(s, s.weight_bytes) for s in loaded]),
            (
                "model_max_batch_rows",
                "Rows in one call; less once memory has run out.",
                [(s, s.max_batch) for s in loaded],
            ),
            ("kept_perturbations", "Perturbations that are kept.", [(s, s.kept) for s in loaded]),
            ("kept_perturbation_bytes", "Bytes that they take.", [(s, s.kept_bytes) for s in loaded]),
        ):
            family = GaugeMetricFamily(f"ensembled_{name}", text, labels=OF_VERSION)
            for state, value in shown:
                family.add_metric([state.name, state.version], float(value))
            yield family
        found = CounterMetricFamily(
            "ensembled_perturbations",
            "Perturbations that calls needed: kept or drawn.",
            labels=(*OF_VERSION, "found"),
        )
        for state in loaded:
            found.add_metric([state.name, state.version, "kept"], state.reused)
            found.add_metric([state.name, state.version, "drawn"], state.drawn)
        yield found
