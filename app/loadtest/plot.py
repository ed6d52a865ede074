"""A load test as one picture: latency over time, its percentiles, and throughput over time.

The first shows when something happened (a stall is a falling edge: the request that was due first waited
longest), the second how many requests it touched, the third whether the service kept up with what was
offered.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.loadtest.config import LoadTestError
from app.loadtest.report import Report
from app.loadtest.samples import Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
GOOD, BAD, PALE, INK = "#2a6f97", "#d1495b", "#a9b4bc", "#33414a"
SHARES = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)

_STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6eaed",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def check(path: Path) -> None:
    """Find out before a test runs whether its plot can be written.

    Raises:
        LoadTestError: if matplotlib is missing, or the file is of another kind or has no folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise LoadTestError(f"a plot must be a .png or .svg file, however: {path}")
    if not path.absolute().parent.is_dir():
        raise LoadTestError(f"there is no folder for {path}")
    if importlib.util.find_spec("matplotlib") is None:
        raise LoadTestError("a plot needs matplotlib: pip install 'ensembled[plot]'")


def save(report: Report, path: Path) -> None:
    """Draw `report` into a .png or .svg file."""
    check(path)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(11, 7.2), layout="constrained")
        grid = figure.add_gridspec(2, 5)
        samples = report.samples
        window = samples.select(samples.due < report.duration)
        _latency_over_time(figure.add_subplot(grid[0, :3]), report, window)
        _percentiles(figure.add_subplot(grid[0, 3:]), report, window.select(window.due >= 0))
        _throughput(figure.add_subplot(grid[1, :]), report, samples)
        name = report.model or report.url
        figure.suptitle(f"{name}   {report.config.load}", x=0.012, ha="left", fontsize=13, fontweight="bold")
        figure.savefig(path, dpi=150)


def _latency_over_time(axes: Axes, report: Report, window: Samples) -> None:
    ms = window.latency * 1000
    many = len(ms) > 5000
    # One scatter with a colour for each point: drawn one after the other, errors would cover the good.
    colours = np.where(window.good, GOOD, BAD).tolist()
    size, alpha = (5, 0.35) if many else (9, 0.6)
    axes.scatter(window.due, ms, s=size, c=colours, alpha=alpha, linewidths=0, rasterized=many)
    if not window.good.all():
        for colour, label in ((GOOD, "good"), (BAD, "error")):
            axes.scatter([], [], s=25, color=colour, label=label)
        _legend(axes)
    _milliseconds(axes, ms)
    _time_axis(axes, report, "due" if report.config.open_loop else "sent")
    axes.set_title("Latency over time")


def _percentiles(axes: Axes, report: Report, counted: Samples) -> None:
    ms = np.sort(counted.latency[counted.good]) * 1000
    axes.set_title("Latency by percentile")
    if len(ms) == 0:
        axes.text(0.5, 0.5, "no good answers", ha="center", transform=axes.transAxes)
        return
    # The axis gives every further nine the same room, because that is where the waiting is.
    share = np.arange(len(ms)) / len(ms)
    nines = -np.log10(1 - share)
    axes.step(nines, ms, where="post", color=GOOD, linewidth=2)
    axes.fill_between(nines, ms, step="post", color=GOOD, alpha=0.08, linewidth=0)
    shown = [s for s in SHARES if -np.log10(1 - s) <= nines[-1] + 0.05] or [0.5]
    axes.set_xticks([-np.log10(1 - s) for s in shown], [f"p{100 * s:.5g}" for s in shown])
    axes.set_xlim(0, max(nines[-1], 0.31))
    _milliseconds(axes, ms)
    for name in ("p50", "p99"):
        value = report.latency_ms[name]
        at = -np.log10(1 - float(name[1:]) / 100)
        if value is not None and at <= nines[-1]:
            axes.plot(at, value, "o", color=GOOD, markersize=5)
            axes.annotate(
                f"{value:.3g}",
                (at, value),
                xytext=(6, -12),
                textcoords="offset points",
                fontsize=9,
            )


def _throughput(axes: Axes, report: Report, samples: Samples) -> None:
    edges = _bins(report.config.warmup, report.duration)
    good = np.histogram(samples.done[samples.good], edges)[0] / np.diff(edges)
    bad = np.histogram(samples.done[~samples.good], edges)[0] / np.diff(edges)
    axes.stairs(good, edges, fill=True, color=GOOD, alpha=0.85, label="good")
    if bad.any():
        axes.stairs(good + bad, edges, baseline=good, fill=True, color=BAD, alpha=0.85, label="errors")
    if report.config.rate is not None:
        axes.axhline(report.config.rate, color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label="offered")
    axes.set_ylim(0, max(float((good + bad).max(initial=0)), report.config.rate or 0.0, 1.0) * 1.2)
    _legend(axes)
    _time_axis(axes, report, "answered")
    axes.set_ylabel("requests/s")
    axes.yaxis.set_major_formatter(_plain)
    axes.set_title("Throughput over time")


def _bins(warmup: float, duration: float) -> NDArray[np.float64]:
    """Edges from the start of the warm-up to the end, one of them at 0, so that no bin holds both."""
    span = warmup + duration
    width = next((w for w in (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0) if span / w <= 50), span / 50)
    before = -np.arange(width, warmup - width / 2, width)[::-1]
    counted = np.arange(0.0, duration - width / 2, width)
    return np.concatenate([[-warmup] if warmup else [], before, counted, [max(duration, 1e-3)]])


def _milliseconds(axes: Axes, ms: NDArray[np.float64]) -> None:
    axes.set_ylabel("ms")
    if len(ms) and ms.min() > 0 and ms.max() > 20 * np.median(ms):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.12 * ms.max(initial=0.0) or 1.0)
    axes.yaxis.set_major_formatter(_plain)


def _legend(axes: Axes) -> None:
    # Beside the title, where no point can be under it.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2, columnspacing=1.2)


def _time_axis(axes: Axes, report: Report, moment: str) -> None:
    axes.set_xlim(-report.config.warmup, max(report.duration, 0.1))
    axes.set_xlabel(f"seconds, when {moment}")
    if report.config.warmup:
        axes.axvspan(-report.config.warmup, 0, color=PALE, alpha=0.22, linewidth=0)
        axes.text(
            0.008,
            0.94,
            "warm-up",
            transform=axes.transAxes,
            fontsize=8,
            color="#6b7780",
            verticalalignment="top",
        )


def _plain(value: float, _: float) -> str:
    return f"{value:,g}"
