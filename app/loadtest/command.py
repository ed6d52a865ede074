"""`ensembled loadtest`: the arguments, and what becomes of the report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import orjson
from rich.console import Console

from app.keys import key_header
from app.loadtest import plot, run
from app.loadtest.config import Config, LoadTestError
from app.loadtest.progress import watch
from app.loadtest.report import Report, render
from app.loadtest.thresholds import Thresholds

FAILED, USAGE, INTERRUPTED = 1, 2, 130

DESCRIPTION = """\
Put a running service under load and say how long its answers take.

Give one of two kinds of load:
  --rate R         open loop: R requests per second, whether or not earlier ones were answered, as many
                   independent users would. Latency counts from when a request was due, so a service that
                   stalls cannot hide it. Ask this for latency.
  --concurrency C  closed loop: C clients, each sends its next request when the last is answered. Ask this for
                   the highest throughput."""

EPILOG = """\
examples:
  ensembled loadtest http://127.0.0.1:8000 --rate 200
  ensembled loadtest http://127.0.0.1:8000 --concurrency 32 --rows 4 --outputs mean,label
  ensembled loadtest http://127.0.0.1:8000 --rate 200 --arrivals poisson --data test.npz --plot load.png
  ensembled loadtest http://127.0.0.1:8000 --rate 200 --max-p99 50 --max-error-rate 0.001 --json report.json
  ensembled loadtest http://127.0.0.1:9000/predict --body request.json --concurrency 8

exit status: 0 done and within every limit, 1 outside one, 2 could not run, 130 stopped with Ctrl-C (what was
measured until then is reported)."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ensembled loadtest` to its parser."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("url", metavar="URL", help="base of the service; with --body, the full URL to post to")

    load = parser.add_argument_group("load")
    kind = load.add_mutually_exclusive_group(required=True)
    kind.add_argument("--rate", type=float, metavar="R", help="open loop: requests per second")
    kind.add_argument("--concurrency", type=int, metavar="C", help="closed loop: number of clients")
    load.add_argument(
        "--arrivals",
        choices=("constant", "poisson"),
        default="constant",
        help="open loop: evenly spaced, or at random as from independent users (default: constant)",
    )
    load.add_argument("--duration", type=float, default=10.0, metavar="S", help="seconds that count (default: 10)")
    load.add_argument(
        "--warmup",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds of load before, not counted (default: 1)",
    )
    load.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="seconds to wait for an answer (default: 10)"
    )
    load.add_argument(
        "--max-in-flight",
        type=int,
        default=1000,
        metavar="N",
        help="open loop: requests in flight at most; one due beyond is an error, not_sent (default: 1000)",
    )

    what = parser.add_argument_group("what is sent")
    what.add_argument("--model", metavar="NAME", help="model to ask (default: the only one that is ready)")
    what.add_argument("--rows", type=int, default=1, metavar="N", help="rows in a request (default: 1)")
    what.add_argument("--outputs", metavar="A,B", help="outputs to ask for (default: the model's own choice)")
    what.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="take rows from arrays named like the inputs, or from the only array (default: random rows)",
    )
    what.add_argument("--body", type=Path, metavar="FILE", help="post this JSON to URL as it is; any 200 is good")
    what.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="send this header; may be repeated (the key of ENSEMBLED_API_KEY is sent by itself)",
    )
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of random rows and arrivals (default: 0)")

    limits = parser.add_argument_group("limits", "Exit with 1 if one is missed. Latency is that of good answers.")
    for name in ("p50", "p95", "p99"):
        limits.add_argument(f"--max-{name}", type=float, metavar="MS", help=f"{name} of latency in milliseconds")
    limits.add_argument("--max-error-rate", type=float, metavar="F", help="errors, as a fraction of the requests")
    limits.add_argument("--min-throughput", type=float, metavar="RPS", help="good answers per second")

    report = parser.add_argument_group("report")
    report.add_argument("--json", metavar="FILE", help="also write JSON; with - write JSON, and no table, to stdout")
    report.add_argument("--plot", type=Path, metavar="FILE", help="also draw a .png or .svg (needs ensembled[plot])")


def main(args: argparse.Namespace) -> int:
    """Run `ensembled loadtest` and return its exit status."""
    errors = Console(stderr=True, highlight=False)
    try:
        config = _config(args)
        if args.plot is not None:
            plot.check(args.plot)
        if args.json not in (None, "-") and not Path(args.json).absolute().parent.is_dir():
            raise LoadTestError(f"there is no folder for {args.json}")
        report = run(config, lambda recorder: watch(config, recorder, errors))
        _write(report, args)
    except LoadTestError as error:
        _say(errors, f"loadtest: {error}", "bold red")
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    return _verdict(report, _thresholds(args), errors)


def _config(args: argparse.Namespace) -> Config:
    return Config(
        url=args.url,
        rate=args.rate,
        concurrency=args.concurrency,
        arrivals=args.arrivals,
        duration=args.duration,
        warmup=args.warmup,
        timeout=args.timeout,
        max_in_flight=args.max_in_flight,
        model=args.model,
        rows=args.rows,
        outputs=tuple(name for name in (args.outputs or "").split(",") if name),
        data=args.data,
        body=args.body,
        seed=args.seed,
        # What is given by a flag comes last, and wins.
        headers=(*key_header().items(), *(_header(text) for text in args.header)),
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise LoadTestError("a header must be like 'NAME: VALUE'")
    return name.strip(), value.strip()


def _thresholds(args: argparse.Namespace) -> Thresholds:
    return Thresholds(
        max_p50=args.max_p50,
        max_p95=args.max_p95,
        max_p99=args.max_p99,
        max_error_rate=args.max_error_rate,
        min_throughput=args.min_throughput,
    )


def _write(report: Report, args: argparse.Namespace) -> None:
    if args.json != "-":
        Console(highlight=False).print(render(report))
    try:
        if args.json is not None:
            text = orjson.dumps(report.to_dict(), option=orjson.OPT_INDENT_2) + b"\n"
            if args.json == "-":
                sys.stdout.write(text.decode())
            else:
                Path(args.json).write_bytes(text)
        if args.plot is not None:
            plot.save(report, args.plot)
    except OSError as error:
        raise LoadTestError(f"cannot write the report: {error}") from error


def _verdict(report: Report, thresholds: Thresholds, errors: Console) -> int:
    for warning in report.warnings:
        _say(errors, f"warning: {warning}", "yellow")
    failures = thresholds.failures(report)
    for failure in failures:
        _say(errors, f"failed: {failure}", "bold red")
    if report.interrupted:
        return INTERRUPTED
    return FAILED if failures else 0


def _say(console: Console, text: str, style: str) -> None:
    console.print(text, style=style, markup=False, soft_wrap=True)
