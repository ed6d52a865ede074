"""A whole run, its workers in this process: what fits, what fails, what is late."""

import itertools
import types

import pytest

from benchmarks.machine import Limits
from benchmarks.speed import __main__ as command
from benchmarks.speed import running, schedule
from benchmarks.speed.counting import Count, Facts, Size
from benchmarks.speed.results import Results
from benchmarks.speed.running import Prepared
from benchmarks.speed.schedule import Schedule, Settings
from benchmarks.speed.worker import LostError, RefusedError

SECONDS = {"loop": 0.01, "vmap": 0.02, "dense": 0.005, "low_rank": 0.001, "openvino": 0.004, "jax": 0.004}
GIB = 2**30


class Fake:
    """A worker that answers as ``behaviour`` says: {(way, method): error}, or seconds that pass on the run's clock."""

    behaviour: dict
    asked: list
    now: float

    def __init__(self, make, model, way, members, batches, reference, planning, verbose, environment):
        assert make is running.Running
        assert environment == running.WAYS[way].environment
        self.way, self.members = way, members

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def ask(self, method, *arguments, timeout):
        assert timeout > 0
        self.asked.append((self.way, self.members, method, *arguments))
        rows = arguments[0] if arguments else None
        for key in ((self.way, method), (self.way, method, rows)):
            found = self.behaviour.get(key, 0)
            if isinstance(found, Exception):
                raise found
            Fake.now += min(found, timeout)
            if found > timeout:
                raise LostError(f"not done in {timeout:.0f} s", late=True)
        if method == "start":
            return 0.1
        if method == "prepare":
            return Prepared(1e-7, self.members, 0.2, 0.01, "a note" if self.way == "low_rank" else "")
        return [SECONDS[self.way] * rows] * 2

    def close(self):
        self.asked.append((self.way, self.members, "close"))


@pytest.fixture
def run(monkeypatch, tmp_path):
    def go(
        behaviour=None,
        *,
        free=100 * GIB,
        minutes=10,
        model="mlp",
        member=2**20,
        members=(2, 16),
        activation=1000,
        ways=("loop", "vmap", "dense", "low_rank"),
    ):
        Fake.behaviour, Fake.asked, Fake.now = behaviour or {}, [], 0.0
        size = Size(member, {"dense": 0, "low_rank": member}, {"dense": member, "low_rank": 100}, activation)
        counts = {r: {b: Count((0, 10.0 * b), (0, 1000)) for b in (1, 8)} for r in ("dense", "low_rank")}

        def isolated(function, *arguments, timeout, verbose):
            if function is schedule.facts_of:
                if model == "resnet":
                    raise RefusedError("no torchvision")
                return Facts("a model", size, counts)
            if function is schedule.limits:
                return measured.pop(0)
            assert function is schedule.reference.write
            return 16

        monkeypatch.setattr(schedule, "Worker", Fake)
        monkeypatch.setattr(schedule, "isolated", isolated)
        monkeypatch.setattr(schedule, "free_memory", lambda: free)
        monkeypatch.setattr(schedule, "version", lambda package: "1")
        monkeypatch.setattr(schedule, "time", types.SimpleNamespace(monotonic=lambda: Fake.now))
        measured = [Limits({1000: 1e6, 2000: 1e4}, 1e4, 1e5), Limits({1000: 1e5, 2000: 1e5}, 1e3, 1e5)]
        results, said, finished = Results("a machine", "a command"), [], []
        settings = Settings([model], list(members), [1, 8], list(ways), minutes, 1.0, 5.0, 60.0)
        Schedule(settings, results, tmp_path, said.append, finished.append).run()
        assert finished == [model]
        return results

    return go


def test_every_cell_has_a_record_of_every_way(run):
    results = run()
    cells = {(r.members, r.rows, r.way) for r in results.records}
    assert cells == set(itertools.product((2, 16), (1, 8), ("loop", "vmap", "dense", "low_rank")))
    assert len(results.records) == len(cells)
    record = results.record("mlp", 16, 8, "low_rank")
    assert record.speedup == pytest.approx(10)
    assert (record.note, record.checked, record.error) == ("a note", 16, 1e-7)
    assert len(record.seconds) == 2 * schedule.ROUNDS


def test_ways_take_turns(run):
    run(members=(2,))
    visits = [way for way, _, method, *rest in Fake.asked if method == "run" and rest[0] == 1]
    assert visits == ["low_rank", "loop", "dense", "vmap"] * schedule.ROUNDS


def test_workers_are_ended(run):
    run({("vmap", "start"): RefusedError("no"), ("dense", "run"): LostError("died")})
    started = {(way, n) for way, n, method, *_ in Fake.asked if method == "start"}
    assert started == {(way, n) for way, n, method, *_ in Fake.asked if method == "close"}


