"""When to ask again, and when to give up.

Waits grow exponentially and are drawn evenly between nothing and the bound ("full jitter"), so that clients which were
refused together do not come back together. See Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.client.errors import ClientError, DeadlineExceeded


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often, and after what time, a request is repeated.

    Attributes:
        attempts: in all; 1 repeats nothing.
        first: seconds that the first wait lasts at most; each further one lasts at most twice as long.
        longest: seconds that no wait exceeds, but for one that the service asks for.
        longest_asked: seconds; a service that asks for a longer wait (``Retry-After``) is not waited for.
    """

    attempts: int = 4
    first: float = 0.1
    longest: float = 5.0
    longest_asked: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.first, self.longest, self.longest_asked) < 0:
            raise ValueError(f"attempts must be 1 or more and seconds 0 or more, however: {self}")


class Attempts:
    """The attempts at one call, and the time that it has.

    Args:
        retry: what is allowed.
        timeout: seconds for all attempts and the waits between them; None for no end.
        clock, uniform: for tests.

    Attributes:
        in_doubt: whether an earlier attempt at this request may have been done, although it brought no result.
    """

    def __init__(
        self,
        retry: Retry,
        timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout must be above 0 seconds, however: {timeout}")
        self._retry = retry
        self._clock = clock
        self._uniform = uniform
        self._timeout = timeout
        self._end = None if timeout is None else clock() + timeout
        self._made = 0
        self.in_doubt = False

    def left(self) -> float | None:
        """Seconds that are left; None for no end.

        Raises:
            DeadlineExceeded: there are none.
        """
        if self._end is None:
            return None
        seconds = self._end - self._clock()
        if seconds <= 0:
            raise self.over()
        return seconds

    def over(self) -> DeadlineExceeded:
        """The error of a call whose time is over."""
        within = "in time" if self._timeout is None else f"within {self._timeout:g} seconds"
        return DeadlineExceeded(f"there was no answer {within}")

    def wait_after(self, error: ClientError, *, idempotent: bool = True) -> float:
        """Seconds to wait before the next attempt.

        Args:
            error: of the last one.
            idempotent: whether the service may do the request twice.

        Raises:
            ClientError: the error itself, if there is to be none.
        """
        self._made += 1
        if not error.retryable or self._made >= self._retry.attempts or not (idempotent or error.unprocessed):
            raise error
        asked = error.retry_after or 0.0
        if asked > self._retry.longest_asked:
            raise error
        bound = min(self._retry.longest, self._retry.first * 2 ** (self._made - 1))
        wait = asked + self._uniform(0.0, bound)
        if self._end is not None and self._clock() + wait >= self._end:
            # Nobody could make use of an answer by then.
            raise error
        self.in_doubt |= not error.unprocessed
        return wait

    def start_over(self) -> None:
        """The next request of several that share the time."""
        self._made = 0
        self.in_doubt = False
