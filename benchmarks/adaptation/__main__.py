"""Adapting to 1, 8 and 64 different support sets at once, beside one after the other.

    python -m benchmarks.adaptation

In the library one call for all tasks stands beside a call for each, and beside the loop that plain autograd unrolls,
for the same tasks and the same members; all must give the same weights before they are timed. Over HTTP as many clients
as there are support sets ask at once: the service as it comes, and one that adapts to a single request in each call.
Tables go to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import ensemble
from app.client import AsyncClient
from benchmarks import machine
from benchmarks.adaptation.served import served

SHOTS, QUERIES, STEPS, RATE = 10, 20, 5, 0.01
VISITS = 3

Array = NDArray[np.float32]


def network() -> nn.Module:
    """That of the sinusoid task (arXiv 1703.03400)."""
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def tasks(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points of so many sines, their values, and points that are asked, each (count, points, 1)."""
    generator = torch.Generator().manual_seed(count)
    amplitude, phase = (torch.rand(count, 1, 1, generator=generator) for _ in range(2))
    x = 10 * torch.rand(count, SHOTS, 1, generator=generator) - 5
    return (
        x,
        (0.1 + 5 * amplitude) * (x - 3.14 * phase).sin(),
        torch.linspace(-5, 5, QUERIES).expand(count, -1)[..., None],
    )


def unrolled(ens: ensemble.Ensemble, model: nn.Module, x: Tensor, y: Tensor) -> list[list[dict[str, Tensor]]]:
    """What one writes first: task after task, member after member, by ``torch.autograd.grad``."""
    found = []
    for one_x, one_y in zip(x, y, strict=True):
        found.append([])
        for index in range(len(ens)):
            own = {name: weight.requires_grad_() for name, weight in ens.member(index).items()}
            for _ in range(STEPS):
                loss = nn.functional.mse_loss(torch.func.functional_call(model, own, (one_x,)), one_y)
                gradients = torch.autograd.grad(loss, list(own.values()))
                own = {
                    n: (w - RATE * g).detach().requires_grad_()
                    for (n, w), g in zip(own.items(), gradients, strict=True)
                }
            found[-1].append(own)
    return found


