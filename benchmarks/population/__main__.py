"""A step of an evolution strategy beside a plain loop over members with their full weights.

    python -m benchmarks.population

A step draws the members, scores each on a batch, and moves the weights. The loop draws noise of the same form, adds it
to the weights, and runs one member after the other; it is timed on some members and scaled to all. Progress goes to
standard error, the table to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load.questions import environment, machine
from benchmarks.population.work import Found, measure, works
from benchmarks.speed.tables import markdown
from benchmarks.speed.worker import isolated

CASES = ("small", "large")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.population", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--members", nargs="+", type=int, metavar="N", default=[128, 1024], help="of a step, even")
    parser.add_argument("--rows", type=int, default=64, help="of the batch that each is scored on (default: 64)")
    parser.add_argument("--repeats", type=int, default=7, help="steps whose median counts (default: 7)")
    parser.add_argument("--looped", type=int, default=64, metavar="N", help="members that the loop runs (default: 64)")
    args = parser.parse_args(argv)
    words = list(sys.argv[1:] if argv is None else argv)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        environment(Path(folder) / "cache")
        about = isolated(machine, timeout=60)
        cells: list[tuple[str, int, Found]] = []
        for key in args.models:
            for members in args.members:
                found = isolated(measure, key, members, args.rows, args.repeats, args.looped, timeout=1800)
                cells.append((works(1)[key].name, members, found))
                print(
                    f"{(time.monotonic() - begun) / 60:6.1f} min  {cells[-1][0]}, {members} members: "
                    f"{1000 * found.step:.3g} ms a step, the loop {1000 * found.loop:.3g} ms",
                    file=sys.stderr,
                    flush=True,
                )
    command = shlex.join(["python", "-m", "benchmarks.population", *words])
    print(f"# A step of an evolution strategy\n\n{about}\n\n`{command}`\n")
    print(
        f"Rank 1, float32, {args.rows} rows a member. Scores and gradients differ from those of the members as plain "
        f"modules by at most {max(found.difference for _, _, found in cells):.1e} of the largest.\n"
    )
    print(table(cells))
    return 0


def table(cells: Sequence[tuple[str, int, Found]]) -> str:
    heading = [
        "network",
        "members",
        "draw, ms",
        "score, ms",
        "update, ms",
        "step, ms",
        "members/s",
        "loop, ms",
        "times",
    ]
    return markdown(
        heading,
        [
            [
                name,
                f"{members:,}",
                *(f"{1000 * part:.3g}" for part in (found.draw, found.evaluate, found.update, found.step)),
                f"{members / found.step:,.0f}",
                f"{1000 * found.loop:,.0f}",
                f"{found.loop / found.step:.1f}",
            ]
            for name, members, found in cells
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
