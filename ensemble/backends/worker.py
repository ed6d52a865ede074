"""The process that compiles: a job a line on its standard input, an answer a line on its standard output.

Compiling holds Python's lock for seconds and may crash or never end. In a process of its own, at a low priority, it
takes nothing from the one that answers. Start it as ``python -m ensemble.backends.worker DIRECTORY``.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import sys
import threading
import warnings
from pathlib import Path

from ensemble.backends import BACKENDS
from ensemble.backends.job import Job

_NICENESS = 10


def main(directory: str) -> None:
    """Build the jobs that come, until the standard input ends; a job that is under way then is left as it is."""
    # What compilers print must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.suppress(OSError, AttributeError):
        os.nice(_NICENESS)
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    while True:
        answers.write(json.dumps({"error": build(Job.from_json(jobs.get()), Path(directory))}) + "\n")


def _read(jobs: queue.SimpleQueue[str]) -> None:
    """Take in jobs; when there can be no more, who asked for them is gone, and nothing must go on without it."""
    for line in sys.stdin:
        jobs.put(line)
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        # With it the compilers that it started.
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def build(job: Job, directory: Path) -> str:
    """Build one job; why it failed, or nothing.

    Files get their names when they are complete, so that a process that ends half-way leaves nothing that looks whole.
    """
    backend = BACKENDS[job.backend]
    # Containers that share a directory give their processes the same ids.
    draft = directory / f"draft-{secrets.token_hex(8)}-{job.key}"
    try:
        with warnings.catch_warnings():
            # About tuning, and about what PyTorch will do one day.
            warnings.simplefilter("ignore")
            backend.build(job, draft)
        # The file by which it is known to be there comes last.
        for suffix in reversed(backend.SUFFIXES):
            draft.with_suffix(suffix).replace((directory / job.key).with_suffix(suffix))
    except Exception as error:
        # Compilers are a world of their own: they may raise anything.
        return _reason(error)
    finally:
        for suffix in backend.SUFFIXES:
            draft.with_suffix(suffix).unlink(missing_ok=True)
    return ""


def _reason(error: Exception) -> str:
    """An error in one line; OpenVINO's say what is wrong in a list at the end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    listed = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
    return next(iter([*listed, *lines, type(error).__name__]))[:200]


if __name__ == "__main__":
    main(sys.argv[1])
