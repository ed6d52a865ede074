"""The members of a saved ensemble, as a peer runs them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state

import ensemble
from benchmarks.models import CASES

WAYS = ("loop", "vmap")
Answer = dict[str, dict[str, list[list[float]]]]


@dataclass(frozen=True)
class Members:
    """Members that can be called.

    Args:
        call: logits of flat rows (B, features), as (members, B, classes).
        row: shape of a row, as the model takes it.
    """

    call: Callable[[Tensor], Tensor]
    row: tuple[int, ...]

    def mean(self, rows: Tensor) -> Tensor:
        """The mean probabilities (B, classes) of rows (B, features)."""
        with torch.no_grad():
            return self.call(rows.reshape(-1, *self.row)).softmax(-1).mean(0)


def load(path: Path, case: str, way: str) -> Members:
    """Members with the weights of a saved ensemble, each a module of its own.

    Args:
        way: ``loop``, one after the other; or ``vmap``, all in one call.
    """
    found = CASES[case]()
    modules = found.modules(ensemble.load(path))
    if way == "loop":
        return Members(lambda x: torch.stack([module(x) for module in modules]), found.row)
    parameters, buffers = stack_module_state(modules)
    first = modules[0]
    # The stacks hold the weights a second time.
    modules.clear()

    def one(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(first, (p, b), (x,))
        return output

    many = torch.vmap(one, in_dims=(0, 0, None))
    return Members(lambda x: many(parameters, buffers, x), found.row)


def answer(mean: Tensor) -> Answer:
    """What every peer answers for rows (B, classes); this service answers the same, and who said it."""
    return {"outputs": {"mean": mean.tolist()}}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Those that every peer takes."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("path", type=Path, help="of a saved ensemble")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--port", type=int, required=True)
    return parser
