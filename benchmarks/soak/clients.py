"""Those who ask: each is a coroutine that goes on until the run ends, and notes what became of every request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from app.client import AsyncClient, ClientError, Retry
from benchmarks.soak.asking import Question, question
from benchmarks.soak.ledger import Ledger
from benchmarks.soak.malformed import KINDS, PLAIN
from benchmarks.soak.server import BODY_SECONDS, HEAD_SECONDS, MAX_BATCH, MAX_QUEUE
from benchmarks.soak.truth import ASIDE, POOL, READER, Truth
from benchmarks.soak.wire import PATIENCE, Reply, exchange, head, read, vanish

# What is done to the service.
GOOD = "good requests"
LIBRARY = "good requests, by the client"
SPLIT = "requests that are split"
RAISES = "inputs on which the model raises"
MALFORMED = "malformed requests"
SLOW_HEAD = "heads that trickle"
SLOW_BODY = "bodies that trickle"
SLOW = "slow requests, within the limits"
GONE = "clients that go away"
DEADLINE = "requests with a deadline"
CROWD = "requests of a crowd, more than may wait"
COMES_AND_GOES = "requests for a model that comes and goes"
GONE_AFTER = "after the whole request"
# Those of which some must have been answered with 200, by the model that all ask.
ANSWERED = (GOOD, LIBRARY, SPLIT, SLOW, DEADLINE, CROWD)
KINDS_OF_CLIENTS = (*ANSWERED, RAISES, MALFORMED, SLOW_HEAD, SLOW_BODY, GONE, COMES_AND_GOES)
# The longest that a client waits because it was told to.
_LONGEST_WAIT = 30.0
_LOST = (EOFError, OSError, ValueError, KeyError, IndexError)


@dataclass
class Soak:
    """What all clients share.

    Args:
        port: of the service.
        stopping: set when no new request is to be sent.
    """

    port: int
    truth: Truth
    ledger: Ledger
    stopping: asyncio.Event

    async def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()

    async def settle(self, kind: str, asked: Question, send: Callable[[bytes], Awaitable[Reply]], *allowed: int) -> int:
        """Send a good request until it is not refused for want of room, and judge the answer.

        Args:
            allowed: statuses beside 200 that it may end with.

        Returns:
            The status.
        """
        self.ledger.sent[kind] += 1
        sent, refused = asked.encoded(self.truth), 0
        while True:
            try:
                reply = await send(sent)
            except (*_LOST, TimeoutError) as error:
                self.ledger.end(kind, "lost", f"{asked.id} got no answer: {type(error).__name__} {error}")
                return 0
            if reply.status != 429:
                break
            refused += 1
            after = reply.headers.get("retry-after", "")
            if not after.isdigit() or not 1 <= int(after) <= 3600:
                self.ledger.end(kind, "429", f"refused with Retry-After {after!r}")
                return 429
            await asyncio.sleep(min(int(after), _LONGEST_WAIT) * random.uniform(1.0, 1.3))
        how = f"{reply.status} after 429" if refused else str(reply.status)
        self.ledger.end(kind, how, self.fault(asked, reply, allowed))
        return reply.status

    def fault(self, asked: Question, reply: Reply, allowed: tuple[int, ...]) -> str:
        """What is wrong with an answer; empty if nothing is."""
        if reply.more:
            return f"{asked.id} got something after its answer: {reply.more[:60]!r}"
        try:
            if reply.status == 200:
                if asked.spoiled:
                    return f"{asked.id} has a word that is none, and was answered 200"
                return asked.fault(self.truth, reply.headers, reply.body)
            if reply.status not in allowed:
                return f"{asked.id} was answered {reply.status}: {reply.body[:200]!r}"
            return "" if reply.headers.get("x-request-id") == asked.id else f"{asked.id} got another's error"
        except _LOST as error:
            return f"{asked.id} got an answer that is none: {type(error).__name__} {error}"

    async def once(self, sent: bytes) -> Reply:
        """On a connection of its own, after whose answer nothing else may come."""
        return await exchange(self.port, [sent])


class Kept:
    """A connection that is kept for one request after the other, and made anew once the service has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, sent: bytes) -> Reply:
        """The answer to a request.

        Raises:
            EOFError, OSError, TimeoutError: there was none; the next request has a new connection.
        """
        try:
            return await self._send(sent)
        except BaseException:
            self.close()
            raise

    async def _send(self, sent: bytes) -> Reply:
        async with asyncio.timeout(PATIENCE):
            if self._streams is None or self._streams[0].at_eof():
                self.close()
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(sent)
            await writer.drain()
            reply = await read(reader)
            if reply.headers.get("connection", "").lower() == "close":
                self.close()
            return reply

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@contextlib.asynccontextmanager
async def kept(soak: Soak) -> AsyncIterator[Kept]:
    connection = Kept(soak.port)
    try:
        yield connection
    finally:
        connection.close()


