"""N members of several models: a loop over modules, other ways to run them, this library, and the machine's limit.

    python -m benchmarks.speed

Progress goes to standard error, the tables to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.environment import BRIEF, settle
from benchmarks.telling import positive, teller

_MODELS = ("tiny", "mlp", "cnn", "resnet", "transformer", "lstm", "minilm")
_PACKAGES = ("onnxruntime", "onnx", "openvino", "jax", "torchvision", "transformers")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", metavar="MODEL", default=list(_MODELS))
    parser.add_argument("--members", nargs="+", type=positive, metavar="N", default=[16, 128, 1024])
    parser.add_argument("--rows", nargs="+", type=positive, metavar="B", default=[1, 8, 32])
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="by default all; the loop is always among them")
    parser.add_argument("--minutes", type=float, default=240, help="about how long all may take (default: 240)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of timing for each way in a cell (default: 1.5)")
    parser.add_argument(
        "--planning", type=float, default=25, help="seconds for this library's plan, a batch size (default: 25)"
    )
    parser.add_argument(
        "--patience", type=float, default=240, help="seconds after which one step of a way is given up (default: 240)"
    )
    parser.add_argument("--threads", type=positive, help="by default as many as there are cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time and figure there, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, too")
    parser.add_argument("--verbose", action="store_true", help="leave what the libraries print")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        settle(args.threads, folder, brief=False)
        return _measure(parser, args, Path(folder), list(sys.argv[1:] if argv is None else argv))


def _measure(parser: argparse.ArgumentParser, args: argparse.Namespace, folder: Path, words: list[str]) -> int:
    # Only now, since PyTorch reads its environment when it is imported.
    import torch

    from benchmarks.machine import describe
    from benchmarks.models import MODELS
    from benchmarks.speed import tables
    from benchmarks.speed.budget import LOOP
    from benchmarks.speed.results import Results
    from benchmarks.speed.running import WAYS
    from benchmarks.speed.schedule import Schedule, Settings

    for option, given, known in (("--models", args.models, MODELS), ("--ways", args.ways or [], WAYS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{option}: there is no {', '.join(unknown)}; there are {', '.join(known)}")
    wanted = {LOOP, *(args.ways or WAYS)}
    settings = Settings(
        models=args.models,
        members=sorted(set(args.members)),
        batches=sorted(set(args.rows)),
        ways=[way for way in WAYS if way in wanted],
        minutes=args.minutes,
        seconds=args.seconds,
        planning=args.planning,
        patience=args.patience,
        verbose=args.verbose,
    )
    command = shlex.join(["python", "-m", "benchmarks.speed", *words])
    environment = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"
    for name, value in BRIEF.items():
        environment += f", {name}={os.environ.get(name, f'{value} (this library), default (the others)')}"
    results = Results(f"{describe(_PACKAGES)}; {torch.backends.cpu.get_cpu_capability()}; {environment}.", command)
    say = teller()

    def finished(key: str) -> None:
        # What was measured is kept even if the run does not come to its end.
        print(tables.model(results, key) + "\n", flush=True)
        if args.json:
            args.json.write_text(json.dumps(results.plain(), indent=1))
        if args.markdown:
            args.markdown.write_text(tables.whole(results, args.models))

    status = 0
    schedule = Schedule(settings, results, folder, say, finished)
    try:
        schedule.run()
    except KeyboardInterrupt:
        say("interrupted; the tables hold what was measured until now")
        if schedule.current is not None:
            finished(schedule.current)
        status = 130
    print(tables.header(results))
    return status


if __name__ == "__main__":
    sys.exit(main())
