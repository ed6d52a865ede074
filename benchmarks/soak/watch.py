"""The service from outside while all this goes on: is it alive and ready, and how much memory does it take?"""

from __future__ import annotations

import random
import statistics
import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.soak.clients import Soak

# Growth that is no leak: allocators keep what they had, and no two moments are alike.
_SHARE, _BYTES = 1.10, 32 * 2**20
# Seconds of a run below which nothing can be said of memory.
SHORTEST = 60.0
KIND = "looks at health and metrics"


class Watch:
    """Looks a few times a second.

    Attributes:
        memory: seconds since the start, and bytes that the service takes.
    """

    def __init__(self) -> None:
        self.memory: list[tuple[float, float]] = []

    async def look(self, soak: Soak, _: random.Random) -> None:
        begun = time.monotonic()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{soak.port}", timeout=60, trust_env=False) as client:
            while not soak.stopping.is_set():
                soak.ledger.sent[KIND] += 1
                try:
                    for path in ("/v2/health/live", "/v2/health/ready"):
                        reply = await client.get(path)
                        if reply.status_code != 200:
                            soak.ledger.violate(KIND, f"{path}: {reply.status_code} {reply.text[:200]}")
                    page = (await client.get("/metrics")).text
                    self.memory.append((time.monotonic() - begun, metric(page, "process_resident_memory_bytes")))
                    soak.ledger.end(KIND, "well")
                except httpx.HTTPError as error:
                    soak.ledger.end(KIND, "lost", f"{type(error).__name__} {error}")
                await soak.pause(0.5)

    def judge(self, soak: Soak, seconds: float) -> None:
        """Whether memory is flat: after a third of the run against the end of it."""
        if seconds < SHORTEST:
            soak.ledger.notes["memory"] = f"not judged, since the run was shorter than {SHORTEST:.0f} s"
            return
        early = [size for at, size in self.memory if seconds / 3 <= at < seconds / 2]
        late = [size for at, size in self.memory if at >= seconds * 5 / 6]
        if not early or not late:
            soak.ledger.violate(KIND, "memory could not be read")
            return
        before, after = statistics.median(early), statistics.median(late)
        soak.ledger.notes["memory"] = (
            f"{before / 2**20:.0f} MiB after a third of the run, {after / 2**20:.0f} MiB at its end, "
            f"{max(size for _, size in self.memory) / 2**20:.0f} MiB at most"
        )
        if after > _SHARE * before + _BYTES:
            soak.ledger.violate(KIND, f"memory grows: {soak.ledger.notes['memory']}")


def metric(page: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
