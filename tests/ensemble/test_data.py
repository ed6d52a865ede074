import numpy as np
import pytest
import torch

from ensemble.data import Data, first_rows
from ensemble.errors import InputError
from ensemble.program.capture import capture
from ensemble.tasks import heads
from tests.scenarios import mlp


@pytest.fixture(scope="module")
def program():
    return capture(mlp(), torch.randn(3, 6)).program


def test_inputs_alone_or_with_targets(program):
    x, y = torch.randn(10, 6), torch.arange(10)
    assert Data.of(program, x).targets is None
    both = Data.of(program, (x, y))
    assert torch.equal(both.inputs[0], x)
    assert torch.equal(both.targets, y.float())
    named = Data.of(program, ({program.inputs[0].name: x}, y))
    assert torch.equal(named.inputs[0], x)
    assert [len(part) for part in both.batches(4)] == [4, 4, 2]


def test_arrays_and_lists_of_numbers_are_taken(program):
    x = torch.randn(10, 6)
    for inputs in (x.numpy(), x.double().numpy(), x.tolist(), {program.inputs[0].name: x.numpy()}, (x.numpy(),)):
        data = Data.of(program, (inputs, np.arange(10)))
        assert torch.equal(data.inputs[0], x)
        assert data.targets.tolist() == list(range(10))
    array = x.numpy().copy()
    array.flags.writeable = False
    assert Data.of(program, array).inputs[0].data_ptr() == array.__array_interface__["data"][0]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ((None, torch.arange(2)), r"data has no inputs: give inputs, or \(inputs, targets\)"),
        ((torch.zeros(2, 6), ["a", "b"]), "Targets must be tensors, arrays or lists of numbers, however: too many"),
        (np.array([["a"] * 6]), "Inputs must be tensors, arrays or lists of numbers, however: can't convert"),
        ([[1.0] * 6, [1.0]], "Inputs must be .* however: expected sequence of length 6"),
    ],
)
def test_what_are_no_numbers_is_refused(program, given, match):
    with pytest.raises(InputError, match=match):
        Data.of(program, given)


def test_targets_are_checked_against_the_head(program):
    x, (head,) = torch.randn(10, 6), heads("classification", program.outputs)
    classes = head.trailing[-1]
    narrow = (x, torch.zeros(10, dtype=torch.int32))
    assert Data.of(program, narrow, "classification", head).targets.dtype == torch.int64
    for targets, match in [
        (torch.zeros(10), "class indices, integers, however: torch.float32"),
        (torch.full((10,), classes), f"from 0 to {classes - 1}"),
        (torch.zeros(9, dtype=torch.int64), r"10 rows of inputs and targets of shape \[9\]"),
        (torch.zeros(10, 2, dtype=torch.int64), r"must have shape \[-1\]"),
    ]:
        with pytest.raises(InputError, match=match):
            Data.of(program, (x, targets), "classification", head)
    with pytest.raises(InputError, match="NaN or infinite"):
        Data.of(program, (x, torch.full((10, classes), torch.nan)), "regression", head)


def test_parts_are_disjoint_and_hold_every_row(program):
    data = Data.of(program, (torch.randn(50, 6), torch.arange(50)))
    parts = data.split(0.5, 0.3, seed=1)
    assert [len(part) for part in parts] == [25, 15, 10]
    assert sorted(torch.cat([part.targets for part in parts]).tolist()) == list(range(50))
    with pytest.raises(InputError, match="too few"):
        data.split(0.999)


def test_rows_to_capture_a_model_with():
    x = torch.randn(9, 2)
    assert torch.equal(first_rows((x, torch.zeros(9))), x[:4])
    assert first_rows({"a": x, "b": x})["b"].shape == (4, 2)
    assert len(first_rows(((x, x), torch.zeros(9)))) == 2
    with pytest.raises(InputError, match="example="):
        first_rows(None)
