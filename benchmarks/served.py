"""The same members behind three services: FastAPI with a loop, FastAPI with plain vmap, and this one.

    python -m benchmarks.served

Each service runs alone, is asked for one row a request over HTTP and JSON by a closed loop of clients, and must give
the answers of the library before it is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from app.loadtest import Config, Report, run
from benchmarks.machine import describe
from benchmarks.models import CASES, RECIPES

SERVICES = ("FastAPI, loop over modules", "FastAPI, vmap", "ensembled")


@contextlib.contextmanager
def service(name: str, models: Path, case: str) -> Iterator[str]:
    """Start a service as a process of its own, and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m"]
    if name == "ensembled":
        command += ["app.cli", "serve", "--models", str(models), "--port", str(port), "--log-level", "warning"]
    else:
        way = "vmap" if name.endswith("vmap") else "loop"
        command += ["benchmarks.peer", way, str(models / case / "1"), case, "--port", str(port)]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/v2/health/ready").status_code == 200:
                    break
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}")
            time.sleep(0.1)
        else:
            raise RuntimeError(f"{name} was not ready within a minute")
        if name == "ensembled":
            while httpx.get(f"{url}/v1/models/{case}").json()["compiling"]:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def ask(url: str, name: str, body: Path, expected: np.ndarray, clients: int, seconds: float) -> Report:
    reply = httpx.post(f"{url}/predict", content=body.read_bytes(), headers={"content-type": "application/json"})
    given = np.array(reply.raise_for_status().json()["outputs"]["mean"])
    if not np.allclose(given, expected, atol=1e-4):
        raise RuntimeError(f"{name} gives other answers than the library")
    return run(Config(url=f"{url}/predict", body=body, concurrency=clients, duration=seconds, warmup=1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["dense", "low_rank"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--seconds", type=float, default=8.0, help="of load for each row of the table (default: 8)")
    args = parser.parse_args()
    console = Console(width=110, highlight=False)
    console.print(describe(("fastapi", "uvicorn", "pydantic")))
    with tempfile.TemporaryDirectory() as folder:
        for name, recipe in itertools.product(args.cases, args.recipes):
            case = CASES[name]()
            models = Path(folder) / f"{name}-{recipe}"
            made = case.ensemble(recipe)
            made.save(models / name / "1")
            row = case.rows(1)
            expected = made.predict(row, statistics=["mean"]).flat()["mean"].numpy()
            table = Table("clients", "", "requests/s", "p50 ms", "p99 ms", "errors", "times the loop")
            table.title = f"{case.name}, {case.members} {recipe} members, one row a request, JSON"
            results = {}
            for kind in SERVICES:
                # The peers take flat rows; this service takes the model's own shape.
                rows = row if kind == "ensembled" else row.flatten(1)
                body = Path(folder) / "body.json"
                question = {"inputs": rows.tolist()} | ({"outputs": ["mean"]} if kind == "ensembled" else {})
                body.write_bytes(orjson.dumps(question))
                with service(kind, models, name) as url:
                    for clients in args.clients:
                        results[clients, kind] = ask(url, kind, body, expected, clients, args.seconds)
            for clients in args.clients:
                for kind in SERVICES:
                    add_row(table, clients, kind, results[clients, kind], results[clients, SERVICES[0]])
                table.add_section()
            console.print(table)


def add_row(table: Table, clients: int, kind: str, report: Report, loop: Report) -> None:
    table.add_row(
        str(clients),
        kind,
        f"{report.throughput:.1f}",
        f"{report.latency_ms['p50'] or 0:.1f}",
        f"{report.latency_ms['p99'] or 0:.1f}",
        str(report.count - report.ok),
        f"{report.throughput / loop.throughput:.1f}",
    )


if __name__ == "__main__":
    main()
