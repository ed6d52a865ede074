"""What an operator does meanwhile: models are added, replaced, damaged, taken away, unloaded and loaded again."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.soak.clients import Soak
from benchmarks.soak.truth import ASIDE, READER, remove

_PATIENCE = 120.0
RIGHT_AFTER = "a request right after a load"


@dataclass(frozen=True)
class Change:
    """One change of the directory, and the load that makes the service follow.

    Args:
        name: for people.
        make: changes the directory.
        status: that the load must be answered with.
        after: the version that must answer then, and the seed of its members.
    """

    name: str
    make: Callable[[], None]
    status: int
    after: tuple[str, int]


def rounds(soak: Soak, models: Path) -> list[Change]:
    """One round, after which the directory is as before."""
    truth, first, second = soak.truth, models / READER / "1", models / READER / "2"

    def damage() -> None:
        truth.put(1, models / READER / "3")
        weights = models / READER / "3" / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\x01\x02\x03\x04")

    def back() -> None:
        remove(models / READER / "3")
        remove(second)

    return [
        Change("a new version", lambda: truth.put(2, second), 200, ("2", 2)),
        Change("a damaged version", damage, 400, ("2", 2)),
        Change("the version of before", back, 200, ("1", 1)),
        Change("other weights in its place", lambda: truth.put(3, first), 200, ("1", 3)),
        Change("the first weights again", lambda: truth.put(1, first), 200, ("1", 1)),
    ]


async def operator(soak: Soak, r: random.Random, models: Path) -> None:
    """Change after change until the end."""
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{soak.port}", timeout=_PATIENCE, trust_env=False
    ) as client:
        for number, change in enumerate(itertools.cycle(rounds(soak, models))):
            if soak.stopping.is_set():
                return
            change.make()
            await _ask(soak, client, f"load: {change.name}", f"/v2/repository/models/{READER}/load", change.status)
            await _now(soak, client, change)
            if number % 3 == 0:
                for verb in ("unload", "load"):
                    await _ask(soak, client, f"{verb} another model", f"/v2/repository/models/{ASIDE}/{verb}", 200)
            await soak.pause(r.uniform(0.2, 1.5))


async def _ask(soak: Soak, client: httpx.AsyncClient, kind: str, path: str, status: int) -> None:
    soak.ledger.sent[kind] += 1
    try:
        reply = await client.post(path)
    except httpx.HTTPError as error:
        soak.ledger.end(kind, "lost", f"no answer: {type(error).__name__} {error}")
        return
    fault = "" if reply.status_code == status else f"answered {reply.status_code}: {reply.text[:300]}"
    soak.ledger.end(kind, str(reply.status_code), fault)


async def _now(soak: Soak, client: httpx.AsyncClient, change: Change) -> None:
    """What is answered from now on is answered by the version that was loaded."""
    kind = RIGHT_AFTER
    soak.ledger.sent[kind] += 1
    rows = {"features": soak.truth.features[:1].tolist(), "tokens": soak.truth.tokens[:1].tolist()}
    try:
        # Urgent, and with the patience that a full queue needs.
        while True:
            reply = await client.post(f"/v1/models/{READER}/predict", json={"inputs": rows, "outputs": ["mean"]})
            if reply.status_code != 429:
                break
            await soak.pause(0.3)
        answer = reply.raise_for_status().json()
    except httpx.HTTPError as error:
        soak.ledger.end(kind, "lost", f"no answer: {type(error).__name__} {error}")
        return
    found = answer["version"], answer["seed"]
    fault = "" if found == change.after else f"after {change.name} {found} answers and not {change.after}"
    soak.ledger.end(kind, "200", fault)
