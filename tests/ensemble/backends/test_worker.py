import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ensemble.backends import BACKENDS
from ensemble.backends.worker import build

# A compiler that starts another program and waits for it.
COMPILING = """
import subprocess, sys
from ensemble.backends import worker
def build(job, directory):
    other = subprocess.Popen(["sleep", "60"])
    (directory / "pid").write_text(str(other.pid))
    other.wait()
worker.Job.from_json = staticmethod(lambda text: text)
worker.build = build
worker.main(sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no process groups")
def test_it_ends_with_who_asked_for_it_and_so_does_what_it_started(tmp_path):
    words = [sys.executable, "-c", COMPILING, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True) as worker:
        worker.stdin.write(b"a job\n")
        worker.stdin.flush()
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert worker.poll() is None
            time.sleep(0.02)
        # As the system does for a process that is killed.
        worker.stdin.close()
        assert worker.wait(30) == -9
    started = int((tmp_path / "pid").read_text())
    for _ in range(500):
        if not _runs(started):
            return
        time.sleep(0.02)
    pytest.fail("what the worker started goes on")


def test_drafts_of_processes_with_the_same_id_are_apart(made, tmp_path, monkeypatch):
    ens, seen = made("mlp"), []

    def compiled(job, target):
        seen.append(target)
        target.with_suffix(".x").write_text("built")

    monkeypatch.setitem(BACKENDS, "openvino", SimpleNamespace(SUFFIXES=(".x",), build=compiled))
    job = ens._runner.job("openvino", ens.example(2), len(ens))
    assert [build(job, tmp_path), build(job, tmp_path)] == ["", ""]
    assert len(set(seen)) == 2
    assert [file.name for file in tmp_path.iterdir()] == [f"{job.key}.x"]


def _runs(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
