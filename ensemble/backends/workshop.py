"""Where calls are compiled and kept: the worker process, and the directory of what it made."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import ensemble
from ensemble.backends import BACKENDS
from ensemble.backends.job import Job
from ensemble.errors import ModelError

log = logging.getLogger("ensemble.workshop")

# A month, and longer than any job.
_UNUSED_SECONDS = 30 * 24 * 3600.0
_DRAFT_SECONDS = 24 * 3600.0
_WORKER = [sys.executable, "-m", "ensemble.backends.worker"]


def default_directory() -> Path:
    """Where what is compiled is kept between processes.

    Raises:
        RuntimeError: this user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "ensembled"


class Workshop:
    """Builds jobs in a process of its own and keeps what came of them.

    Args:
        directory: where; by default ``$XDG_CACHE_HOME/ensembled``. What is in it is run as code, so it is made readable
            and writable by this user alone; where such a directory cannot be had, one is made for this process.
        seconds: after which a job is given up.
    """

    def __init__(self, directory: Path | None = None, *, seconds: float = 120) -> None:
        self.seconds = seconds
        self.directory = self._private(directory)
        _clear(self.directory)
        self._process: subprocess.Popen[str] | None = None
        self._scratch: Path | None = None
        self._finish: Callable[[], object] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._lock = threading.Lock()

    def _private(self, wanted: Path | None) -> Path:
        try:
            wanted = wanted or default_directory()
            wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = wanted.stat()
            if hasattr(os, "getuid") and found.st_uid != os.getuid():
                reason = f"{wanted} is another user's"
            elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                reason = f"others can write to {wanted}; chmod go-w it"
            elif not os.access(wanted, os.W_OK | os.X_OK):
                reason = f"{wanted} cannot be written to"
            else:
                return wanted
        except (OSError, RuntimeError) as error:
            reason = str(error)
        try:
            temporary = tempfile.mkdtemp(prefix="ensembled-")
        except OSError as error:
            raise ModelError(f"There is no directory to compile in: {reason}; {error}.") from error
        log.warning("what is compiled is kept until this process ends only: %s", reason)
        weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        return Path(temporary)

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def has(self, job: Job) -> bool:
        """Whether a job was built already."""
        return all(self._target(job).with_suffix(suffix).is_file() for suffix in BACKENDS[job.backend].SUFFIXES)

    def build(self, job: Job, seconds: float | None = None) -> Path:
        """Build a job, unless that was done before.

        Args:
            seconds: after which it is given up, if that is sooner than :attr:`seconds`.

        Returns:
            The files' path without its suffix.

        Raises:
            ModelError: it cannot be built here, or not in time; the text says why.
        """
        target = self._target(job)
        if self.has(job):
            for suffix in BACKENDS[job.backend].SUFFIXES:
                _note_use(target.with_suffix(suffix))
            return target
        with self._lock:
            reason = self._ask(job, self.seconds if seconds is None else min(seconds, self.seconds))
        if reason:
            raise ModelError(f"{job.backend} cannot compile this call here: {reason}")
        return target

    def discard(self, job: Job) -> None:
        """Forget what was built of a job, since it is of no use."""
        for suffix in BACKENDS[job.backend].SUFFIXES:
            with contextlib.suppress(OSError):
                self._target(job).with_suffix(suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """End the process, whatever it is doing. A later :meth:`build` starts another."""
        # Before the lock, which whoever waits for the process holds.
        if (process := self._process) is not None:
            _kill(process)
        with self._lock:
            self._end()

    def remember(self, key: str, document: Any) -> None:
        """Keep a JSON document beside what was built."""
        draft = self.directory / f"draft-{secrets.token_hex(8)}-{key}.json"
        with contextlib.suppress(OSError):
            draft.write_text(json.dumps(document))
            draft.replace(self.directory / f"{key}.json")

    def recall(self, key: str) -> Any:
        """A document that was kept; None if there is none that can be read."""
        with contextlib.suppress(OSError, ValueError):
            _note_use(self.directory / f"{key}.json")
            return json.loads((self.directory / f"{key}.json").read_text())
        return None

    def _target(self, job: Job) -> Path:
        return self.directory / job.key

    def _ask(self, job: Job, seconds: float) -> str:
        # Where it was idle for long, another process may have taken its scratch away.
        if self._process is None or self._process.poll() is not None or not (self._scratch and self._scratch.is_dir()):
            self._end()
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._scratch is not None
        _note_use(self._scratch)
        try:
            self._process.stdin.write(job.to_json() + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self._end()
            return f"it took longer than {seconds:.3g} seconds"
        except OSError:
            line = ""
        if not line:
            self._end()
            return "the compiling process ended (out of memory?)"
        reason: str = json.loads(line)["error"]
        return reason

    def _start(self) -> None:
        # The package need not be installed, and the worker must be of the same one.
        source = str(Path(ensemble.__file__).parent.parent)
        (self.directory / "scratch").mkdir(mode=0o700, exist_ok=True)
        # Of its own, since other processes may share the directory.
        self._scratch = Path(tempfile.mkdtemp(dir=self.directory / "scratch"))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])),
            "TORCHINDUCTOR_CACHE_DIR": str(self.directory / "inductor"),
            # Compilers put things under names there that others could guess.
            "TMPDIR": str(self._scratch),
            # Processes of its own would outlive it.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [*_WORKER, str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            # An interrupt from the keyboard is for the process that answers.
            start_new_session=True,
        )
        # Also when nobody closes the workshop.
        self._finish = weakref.finalize(self, _finish, self._process, self._scratch)
        self._answers = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()

    def _end(self) -> None:
        if self._finish is not None:
            self._finish()
        self._process = self._scratch = self._finish = None


def _note_use(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


def _clear(directory: Path) -> None:
    """Remove what was not used for long: of models, versions and machines that are no more, and half-made drafts."""
    now = time.time()
    for path in directory.iterdir():
        with contextlib.suppress(OSError):
            kept = _DRAFT_SECONDS if path.name.startswith("draft-") else _UNUSED_SECONDS
            if path.is_file() and now - path.stat().st_mtime > kept:
                path.unlink()
    _clear_sources(directory / "inductor", now)
    _clear_scratch(directory / "scratch", now)


def _clear_sources(directory: Path, now: float) -> None:
    """Remove what Inductor wrote and compiled long ago; the package that came of it is kept by itself."""
    # Directories stay, since another process may be about to write into one.
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                if now - os.lstat(path := Path(parent, name)).st_mtime > _UNUSED_SECONDS:
                    path.unlink()


def _clear_scratch(directory: Path, now: float) -> None:
    """Remove what processes left that were killed; one that is at work notes its use."""
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            with contextlib.suppress(OSError):
                if now - path.lstat().st_mtime > _DRAFT_SECONDS:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _finish(process: subprocess.Popen[str], scratch: Path) -> None:
    """End a process and take away what its compilers left."""
    _kill(process)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    shutil.rmtree(scratch, ignore_errors=True)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(OSError):
        # It may be waiting for a compiler, which must not go on alone.
        os.killpg(process.pid, signal.SIGKILL)


def _read(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError):
        for line in process.stdout:
            answers.put(line)
    answers.put("")
