"""Requests with 1, 8 and 64 different contexts: each answered with the weights of its own, together and one at a time.

    python -m benchmarks.contexts

First the library alone, on 64 rows; then `ensembled serve`, one row a request: one request after the other, 64 clients
whose requests get a call each (``--max-batch 1``), and 64 clients whose requests are merged. Progress goes to standard
error, the tables to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.contexts.serving import check, load, running
from benchmarks.contexts.work import ROWS, TITLES, answers, asked, build, measure
from benchmarks.load.questions import environment, machine
from benchmarks.speed.tables import markdown
from benchmarks.speed.worker import isolated
from benchmarks.telling import teller

CONTEXTS = (1, 8, 64)
# Ways of asking, each with the service's extra arguments and the number of clients.
_WAYS: tuple[tuple[tuple[str, ...], int], ...] = (((), 1), (("--max-batch", "1"), ROWS), ((), ROWS))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.contexts", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kinds", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--members", nargs="+", type=int, metavar="N", default=[1, 32], help="of the hypernetwork")
    parser.add_argument("--contexts", nargs="+", type=int, metavar="N", default=list(CONTEXTS), help="different ones")
    parser.add_argument("--seconds", type=float, default=5.0, help="of load for each figure (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="in which the ways of asking take turns; 0 for none")
    args = parser.parse_args(argv)
    say = teller()

    words = list(sys.argv[1:] if argv is None else argv)
    alone: list[list[str]] = []
    served: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        environment(Path(name) / "cache")
        about = isolated(machine, timeout=60)
        for kind in args.kinds:
            for members in args.members:
                title = [TITLES[kind], str(members)]
                models = Path(name) / f"{kind}-{members}"
                path = models / "contextual" / "1"
                isolated(build, kind, members, path, timeout=600)
                for contexts in args.contexts:
                    rates = isolated(measure, kind, members, contexts, path, timeout=600)
                    say(f"{', '.join(title)}, {contexts} contexts: {', '.join(f'{rate:.0f}' for rate in rates)} rows/s")
                    alone.append(library_row(title, contexts, rates))
                if args.rounds:
                    for contexts, found in _served(kind, models, args.contexts, args.seconds, args.rounds):
                        say(
                            f"served, {', '.join(title)}, {contexts} contexts: "
                            f"{', '.join(f'{rate:.0f}/s ({1000 * cost:.2g} ms)' for rate, cost in found)}"
                        )
                        served.append(served_row(title, contexts, found))
    print(f"# Weights of contexts\n\n{about}\n\n`{shlex.join(['python', '-m', 'benchmarks.contexts', *words])}`\n")
    print(
        f"## The library, {ROWS} rows\n\nRows a second. Plain: the hypernetwork and then the target, in PyTorch, one "
        "row and one member after the other. All ways give the same, to 1e-4.\n"
    )
    head = ["weights", "members", "contexts"]
    print(markdown([*head, "plain", "one at a time", "together", "times plain", "times one at a time"], alone))
    if served:
        print(
            "\n## Served, one row a request\n\nRequests a second, without compiled calls; milliseconds are processor "
            "time that a request takes the service. The clients have the same cores.\n"
        )
        ways = ["one after the other", f"{ROWS} clients, a call each", f"{ROWS} clients, merged"]
        print(
            markdown([*head, *ways, "times one after the other", "times a call each", "ms each", "ms merged"], served)
        )
    return 0


def library_row(title: Sequence[str], contexts: int, rates: tuple[float, float, float]) -> list[str]:
    """Of the first table.

    Args:
        rates: rows a second in plain PyTorch, one at a time, and together.
    """
    plain, one, together = rates
    return [*title, str(contexts), *(f"{r:,.0f}" for r in rates), f"{together / plain:.1f}", f"{together / one:.1f}"]


def served_row(title: Sequence[str], contexts: int, found: Sequence[tuple[float, float]]) -> list[str]:
    """Of the second table.

    Args:
        found: of each way of asking requests a second, and seconds of processor time a request.
    """
    (one, _), (each, alone), (merged, together) = found
    costs = [f"{1000 * alone:.2g}", f"{1000 * together:.2g}"]
    rates = [f"{rate:,.0f}" for rate in (one, each, merged)]
    return [*title, str(contexts), *rates, f"{merged / one:.1f}", f"{merged / each:.1f}", *costs]


def _served(
    kind: str, models: Path, contexts: Sequence[int], seconds: float, rounds: int
) -> Iterator[tuple[int, list[tuple[float, float]]]]:
    """Different contexts; of each way of asking the median of requests a second, and of processor time a request."""
    with running(models) as merging, running(models, "--max-batch", "1") as single:
        for number in contexts:
            rows, data = asked(kind, number), models / "rows.npz"
            np.savez(data, **rows)
            want = isolated(answers, models / "contextual" / "1", rows, timeout=120)
            for url in (merging, single):
                check(url, rows, want)
            found: list[list[tuple[float, float]]] = [[] for _ in _WAYS]
            # In turns, so that what else the machine does hits all.
            for _ in range(rounds):
                for (arguments, clients), results in zip(_WAYS, found, strict=True):
                    results.append(load(single if arguments else merging, data, clients, seconds))
            yield number, [(median(r for r, _ in results), median(c for _, c in results)) for results in found]


if __name__ == "__main__":
    sys.exit(main())