async def good(soak: Soak, r: random.Random) -> None:
    """Ordinary requests, one after the other."""
    async with kept(soak) as connection:
        while not soak.stopping.is_set():
            await soak.settle(GOOD, question(r, soak.truth), connection.send)
            await soak.pause(r.expovariate(1 / 0.02))


async def library(soak: Soak, r: random.Random) -> None:
    """The project's own client: bytes both ways, and it repeats what was refused by itself."""
    kind, truth = LIBRARY, soak.truth
    retry = Retry(attempts=30, longest_asked=_LONGEST_WAIT)
    async with AsyncClient(f"http://127.0.0.1:{soak.port}", model=READER, timeout=PATIENCE, retry=retry) as client:
        while not soak.stopping.is_set():
            rows = np.array(r.choices(range(POOL), k=r.randint(1, 4)))
            inputs = {"features": truth.features[rows], "tokens": truth.tokens[rows]}
            soak.ledger.sent[kind] += 1
            try:
                got = await client.infer(inputs, outputs=["mean"], members=r.choice([None, r.randint(1, truth.count)]))
            except ClientError as error:
                soak.ledger.end(kind, type(error).__name__, str(error))
            else:
                fault = truth.fault(rows, got.version, got.seed, got.members, got["mean"])
                soak.ledger.end(kind, "200", fault)
            await soak.pause(r.expovariate(1 / 0.03))


async def large(soak: Soak, r: random.Random) -> None:
    """Requests with more rows than a call has."""
    while not soak.stopping.is_set():
        asked = question(r, soak.truth, r.randint(MAX_BATCH + 1, 4 * MAX_BATCH))
        await soak.settle(SPLIT, asked, soak.once)
        await soak.pause(r.expovariate(1 / 0.3))


async def raising(soak: Soak, r: random.Random) -> None:
    """Requests on which the model raises, beside good ones in the same calls."""
    async with kept(soak) as connection:
        while not soak.stopping.is_set():
            asked = question(r, soak.truth, spoiled=True)
            await soak.settle(RAISES, asked, connection.send, 400)
            await soak.pause(r.expovariate(1 / 0.05))


async def malformed(soak: Soak, r: random.Random) -> None:
    """Every malformed request in turn."""
    kind = MALFORMED
    while not soak.stopping.is_set():
        for name in r.sample(sorted(KINDS), len(KINDS)):
            if soak.stopping.is_set():
                return
            sent, statuses = KINDS[name](r)
            soak.ledger.sent[kind] += 1
            try:
                reply = await soak.once(sent)
                said = reply.json() if reply.body else {}
            except (*_LOST, TimeoutError) as error:
                soak.ledger.end(kind, "lost", f"{name}: no answer, {type(error).__name__} {error}")
                continue
            fault = ""
            if reply.status not in statuses:
                fault = f"{name}: {reply.status} and not {statuses}: {reply.body[:200]!r}"
            elif list(said) != ["error"] or reply.more:
                fault = f"{name}: {reply.body[:200]!r}, {reply.more[:60]!r}"
            soak.ledger.end(kind, str(reply.status), fault)
            await soak.pause(r.expovariate(1 / 0.02))


async def slow(soak: Soak, r: random.Random) -> None:
    """Heads and bodies that trickle: too slowly, or just fast enough."""
    while not soak.stopping.is_set():
        asked = question(r, soak.truth, 2)
        sent = asked.encoded(soak.truth)
        split = sent.index(b"\r\n\r\n") + 4
        match r.choice(("head", "body", "enough")):
            case "head":
                await _too_slow(soak, SLOW_HEAD, [sent[i : i + 1] for i in range(split)], HEAD_SECONDS)
            case "body":
                pieces = [sent[:split], *(sent[i : i + 1] for i in range(split, len(sent)))]
                await _too_slow(soak, SLOW_BODY, pieces, BODY_SECONDS)
            case _:
                await soak.settle(SLOW, asked, lambda whole: exchange(soak.port, _eighths(whole), 0.04))


