"""Training members together, beside training them one after the other with ``torch.optim``.

    python -m benchmarks.training

Both take the same steps from the same starts on the same rows; what the trained members answer is compared before
anything is timed. Each visit trains all members for some steps, in turns, and the fastest visit of each counts, since
what else the machine does only adds time. One after the other, a member is a module of its own with an optimiser of its
own: the usual loop, and once more with the fused kernel of Adam. The table goes to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ensemble
from benchmarks import machine
from ensemble.data import Data
from ensemble.losses import negative_log_likelihood
from ensemble.members import Members
from ensemble.tasks import Task, heads
from ensemble.training import Rows, Schedule, train

SEED = 0


class Variance(nn.Module):
    """The network of the published UCI runs, with a variance head: one hidden layer of 50 ReLU units."""

    def __init__(self, features: int = 13) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(features, 50), nn.Linear(50, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.output(self.hidden(x).relu()).split(1, -1)
        return mean, raw.clamp(-10, 5).exp()


def digits() -> nn.Module:
    """A small convolutional network for images of 8 × 8."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


class Encoder(nn.Module):
    """Two layers of a transformer over eight tokens of 16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and what it is trained on.

    Args:
        module: in evaluation mode, as members are trained.
        task: of its outputs.
        data: 455 rows, as many as a training part of the smallest common UCI set.
        loss: of one module's output and targets, as one writes it.
    """

    module: nn.Module
    task: Task
    data: Data
    loss: Callable[..., Tensor]


def case(name: str) -> Case:
    """One of ``CASES``."""
    random = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)

    def rows(*shape: int) -> Tensor:
        return torch.randn(455, *shape, generator=random)

    if name == "uci":
        data = Data((rows(13),), rows(1))
        return Case(Variance().eval(), "gaussian", data, lambda out, y: F.gaussian_nll_loss(out[0], y, out[1]))
    if name == "digits":
        module, x, classes = digits(), rows(1, 8, 8), 10
    else:
        module, x, classes = Encoder(), rows(8, 16), 4
    return Case(module.eval(), "classification", Data((x,), torch.arange(455) % classes), F.cross_entropy)


CASES = ("uci", "digits", "encoder")


def one_by_one(case: Case, starts: Sequence[dict[str, Tensor]], schedule: Schedule, *, fused: bool) -> list[nn.Module]:
    """Every member as a module of its own."""
    assert case.data.targets is not None
    rows = Rows.draw(SEED, range(len(starts)), len(case.data), bootstrap=True, hold_back=False)
    batches = rows.batches(schedule.batch_size)
    # (steps, members, rows)
    orders = torch.stack([next(batches) for _ in range(schedule.steps)])
    trained = []
    for member, start in enumerate(starts):
        module = copy.deepcopy(case.module)
        module.load_state_dict(start)
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, fused=fused or None
        )
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps)
        for order in orders[:, member]:
            optimizer.zero_grad()
            case.loss(module(*(t[order] for t in case.data.inputs)), case.data.targets[order]).backward()
            optimizer.step()
            rate.step()
        trained.append(module)
    return trained


def measure(case: Case, members: int, steps: int, visits: int) -> tuple[dict[str, float], float]:
    """Milliseconds for one step of all members, each way; and how far outputs are apart, relative to the largest."""
    ens = ensemble.perturb(
        case.module, ensemble.Gaussian(scale=0.1), members=members, example=case.data.inputs[0][:4], task=case.task
    )
    starts = [ens.member(index) for index in range(members)]
    loss = negative_log_likelihood(case.task, heads(case.task, ens.program.outputs))
    schedule = Schedule(steps=steps, lr=0.005)

    def together(some: Schedule = schedule) -> Members:
        return train(ens.program, ens.members, case.data, loss, some, seed=SEED, bootstrap=True).members

    short = dataclasses.replace(schedule, steps=min(steps, 10))
    apart, found = 0.0, together(short)
    alone = one_by_one(case, starts, short, fused=False)
    with torch.no_grad():
        for index, module in enumerate(alone):
            answer = module(*case.data.inputs)
            wanted = [answer] if isinstance(answer, Tensor) else answer
            for got, want in zip(ens.program(found.whole(index), case.data.inputs), wanted, strict=True):
                apart = max(apart, float((got - want).abs().max() / want.abs().max()))
    ways: dict[str, Callable[[], object]] = {
        "together": together,
        "one after the other": lambda: one_by_one(case, starts, schedule, fused=False),
        "the same, fused Adam": lambda: one_by_one(case, starts, schedule, fused=True),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(visits):
        for way, call in ways.items():
            begun = time.perf_counter()
            call()
            best[way] = min(best[way], (time.perf_counter() - begun) / steps * 1e3)
    return best, apart


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--members", nargs="+", type=int, default=[128], metavar="N")
    parser.add_argument("--steps", type=int, default=50, help="steps of a visit (default: 50)")
    parser.add_argument("--visits", type=int, default=5, help="of each way (default: 5)")
    args = parser.parse_args(arguments)
    if min(*args.members, args.steps, args.visits) < 1:
        parser.error("--members, --steps and --visits must be at least 1")
    print(machine.describe())
    print("\nMilliseconds for one step of all members, 32 rows each.\n")
    print("| model | members | together | one after the other | the same, fused Adam | times faster | they differ by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in args.cases:
        for members in args.members:
            found, apart = measure(case(name), members, args.steps, args.visits)
            one, plain, fused = found.values()
            faster = f"{plain / one:.1f} ({fused / one:.1f})"
            print(
                f"| {name} | {members} | {one:.2f} | {plain:.1f} | {fused:.1f} | {faster} | {apart:.0e} |", flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
