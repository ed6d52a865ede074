"""What a load test found.

A `Report` counts the requests that fell due in the part that counts; in a closed loop a request is due when
it is sent. Latency is that of the good answers only, so read it together with the errors: a request that
timed out is not in any percentile. Throughput is the good answers that *arrived* in that part, per second
of it, so answers that trickle in after the end do not flatter an overloaded service.

The JSON that `Report.to_dict` gives, schema 1; fields may be added, none will change or go:

=====================  =====================================================================================
``schema``             1
``url``, ``model``     what was tested; model is null with a body of one's own
``mode``               "open" or "closed"
``settings``           rate, arrivals, concurrency, duration_s, warmup_s, timeout_s, max_in_flight, rows, seed
``duration_s``         seconds that were counted; less than asked for if interrupted
``interrupted``        whether Ctrl-C ended it
``requests``           count (with an outcome), ok, errors; unfinished (in flight when interrupted) is apart
``error_rate``         errors / count, null without any
``errors``             how many of each kind: an HTTP status ("429"), timeout, connect, disconnect,
                       bad_answer, not_sent (due while max_in_flight requests were in flight)
``error_examples``     what the first error of a kind said, if it said something
``throughput_rps``     good answers per second
``offered_rps``        requests due per second; null in a closed loop
``latency_ms``         p50, p90, p95, p99, p99.9, max, mean; each null without good answers
``lag_ms``             p50, p99, max of how late the generator sent; null in a closed loop
``client_cpu``         share of one core that the generator used
``bytes``              sent and received: bodies of the counted requests
``warnings``           why the figures may describe the generator and not the service; empty if they do not
=====================  =====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.loadtest.config import Config
from app.loadtest.runner import Outcome
from app.loadtest.samples import OK, Recorder, Samples
from app.loadtest.target import Target

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}

# A generator has fallen behind if it sends this late, in ms and as a share of the latency it reports.
LAG_MS = 5.0
LAG_SHARE = 0.1
BUSY_CPU = 0.9


@dataclass(frozen=True, kw_only=True)
class Report:
    """The figures of one test; `samples` is what they were computed from, warm-up included."""

    config: Config
    url: str
    model: str | None
    duration: float
    interrupted: bool
    count: int
    ok: int
    unfinished: int
    errors: dict[str, int]
    error_examples: dict[str, str]
    throughput: float
    offered: float | None
    latency_ms: dict[str, float | None]
    lag_ms: dict[str, float | None] | None
    client_cpu: float
    bytes_sent: int
    bytes_received: int
    warnings: tuple[str, ...]
    samples: Samples = field(repr=False, compare=False)

    @property
    def error_rate(self) -> float | None:
        return (self.count - self.ok) / self.count if self.count else None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON, in the schema that the module documents."""
        config = self.config
        return {
            "schema": 1,
            "url": self.url,
            "model": self.model,
            "mode": "open" if config.open_loop else "closed",
            "settings": {
                "rate": config.rate,
                "arrivals": config.arrivals if config.open_loop else None,
                "concurrency": config.concurrency,
                "duration_s": config.duration,
                "warmup_s": config.warmup,
                "timeout_s": config.timeout,
                "max_in_flight": config.max_in_flight if config.open_loop else None,
                "rows": config.rows if config.body is None else None,
                "seed": config.seed,
            },
            "duration_s": self.duration,
            "interrupted": self.interrupted,
            "requests": {
                "count": self.count,
                "ok": self.ok,
                "errors": self.count - self.ok,
                "unfinished": self.unfinished,
            },
            "error_rate": self.error_rate,
            "errors": self.errors,
            "error_examples": self.error_examples,
            "throughput_rps": self.throughput,
            "offered_rps": self.offered,
            "latency_ms": _microseconds(self.latency_ms),
            "lag_ms": _microseconds(self.lag_ms) if self.lag_ms is not None else None,
            "client_cpu": round(self.client_cpu, 3),
            "bytes": {"sent": self.bytes_sent, "received": self.bytes_received},
            "warnings": list(self.warnings),
        }


