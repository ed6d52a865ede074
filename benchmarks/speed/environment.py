"""What all ways share: the cores, the threads, and how long threads wait spinning. Set before PyTorch is imported."""

from __future__ import annotations

import os


def settle(threads: int | None, cache: str) -> None:
    """For this process and all that it starts.

    Args:
        cache: a folder for what is compiled and for plans that are kept, empty, so that no earlier run helps.
        threads: how many; all cores that the process may use by default.
    """
    if threads is not None and hasattr(os, "sched_setaffinity"):
        # The one setting that every runtime heeds.
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, mine[:threads])
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(min(threads or count, count))
    # Threads that spin after their work is done take the cores from whoever has the next turn.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Compilers of torch.compile in processes of their own would stay beside what is timed.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(cache, "compiled")
    os.environ["XDG_CACHE_HOME"] = cache
    # Of a worker that had to be ended.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
