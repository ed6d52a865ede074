"""This service beside FastAPI with a loop and with vmap, LitServe and Ray Serve, on the same members.

    python -m benchmarks.load

Each service runs alone, must answer rightly, and is then asked by a closed loop of clients: one row a request, JSON.
Progress goes to standard error, the tables to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.load.clients import LOADS, available
from benchmarks.load.questions import Bare, Questions, check, environment, machine, prepare
from benchmarks.load.results import Group, Results, table, whole
from benchmarks.load.services import OURS, SERVICES, FailedError, running
from benchmarks.speed.worker import RefusedError, Worker, isolated
from benchmarks.telling import positive, teller

_RECIPES = ("dense", "low_rank", "rank1")
# Of the bare call and a single client in turns.
_ROUNDS = 5


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.load", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cases", nargs="+", choices=("mlp", "cnn"), default=["mlp"])
    parser.add_argument("--recipes", nargs="+", choices=_RECIPES, default=list(_RECIPES))
    parser.add_argument("--services", nargs="+", choices=SERVICES, default=list(SERVICES))
    parser.add_argument("--members", type=positive, metavar="N", default=128)
    parser.add_argument("--clients", nargs="+", type=positive, metavar="N", default=[1, 32])
    parser.add_argument(
        "--by",
        choices=LOADS,
        default=available(),
        help="who asks: wrk, or this project's load tester (default: wrk where it is installed)",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of load for each row of a table (default: 10)")
    parser.add_argument(
        "--patience",
        type=float,
        default=300.0,
        help="seconds in which this service must have compiled its calls (default: 300)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.by == "wrk" and not shutil.which("wrk"):
        parser.error("wrk is not installed; leave --by out, or install it")
    say = teller()

    words = list(sys.argv[1:] if argv is None else argv)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        environment(Path(folder) / "cache")
        # In a process of its own, which has the threads that the services will have.
        results = Results(
            isolated(machine, timeout=60), shlex.join(["python", "-m", "benchmarks.load", *words]), args.by
        )
        for case in args.cases:
            for recipe in args.recipes:
                group = _measure(args, case, recipe, Path(folder), say)
                results.groups.append(group)
                print(table(group) + "\n", flush=True)
                # What was measured is kept even if the run does not come to its end.
                if args.json:
                    args.json.write_text(json.dumps(results.plain(), indent=1))
                if args.markdown:
                    args.markdown.write_text(whole(results))
    print(results.machine)
    return 0 if all(group.cells for group in results.groups) else 1


def _measure(args: argparse.Namespace, case: str, recipe: str, folder: Path, say: Callable[[str], None]) -> Group:
    models = folder / f"{case}-{recipe}"
    path = models / case / "1"
    say(f"{args.members} {recipe} members of {case}")
    questions: Questions = isolated(prepare, case, recipe, args.members, path, timeout=args.patience)
    group = Group(case, recipe, args.members)
    for key in args.services:
        service, ours = SERVICES[key], SERVICES[key] is OURS
        bodies = questions.bodies(ours)
        try:
            with running(service, models, case, bodies[0], args.patience, folder / f"{key}.log") as url:
                group.differences[key] = check(url, questions, ours)
                file = folder / "body.json"
                file.write_bytes(bodies[0])
                cells = [LOADS[args.by](url, file, clients, args.seconds) for clients in args.clients]
                if ours:
                    _beside_the_bare_call(group, path, case, url, file, args)
        except FailedError as error:
            group.reasons[key] = str(error)
            say(f"{service.title}: {error}")
            continue
        group.cells[key] = cells
        say(f"{service.title}: " + ", ".join(f"{c.throughput:.0f}/s with {c.clients}" for c in cells))
    return group


def _beside_the_bare_call(group: Group, path: Path, case: str, url: str, body: Path, args: argparse.Namespace) -> None:
    """A single client and the library's own call take turns, so that a machine that slows down slows both."""
    with Worker(Bare, path, case) as worker:
        try:
            group.how = worker.ask("how", timeout=args.patience)
            for _ in range(_ROUNDS):
                bare = worker.ask("seconds", args.seconds / _ROUNDS / 2, timeout=args.patience)
                if (single := LOADS[args.by](url, body, 1, args.seconds / _ROUNDS).p50) is not None:
                    group.bare.append(1000 * bare)
                    group.single.append(single)
        except (RefusedError, FailedError) as error:
            group.reasons["ensembled"] = f"the bare call: {error}"


if __name__ == "__main__":
    sys.exit(main())