def test_bounds_follow_from_counts_and_the_best_limits_before_and_after(run):
    bound = run().bound("mlp", 16, 8, "low_rank")
    assert (bound.nbytes, bound.flops) == (16_000, 1280)
    assert bound.seconds == max(16_000 / 1e5, 1280 / 1e4)


def test_a_wrong_way_has_a_reason_and_no_time(run):
    results = run({("vmap", "prepare", 1): RefusedError("wrong: differs from the loop by 1")})
    assert results.record("mlp", 2, 1, "vmap").reason == "wrong: differs from the loop by 1"
    assert not results.record("mlp", 2, 1, "vmap").seconds
    assert results.record("mlp", 2, 8, "vmap").seconds


def test_one_that_hangs_is_given_up_for_larger_batches(run):
    results = run({("dense", "prepare"): LostError("not done in 60 s", late=True)})
    assert results.record("mlp", 2, 1, "dense").reason == "not done in 60 s"
    assert results.record("mlp", 2, 8, "dense").reason == "gave up at 1 rows: not done in 60 s"
    assert results.record("mlp", 2, 8, "low_rank").seconds


def test_one_that_dies_while_it_is_timed(run):
    results = run({("dense", "run", 1): LostError("out of memory?")})
    assert results.record("mlp", 2, 1, "dense").reason == "out of memory?"
    assert results.record("mlp", 2, 8, "dense").reason == "gave up at 1 rows: out of memory?"


def test_without_a_loop_there_are_times_and_no_ratios(run):
    results = run({("loop", "start"): RefusedError("no")})
    record = results.record("mlp", 2, 1, "low_rank")
    assert record.seconds
    assert record.speedup is None


def test_what_does_not_fit_is_not_started(run):
    results = run(free=10 * GIB, member=GIB)
    assert results.record("mlp", 16, 1, "loop").reason.startswith("does not fit: 17.9 GB")
    assert results.record("mlp", 16, 1, "low_rank").seconds
    assert results.record("mlp", 2, 1, "loop").seconds
    assert ("loop", 16, "start") not in Fake.asked


def test_what_does_not_fit_together_runs_one_after_the_other(run):
    # Each fits, but not all beside each other.
    results = run(free=10 * GIB, member=GIB, members=(2,))
    assert all(results.record("mlp", 2, rows, way).seconds for rows in (1, 8) for way in ("loop", "dense", "low_rank"))
    assert sum(event == ("loop", 2, "start") for event in Fake.asked) > 1
    assert len(results.records) == 8


def test_activations_that_do_not_fit(run):
    results = run(activation=GIB, members=(2,), free=30 * GIB)
    assert results.record("mlp", 2, 1, "vmap").seconds
    assert results.record("mlp", 2, 8, "vmap").reason.startswith("does not fit: ")
    # Members in chunks, or one after the other, hold no more than a bound.
    assert results.record("mlp", 2, 8, "loop").seconds


def test_without_time_every_cell_says_so(run):
    results = run(minutes=0)
    assert {record.reason for record in results.records} == {schedule.NO_TIME}
    assert len(results.records) == 16


ALL = ("loop", "dense", "low_rank", "vmap", "openvino", "jax")


@pytest.mark.parametrize("minutes", [1.2, 4])
def test_this_library_and_the_loop_have_a_time_before_peers_and_dense_copies_take_it(run, minutes):
    """Dense copies take long to be held, peers stand in shifts of their own."""
    held = {"loop": 10, "dense": 38, "low_rank": 25, "vmap": 7, "openvino": 10, "jax": 18}
    seconds = {(way, "start"): each for way, each in held.items()} | {("openvino", "prepare"): 20}
    results = run(seconds, free=25 * GIB, member=GIB, members=(4,), minutes=minutes, ways=ALL)
    assert all(results.record("mlp", 4, rows, way).seconds for rows in (1, 8) for way in ("loop", "low_rank"))
    assert any(record.reason == schedule.NO_TIME for record in results.records) == (minutes < 4)
    assert len(results.records) == 12


@pytest.mark.parametrize("way", ["loop", "dense", "vmap"])
def test_one_that_takes_too_long_to_be_held_leaves_time_for_those_that_are(run, way):
    results = run({(way, "start"): 1e6}, minutes=0.5, members=(2,))
    assert results.record("mlp", 2, 8, "low_rank").seconds
    assert results.record("mlp", 2, 1, way).reason == schedule.NO_TIME


def test_a_model_that_is_missing(run):
    results = run(model="resnet")
    assert results.missing == {"resnet": "no torchvision"}
    assert not results.records


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--models", "gpt"], "there is no gpt; there are tiny, mlp"),
        (["--ways", "tensorrt"], "there is no tensorrt; there are loop"),
        (["--members", "0"], "argument --members"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(words, text, capsys, monkeypatch):
    monkeypatch.setattr(command, "settle", lambda *_, **__: None)
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err
