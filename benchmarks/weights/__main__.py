"""Requests that ask for a perturbation, or bring weights: together, and one at a time.

    python -m benchmarks.weights

A small classifier is asked by 64 clients, one row a request, whose requests have 1, 8 or 64 different keys (or sets of
weights), or each a new one. The same service with calls of one row (``--max-batch 1``) is what each request alone would
take. Progress goes to standard error, the tables to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.load.questions import environment, machine
from benchmarks.load.services import FailedError, end
from benchmarks.speed.tables import markdown
from benchmarks.speed.worker import isolated
from benchmarks.weights.asking import CLIENTS, NEW, ask, check, fresh, requests_of
from benchmarks.weights.library import REQUESTS, measure
from benchmarks.weights.work import build

KEYS = (1, 8, 64)
_START = 90.0
_TITLES = {"kept": "perturbation", "weights": "weights", "drawn": "perturbation, a new seed each"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.weights", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--members", type=int, default=32, metavar="N", help="of each request (default: 32)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of load for each figure (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="in which both services take turns (default: 3)")
    args = parser.parse_args(argv)
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"{(time.monotonic() - begun) / 60:6.1f} min  {text}", file=sys.stderr, flush=True)

    words = list(sys.argv[1:] if argv is None else argv)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        environment(Path(folder) / "cache")
        about = isolated(machine, timeout=60)
        path = Path(folder) / "models" / "digits" / "1"
        isolated(build, path, timeout=120)
        cells = [("kept", keys) for keys in KEYS] + [("weights", keys) for keys in KEYS] + [("drawn", 64)]
        alone: list[tuple[str, int, float, float]] = []
        for kind, keys in cells:
            one, other = isolated(measure, path, args.members, keys, kind, timeout=300)
            say(f"library, {_TITLES[kind]}, {keys}: {one:.0f}/s one at a time, {other:.0f}/s together")
            alone.append((kind, keys, one, other))
        served: list[tuple[str, int, float, float]] = []
        with running(path.parents[1], "--max-batch", "1") as single, running(path.parents[1]) as batched:
            for kind, keys in cells:
                requests = isolated(requests_of, path, args.members, keys, kind, timeout=300)
                rates: dict[str, list[float]] = {single: [], batched: []}
                for url in rates:
                    check(url, requests[: 2 * keys])
                parts = itertools.count()
                for _ in range(args.rounds):
                    for url, found in rates.items():
                        if kind == "drawn":
                            part = next(parts) * NEW
                            requests = isolated(fresh, path, args.members, part, timeout=300)
                        found.append(isolated(ask, url, requests, args.seconds, timeout=args.seconds + 120))
                one, other = (sorted(found)[len(found) // 2] for found in rates.values())
                say(f"served, {_TITLES[kind]}, {keys}: {one:.0f}/s one at a time, {other:.0f}/s together")
                served.append((kind, keys, one, other))
    print("# Members of requests' own\n")
    print(f"{about}\n\n`{shlex.join(['python', '-m', 'benchmarks.weights', *words])}`\n")
    print(
        f"{args.members} rank-1 members a request on an MLP of 64-128-128-10, one row a request. Requests a second.\n"
    )
    print(f"## The library, {REQUESTS} requests\n\n{_table(alone)}\n")
    print(f"## Served, {CLIENTS} clients\n\n{_table(served)}")
    return 0


def _table(cells: Sequence[tuple[str, int, float, float]]) -> str:
    return markdown(
        ["requests bring", "different ones", "one at a time", "together", "times"],
        [
            [
                _TITLES[kind],
                "all" if kind == "drawn" else str(keys),
                f"{one:,.0f}",
                f"{other:,.0f}",
                f"{other / one:.1f}",
            ]
            for kind, keys, one, other in cells
        ],
    )


@contextmanager
def running(models: Path, *arguments: str) -> Iterator[str]:
    """A service; yields where its model is asked."""
    log = models.parent / f"log{len(arguments)}"
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "app.cli", "serve", "--models", str(models), "--port", "0", "--allow-weights"]
        process = subprocess.Popen(
            [*command, "--no-compile", "--log-format", "json", *arguments],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            yield _wait(process, log)
        finally:
            end(process)


def _wait(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            message = json.loads(line).get("message", "")
            if message.startswith("listening on "):
                url = message.removeprefix("listening on ").split()[0]
                if httpx.get(f"{url}/v2/health/ready", trust_env=False).status_code == 200:
                    return f"{url}/v2/models/digits/infer"
        time.sleep(0.1)
    raise FailedError(f"the service did not start: {log.read_text()[-300:]}")


if __name__ == "__main__":
    sys.exit(main())
