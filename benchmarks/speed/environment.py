"""What all ways share: the cores, the threads, and how long threads wait spinning. Set before PyTorch is imported."""

from __future__ import annotations

import os

# Threads of OpenMP that wait spinning for milliseconds after each call take the cores from whoever is next: the service
# sets this where nothing else is set.
BRIEF = {"GOMP_SPINCOUNT": "1000"}


def settle(threads: int | None, cache: str, *, brief: bool = True) -> None:
    """For this process and all that it starts.

    Args:
        threads: how many; all cores that the process may use by default.
        cache: a folder for what is compiled and for plans that are kept, empty, so that no earlier run helps.
        brief: threads spin as briefly as in the service; else for as long as is OpenMP's default.
    """
    if threads is not None and hasattr(os, "sched_setaffinity"):
        # The one setting that every runtime heeds.
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, mine[:threads])
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(min(threads or count, count))
    if brief:
        for name, value in BRIEF.items():
            os.environ.setdefault(name, value)
    # Compilers of torch.compile in processes of their own would stay beside what is timed.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(cache, "compiled")
    os.environ["XDG_CACHE_HOME"] = cache
    # Of a worker that had to be ended.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
