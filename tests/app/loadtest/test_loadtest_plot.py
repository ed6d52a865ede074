"""A plot is written in both formats, for any report, or refused before the test runs."""

import sys

import httpx
import numpy as np
import pytest

from app.loadtest import plot
from app.loadtest.config import Config, LoadTestError
from app.loadtest.report import summarise
from app.loadtest.runner import Outcome
from app.loadtest.samples import Recorder
from app.loadtest.target import Target


def report_of(count, kind="ok", **settings):
    recorder = Recorder()
    for i, latency in enumerate(np.random.default_rng(0).lognormal(-5, 1, count)):
        due = i / 100 - 1
        recorder.add(due=due, sent=due, done=due + latency, kind="429" if i % 7 == 0 else kind)
    config = Config(url="http://s", duration=2, **settings)
    target = Target(url=httpx.URL("http://s"), model=None, bodies=[b""], is_good=lambda _: True)
    return summarise(config, target, recorder, Outcome(2.0 if count else 0.0, False, 0.1))


@pytest.mark.parametrize(
    ("report", "name"),
    [
        (report_of(300, rate=100), "open.png"),
        (report_of(300, concurrency=4), "closed.svg"),
        (report_of(300, kind="500", rate=100), "errors.png"),
        (report_of(0, rate=100), "empty.png"),
        (report_of(101, concurrency=1), "single.svg"),
    ],
)
def test_writes_a_picture(report, name, tmp_path):
    plot.save(report, tmp_path / name)
    start = (tmp_path / name).read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if name.endswith("png") else b"svg" in start


def test_refuses_other_files_and_missing_folders(tmp_path):
    with pytest.raises(LoadTestError, match=r"\.png or \.svg"):
        plot.check(tmp_path / "load.pdf")
    with pytest.raises(LoadTestError, match="no folder"):
        plot.check(tmp_path / "nowhere" / "load.png")


def test_says_what_to_install_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(LoadTestError, match=r"pip install 'ensembled\[plot\]'"):
        plot.check(tmp_path / "load.png")
