"""Requests that ask for a perturbation, or bring weights: together, and one at a time.

    python -m benchmarks.weights

A small classifier is asked by 64 clients, one row a request, whose requests have 1, 8 or 64 different keys (or sets of
weights), or each a new one. The same service with calls of one row (``--max-batch 1``) is what each request alone would
take. Progress goes to standard error, the tables to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.contexts.serving import running
from benchmarks.load.questions import environment, machine
from benchmarks.speed.tables import markdown
from benchmarks.speed.worker import isolated
from benchmarks.telling import teller
from benchmarks.weights.asking import CLIENTS, NEW, ask, check, fresh, requests_of
from benchmarks.weights.without_http import REQUESTS, measure
from benchmarks.weights.work import TITLES, build

KEYS = (1, 8, 64)
_TITLES = {"kept": "perturbation", "weights": "weights", "drawn": "perturbation, a new seed each"}
_ALONE = ("--allow-weights", "--max-batch", "1")
_MERGED = ("--allow-weights",)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.weights", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", choices=TITLES, default="mlp", help="default: mlp")
    parser.add_argument("--members", type=int, default=32, metavar="N", help="of each request (default: 32)")
    parser.add_argument("--keys", nargs="+", type=int, metavar="N", default=list(KEYS), help="different ones")
    parser.add_argument("--seconds", type=float, default=5.0, help="of load for each figure (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="in which both services take turns (default: 3)")
    args = parser.parse_args(argv)
    say = teller()

    words = list(sys.argv[1:] if argv is None else argv)
    cells = [*(("kept", keys) for keys in args.keys), *(("weights", keys) for keys in args.keys), ("drawn", REQUESTS)]
    alone: list[list[str]] = []
    served: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        environment(Path(folder) / "cache")
        about = isolated(machine, timeout=60)
        path = Path(folder) / "models" / "digits" / "1"
        isolated(build, path, args.model, timeout=120)
        for kind, keys in cells:
            one, other = isolated(measure, path, args.members, keys, kind, timeout=300)
            say(f"library, {_TITLES[kind]}, {keys}: {one:.0f}/s one at a time, {other:.0f}/s together")
            alone.append(row(kind, keys, one, other))
        for kind, keys, found in _served(path, args.members, cells, args.seconds, args.rounds):
            (one, cost), (other, together) = found
            say(f"served, {_TITLES[kind]}, {keys}: {one:.0f}/s a call each, {other:.0f}/s merged")
            costs = [f"{1000 * seconds:.2g}" for seconds in (cost, together)]
            served.append([*row(kind, keys, one, other), *costs])
    print(f"# Members of requests' own\n\n{about}\n\n`{shlex.join(['python', '-m', 'benchmarks.weights', *words])}`\n")
    print(f"{args.members} rank-1 members a request on {TITLES[args.model]}, one row a request. Requests a second.\n")
    head = ["requests bring", "different ones"]
    print(f"## The library, {REQUESTS} requests\n")
    print(markdown([*head, "one at a time", "together", "times"], alone))
    print(
        f"\n## Served, {CLIENTS} clients\n\nWithout compiled calls; milliseconds are processor time that a request "
        "takes the service. The clients have the same cores.\n"
    )
    print(markdown([*head, "a call each", "merged", "times", "ms each", "ms merged"], served))
    return 0


def row(kind: str, keys: int, one: float, other: float) -> list[str]:
    """The cells that both tables have, of requests a second one at a time and together."""
    many = "all" if kind == "drawn" else str(keys)
    return [_TITLES[kind], many, f"{one:,.0f}", f"{other:,.0f}", f"{other / one:.1f}"]


def _served(
    path: Path, members: int, cells: Sequence[tuple[str, int]], seconds: float, rounds: int
) -> Iterator[tuple[str, int, list[tuple[float, float]]]]:
    """Of each cell, for calls of one row and for merged ones, requests a second and processor time of one."""
    with running(path.parents[1], *_ALONE) as single, running(path.parents[1], *_MERGED) as merging:
        for kind, keys in cells:
            requests = isolated(requests_of, path, members, keys, kind, timeout=300)
            found: dict[str, list[tuple[float, float]]] = {single: [], merging: []}
            for url in found:
                check(url, requests[: 2 * keys])
            parts = itertools.count()
            # In turns, so that what else the machine does hits both.
            for _ in range(rounds):
                for url, results in found.items():
                    if kind == "drawn":
                        requests = isolated(fresh, path, members, next(parts) * NEW, timeout=300)
                    results.append(isolated(ask, url, requests, seconds, timeout=seconds + 120))
            yield kind, keys, [(median(r for r, _ in part), median(c for _, c in part)) for part in found.values()]


if __name__ == "__main__":
    sys.exit(main())