def timed(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Seconds of each, the median of runs in turns, so that what else the machine does hits all."""
    runs: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    begun = time.perf_counter()
    while min(map(len, runs.values())) < 3 or time.perf_counter() - begun < seconds:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            runs[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in runs.items()}


def in_the_library(ens: ensemble.Ensemble, model: nn.Module, counts: Sequence[int], seconds: float) -> list[list[str]]:
    """Rows of the first table: support sets a second."""
    rows = []
    for count in counts:
        x, y, asked = tasks(count)

        def together(x: Tensor = x, y: Tensor = y, asked: Tensor = asked) -> ensemble.Prediction:
            return ensemble.adapt(ens, (x, y), "mse", STEPS, RATE).predict(asked)

        def each(x: Tensor = x, y: Tensor = y, asked: Tensor = asked) -> list[ensemble.Prediction]:
            return [
                ensemble.adapt(ens, (x[t : t + 1], y[t : t + 1]), "mse", STEPS, RATE).predict(asked[t : t + 1])
                for t in range(len(x))
            ]

        got = ensemble.adapt(ens, (x, y), "mse", STEPS, RATE)
        for task, members in enumerate(unrolled(ens, model, x[:1], y[:1])):
            for index, own in enumerate(members):
                for name, weight in own.items():
                    assert torch.allclose(got.weights[name][task, index], weight, rtol=1e-4, atol=1e-5)
        assert torch.allclose(together().mean, torch.cat([p.mean for p in each()]), rtol=1e-3, atol=1e-4)
        calls: dict[str, Callable[[], object]] = {"together": together, "each": each}
        if count == 1:
            calls["unrolled"] = lambda x=x, y=y: unrolled(ens, model, x, y)
        found = {name: count / one for name, one in timed(calls, seconds).items()}
        unrolled_rate = found.get("unrolled", float(rows[0][4]) if rows else 0.0)
        rows.append([
            str(count), f"{found['together']:.1f}", f"{found['each']:.1f}", f"{found['together'] / found['each']:.1f}",
            f"{unrolled_rate:.1f}",
        ])  # fmt: skip
    return rows


def over_http(
    url: str, unmerged: str, ens: ensemble.Ensemble, counts: Sequence[int], seconds: float
) -> list[list[str]]:
    """Rows of the second table: requests a second, each the median of visits in turns.

    Args:
        url: of the service as it comes.
        unmerged: of one that adapts to one request in a call.
    """
    rows = []
    for count in counts:
        x, y, asked = tasks(count)
        want = ensemble.adapt(ens, (x, y), "mse", STEPS, RATE).predict(asked, statistics=["mean"]).mean.numpy()
        given = (x.numpy(), y.numpy(), asked.contiguous().numpy(), want, seconds / VISITS)
        ways = {"one": (url, 1), "apart": (unmerged, count), "together": (url, count)}
        visits: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(VISITS):
            for way, (where, clients) in ways.items():
                visits[way].append(asyncio.run(_asked(where, clients, *given)))
        one, apart, together = (statistics.median(rates) for rates in visits.values())
        rows.append([
            str(count), f"{one:.1f}", f"{apart:.1f}", f"{together:.1f}", f"{together / one:.1f}",
            f"{together / apart:.1f}",
        ])  # fmt: skip
    return rows


async def _asked(url: str, clients: int, x: Array, y: Array, asked: Array, want: Array, seconds: float) -> float:
    """Requests a second of so many clients, each of which asks about its own share of the support sets in turn."""
    wishes: dict[str, Any] = {"steps": STEPS, "learning_rate": RATE, "outputs": ["mean"]}
    async with AsyncClient(url, model="sinusoid", timeout=120) as client:

        async def ask(index: int) -> None:
            got = (await client.adapt((x[index], y[index]), asked[index], **wishes))["mean"]
            # Every answer, or a wrong one might be the fast one.
            np.testing.assert_allclose(got, want[index], rtol=1e-3, atol=1e-4)

        # As many at once as there will be, before any is timed.
        await asyncio.gather(*map(ask, range(clients)))
        done, begun = 0, time.perf_counter()
        end = begun + seconds

        async def loop(first: int) -> None:
            nonlocal done
            index = first
            while time.perf_counter() < end:
                await ask(index)
                done += 1
                index = (index + clients) % len(x)

        await asyncio.gather(*map(loop, range(clients)))
        return done / (time.perf_counter() - begun)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [heads, ["---:"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.adaptation", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--members", type=int, default=8, metavar="N")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="support sets at once")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row of a table (default: 5)")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    model = network()
    ens = ensemble.perturb(
        model, ensemble.Gaussian(0.1), members=args.members, example=torch.randn(4, 1), task="regression"
    )
    print(
        f"{args.members} members of the sinusoid's network (1,761 weights), {SHOTS} examples, {STEPS} steps, {QUERIES} "
        "queries\n"
    )
    print("Library, support sets a second:\n", flush=True)
    heads = ["support sets", "one call", "a call for each", "times faster", "plain autograd, unrolled"]
    print(table(heads, in_the_library(ens, model, args.counts, args.seconds)) + "\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="adaptation-") as folder:
        ens.save(Path(folder) / "models" / "sinusoid" / "1")
        with served(Path(folder)) as url, served(Path(folder), "--max-batch=1") as unmerged:
            print("Over HTTP, requests a second:\n", flush=True)
            rows = over_http(url, unmerged, ens, args.counts, args.seconds)
            heads = [
                "support sets", "one client after the other", "a client for each, a call for each",
                "a client for each, together", "times one client", "times a call for each",
            ]  # fmt: skip
            print(table(heads, rows) + "\n")
    print(machine.describe(["numpy", "fastapi", "uvicorn"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
