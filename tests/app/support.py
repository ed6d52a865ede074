"""A real service for the tests: small models that are built in a second, and `ensembled serve` as a process."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from prometheus_client.parser import text_string_to_metric_families
from torch import Tensor, nn

import ensemble
from tests.scenarios import GaussianHead

ROOT = Path(__file__).parents[2]
HELD = Path(__file__).with_name("held.py")
# Long, since the machine may be busy; nothing that goes well takes it.
PATIENCE = 60.0
MEMBERS = 6


class Pair(nn.Module):
    """Two inputs, one of them integers; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.table = nn.Linear(4, 5), nn.Embedding(10, 5)
        self.policy, self.value = nn.Linear(5, 3), nn.Linear(5, 1)

    def forward(self, features: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        hidden = self.dense(features).tanh() + self.table(tokens).mean(1)
        return {"policy": self.policy(hidden), "value": self.value(hidden).squeeze(-1)}


def rows_of(model: str, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of a model of :func:`build_models`."""
    generator = np.random.default_rng([seed, rows])
    wide = {"classes": 4, "house": 5, "weather": 3, "pair": 4}[model]
    dense = generator.normal(size=(rows, wide)).astype(np.float32)
    if model != "pair":
        return {"input" if model in ("classes", "house") else "x": dense}
    return {"features": dense, "tokens": generator.integers(0, 10, (rows, 2))}


def build_models(root: Path) -> None:
    """classes/1 and classes/2, house/1, weather/1, pair/1."""
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    house = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    recipe = ensemble.Gaussian(scale=0.2)
    about = {"description": "Three kinds.", "class_names": ["a", "b", "c"]}
    for seed in (1, 2):
        x = torch.randn(4, 4)
        made = ensemble.perturb(
            classifier, recipe, members=MEMBERS, seed=seed, example=x, task="classification", metadata=about
        )
        made.save(root / "classes" / str(seed))
    made = ensemble.perturb(
        house, recipe, members=MEMBERS, example=torch.randn(3, 5), task="regression", noise_variance=0.25
    )
    made.save(root / "house" / "1")
    ensemble.perturb(GaussianHead(), recipe, members=MEMBERS, example=torch.randn(3, 3), task="gaussian").save(
        root / "weather" / "1"
    )
    example = {"features": torch.randn(3, 4), "tokens": torch.randint(10, (3, 2))}
    ensemble.perturb(Pair(), recipe, members=MEMBERS, example=example, task="raw").save(root / "pair" / "1")


def askable(made: ensemble.Ensemble) -> list[str]:
    """The statistics that need nothing but the model's inputs, by name."""
    return [name for name, s in made.available_statistics().items() if "target" not in s.uses]


def expected(made: ensemble.Ensemble, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> Any:
    """What the library itself says, as arrays by name."""
    prediction = made.predict({name: torch.from_numpy(array) for name, array in inputs.items()}, statistics=outputs)
    return {name: tensor.numpy() for name, tensor in prediction.flat().items()}


def assert_same(got: Mapping[str, Any], want: Mapping[str, np.ndarray]) -> None:
    """Same names, shapes and numbers."""
    assert got.keys() == want.keys()
    for name, array in want.items():
        given = np.asarray(got[name])
        assert given.shape == array.shape, name
        np.testing.assert_allclose(given, array, rtol=1e-5, atol=1e-6, err_msg=name)


def plain_body(inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, Any]:
    """A body of the plain API."""
    lists = {name: array.tolist() for name, array in inputs.items()}
    body: dict[str, Any] = {"inputs": next(iter(lists.values())) if len(lists) == 1 else lists}
    return body | ({"outputs": list(outputs)} if outputs else {})


def v2_body(inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, Any]:
    """A body of V2, all in JSON."""
    tensors = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": "INT64" if array.dtype == np.int64 else "FP32",
            "data": array.ravel().tolist(),
        }
        for name, array in inputs.items()
    ]
    return {"inputs": tensors} | ({"outputs": [{"name": name} for name in outputs]} if outputs else {})


def v2_arrays(answer: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The outputs of a V2 answer in JSON."""
    return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer["outputs"]}


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for something to be true, and give it back."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited {PATIENCE:g} s in vain: {what}")


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without settings of a service; nothing is compiled unless a test asks for it."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("ENSEMBLED_")}
    return own | {"ENSEMBLED_COMPILE": "0"} | extra


def command(*arguments: Any, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `ensembled` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=PATIENCE,
        env=clean_environment(**environment),
        cwd=ROOT,
        check=False,
    )


class Server:
    """`ensembled serve` as a process of its own, on a free port.

    Args:
        log: file for its log.
        arguments: of `ensembled serve`.
        gate: directory; while GATE/load-NAME is there, model NAME is not loaded; while GATE/hold is there, calls wait.
    """

    def __init__(self, log: Path, *arguments: Any, gate: Path | None = None, **environment: str) -> None:
        self.log = log
        program = [str(HELD), str(gate)] if gate else ["-m", "app.cli"]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *program, "serve", "--port", "0", *map(str, arguments)],
                stdout=subprocess.DEVNULL,
                stderr=stream,
                # One thread, since several services and the tests share the machine; small batches load faster.
                env=clean_environment(**{"ENSEMBLED_THREADS": "1", "ENSEMBLED_MAX_BATCH": "16"} | environment),
                cwd=ROOT,
            )
        found = until(lambda: self._listening() or self.process.poll() is not None, "the service listens")
        assert found is not True, f"the service ended: {self.text()}"
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def _listening(self) -> re.Match[str] | None:
        return re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.text())

    def text(self) -> str:
        """The log until now."""
        return self.log.read_text()

    def wait_ready(self) -> Server:
        def settled() -> bool:
            states = [model["state"] for model in self.get("/v1/models").json()["models"]]
            return "LOADING" not in states and self.get("/v2/health/ready").status_code == 200

        until(lambda: settled() or "cannot be served" in self.text(), "the service is ready")
        assert settled(), self.text()
        return self

    def get(self, path: str, **rest: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE, **rest)

    def post(self, path: str, **rest: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=PATIENCE, **rest)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 if it is not there yet."""
        return metric(self.get("/metrics").text, name, **labels)

    def connection(self) -> socket.socket:
        """A raw connection to it."""
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def raw(self, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body that bytes on a connection of their own are answered with."""
        with self.connection() as connected:
            # Whoever is refused while still sending may see the connection end.
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    connected.sendall(piece)
            return read_answer(connected)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it and give its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextlib.contextmanager
def serving(log: Path, *arguments: Any, **rest: Any) -> Iterator[Server]:
    """A server that ends with the block, whatever happens."""
    server = Server(log, *arguments, **rest)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


def read_answer(connected: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (by their names in lower case) and body of an answer on a raw connection."""
    response = http.client.HTTPResponse(connected)
    response.begin()
    return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read()


def metric(page: str, name: str, **labels: str) -> float:
    """A value from a page of metrics: the sum over the samples with these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