def summarise(config: Config, target: Target, recorder: Recorder, outcome: Outcome) -> Report:
    """The report of what `recorder` holds."""
    samples = recorder.samples()
    counted = samples.select((samples.due >= 0) & (samples.due < outcome.duration))
    codes = np.bincount(counted.kind, minlength=len(samples.kinds)).tolist()
    by_kind = {kind: count for kind, count in zip(samples.kinds, codes, strict=True) if count}
    arrived = samples.good & (samples.done >= 0) & (samples.done < outcome.duration)
    seconds = outcome.duration
    latency = _figures(counted.latency[counted.good], mean=True)
    lag = None
    if config.open_loop:
        was_sent = np.array([kind != "not_sent" for kind in samples.kinds])[counted.kind]
        lag = _figures((counted.sent - counted.due)[was_sent], only=("p50", "p99", "max"))
    return Report(
        config=config,
        url=str(target.url),
        model=target.model,
        duration=seconds,
        interrupted=outcome.interrupted,
        count=len(counted.due),
        ok=by_kind.pop(OK, 0),
        unfinished=recorder.unfinished,
        errors=dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        error_examples={kind: text for kind, text in recorder.examples.items() if kind in by_kind},
        throughput=float(np.count_nonzero(arrived)) / seconds if seconds else 0.0,
        offered=(len(counted.due) + recorder.unfinished) / seconds if config.open_loop and seconds else None,
        latency_ms=latency,
        lag_ms=lag,
        client_cpu=outcome.client_cpu,
        bytes_sent=int(counted.bytes_sent.sum()),
        bytes_received=int(counted.bytes_received.sum()),
        warnings=tuple(_warnings(latency, lag, outcome.client_cpu)),
        samples=samples,
    )


def _figures(
    seconds: NDArray[np.float64], *, mean: bool = False, only: tuple[str, ...] = (*PERCENTILES, "max")
) -> dict[str, float | None]:
    names = [*only, "mean"] if mean else list(only)
    if len(seconds) == 0:
        return dict.fromkeys(names)
    ms = seconds * 1000
    every = dict(zip(PERCENTILES, np.percentile(ms, list(PERCENTILES.values())).tolist(), strict=True))
    every |= {"max": float(ms.max()), "mean": float(ms.mean())}
    return {name: every[name] for name in names}


def _microseconds(figures: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if ms is None else round(ms, 3) for name, ms in figures.items()}


def _warnings(latency: dict[str, float | None], lag: dict[str, float | None] | None, client_cpu: float) -> list[str]:
    found = []
    late = lag["p99"] if lag else None
    if late is not None and late > max(LAG_MS, LAG_SHARE * (latency["p99"] or 0.0)):
        found.append(
            f"the generator could not keep up: p99 of its own lag is {late:.1f} ms, and latency includes it; "
            "the figures describe this client rather than the service. Lower the rate or free the machine."
        )
    if client_cpu > BUSY_CPU:
        found.append(
            f"the generator used {client_cpu:.0%} of its one core, so it may be what limits the figures; "
            "confirm with a second generator beside it."
        )
    return found


def render(report: Report) -> RenderableType:
    """The report as tables for a terminal."""
    config = report.config
    title = Text(f"POST {report.url}\n", style="bold")
    title.append(f"{config.load}; {report.duration:.4g} s counted after {config.warmup:g} s of warm-up", "dim")
    if report.interrupted:
        title.append("; interrupted", "yellow")

    figures = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    figures.add_column(style="cyan")
    figures.add_column(justify="right")
    figures.add_column(style="dim")
    if report.offered is not None:
        figures.add_row("offered", f"{report.offered:,.1f}/s", f"{report.count + report.unfinished:,} requests due")
    figures.add_row("throughput", f"{report.throughput:,.1f}/s", f"{report.ok:,} of {report.count:,} answered well")
    kinds = ", ".join(f"{kind} × {count:,}" for kind, count in report.errors.items())
    rate = "–" if report.error_rate is None else f"{report.error_rate:.2%}"
    figures.add_row("errors", Text(rate, style="red" if report.errors else "green"), kinds or "none")
    if report.unfinished:
        figures.add_row("unfinished", f"{report.unfinished:,}", "in flight when interrupted")
    if report.lag_ms is not None:
        figures.add_row("generator lag", f"{_ms(report.lag_ms['p99'])} ms", "p99 of how late requests were sent")
    figures.add_row("generator CPU", f"{report.client_cpu:.0%}", "of one core")
    figures.add_row("bytes", _bytes(report.bytes_sent), f"sent; {_bytes(report.bytes_received)} received")

    since = "from when a request was due" if config.open_loop else "from when a request was sent"
    heading = Text(f"\nlatency in ms, {since}; good answers only", style="dim")
    latency = Table()
    for name in report.latency_ms:
        latency.add_column(name, justify="right", style="bold" if name == "p99" else "")
    latency.add_row(*(_ms(value) for value in report.latency_ms.values()))

    parts: list[RenderableType] = [title, figures, heading, latency]
    for kind, text in report.error_examples.items():
        parts.append(Text(f"first {kind}: {_printable(text)}", style="red"))
    return Group(*parts)


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 1 else f"{value:.1f}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"


def _printable(text: str) -> str:
    # What a service answers may hold control characters, and they would reach the terminal.
    return "".join(c if c.isprintable() else " " for c in text)