def _eighths(whole: bytes) -> list[bytes]:
    step = -(-len(whole) // 8)
    return [whole[i : i + step] for i in range(0, len(whole), step)]


async def _too_slow(soak: Soak, kind: str, pieces: list[bytes], seconds: float) -> None:
    soak.ledger.sent[kind] += 1
    try:
        # So slowly that it takes at least four times as long as it may.
        reply = await exchange(soak.port, pieces, max(0.02, 4 * seconds / len(pieces)))
    except (*_LOST, TimeoutError) as error:
        soak.ledger.end(kind, "lost", f"no answer: {type(error).__name__} {error}")
        return
    soak.ledger.end(kind, str(reply.status), "" if reply.status == 408 else f"answered {reply.status}")


async def vanishing(soak: Soak, r: random.Random) -> None:
    """Clients that go away: before the end of their request, before their answer, or in the middle of it."""
    kind = GONE
    while not soak.stopping.is_set():
        sent = question(r, soak.truth, r.choice([1, 4, 3 * MAX_BATCH])).encoded(soak.truth)
        whole = r.random() < 0.6
        soak.ledger.sent[kind] += 1
        try:
            part = sent if whole else sent[: r.randint(1, len(sent) - 1)]
            await vanish(soak.port, part, r.uniform(0, 0.02), reset=r.random() < 0.5)
        except OSError as error:
            soak.ledger.end(kind, "refused", f"{type(error).__name__} {error}")
        else:
            soak.ledger.end(kind, GONE_AFTER if whole else "within the request")
        await soak.pause(r.expovariate(1 / 0.05))


async def hurried(soak: Soak, r: random.Random) -> None:
    """Requests with little time."""
    async with kept(soak) as connection:
        while not soak.stopping.is_set():
            seconds = 10 ** r.uniform(-3.5, 0)
            asked = question(
                r, soak.truth, r.choice([1, 2 * MAX_BATCH]), headers=(f"x-request-timeout: {seconds:.4f}",)
            )
            await soak.settle(DEADLINE, asked, connection.send, 504)
            await soak.pause(r.expovariate(1 / 0.05))


async def crowds(soak: Soak, r: random.Random) -> None:
    """More rows at once than may wait: some are refused, come again when they are told to, and are answered."""
    kind = CROWD
    while not soak.stopping.is_set():
        count = 2 * MAX_QUEUE // MAX_BATCH
        some = [question(r, soak.truth, MAX_BATCH) for _ in range(count)]
        await asyncio.gather(*(soak.settle(kind, asked, soak.once) for asked in some))
        await soak.pause(r.uniform(1, 4))


async def aside(soak: Soak, r: random.Random) -> None:
    """Requests for a model that is unloaded and loaded again."""
    kind = COMES_AND_GOES
    async with kept(soak) as connection:
        while not soak.stopping.is_set():
            body = json.dumps(
                {"inputs": {"features": soak.truth.features[:1].tolist(), "tokens": soak.truth.tokens[:1].tolist()},
                 "outputs": ["mean"]}
            ).encode()  # fmt: skip
            soak.ledger.sent[kind] += 1
            path = PLAIN.replace(READER, ASIDE)
            try:
                reply = await connection.send(head(path, len(body)) + body)
                fault = ""
                if reply.status == 200:
                    answer = reply.json()
                    mean, rows = answer["outputs"]["mean"], np.array([0])
                    fault = soak.truth.fault(rows, answer["version"], answer["seed"], answer["members"], mean)
                elif reply.status not in (429, 503):
                    fault = f"{reply.status}: {reply.body[:200]!r}"
                soak.ledger.end(kind, str(reply.status), fault)
            except (*_LOST, TimeoutError) as error:
                soak.ledger.end(kind, "lost", f"no answer: {type(error).__name__} {error}")
            await soak.pause(r.expovariate(1 / 0.1))


# How many of each.
CLIENTS: dict[Callable[[Soak, random.Random], Awaitable[None]], int] = {
    good: 6, library: 2, large: 2, raising: 2, malformed: 2, slow: 4, vanishing: 3, hurried: 2, crowds: 1, aside: 1,
}  # fmt: skip
