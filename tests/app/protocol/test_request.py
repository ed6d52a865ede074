import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BadRequest
from app.protocol.request import check_output_name, common_rows, optional_object, read_id
from app.protocol.tensors import TensorSpec

A, B = TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT64", (-1,))


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), ("A.z_0:-", "A.z_0:-"), ("x" * 128, "x" * 128), (7, "7"), (-7, "-7"), (1.5, "1.5"), ("", None)],
)
def test_ids_that_are_taken(value, text):
    assert read_id({"id": value}) == text


def test_no_id_and_null_are_no_id():
    assert read_id({}) is None
    assert read_id({"id": None}) is None


@pytest.mark.parametrize("value", ["x" * 129, "a b", "a\r\nSet-Cookie: b", "é", "a\n", "\x00", True, [], {}, 1e300])
def test_ids_that_are_refused(value):
    with pytest.raises(BadRequest, match="id must be 1 to 128 of the characters"):
        read_id({"id": value})


@given(st.text(max_size=200))
def test_an_id_is_echoed_as_it_is_or_refused(text):
    try:
        assert read_id({"id": text}) == (text or None)
    except BadRequest:
        return
    assert all(character.isascii() and (character.isalnum() or character in "._:-") for character in text)
    assert len(text) <= 128


def test_optional_objects():
    assert optional_object({"p": {"a": 1}}, "p", "p") == {"a": 1}
    assert optional_object({}, "p", "p") == optional_object({"p": None}, "p", "p") == {}
    with pytest.raises(BadRequest, match="p must be an object, however: a list"):
        optional_object({"p": [1]}, "p", "p")


def test_output_names():
    assert check_output_name("mean", ["mean", "std"], ["std"]) == "mean"
    with pytest.raises(BadRequest, match="'mean' must be asked for only once"):
        check_output_name("mean", ["mean"], ["mean"])
    with pytest.raises(BadRequest, match="must be one of 'mean', 'std', however: 'maen'"):
        check_output_name("maen", ["mean", "std"], [])
    with pytest.raises(BadRequest, match="must be text, however: a list"):
        check_output_name(["mean"], ["mean"], [])


def test_rows_are_common_to_all_inputs():
    assert common_rows({"a": np.zeros((3, 2)), "b": np.zeros(3)}, [A, B]) == 3
    with pytest.raises(BadRequest, match="same number of rows, however: 'a' has 3 and 'b' has 2"):
        common_rows({"a": np.zeros((3, 2)), "b": np.zeros(2)}, [A, B])
    with pytest.raises(BadRequest, match="all inputs of the model must be given, however: 'b' missing"):
        common_rows({"a": np.zeros((3, 2))}, [A, B])
    with pytest.raises(BadRequest, match="'a', 'b' missing"):
        common_rows({}, [A, B])
