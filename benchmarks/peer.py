"""The services that one writes today: FastAPI around a loop over modules, or around plain vmap.

    python -m benchmarks.peer loop models/mlp/1 mlp --port 9001

Both serve the members of a saved ensemble, so that every service gives the same answers. A lock stands around the
members because ``functional_call`` is not safe for threads, and an endpoint that is no coroutine runs in a thread.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from torch import Tensor
from torch.func import functional_call, stack_module_state

import ensemble
from benchmarks.models import CASES


class Question(BaseModel):
    """As FastAPI's documentation would have it."""

    inputs: list[list[float]]


def answer_by(way: str, path: str, case_name: str) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...]]:
    case = CASES[case_name]()
    modules = case.modules(ensemble.load(path))
    if way == "loop":
        return lambda x: torch.stack([module(x) for module in modules]), case.row
    parameters, buffers = stack_module_state(modules)

    def one(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(modules[0], (p, b), (x,))
        return output

    many = torch.vmap(one, in_dims=(0, 0, None))
    return lambda x: many(parameters, buffers, x), case.row


def create(way: str, path: str, case_name: str) -> FastAPI:
    app = FastAPI()
    call, row = answer_by(way, path, case_name)
    lock = threading.Lock()

    @app.post("/predict")
    def predict(question: Question) -> dict[str, dict[str, list[list[float]]]]:
        x = torch.tensor(question.inputs).reshape(-1, *row)
        with lock, torch.no_grad():
            p = call(x).softmax(-1)
        return {"outputs": {"mean": p.mean(0).tolist()}}

    @app.get("/v2/health/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("way", choices=("loop", "vmap"))
    parser.add_argument("path")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvicorn.run(create(args.way, args.path, args.case), port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
