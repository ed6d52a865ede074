"""The service as it comes, on a free port, for as long as a benchmark asks it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

_PATIENCE = 120.0


@contextlib.contextmanager
def served(folder: Path, *arguments: str) -> Iterator[str]:
    """Serve FOLDER/models with adaptation and more arguments; gives the URL once all is loaded."""
    log = folder / f"log{''.join(arguments)}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ENSEMBLED_")}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve", "--models", str(folder / "models"), "--port", "0",
             "--adaptation", "--no-compile", *arguments],
            stdout=subprocess.DEVNULL, stderr=stream, env=environment,
        )  # fmt: skip
    try:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end and process.poll() is None:
            found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", log.read_text())
            if found and httpx.get(f"{found[1]}/v2/health/ready", timeout=30).status_code == 200:
                yield found[1]
                return
            time.sleep(0.2)
        raise RuntimeError(f"the service did not become ready: {log.read_text()[-2000:]}")
    finally:
        process.terminate()
        process.wait()
