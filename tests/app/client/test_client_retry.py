"""When a call is repeated, by a clock that does not tick by itself."""

from __future__ import annotations

import email.utils
import time

import pytest

from app.client import (
    BadRequest,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InputError,
    InvalidAnswer,
    NotFound,
    Retry,
    ServerFault,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from app.client.errors import error_of
from app.client.retry import Attempts


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(timeout=None, clock=None, uniform=lambda low, high: high, **rest) -> Attempts:
    return Attempts(Retry(**rest), timeout, clock or Clock(), uniform)


def test_waits_double_up_to_a_bound_and_end():
    made = attempts(attempts=7, first=0.1, longest=1.0)
    waits = [made.wait_after(Unavailable("x")) for _ in range(6)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    with pytest.raises(Unavailable, match="x"):
        made.wait_after(Unavailable("x"))


def test_waits_are_drawn_from_nothing_to_the_bound():
    drawn = []
    made = attempts(uniform=lambda low, high: drawn.append((low, high)) or 0.03, first=0.5)
    assert made.wait_after(ConnectionFailed("x")) == 0.03
    assert made.wait_after(ConnectionFailed("x")) == 0.03
    assert drawn == [(0.0, 0.5), (0.0, 1.0)]


def test_the_service_is_given_the_time_that_it_asks_for_and_clients_come_apart():
    made = attempts(first=0.1)
    assert made.wait_after(TooManyRequests("x", retry_after=3.0)) == pytest.approx(3.1)
    with pytest.raises(TooManyRequests):
        attempts(longest_asked=2.0).wait_after(TooManyRequests("x", retry_after=3.0))


def test_nothing_is_waited_for_that_would_be_too_late():
    clock = Clock()
    made = attempts(timeout=1.0, clock=clock, first=0.4)
    assert made.left() == pytest.approx(1.0)
    assert made.wait_after(Unavailable("x")) == pytest.approx(0.4)
    clock.now += 0.5
    assert made.left() == pytest.approx(0.5)
    with pytest.raises(Unavailable, match="x"):
        made.wait_after(Unavailable("x"))
    clock.now += 0.5
    with pytest.raises(DeadlineExceeded, match="there was no answer within 1 seconds"):
        made.left()
    with pytest.raises(DeadlineExceeded):
        made.wait_after(made.over())


def test_an_answer_that_came_too_late_at_the_service_is_asked_for_again_where_there_is_time():
    assert attempts(timeout=10.0).wait_after(DeadlineExceeded("x", status=504)) > 0


@pytest.mark.parametrize("kind", [BadRequest, Unauthorized, NotFound, ServerFault, InvalidAnswer, InputError])
def test_what_cannot_get_better_is_not_repeated(kind):
    with pytest.raises(kind):
        attempts().wait_after(kind("x"))


@pytest.mark.parametrize(
    "error",
    [
        TooManyRequests("x", unprocessed=True),
        Unavailable("x", unprocessed=True),
        ConnectionFailed("x", unprocessed=True),
    ],
)
def test_what_must_not_be_done_twice_is_repeated_if_it_was_surely_not_done(error):
    made = attempts()
    assert made.wait_after(error, idempotent=False) > 0
    assert not made.in_doubt
    with pytest.raises(ConnectionFailed):
        made.wait_after(ConnectionFailed("x"), idempotent=False)
    assert not made.in_doubt


def test_an_attempt_that_may_have_been_done_leaves_doubt_until_the_next_request():
    made = attempts()
    made.wait_after(ConnectionFailed("x"))
    made.wait_after(TooManyRequests("x", unprocessed=True))
    assert made.in_doubt
    with pytest.raises(NotFound):
        made.wait_after(NotFound("x"))
    made.start_over()
    with pytest.raises(NotFound):
        made.wait_after(NotFound("x"))
    assert not made.in_doubt


def test_one_attempt_repeats_nothing():
    with pytest.raises(ConnectionFailed):
        attempts(attempts=1).wait_after(ConnectionFailed("x"))


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first": -1}, {"longest": -0.1}, {"longest_asked": -1}])
def test_a_policy_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="attempts must be 1 or more and seconds 0 or more"):
        Retry(**wrong)


@pytest.mark.parametrize("timeout", [0, -1])
def test_no_time_at_all_is_refused(timeout):
    with pytest.raises(ValueError, match="timeout must be above 0 seconds"):
        attempts(timeout=timeout)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, InvalidAnswer), (400, BadRequest), (401, Unauthorized), (403, Unauthorized), (404, NotFound),
        (405, BadRequest), (408, BadRequest), (413, BadRequest), (415, BadRequest), (429, TooManyRequests),
        (431, BadRequest), (500, ServerFault), (501, ServerFault), (502, Unavailable), (503, Unavailable),
        (504, DeadlineExceeded), (599, ServerFault),
    ],
)  # fmt: skip
def test_the_error_follows_from_the_status(status, kind):
    error = error_of(status, {"x-request-id": "r-1"}, "what was wrong")
    assert type(error) is kind
    assert isinstance(error, ClientError)
    assert (error.status, error.text, error.request_id, error.retry_after) == (status, "what was wrong", "r-1", None)
    assert str(error) == f"what was wrong (status {status}, request r-1)"
    assert error.retryable == (status in (429, 502, 503, 504))


@pytest.mark.parametrize(
    ("header", "seconds"), [("3", 3.0), (" 2.5 ", 2.5), ("-1", None), ("soon", None), ("", None), ("9" * 400, None)]
)
def test_retry_after_in_seconds(header, seconds):
    assert error_of(503, {"retry-after": header}, "x").retry_after == seconds


def test_retry_after_as_a_date():
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert error_of(503, {"retry-after": later}, "x").retry_after == pytest.approx(100, abs=5)
    assert error_of(503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, "x").retry_after == 0.0


def test_long_texts_are_cut():
    assert len(str(error_of(500, {}, "x" * 10_000))) < 600
    assert str(error_of(500, {}, "")) == "the service answered 500 (status 500)"
