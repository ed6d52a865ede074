"""The protocol's statistics: counts, sums, and their form."""

from __future__ import annotations

import time

from app.statistics import Parts, Statistics

KEY = ("m", "1")
DURATIONS = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}


def one(statistics: Statistics, key=KEY):
    (found,) = statistics.document([key])["model_stats"]
    return found


def test_a_version_that_was_never_asked_has_all_of_it_as_zero():
    found = one(Statistics())
    assert (found["name"], found["version"]) == KEY
    assert found["last_inference"] == found["inference_count"] == found["execution_count"] == 0
    assert found["inference_stats"].keys() == DURATIONS
    assert all(duration == {"count": 0, "ns": 0} for duration in found["inference_stats"].values())
    assert found["batch_stats"] == []


def test_answers_and_errors_are_counted_apart_and_the_parts_of_answers_alone():
    statistics = Statistics()
    statistics.request_done(KEY, 0.5, Parts(0.125, 0.25, 0.0625, 0.001))
    statistics.request_done(KEY, 0.25, Parts(0.125, 0.0, 0.0625, 0.002))
    statistics.request_done(KEY, 0.125, None)
    found = one(statistics)["inference_stats"]
    assert found["success"] == {"count": 2, "ns": 75 * 10**7}
    assert found["fail"] == {"count": 1, "ns": 125 * 10**6}
    assert found["queue"] == {"count": 2, "ns": 25 * 10**7}
    assert found["compute_input"] == {"count": 2, "ns": 25 * 10**7}
    assert found["compute_infer"] == {"count": 2, "ns": 125 * 10**6}
    assert found["compute_output"] == {"count": 2, "ns": 3 * 10**6}


def test_calls_are_told_apart_by_their_rows():
    statistics = Statistics()
    before = time.time_ns() // 10**6
    for rows, seconds in ((8, 0.5), (2, 0.25), (8, 0.25)):
        statistics.call_done(KEY, rows, seconds)
    found = one(statistics)
    assert before <= found["last_inference"] <= time.time_ns() // 10**6
    assert (found["inference_count"], found["execution_count"]) == (18, 3)
    none = {"count": 0, "ns": 0}
    assert found["batch_stats"] == [
        {
            "batch_size": rows,
            "compute_input": none,
            "compute_infer": {"count": count, "ns": nanoseconds},
            "compute_output": none,
        }
        for rows, count, nanoseconds in ((2, 1, 25 * 10**7), (8, 2, 75 * 10**7))
    ]


def test_versions_are_counted_apart_and_those_that_are_not_kept_are_forgotten():
    statistics = Statistics()
    keys = [("m", "1"), ("m", "2"), ("n", "1")]
    for rows, key in enumerate(keys, 1):
        statistics.call_done(key, rows, 0.0)
    assert [m["inference_count"] for m in statistics.document(keys)["model_stats"]] == [1, 2, 3]
    statistics.keep(keys[1:])
    assert [m["inference_count"] for m in statistics.document(keys)["model_stats"]] == [0, 2, 3]
