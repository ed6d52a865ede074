"""An ensemble as the service sees it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.batching import Call, OutOfMemory
from app.errors import BadRequest, Unavailable
from app.protocol import Question
from app.served import few_digits, load, to_array, to_tensor, wrap
from tests.app.support import assert_same, expected, rows_of


@pytest.fixture(scope="module")
def pair(models):
    told: list[tuple[str, float]] = []
    served = load(
        "pair",
        "1",
        models / "pair" / "1",
        device=torch.device("cpu"),
        dtype=None,
        max_batch=8,
        progress=lambda doing, part: told.append((doing, part)),
    )
    return served, told


def test_it_is_described_by_name_datatype_and_shape(pair):
    served, _ = pair
    assert [(s.name, s.datatype, s.shape) for s in served.inputs] == [
        ("features", "FP32", (-1, 4)),
        ("tokens", "INT64", (-1, 2)),
    ]
    assert served.outputs["policy.mean"].shape == (-1, 3)
    assert served.outputs["policy.members"].shape == (-1, -1, 3)
    assert served.outputs["value.std"].shape == (-1,)
    assert served.defaults == ("policy.mean", "policy.std", "value.mean", "value.std")
    assert served.details == {"members": 6, "seed": 0}


def test_progress_is_told_in_parts_of_one(pair):
    _, told = pair
    assert told
    assert all(doing and 0 <= part <= 1 for doing, part in told)


def test_it_was_checked_against_the_loop(pair):
    assert 0 <= pair[0].error < 1e-4


@pytest.mark.parametrize("rows", [1, 8, 9, 30])
def test_any_number_of_rows_is_answered_as_the_library_does(pair, loaded, rows):
    inputs = rows_of("pair", rows)
    names = list(pair[0].outputs)
    assert_same(pair[0].infer(inputs, names), expected(loaded["pair"], inputs, names))


def test_one_output_of_several_can_be_asked_for(pair, loaded):
    inputs = rows_of("pair", 2)
    assert_same(pair[0].infer(inputs, ["value.mean"]), expected(loaded["pair"], inputs, ["value.mean"]))


def test_the_example_is_short_and_its_answer_is_that_of_what_is_shown(pair):
    served, _ = pair
    for array in served.example_inputs.values():
        assert len(array) == 1
        np.testing.assert_array_equal(array, few_digits(array))
    assert_same(served.infer(served.example_inputs, served.defaults), served.example_outputs)


def test_values_that_the_model_cannot_take_are_the_requests_fault(pair):
    inputs = rows_of("pair", 2)
    inputs["tokens"][0, 0] = 10
    with pytest.raises(BadRequest, match=r"an index beyond the model's table"):
        pair[0].infer(inputs, ["value.mean"])


def test_a_fault_of_the_model_is_not(pair, monkeypatch):
    monkeypatch.setattr(type(pair[0].ensemble), "predict", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pair[0].infer(rows_of("pair", 1), ["value.mean"])


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError()]
)
def test_too_little_memory_is_no_fault_of_the_values(pair, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(type(pair[0].ensemble), "predict", full)
    with pytest.raises(Unavailable, match=r"not enough memory"):
        pair[0].infer(rows_of("pair", 1), ["value.mean"])


def test_a_call_says_which_rows_are_no_numbers_and_how_many_members_were_evaluated(pair, loaded):
    inputs = rows_of("pair", 3)
    inputs["features"][1, 0] = np.nan
    names = ("policy.mean", "value.mean")
    outcome = pair[0].compute(Call(pair[0], inputs, names, 3, Question(members=2)))
    assert outcome.members == 2
    assert {name: rows.tolist() for name, rows in outcome.non_finite.items()} == {
        "policy.mean": [False, True, False],
        "value.mean": [False, True, False],
    }
    outcome = pair[0].compute(Call(pair[0], rows_of("pair", 3), names, 3, Question(tolerance=1e-9)))
    assert outcome.members.tolist() == [6, 6, 6]
    assert not outcome.non_finite
    assert_same(outcome.arrays, expected(loaded["pair"], rows_of("pair", 3), names))


def test_a_call_for_which_memory_does_not_suffice_says_so(pair, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(pair[0].ensemble), "predict", full)
    with pytest.raises(OutOfMemory, match=r"not enough memory for 1 rows"):
        pair[0].compute(Call(pair[0], rows_of("pair", 1), ("value.mean",), 1))


def test_an_ensemble_that_is_loaded_already(loaded):
    served = wrap("a", "7", loaded["weather"], 4)
    inputs = rows_of("weather", 6)
    assert_same(served.infer(inputs, served.defaults), expected(loaded["weather"], inputs))


def test_arrays_that_came_as_bytes_become_tensors_of_their_own():
    raw = np.frombuffer(b"x" + np.arange(3, dtype="<f4").tobytes(), dtype="<f4", offset=1)
    assert not raw.flags.writeable
    tensor = to_tensor(raw)
    tensor[0] = 5
    assert tensor.tolist() == [5, 1, 2]
    assert raw[0] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_tensors_become_arrays_that_the_protocol_has(dtype):
    array = to_array(torch.tensor([0, 1]).to(dtype))
    assert array.tolist() == [0, 1]
    assert array.dtype == (
        np.float32 if dtype in (torch.float16, torch.bfloat16) else to_array(torch.ones(1, dtype=dtype)).dtype
    )


def test_few_digits():
    array = np.array([[1 / 3, 1234567.0], [1.23456e-9, -np.inf]], np.float32)
    want = np.array([[0.3333, 1235000.0], [1.235e-9, -np.inf]], np.float32)
    np.testing.assert_array_equal(few_digits(array), want)
    assert few_digits(array).dtype == np.float32
    assert few_digits(np.array([123456])).tolist() == [123456]
    assert np.isnan(few_digits(np.array([np.nan]))).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_dtype(models, loaded, dtype):
    served = load("house", "1", models / "house" / "1", device=torch.device("cpu"), dtype=dtype, max_batch=2,
                  progress=lambda *_: None)  # fmt: skip
    inputs = rows_of("house", 3)
    specs = {s.name: s.datatype for s in served.inputs}
    if specs["input"] == "FP64":
        inputs = {"input": inputs["input"].astype(np.float64)}
    got = served.infer(inputs, ["mean"])["mean"]
    want = expected(loaded["house"], rows_of("house", 3), ["mean"])["mean"]
    np.testing.assert_allclose(got, want, rtol=0.1, atol=0.05)
