"""The service, asked for one row a request: how many answers a second it gives, and what they cost it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.load.services import FailedError, end

_START = 90.0


@contextmanager
def running(models: Path, *arguments: str) -> Iterator[str]:
    """A service that is ready; yields its URL."""
    log = models / f"log{len(arguments)}"
    with log.open("wb") as stream:
        words = ["serve", "--models", str(models), "--port", "0", "--no-compile", "--log-format", "json", *arguments]
        command = [sys.executable, "-m", "app.cli", *words]
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
        try:
            yield _ready(process, log)
        finally:
            end(process)


def check(url: str, rows: dict[str, NDArray[np.float32]], want: NDArray[np.float32]) -> None:
    """That answers are right, before any is timed.

    Raises:
        FailedError: one is not.
    """
    body = {"inputs": {name: array.tolist() for name, array in rows.items()}, "outputs": ["mean"]}
    answer = httpx.post(f"{url}/predict", json=body, timeout=60, trust_env=False)
    if answer.status_code != 200:
        raise FailedError(f"the service answers {answer.status_code}: {answer.text[:200]}")
    difference = float(np.abs(np.array(answer.json()["outputs"]["mean"]) - want).max())
    if difference > 1e-4:
        raise FailedError(f"the service's answers differ from the library's by {difference:.2g}")


def load(url: str, data: Path, clients: int, seconds: float) -> tuple[float, float]:
    """By the project's own load tester, which is a process of its own.

    Args:
        data: the rows, which come in turn.
        clients: each of which waits for its answer before it asks again.

    Returns:
        Requests a second, and seconds of processor time that one took the service (NaN where the system does not tell).

    Raises:
        FailedError: the load tester could not ask, or got an error.
    """
    words = [url, "--data", str(data), "--concurrency", str(clients), "--outputs", "mean", "--duration", str(seconds)]
    words += ["--timeout", "60", "--json", "-", "--max-error-rate", "0"]
    before = spent(url)
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "loadtest", *words],
        capture_output=True,
        text=True,
        timeout=seconds + 150,
        check=False,
    )
    after = spent(url)
    if done.returncode != 0:
        raise FailedError(f"the load tester ended with {done.returncode}: {done.stderr.strip()[-160:]}")
    rate: float = json.loads(done.stdout)["throughput_rps"]
    return rate, (after[0] - before[0]) / max(1.0, after[1] - before[1])


def spent(url: str) -> tuple[float, float]:
    """Seconds of processor time, and rows that calls were made for, since the service began."""
    text = httpx.get(f"{url}/metrics", timeout=60, trust_env=False).text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    rows = sum(float(value) for name, value in lines.items() if name.startswith("ensembled_batch_rows_sum"))
    return float(lines.get("process_cpu_seconds_total", "nan")), rows


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            message = json.loads(line).get("message", "")
            if message.startswith("listening on "):
                url: str = message.removeprefix("listening on ").split()[0]
                if httpx.get(f"{url}/v2/health/ready", trust_env=False).status_code == 200:
                    return url
        time.sleep(0.1)
    raise FailedError(f"the service did not start: {log.read_text()[-300:]}")
