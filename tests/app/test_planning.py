import pytest
import torch

from app import served
from app.planning import PLAIN, Planning, batch_sizes, make_plan, steps_for
from ensemble import vectorised
from ensemble.backends import openvino
from ensemble.backends.workshop import Workshop
from ensemble.planning.optimize import Step

converts = pytest.mark.skipif(bool(openvino.missing(torch.device("cpu"))), reason="OpenVINO is not there")


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [1, 2]), (48, [1, 2, 4, 8, 16, 32, 48]), (64, [1, 2, 4, 8, 16, 32, 64])]
)
def test_a_plan_is_made_for_powers_of_two_and_the_largest_batch(most, sizes):
    assert batch_sizes(most) == sizes


def test_without_compiling_the_ways_are_measured_and_nothing_is_left_to_do(made):
    ens, told = made("mlp").to("cpu"), []
    assert make_plan(ens, PLAIN, [1, 4], lambda doing, part: told.append(doing)) is False
    assert [way.rows for way in ens.plan.ways] == [1, 4]
    assert told[-1] == "measuring ways of running 4 rows"


@converts
def test_a_plan_of_before_is_used_if_all_that_it_needs_is_there(made, tmp_path):
    with Workshop(tmp_path / "c") as workshop:
        planning = Planning(workshop)
        ens = made("mlp").to("cpu")
        ens.measure([1, 4], seconds=30)
        ens.follow([step for step in ens.steps() if step.kind == "openvino"], workshop)
        ens.remember([1, 4], workshop)
        used = [way.kind for way in ens.plan.ways]
        again, told = made("mlp").to("cpu"), []
        complete = make_plan(again, planning, [1, 4], lambda doing, part: told.append(doing))
        assert complete is not any("measuring" in doing for doing in told)
        assert complete
        for file in workshop.directory.glob("*.xml"):
            file.unlink()
        third = made("mlp").to("cpu")
        # Nothing is compiled before a model answers.
        assert make_plan(third, planning, [1, 4], lambda doing, part: None) is ("openvino" not in used)


def test_a_start_in_which_time_was_lacking_does_not_shrink_the_next(made, tmp_path, monkeypatch):
    monkeypatch.setattr(Workshop, "build", lambda self, job, seconds=None: pytest.fail("nothing is compiled here"))
    made("mlp").save(tmp_path / "m" / "1")

    def load(planning):
        where = tmp_path / "m" / "1"
        return served.load(
            "m", "1", where, device=torch.device("cpu"), dtype=None, max_batch=4, progress=lambda *_: None,
            planning=planning,
        )  # fmt: skip

    with Workshop(tmp_path / "c") as workshop:
        planning = Planning(workshop)
        with monkeypatch.context() as busy:
            busy.setattr("app.planning._MEASURE_SECONDS", 0.0)
            first = load(planning)
        assert first.max_batch == 1
        # As the accelerator does once nothing is left to be compiled.
        assert first.ensemble.follow([], workshop)
        first.ensemble.remember(first.plan_sizes, workshop)
        second = load(planning)
        assert second.max_batch == 4
        assert [way.rows for way in second.ensemble.plan.ways] == [1, 2, 4]
        assert all(way.loop_seconds for way in second.ensemble.plan.ways)
        assert not second.plan_complete
        second.ensemble.remember(second.plan_sizes, workshop)
        third = load(planning)
        assert third.plan_complete
        assert third.max_batch == 4


def test_a_model_whose_vmapped_answers_are_wrong_is_served_by_the_loop(made, tmp_path, monkeypatch):
    right = vectorised._vmapped

    def wrong(*arguments):
        for outputs in right(*arguments):
            yield tuple(output + 1 for output in outputs)

    made("mlp").save(tmp_path / "m" / "1")
    monkeypatch.setattr(vectorised, "_vmapped", wrong)
    model = served.load(
        "m", "1", tmp_path / "m" / "1", device=torch.device("cpu"), dtype=None, max_batch=2, progress=lambda *_: None
    )
    assert {way.kind for way in model.ensemble.plan.ways} == {"loop"}
    [row] = model.ensemble.example(1)
    want = model.ensemble.loop(row).mean(0)
    torch.testing.assert_close(torch.from_numpy(model.infer({"input": row.numpy()}, ["mean"])["mean"]), want)


def every_step(rows, precision):
    return [Step(kind, size, 5, precision) for kind in ("openvino", "inductor") for size in rows]


def test_one_row_and_the_largest_batch_come_first_and_openvino_converts_every_size(made, monkeypatch):
    ens = made("mlp").to("cpu")
    ens.measure([1, 2, 4, 8], seconds=1)
    monkeypatch.setattr(ens, "steps", every_step)
    found = [(step.kind, step.rows) for step in steps_for(ens, Planning(precision="bfloat16"))]
    assert found == [
        ("openvino", 1), ("openvino", 8), ("openvino", 4), ("openvino", 2),
        ("inductor", 1), ("inductor", 8), ("inductor", 4),
    ]  # fmt: skip


def test_copies_of_the_weights_are_few_where_memory_is_short(made, monkeypatch):
    ens = made("mlp").to("cpu")
    ens.measure([1, 2, 4, 8], seconds=1)
    monkeypatch.setattr(ens, "steps", every_step)
    monkeypatch.setattr("app.planning.available", lambda device: 8 * ens.members.nbytes)
    assert {step.rows for step in steps_for(ens, Planning())} == {1, 4, 8}


def test_batches_are_no_larger_than_what_a_way_was_found_for(made, tmp_path, monkeypatch):
    monkeypatch.setattr("app.planning._MEASURE_SECONDS", 0.0)
    made("mlp").save(tmp_path / "m" / "1")
    model = served.load(
        "m", "1", tmp_path / "m" / "1", device=torch.device("cpu"), dtype=None, max_batch=64, progress=lambda *_: None
    )
    assert model.max_batch == model.ensemble.plan.ways[-1].rows == 1
    rows = torch.randn(5, 6)
    got = model.infer({"input": rows.numpy()}, ["mean"])["mean"]
    torch.testing.assert_close(torch.from_numpy(got), made("mlp")(rows).mean(0), rtol=1e-5, atol=1e-6)
