"""Showing on stderr, while a test runs, how it goes.

Drawing happens in a thread, and seldom: what it takes is taken from the generator.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from app.loadtest.clock import now
from app.loadtest.config import Config
from app.loadtest.samples import Recorder

DRAWS_PER_SECOND = 4
LINE_EVERY_SECONDS = 5.0


@contextlib.contextmanager
def watch(config: Config, recorder: Recorder, console: Console) -> Iterator[None]:
    """Show `recorder`'s counts on `console`: one moving line on a terminal, else a line now and then."""
    status = _status(config, recorder)
    if console.is_terminal:
        moving = Live(
            console=console,
            get_renderable=status,
            refresh_per_second=DRAWS_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with moving:
            yield
        return
    over = threading.Event()

    def lines() -> None:
        while not over.wait(LINE_EVERY_SECONDS):
            console.print(status(), soft_wrap=True)

    thread = threading.Thread(target=lines, name="loadtest-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _status(config: Config, recorder: Recorder) -> Callable[[], Text]:
    began = now()
    last = (began, 0)

    def status() -> Text:
        nonlocal last
        moment, answered = now(), recorder.ok + recorder.errors
        elapsed, since = moment - began, moment - last[0]
        rps = (answered - last[1]) / since if since > 0 else 0.0
        last = (moment, answered)
        second = int(elapsed - config.warmup)
        phase = f"{second}/{config.duration:g} s" if second < config.duration else "last answers"
        phase = "warm-up" if elapsed < config.warmup else phase
        text = Text(f"{phase:>12}", style="cyan")
        text.append(f"  sent {recorder.sent:,}  ok {recorder.ok:,}  ", "default")
        text.append(f"errors {recorder.errors:,}", "red" if recorder.errors else "default")
        text.append(f"  {rps:,.0f} answers/s", "default")
        return text

    return status
