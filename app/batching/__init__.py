"""Waiting requests, and how they are merged into calls: asyncio only, no torch, no HTTP."""

from app.batching.batcher import Answer, Batcher, Observer

__all__ = ["Answer", "Batcher", "Observer"]
