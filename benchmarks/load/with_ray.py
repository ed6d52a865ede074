"""Ray Serve around plain vmap, with its batching.

python -m benchmarks.load.with_ray models/mlp/1 mlp --port 9001
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

# Before Ray is imported, which otherwise reports that it was used.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
import torch
from ray import serve
from starlette.requests import Request

from benchmarks.load.members import Answer, answer, arguments, load
from benchmarks.machine import cores

MAX_BATCH, BATCH_SECONDS = 32, 0.005


class Predict:
    """As Ray Serve's documentation would have it."""

    def __init__(self, path: Path, case: str, threads: int) -> None:
        # Ray would give each replica one.
        torch.set_num_threads(threads)
        self.members = load(path, case, "vmap")

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_SECONDS)  # type: ignore[untyped-decorator,unused-ignore]
    async def batched(self, rows: list[list[list[float]]]) -> list[Answer]:
        # Each request has one row.
        mean = self.members.mean(torch.tensor([row for one in rows for row in one]))
        return [answer(one) for one in mean.split(1)]

    async def __call__(self, request: Request) -> Any:
        return await self.batched((await request.json())["inputs"])


def main() -> None:
    args = arguments(__doc__).parse_args()
    asked_to_end = threading.Event()
    # Short, since Ray's sockets lie in it.
    folder = tempfile.mkdtemp(prefix="ray-")
    try:
        ray.init(
            num_cpus=cores(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 * 2**20,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: asked_to_end.set())
        serve.start(http_options={"host": "127.0.0.1", "port": args.port}, logging_config={"log_level": "ERROR"})
        # By default five requests at once, which no batch could be made of.
        deployed = serve.deployment(Predict, max_ongoing_requests=2 * MAX_BATCH)
        serve.run(deployed.bind(args.path, args.case, torch.get_num_threads()), route_prefix="/predict")
        asked_to_end.wait()
        serve.shutdown()
        ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
