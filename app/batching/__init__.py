"""Waiting requests, and how they are merged into calls: an event loop and one other thread, no torch, no HTTP."""

from app.batching.batcher import Batcher
from app.batching.contract import Answer, Arrays, Call, Observer, Outcome, OutOfMemory, Reason, Target, non_finite_rows

__all__ = [
    "Answer",
    "Arrays",
    "Batcher",
    "Call",
    "Observer",
    "OutOfMemory",
    "Outcome",
    "Reason",
    "Target",
    "non_finite_rows",
]
