"""A load tester for V2 services, and for any service that takes JSON by POST.

Example:
    >>> from app.loadtest import Config, run
    >>> report = run(Config(url="http://127.0.0.1:8000", rate=200, duration=5))  # doctest: +SKIP
    >>> report.latency_ms["p99"], report.error_rate  # doctest: +SKIP
    (8.31, 0.0)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from app.loadtest.config import Config, LoadTestError
from app.loadtest.report import Report, summarise
from app.loadtest.runner import drive
from app.loadtest.samples import Recorder
from app.loadtest.target import find
from app.loadtest.thresholds import Thresholds

__all__ = ["Config", "LoadTestError", "Report", "Thresholds", "run"]

Watch = Callable[[Recorder], contextlib.AbstractContextManager[None]]


def run(config: Config, watch: Watch | None = None) -> Report:
    """Run one load test and wait for its end.

    Args:
        config: The test.
        watch: Gives a context to run in, which may read the recorder's counts meanwhile.

    Raises:
        LoadTestError: if the service cannot be reached or asked as `config` says, before any load is made.
    """
    target = find(config)
    recorder = Recorder()
    with watch(recorder) if watch is not None else contextlib.nullcontext():
        outcome = drive(config, target, recorder)
    return summarise(config, target, recorder, outcome)
