"""How good the uncertainty of one net's members is, beside the net itself, Monte-Carlo dropout and deep ensembles.

    python -m benchmarks.uncertainty --uci PATH

Progress goes to standard error, the tables to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.machine import describe
from benchmarks.telling import positive, teller
from benchmarks.uncertainty import classes, running, tables
from benchmarks.uncertainty.data import UCI, UNTUNED
from benchmarks.uncertainty.results import Record, Results
from benchmarks.uncertainty.settings import TRAINING
from benchmarks.uncertainty.training import Schedule

PARTS = ("uci", "untuned", "classes")
_PACKAGES = ("numpy", "scikit-learn", "laplace-torch")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.uncertainty", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--uci", type=Path, metavar="PATH", help="the folder of the UCI sets: " + ", ".join(UCI.values())
    )
    parser.add_argument("--splits", type=positive, default=20, help="of each regression (default: all 20)")
    parser.add_argument("--draws", type=positive, default=10, help="of each classification (default: 10)")
    parser.add_argument("--sets", nargs="+", metavar="SET", help="by default all of the parts that are asked for")
    parser.add_argument("--parts", nargs="+", metavar="PART", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--heads", nargs="+", metavar="HEAD", default=["variance", "point"], help="variance, point")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="of the fitted ones; by default all")
    parser.add_argument("--validate", action="store_true", help="half of the held-out rows in the place of test rows")
    parser.add_argument(
        "--schedule",
        nargs=3,
        type=float,
        metavar=("EPOCHS", "RATE", "DECAY"),
        help="how the regressions' nets are trained",
    )
    parser.add_argument("--quick", action="store_true", help="three splits and draws, and no auto: a few minutes")
    parser.add_argument("--workers", type=positive, help="processes, by default as many as there are cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every score there, too")
    parser.add_argument("--resume", action="store_true", help="leave out the data sets that the file of --json has")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    return _measure(parser, args, list(sys.argv[1:] if argv is None else argv))


def _measure(parser: argparse.ArgumentParser, args: argparse.Namespace, words: list[str]) -> int:
    # A process for each core: products as small as these nets' gain nothing from more threads.
    torch.set_num_threads(1)
    regressions = [*(UCI if "uci" in args.parts else ()), *(UNTUNED if "untuned" in args.parts else ())]
    everything = [*regressions, *(classes.SETS if "classes" in args.parts else ())]
    sets, methods = args.sets or everything, args.methods or running.known()
    for option, given, having in (
        ("--parts", args.parts, PARTS),
        ("--sets", sets, everything),
        ("--heads", args.heads, ("variance", "point")),
        ("--methods", methods, running.known()),
    ):
        if unknown := [name for name in given if name not in having]:
            parser.error(f"{option}: there is no {', '.join(unknown)}; there are {', '.join(having)}")
    if args.uci is None and any(name in UCI for name in sets):
        parser.error("--uci: say where the UCI sets are, or leave them out with --parts untuned classes")
    splits, draws = (min(3, count) if args.quick else count for count in (args.splits, args.draws))
    if args.quick:
        methods = [name for name in methods if name != "auto"]
    # Where files lie on this machine tells others nothing.
    words = ["PATH" if word in (str(args.uci), str(args.json), str(args.markdown)) else word for word in words]
    results = Results(describe(_PACKAGES) + ".", shlex.join(["python", "-m", "benchmarks.uncertainty", *words]))
    if args.resume and args.json and args.json.exists():
        results.records = [Record(**record) for record in json.loads(args.json.read_text())["records"]]
    done = {(record.table, record.head) for record in results.records}
    say = teller()

    def keep() -> None:
        # What was measured is kept even if the run does not come to its end.
        if args.json:
            args.json.write_text(json.dumps(results.plain(), indent=1))
        if args.markdown:
            args.markdown.write_text(tables.whole(results))

    try:
        with running.Workers(args.workers) as workers:
            for name in [name for name in sets if name in regressions]:
                table = running.table(args.uci, name, splits)
                for head in [head for head in args.heads if (name, head) not in done]:
                    schedule = TRAINING[head]
                    if args.schedule:
                        epochs, rate, decay = args.schedule
                        schedule = Schedule(int(epochs), rate, decay)
                    running.regression(
                        results, workers, table, head, methods, say, schedule=schedule, validate=args.validate
                    )
                    keep()
            for name in [name for name in sets if name not in regressions and (name, "classes") not in done]:
                classes.compare(results, workers, name, draws, methods, say)
                keep()
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        say("interrupted; the tables hold what was measured until now")
        print(tables.whole(results))
        return 130
    print(tables.whole(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
