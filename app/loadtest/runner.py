"""The two loops that make the load.

The **open loop** walks along a schedule and starts a request whenever one is due, whether or not earlier
ones have been answered. Its latencies are counted from the due time. A tester that waits for an answer
before it sends again stops asking while the service stalls, and so records one slow request where users
would have met hundreds (coordinated omission). The **closed loop** does wait, by definition: read its
throughput, and its latencies only as those of that many patient clients.

Nothing here interprets: every outcome goes to a `Recorder`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpcore

from app.loadtest.arrivals import schedule
from app.loadtest.clock import Alarm, now
from app.loadtest.config import Config
from app.loadtest.connection import Connections
from app.loadtest.samples import OK, Recorder
from app.loadtest.target import Target
from app.open_files import allow_open_files

# A refused connection fails within microseconds: without a pause a closed loop would do nothing but knock.
CONNECT_PAUSE = 0.1
# Late requests are started in a row, but the answers that have come in must be read in between.
LATE_IN_A_ROW = 16


@dataclass(frozen=True)
class Outcome:
    """How the run itself went: the seconds that count, whether Ctrl-C ended it, the share of a core used."""

    duration: float
    interrupted: bool
    client_cpu: float


def drive(config: Config, target: Target, recorder: Recorder) -> Outcome:
    """Make the load and wait for what is still in flight; Ctrl-C gives up what is."""
    allow_open_files(config.concurrency or config.max_in_flight)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_drive(config, target, recorder))


async def _drive(config: Config, target: Target, recorder: Recorder) -> Outcome:
    loop = asyncio.get_running_loop()
    load = _Load(config, target, recorder)
    began, used = now(), time.thread_time()
    task = asyncio.create_task(load.open_loop() if config.open_loop else load.closed_loop())
    # Only the main thread gets signals. On Windows the loop cannot take them, and Ctrl-C just ends the program.
    takes_signals = threading.current_thread() is threading.main_thread() and sys.platform != "win32"
    if takes_signals:
        loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await asyncio.wait([task])
    finally:
        if takes_signals:
            loop.remove_signal_handler(signal.SIGINT)
    ended = now()
    await load.connections.close()
    if not task.cancelled():
        task.result()
    return Outcome(
        duration=min(config.duration, max(0.0, ended - load.start)),
        interrupted=task.cancelled(),
        client_cpu=(time.thread_time() - used) / (ended - began),
    )


class _Load:
    def __init__(self, config: Config, target: Target, recorder: Recorder) -> None:
        self.config = config
        self.recorder = recorder
        self.is_good = target.is_good
        origin = httpcore.URL(str(target.url)).origin
        self.connections = Connections(origin)
        self.requests = [_request(target, body, config.headers) for body in target.bodies]
        self.sizes = [len(body) for body in target.bodies]
        self.start = now() + config.warmup

    async def open_loop(self) -> None:
        bound, due_times = self.config.max_in_flight, schedule(self.config).tolist()
        alarm = Alarm()
        try:
            async with asyncio.TaskGroup() as group:
                in_flight: set[asyncio.Task[str]] = set()
                for index, offset in enumerate(due_times):
                    due = self.start + offset
                    if now() < due:
                        await alarm.until(due)
                    elif index % LATE_IN_A_ROW == 0:
                        await asyncio.sleep(0)
                    if len(in_flight) >= bound:
                        moment = now() - self.start
                        self.recorder.add(due=offset, sent=moment, done=moment, kind="not_sent")
                        continue
                    task = group.create_task(self._attempt(index, due))
                    in_flight.add(task)
                    task.add_done_callback(in_flight.discard)
                await alarm.until(self.start + self.config.duration)
        finally:
            alarm.close()

    async def closed_loop(self) -> None:
        async with asyncio.TaskGroup() as group:
            for client in range(self.config.concurrency or 0):
                group.create_task(self._client(client))

    async def _client(self, index: int) -> None:
        end = self.start + self.config.duration
        while now() < end:
            if await self._attempt(index) == "connect":
                await asyncio.sleep(CONNECT_PAUSE)
            index += self.config.concurrency or 0

    async def _attempt(self, index: int, due: float | None = None) -> str:
        index %= len(self.requests)
        size, example = 0, ""
        sent = now()
        due = sent if due is None else due
        self.recorder.sent += 1
        try:
            async with asyncio.timeout(self.config.timeout):
                status, body = await self.connections.send(self.requests[index])
            size = len(body)
            kind, example = self._judge(status, body)
        except asyncio.CancelledError:
            self.recorder.unfinished += due >= self.start
            raise
        except TimeoutError:
            kind = "timeout"
        except httpcore.ConnectError as error:
            kind, example = "connect", str(error)
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            kind, example = "disconnect", str(error)
        self.recorder.add(
            due=due - self.start,
            sent=sent - self.start,
            done=now() - self.start,
            kind=kind,
            bytes_sent=self.sizes[index],
            bytes_received=size,
            example=example,
        )
        return kind

    def _judge(self, status: int, body: bytes) -> tuple[str, str]:
        if status != 200:
            return str(status), body.decode("utf-8", "replace")
        if not self.is_good(body):
            return "bad_answer", body.decode("utf-8", "replace")
        return OK, ""


def _request(target: Target, body: bytes, extra: tuple[tuple[str, str], ...]) -> httpcore.Request:
    headers = {
        "host": target.url.netloc.decode("ascii"),
        "user-agent": "ensembled-loadtest",
        "accept": "*/*",
        "content-type": "application/json",
        **{name.lower(): value for name, value in extra},
        "content-length": str(len(body)),
    }
    return httpcore.Request("POST", str(target.url), headers=list(headers.items()), content=body)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
