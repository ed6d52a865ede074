"""The figures are those of the samples: numpy's percentiles, exact counts, and only the part that counts."""

import io
import json

import httpx
import numpy as np
import pytest
from rich.console import Console

from app.loadtest.config import Config
from app.loadtest.report import render, summarise
from app.loadtest.runner import Outcome
from app.loadtest.samples import Recorder
from app.loadtest.target import Target
from app.loadtest.thresholds import Thresholds

TARGET = Target(url=httpx.URL("http://s/v2/models/m/infer"), model="m", bodies=[b""], is_good=lambda _: True)
OPEN = Config(url="http://s", rate=100, duration=10)


def report_of(samples, config=OPEN, duration=10.0, interrupted=False, cpu=0.1, unfinished=0):
    recorder = Recorder()
    recorder.unfinished = unfinished
    for sample in samples:
        recorder.add(**sample)
    return summarise(config, TARGET, recorder, Outcome(duration, interrupted, cpu))


def sample(due, latency, kind="ok", lag=0.0, example=""):
    return {
        "due": due,
        "sent": due + lag,
        "done": due + latency,
        "kind": kind,
        "bytes_sent": 10,
        "bytes_received": 3,
        "example": example,
    }


def test_percentiles_are_numpys():
    latencies = np.random.default_rng(0).lognormal(-4, 1, 999)
    report = report_of([sample(i * 0.01, latency) for i, latency in enumerate(latencies)])
    expected = np.percentile(latencies * 1000, [50, 90, 95, 99, 99.9]).tolist()
    found = [report.latency_ms[name] for name in ("p50", "p90", "p95", "p99", "p99.9")]
    assert found == pytest.approx(expected)
    assert report.latency_ms["max"] == pytest.approx(latencies.max() * 1000)
    assert report.latency_ms["mean"] == pytest.approx(latencies.mean() * 1000)


def test_the_warm_up_and_what_comes_after_the_end_are_not_counted():
    report = report_of([sample(-0.5, 9.0), sample(-0.5, 0.2), sample(0.0, 0.1), sample(9.5, 1.0), sample(10.0, 5.0)])
    assert report.count == report.ok == 2
    assert report.latency_ms["max"] == pytest.approx(1000)
    # Answers that arrived from 0 to 10 s, whenever they were asked for: the first and the third.
    assert report.throughput == pytest.approx(0.2)
    assert (report.bytes_sent, report.bytes_received) == (20, 6)


def test_errors_are_counted_by_kind_and_stay_out_of_the_latency():
    samples = [sample(i, 0.01) for i in range(6)]
    samples += [sample(6, 5.0, "timeout"), sample(7, 0.001, "429", example="slow\x1b[2J down"), sample(8, 0.0, "429")]
    samples += [sample(-1, 0.0, "500", example="in the warm-up")]
    report = report_of(samples)
    assert report.errors == {"429": 2, "timeout": 1}
    assert list(report.errors) == ["429", "timeout"]
    assert report.error_examples == {"429": "slow\x1b[2J down"}
    assert report.error_rate == pytest.approx(1 / 3)
    assert report.latency_ms["max"] == pytest.approx(10)
    text = io.StringIO()
    Console(file=text, width=100).print(render(report))
    assert "429 × 2, timeout × 1" in text.getvalue()
    assert "\x1b" not in text.getvalue()


def test_lag_is_that_of_requests_that_were_sent():
    report = report_of([sample(0, 0.5, lag=0.002), sample(1, 0.5, lag=0.004), sample(2, 3.0, "not_sent", lag=3.0)])
    assert report.lag_ms is not None
    assert report.lag_ms["max"] == pytest.approx(4)
    assert report.offered == pytest.approx(0.3)
    assert report.warnings == ()


@pytest.mark.parametrize(
    ("lag", "latency", "cpu", "warned"),
    [
        (0.004, 0.005, 0.1, None),
        (0.020, 0.021, 0.1, "could not keep up"),
        (0.020, 1.0, 0.1, None),
        (0.900, 2.0, 0.1, "could not keep up"),
        (0.0, 0.01, 0.99, "99% of its one core"),
    ],
)
def test_warns_when_the_figures_describe_the_generator(lag, latency, cpu, warned):
    report = report_of([sample(i, latency, lag=lag) for i in range(10)], cpu=cpu)
    assert bool(report.warnings) is (warned is not None)
    assert warned is None or warned in report.warnings[0]


def test_the_json_has_its_schema():
    closed = report_of([], Config(url="http://s", concurrency=2), duration=0.0, interrupted=True).to_dict()
    opened = report_of([sample(0, 0.1)], unfinished=2).to_dict()
    for found in (closed, opened):
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert set(found) == {
            *("schema", "url", "model", "mode", "settings", "duration_s", "interrupted", "requests", "error_rate"),
            *("errors", "error_examples", "throughput_rps", "offered_rps", "latency_ms", "lag_ms", "client_cpu"),
            *("bytes", "warnings"),
        }
        assert found["schema"] == 1
        assert set(found["latency_ms"]) == {"p50", "p90", "p95", "p99", "p99.9", "max", "mean"}
        assert set(found["requests"]) == {"count", "ok", "errors", "unfinished"}
        assert set(found["settings"]) == {
            *("rate", "arrivals", "concurrency", "duration_s", "warmup_s", "timeout_s", "max_in_flight", "rows"),
            "seed",
        }
    assert (opened["mode"], opened["offered_rps"]) == ("open", pytest.approx(0.3))
    assert set(opened["lag_ms"]) == {"p50", "p99", "max"}
    assert (closed["mode"], closed["offered_rps"], closed["lag_ms"]) == ("closed", None, None)
    assert closed["error_rate"] is None
    assert set(closed["latency_ms"].values()) == {None}


def test_an_empty_report_is_drawn():
    text = io.StringIO()
    Console(file=text, width=100).print(render(report_of([], duration=0.0, interrupted=True)))
    assert "interrupted" in text.getvalue()


def test_thresholds_say_what_failed_and_by_how_much():
    report = report_of([sample(i * 0.1, 0.05) for i in range(90)] + [sample(9, 1, "503")] * 10)
    passing = Thresholds(max_p50=60, max_p95=60, max_p99=60, max_error_rate=0.1, min_throughput=9)
    assert passing.failures(report) == []
    failing = Thresholds(max_p50=40, max_p95=60, max_p99=30, max_error_rate=0.05, min_throughput=10)
    p50, p99, errors, throughput = failing.failures(report)
    assert p50 == "p50 is 50 ms, 10 ms above the 40 ms of --max-p50"
    assert p99 == "p99 is 50 ms, 20 ms above the 30 ms of --max-p99"
    assert errors == "error rate is 0.1, 0.05 above the 0.05 of --max-error-rate"
    assert throughput == "throughput is 9/s, 1/s below the 10/s of --min-throughput"


def test_a_threshold_fails_on_a_figure_that_is_unknown():
    report = report_of([sample(0, 1, "503")])
    assert len(Thresholds(max_p99=1e9).failures(report)) == 1
    nothing = report_of([], duration=0.0)
    assert len(Thresholds(max_error_rate=1.0, min_throughput=0.1).failures(nothing)) == 2
