"""A test that makes no sense is refused before it starts, with the value that is wrong."""

import pytest

from app.loadtest.config import Config, LoadTestError

URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of rate"),
        ({"rate": 1, "concurrency": 1}, "exactly one of rate"),
        ({"rate": 0}, "rate=0"),
        ({"rate": float("nan")}, "rate=nan"),
        ({"rate": float("inf")}, "rate=inf"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"rate": 1, "duration": -1}, "duration=-1"),
        ({"rate": 1, "warmup": -1}, "warmup=-1"),
        ({"rate": 1, "timeout": 0}, "timeout=0"),
        ({"rate": 1, "max_in_flight": 0}, "max_in_flight=0"),
        ({"rate": 1, "rows": 0}, "rows=0"),
        ({"rate": 1, "seed": -1}, "seed=-1"),
        ({"rate": 1, "arrivals": "bursty"}, "arrivals=bursty"),
        ({"rate": 1, "body": "b.json", "model": "m"}, "body is sent as it is"),
        ({"rate": 1, "headers": (("a b", "c"),)}, "header 'a b'"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(LoadTestError, match=message):
        Config(url=URL, **settings)


def test_a_key_in_a_header_is_shown_nowhere():
    assert "secret" not in repr(Config(url=URL, rate=1, headers=(("authorization", "secret"),)))
    with pytest.raises(LoadTestError) as refused:
        Config(url=URL, rate=1, headers=(("authorization", "secret\n"),))
    assert "secret" not in str(refused.value)
