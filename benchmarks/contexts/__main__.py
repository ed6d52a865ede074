"""Requests with 1, 8 and 64 different contexts: each answered with the weights of its own, together and one at a time.

    python -m benchmarks.contexts

First the library alone, on 64 rows; then `ensembled serve`, asked by 64 clients, one row a request, beside the same
service with calls of one row (``--max-batch 1``). Progress goes to standard error, the tables to standard output as
Markdown.
"""

from __future__ import annotations

import argparse
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
import numpy as np

from benchmarks.contexts.work import ROWS, asked, build, measure
from benchmarks.load.questions import environment, machine
from benchmarks.load.services import FailedError, end
from benchmarks.speed.tables import markdown
from benchmarks.speed.worker import isolated

CONTEXTS = (1, 8, 64)
_TITLES = {"full": "full weights of 64-16-10", "low_rank": "rank-2 deltas on 64-256-256-10"}
_START = 90.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.contexts", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kinds", nargs="+", choices=_TITLES, default=list(_TITLES))
    parser.add_argument("--members", nargs="+", type=int, metavar="N", default=[1, 32], help="of the hypernetwork")
    parser.add_argument("--seconds", type=float, default=5.0, help="of load for each figure (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="in which both services take turns; 0 for none")
    args = parser.parse_args(argv)
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"{(time.monotonic() - begun) / 60:6.1f} min  {text}", file=sys.stderr, flush=True)

    words = list(sys.argv[1:] if argv is None else argv)
    alone: list[list[str]] = []
    served: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        environment(folder / "cache")
        about = isolated(machine, timeout=60)
        for kind in args.kinds:
            for members in args.members:
                title = [_TITLES[kind], str(members)]
                for contexts in CONTEXTS:
                    plain, one, all_ = isolated(measure, kind, members, contexts, timeout=600)
                    say(
                        f"{title[0]}, {members} members, {contexts} contexts: {plain:.0f}, {one:.0f}, {all_:.0f} rows/s"
                    )
                    rates = [f"{rate:,.0f}" for rate in (plain, one, all_)]
                    alone.append([*title, str(contexts), *rates, f"{all_ / plain:.1f}", f"{all_ / one:.1f}"])
                if args.rounds:
                    for contexts, one, all_ in _served(kind, members, folder, args.seconds, args.rounds):
                        say(f"served, {title[0]}, {members} members, {contexts} contexts: {one:.0f}, {all_:.0f}/s")
                        rates = [f"{one:,.0f}", f"{all_:,.0f}"]
                        served.append([*title, str(contexts), *rates, f"{all_ / one:.1f}"])
    print(f"# Weights of contexts\n\n{about}\n\n`{shlex.join(['python', '-m', 'benchmarks.contexts', *words])}`\n")
    print(
        f"## The library, {ROWS} rows\n\nRows a second. Plain: the hypernetwork and then the target, in PyTorch, one "
        "row and one member after the other. All ways give the same, to 1e-4.\n"
    )
    head = ["weights", "members", "contexts"]
    print(markdown([*head, "plain", "one at a time", "together", "times plain", "times one at a time"], alone))
    if served:
        print(f"\n## Served, {ROWS} clients, one row a request\n\nRequests a second, without compiled calls.\n")
        print(markdown([*head, "one at a time", "together", "times"], served))
    return 0


def _served(kind: str, members: int, folder: Path, seconds: float, rounds: int) -> Iterator[tuple[int, float, float]]:
    """Different contexts, and requests a second one at a time and together."""
    models = folder / f"{kind}-{members}"
    isolated(build, kind, members, models / "contextual" / "1", timeout=300)
    with running(models, "--max-batch", "1") as single, running(models) as batched:
        for contexts in CONTEXTS:
            data = folder / "rows.npz"
            np.savez(data, **asked(contexts))
            rates: dict[str, list[float]] = {single: [], batched: []}
            for _ in range(rounds):
                for url, found in rates.items():
                    found.append(load(url, data, seconds))
            one, other = (sorted(found)[len(found) // 2] for found in rates.values())
            yield contexts, one, other


def load(url: str, data: Path, seconds: float) -> float:
    """Requests a second by the project's own load tester, which is a process of its own.

    Raises:
        FailedError: the load tester could not ask, or got an error.
    """
    words = [url, "--data", str(data), "--concurrency", str(ROWS), "--outputs", "mean", "--duration", str(seconds)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "app.cli",
            "loadtest",
            *words,
            "--timeout",
            "60",
            "--json",
            "-",
            "--max-error-rate",
            "0",
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 150,
        check=False,
    )
    if done.returncode != 0:
        raise FailedError(f"the load tester ended with {done.returncode}: {done.stderr.strip()[-160:]}")
    rate: float = json.loads(done.stdout)["throughput_rps"]
    return rate


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


if __name__ == "__main__":
    sys.exit(main())
