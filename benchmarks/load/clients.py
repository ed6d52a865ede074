"""Who asks the services: a closed loop of clients in a process of its own, the same for each of them.

It has the cores of the service that it asks, so that whatever it takes for itself is missing there: a client in Python
takes about as long for a request as a service in Python does. wrk, which is written in C, takes next to nothing. It
asks where it is installed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.load.results import Cell
from benchmarks.load.services import FailedError

# Seconds of load before those that count.
_WARM_UP = 1.5
# Seconds for one answer.
_TIMEOUT = 60
_WRK = Path(__file__).with_name("wrk.lua")

# Asks a URL with a body from a file, by so many clients for so many seconds. It raises FailedError if it cannot ask.
Load = Callable[[str, Path, int, float], Cell]


def with_wrk(url: str, body: Path, clients: int, seconds: float) -> Cell:
    """By wrk, which takes whole seconds and looks at the status of an answer only."""
    for long in (_WARM_UP, seconds):
        words = ["--threads", "1", "--connections", str(clients), "--duration", f"{max(1, math.ceil(long))}s"]
        done = subprocess.run(
            ["wrk", *words, "--timeout", f"{_TIMEOUT}s", "--script", str(_WRK), url],
            capture_output=True,
            text=True,
            timeout=long + 150,
            check=False,
            env={**os.environ, "BODY": str(body)},
        )
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip())[-160:]
            raise FailedError(f"wrk ended with {done.returncode}: {said}")
    told = json.loads(done.stdout.splitlines()[-1])
    good = told["answers"] - told["refused"]
    # Its percentiles are those of all answers, and of the good ones only where there are no others.
    p50, p99 = (told["p50"], told["p99"]) if good > 0 and not told["refused"] else (None, None)
    return Cell(clients, good / told["seconds"], p50, p99, told["refused"] + told["lost"])


def with_load_tester(url: str, body: Path, clients: int, seconds: float) -> Cell:
    """By this project's own load tester, which looks at each answer."""
    settings: dict[str, Any] = {
        "--body": body, "--concurrency": clients, "--duration": seconds, "--warmup": _WARM_UP, "--json": "-",
        "--timeout": _TIMEOUT,
    }  # fmt: skip
    words = [str(word) for pair in settings.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "loadtest", url, *words],
        capture_output=True,
        text=True,
        timeout=seconds + 150,
        check=False,
    )
    if done.returncode != 0:
        raise FailedError(f"the load tester ended with {done.returncode}: {done.stderr.strip()[-160:]}")
    report = json.loads(done.stdout)
    latency = report["latency_ms"]
    return Cell(clients, report["throughput_rps"], latency["p50"], latency["p99"], report["requests"]["errors"])


LOADS: dict[str, Load] = {"wrk": with_wrk, "loadtest": with_load_tester}


def available() -> str:
    """The key of the one that takes least for itself of those that are installed."""
    return "wrk" if shutil.which("wrk") else "loadtest"
