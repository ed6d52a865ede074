"""A batch through all members: a Python loop over modules, plain vmap, and this library with its measured plan.

python -m benchmarks.library
"""

from __future__ import annotations

import argparse
import statistics

import torch
from rich.console import Console
from rich.table import Table
from torch.func import functional_call, stack_module_state

from benchmarks.machine import describe, spread, timed
from benchmarks.models import CASES, RECIPES, Case

LOOP, VMAP, OURS = "loop over modules", "vmap(functional_call)", "ensembled"


def measure(case: Case, recipe: str, batches: list[int], seconds: float, compiling: bool) -> Table:
    made = case.ensemble(recipe)
    made.measure(batches, seconds=10 * len(batches))
    for rows in batches if compiling else []:
        made.adopt(made.compile(rows))
    plan = made.plan
    assert plan is not None
    modules = case.modules(made)
    parameters, buffers = stack_module_state(modules)
    skeleton = modules[0]

    def one(p: dict[str, torch.Tensor], b: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = functional_call(skeleton, (p, b), (x,))
        return output

    many = torch.vmap(one, in_dims=(0, 0, None))
    table = Table("rows", "", "ms, median (range)", "times faster than the loop", "largest difference from the loop")
    table.title = f"{case.name}, {case.members} {recipe} members"
    for rows in batches:
        x = case.rows(rows)
        calls = {
            LOOP: lambda x=x: torch.stack([module(x) for module in modules]),
            VMAP: lambda x=x: many(parameters, buffers, x),
            OURS: lambda x=x: made(x),
        }
        with torch.no_grad():
            answers = {name: call() for name, call in calls.items()}
            times = timed(calls, seconds)
        for name in calls:
            ratio = statistics.median(times[LOOP]) / statistics.median(times[name])
            error = (answers[name] - answers[LOOP]).abs().max() / answers[LOOP].abs().max()
            way = plan.way(rows)
            label = f"{name} ({way.kind}, {way.chunk or 1} members a call)" if name == OURS else name
            table.add_row(str(rows), label, spread(times[name]), f"{ratio:.2f}", f"{float(error):.1e}")
        table.add_section()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--no-compile", action="store_true", help="measure the ways that need no compiler only")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each way (default: 2)")
    args = parser.parse_args()
    console = Console(width=110, highlight=False)
    console.print(describe())
    for name in args.cases:
        for recipe in args.recipes:
            console.print(measure(CASES[name](), recipe, sorted(args.rows), args.seconds, not args.no_compile))


if __name__ == "__main__":
    main()
