"""Adapted weights that are kept for later queries, under handles that nobody can guess.

All is on the event loop's thread. What is kept ends when its time is over, when it is deleted, and with the version of
the model that it was adapted from; for a while afterwards it is told which of these it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from app.errors import BadRequest, Gone, NotFound, TooManyRequests
from ensemble.memory import human

T = TypeVar("T")

# Bytes of chance in a handle.
_CHANCE = 24
_MOST_REMEMBERED = 1024


@dataclass(eq=False)
class Kept(Generic[T]):
    """One adapted model.

    Attributes:
        name, version: of the model that it was adapted from.
        model: that model, as long as it is served.
        weights: the adapted ones by name, each (members, *shape).
        about: what it takes to evaluate them.
        nbytes: of the weights.
        handle: its name.
        expires: when it ends, by the event loop's clock.
    """

    name: str
    version: str
    model: weakref.ref[T]
    weights: dict[str, Tensor]
    about: object
    nbytes: int
    handle: str = ""
    expires: float = 0.0
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class Store(Generic[T]):
    """What is kept, at most so many models of so many bytes in all.

    Args:
        most: how many; 0 for none.
        nbytes: of all their weights.
        served: whether a model is still served.

    Attributes:
        used: bytes of the weights that are kept.
    """

    def __init__(self, most: int, nbytes: int, served: Callable[[T], bool]) -> None:
        self.most = most
        self.nbytes = nbytes
        self._served = served
        self.used = 0
        self._kept: dict[str, Kept[T]] = {}
        # Of requests that are being computed: how many, and their bytes.
        self._coming = [0, 0]
        self._ended: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @contextlib.contextmanager
    def room(self, nbytes: int) -> Iterator[None]:
        """Hold a place, before anything is computed that could not be kept.

        Raises:
            BadRequest: it is more than there is room for at all.
            TooManyRequests: there is no room now.
        """
        if nbytes > self.nbytes:
            raise BadRequest(
                f"the adapted weights would take {human(nbytes)}, and {human(self.nbytes)} can be kept: adapt fewer "
                "weights (weights, factors), or with fewer parameters.members"
            )
        if len(self) + self._coming[0] >= self.most or self.used + self._coming[1] + nbytes > self.nbytes:
            raise TooManyRequests(
                f"{len(self)} adapted models of {human(self.used)} are kept, of {self.most} and {human(self.nbytes)} "
                "at most; delete one that is not needed any more, or try again later",
                reason="adapted_full",
                retry_after=self._soonest(),
            )
        self._coming[0] += 1
        self._coming[1] += nbytes
        try:
            yield
        finally:
            self._coming[0] -= 1
            self._coming[1] -= nbytes

    def keep(self, kept: Kept[T], seconds: float) -> Kept[T]:
        """Take it in, for so many seconds, and give it its handle."""
        loop = asyncio.get_running_loop()
        handle = kept.handle = secrets.token_hex(_CHANCE)
        kept.expires = loop.time() + seconds
        kept.timer = loop.call_later(seconds, self._end, handle, "its time was over")

        def unloaded(_: object) -> None:
            # On whatever thread the model's last reference went.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._end, handle, _REPLACED)

        model = kept.model()
        if model is not None:
            kept.model = weakref.ref(model, unloaded)
        self._kept[handle] = kept
        self.used += kept.nbytes
        return kept

    def find(self, handle: str) -> tuple[Kept[T], T]:
        """What is kept under a handle, and the model that it was adapted from.

        Raises:
            NotFound: nothing ever was, as far as is remembered.
            Gone: it has ended; the text says why.
        """
        kept = self._kept.get(handle)
        model = None if kept is None else kept.model()
        if kept is not None and (model is None or not self._served(model)):
            self._end(handle, _REPLACED)
            kept = None
        if kept is not None and model is not None:
            return kept, model
        if handle in self._ended:
            raise Gone(f"this adapted model is not kept any more: {self._ended[handle]}; adapt again")
        raise NotFound(
            "there is no adapted model under this handle; POST /v1/models/NAME/adapt with keep_seconds gives one"
        )

    def remove(self, handle: str) -> None:
        """End one before its time.

        Raises:
            NotFound, Gone: as :meth:`find`.
        """
        self.find(handle)
        self._end(handle, "it was deleted")

    def close(self) -> None:
        """Forget all."""
        for handle in list(self._kept):
            self._end(handle, "the service ended")

    def seconds_left(self, kept: Kept[T]) -> float:
        """Until it ends."""
        return max(0.0, kept.expires - asyncio.get_running_loop().time())

    def _soonest(self) -> float:
        return min((self.seconds_left(kept) for kept in self._kept.values()), default=1.0)

    def _end(self, handle: str, reason: str) -> None:
        kept = self._kept.pop(handle, None)
        if kept is None:
            return
        self.used -= kept.nbytes
        if kept.timer is not None:
            kept.timer.cancel()
        self._ended[handle] = reason
        if len(self._ended) > _MOST_REMEMBERED:
            self._ended.popitem(last=False)


_REPLACED = "the version of the model that it was adapted from is not served any more"
