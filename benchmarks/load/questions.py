"""What the services are asked, and what they must answer: the members are made, saved, and run one after the other."""

from __future__ import annotations

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.load.services import FailedError, post

# As far as an answer may be from that of the members as plain modules.
TOLERANCE = 1e-4
# Asked at once before anything is timed, so that answers that were batched are checked, too.
ROWS = 32
_TIMES = 3
_PACKAGES = ("openvino", "fastapi", "uvicorn", "pydantic", "litserve", "ray")


@dataclasses.dataclass(frozen=True)
class Questions:
    """Requests of one row, and the answer to each.

    Args:
        flat: bodies for the peers, whose rows are flat.
        shaped: bodies for this service, whose rows have the model's own shape, asking for the mean alone.
        mean: what each must be answered, (ROWS, classes).
    """

    flat: list[bytes]
    shaped: list[bytes]
    mean: NDArray[np.float32]

    def bodies(self, ours: bool) -> list[bytes]:
        return self.shaped if ours else self.flat


def prepare(case: str, recipe: str, members: int, path: Path) -> Questions:
    """Save the members as ``path``, and ask them one after the other. For a process of its own."""
    import torch

    import ensemble
    from benchmarks.models import CASES

    found = CASES[case]()
    found.ensemble(recipe, members).save(path)
    modules = found.modules(ensemble.load(path))
    rows = found.rows(ROWS)
    with torch.no_grad():
        mean = torch.stack([module(rows) for module in modules]).softmax(-1).mean(0)
    flat, shaped = (
        [orjson.dumps({"inputs": row[None], **more}, option=orjson.OPT_SERIALIZE_NUMPY) for row in array.numpy()]
        for array, more in ((rows.flatten(1), {}), (rows, {"outputs": ["mean"]}))
    )
    return Questions(flat, shaped, mean.numpy())


def check(url: str, questions: Questions, ours: bool) -> float:
    """Ask for all rows at once, a few times.

    Returns:
        The largest difference from what the members say.

    Raises:
        FailedError: an answer is an error, or wrong.
    """
    bodies = questions.bodies(ours)
    worst = 0.0
    with ThreadPoolExecutor(len(bodies)) as threads:
        for row, replies in enumerate(threads.map(lambda body: post(url, [body] * _TIMES), bodies)):
            for reply in replies:
                if reply.status_code != 200:
                    raise FailedError(f"answers {reply.status_code}: {reply.text[:100]}")
                given = np.array(reply.json()["outputs"]["mean"], dtype=float)
                if given.shape != (1, questions.mean.shape[1]):
                    raise FailedError(f"answers one row with shape {given.shape}")
                # NaN is no small difference.
                difference = float(np.abs(given[0] - questions.mean[row]).max())
                if not difference <= TOLERANCE:
                    raise FailedError(f"wrong: an answer differs from the loop over members by {difference:.1e}")
                worst = max(worst, difference)
    return worst


class Bare:
    """The library's own call for one row, planned and compiled as in the service. For a process of its own.

    Args:
        path: of the saved members, which a service serves: what it compiled is used.
    """

    def __init__(self, path: Path, case: str) -> None:
        import gc

        import torch

        import ensemble
        from app.planning import Planning, batch_sizes, make_plan
        from app.processors import default_threads
        from app.settings import Settings
        from benchmarks.models import CASES
        from ensemble.backends.workshop import Workshop

        torch.set_num_threads(default_threads())
        self._made, self._row = ensemble.load(path), CASES[case]().rows(1)
        with Workshop() as workshop:
            make_plan(self._made, Planning(workshop), batch_sizes(Settings().max_batch), lambda text, share: None)
        gc.collect()
        gc.freeze()

    def how(self) -> str:
        """In words, which way it runs."""
        assert self._made.plan is not None
        return str(self._made.plan.way(1))

    def seconds(self, long: float) -> float:
        """The median of calls for so long."""
        times: list[float] = []
        end = time.perf_counter() + long
        while len(times) < 20 or time.perf_counter() < end:
            begun = time.perf_counter()
            self._made.predict(self._row, statistics=["mean"]).flat()["mean"].numpy()
            times.append(time.perf_counter() - begun)
        # The first of them fill the caches.
        return float(np.median(times[len(times) // 10 :]))


def environment(cache: Path) -> None:
    """What all services share; before anything is started. Nothing that an earlier run compiled is used.

    Args:
        cache: an empty folder.
    """
    from benchmarks.speed.environment import settle

    settle(None, str(cache))
    for name in [name for name in os.environ if name.startswith("ENSEMBLED_")]:
        del os.environ[name]


def machine() -> str:
    """What it is measured on. For a process of its own."""
    import torch

    from benchmarks.machine import describe

    return f"{describe(_PACKAGES)}; {torch.backends.cpu.get_cpu_capability()}."
