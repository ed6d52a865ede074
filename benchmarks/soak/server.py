"""The service, as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

# Small enough that requests are split, wait and are refused.
MAX_BATCH, MAX_QUEUE = 16, 128
HEAD_SECONDS, BODY_SECONDS = 1.0, 1.5
_START = 90.0
_END = 60.0


class FailedError(Exception):
    """The service did not start; the text has the end of its log."""


class Server:
    """`ensembled serve` on a free port, with management and low limits.

    Args:
        models: directory of models.
        log: file for its log, a JSON object a line.
        compile: whether calls are compiled beside.
    """

    def __init__(self, models: Path, log: Path, *, compile: bool = False) -> None:
        self.log = log
        settings = [
            "--models", models, "--port", 0, "--management", "--log-format", "json", "--max-batch", MAX_BATCH,
            "--max-queue", MAX_QUEUE, "--head-timeout", HEAD_SECONDS, "--body-timeout", BODY_SECONDS,
            "--max-body", 2**20, "--max-inflated-body", 2**21, "--default-model", "reader",
            "--compile" if compile else "--no-compile",
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ENSEMBLED_")}
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "serve", *map(str, settings)],
                stdout=subprocess.DEVNULL,
                stderr=stream,
                env=environment,
            )

    def wait_ready(self) -> int:
        """The port, once every model can answer.

        Raises:
            FailedError: it ended, or took too long.
        """
        end = time.monotonic() + _START
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.text())
            if found and httpx.get(f"http://127.0.0.1:{found[1]}/v2/health/ready", trust_env=False).status_code == 200:
                return int(found[1])
            time.sleep(0.05)
        raise FailedError(f"the service did not become ready: {self.text()[-500:]}")

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self) -> None:
        """Ask it to end."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int | None:
        """Its exit status; None if it does not end."""
        try:
            return self.process.wait(_END)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
