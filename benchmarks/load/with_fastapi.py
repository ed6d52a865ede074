"""FastAPI around a loop over modules, or around plain vmap: the service that one writes first.

    python -m benchmarks.load.with_fastapi models/mlp/1 mlp --way loop --port 9001

A lock stands around the members because ``functional_call`` is not safe for threads, and an endpoint that is no
coroutine runs in a thread.
"""

from __future__ import annotations

import threading

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.load.members import WAYS, Answer, Members, answer, arguments, load


class Question(BaseModel):
    """As FastAPI's documentation would have it."""

    inputs: list[list[float]]


def create(members: Members) -> FastAPI:
    app = FastAPI()
    lock = threading.Lock()

    @app.post("/predict")
    def predict(question: Question) -> Answer:
        rows = torch.tensor(question.inputs)
        with lock:
            mean = members.mean(rows)
        return answer(mean)

    return app


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--way", choices=WAYS, required=True)
    args = parser.parse_args()
    uvicorn.run(create(load(args.path, args.case, args.way)), port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
