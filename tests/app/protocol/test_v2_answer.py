import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.errors import BadRequest
from app.protocol.datatypes import DATATYPES
from app.protocol.request import InferRequest, Options, Question, RequestedOutput
from app.protocol.tensors import TensorSpec
from app.protocol.v2 import decode_infer
from app.protocol.v2_answer import HEADER_LENGTH, encode_infer


def asking(*outputs, request_id=None):
    return InferRequest(request_id, {}, outputs, rows=1)


def encode(request, arrays, datatypes, parameters=None):
    return encode_infer("m", "3", request, arrays, datatypes, parameters or {})


def test_a_json_answer():
    request = asking(RequestedOutput("std"), RequestedOutput("label"), request_id="r-1")
    arrays = {"label": np.array([7]), "std": np.array([[0.1, 2]], dtype=np.float32), "extra": np.zeros(1)}
    answer = encode(request, arrays, {"label": "INT64", "std": "FP32"}, {"members": 4, "seed": 0})
    assert (answer.headers, answer.content_type) == ({}, "application/json")
    assert json.loads(answer.body) == {
        "model_name": "m",
        "model_version": "3",
        "id": "r-1",
        "parameters": {"members": 4, "seed": 0},
        "outputs": [
            {"name": "std", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 2.0]},
            {"name": "label", "datatype": "INT64", "shape": [1], "data": [7]},
        ],
    }


def test_no_id_and_no_parameters_leave_no_keys():
    answer = encode(asking(RequestedOutput("a")), {"a": np.array([1])}, {"a": "INT64"})
    assert json.loads(answer.body).keys() == {"model_name", "model_version", "outputs"}


def test_a_mixed_answer():
    request = asking(RequestedOutput("a", True), RequestedOutput("b"), RequestedOutput("c", True))
    arrays = {
        "a": np.array([[1, np.nan]], dtype=np.float32),
        "b": np.array([True]),
        "c": np.array([258], dtype=np.uint16),
    }
    answer = encode(request, arrays, {"a": "FP32", "b": "BOOL", "c": "BF16"})
    assert answer.content_type == "application/octet-stream"
    length = int(answer.headers[HEADER_LENGTH])
    assert json.loads(answer.body[:length])["outputs"] == [
        {"name": "a", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        {"name": "b", "datatype": "BOOL", "shape": [1], "data": [True]},
        {"name": "c", "datatype": "BF16", "shape": [1], "parameters": {"binary_data_size": 2}},
    ]
    assert answer.body[length:] == arrays["a"].tobytes() + b"\x02\x01"


def test_what_is_not_finite_is_null_in_json_and_the_output_says_so():
    request = asking(RequestedOutput("a"), RequestedOutput("b"))
    arrays = {"a": np.array([[np.inf, 1.0]]), "b": np.array([[2.0]])}
    answer = encode(request, arrays, {"a": "FP64", "b": "FP64"})
    first, second = json.loads(answer.body)["outputs"]
    assert first["data"] == [None, 1.0]
    assert first["parameters"] == {"non_finite": True}
    assert "parameters" not in second


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", np.float16), ("BF16", np.uint16)])
def test_half_precision_as_json_is_refused(datatype, dtype):
    with pytest.raises(BadRequest, match=f"output 'a' is {datatype}, which travels in binary only: ask for it with"):
        encode(asking(RequestedOutput("a")), {"a": np.zeros(1, dtype)}, {"a": datatype})


@pytest.mark.parametrize("binary", [True, False])
def test_an_array_of_another_datatype_is_the_callers_mistake(binary):
    with pytest.raises(ValueError, match="output 'a' must be of float32, however: float64"):
        encode(asking(RequestedOutput("a", binary)), {"a": np.zeros(1)}, {"a": "FP32"})


def test_an_array_of_any_layout_is_written_row_major_and_little_endian():
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    binary = encode(asking(RequestedOutput("a", True)), {"a": array}, {"a": "INT32"})
    assert binary.body.endswith(np.array([0, 3, 1, 4, 2, 5], dtype="<i4").tobytes())
    text = encode(asking(RequestedOutput("a")), {"a": array}, {"a": "INT32"})
    assert json.loads(text.body)["outputs"][0]["data"] == [0, 3, 1, 4, 2, 5]


def test_an_empty_output_is_written_in_both_forms():
    empty = np.zeros((1, 0), dtype=np.float32)
    request = asking(RequestedOutput("a", True), RequestedOutput("b"))
    answer = encode(request, {"a": empty, "b": empty}, {"a": "FP32", "b": "FP32"})
    first, second = json.loads(answer.body[: int(answer.headers[HEADER_LENGTH])])["outputs"]
    assert first["parameters"] == {"binary_data_size": 0}
    assert second["data"] == []
    assert first["shape"] == second["shape"] == [1, 0]


@given(st.data())
def test_an_answer_read_as_a_request_gives_the_same_arrays(data):
    """Outputs are written as inputs are read, so the two functions must be inverses."""
    rows = data.draw(st.integers(1, 3))
    names = [f"t{index}" for index in range(data.draw(st.integers(1, 4)))]
    arrays, datatypes, outputs = {}, {}, []
    for name in names:
        datatype = DATATYPES[data.draw(st.sampled_from(list(DATATYPES)))]
        binary = not datatype.in_json or data.draw(st.booleans())
        shape = (rows, *data.draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)))
        finite = {"allow_nan": binary, "allow_infinity": binary} if datatype.dtype.kind == "f" else {}
        arrays[name] = data.draw(hnp.arrays(datatype.dtype, shape, elements=hnp.from_dtype(datatype.dtype, **finite)))
        datatypes[name] = datatype.name
        outputs.append(RequestedOutput(name, binary))
    answer = encode(asking(*outputs, request_id="i"), arrays, datatypes, {"members": 3})
    length = int(answer.headers.get(HEADER_LENGTH, len(answer.body)))
    assert (HEADER_LENGTH in answer.headers) == any(output.binary for output in outputs)

    head = answer.body[:length].replace(b'"outputs"', b'"inputs"')
    specs = [TensorSpec(name, datatypes[name], (-1, *arrays[name].shape[1:])) for name in names]
    again = decode_infer(head + answer.body[length:], specs, ["mean"], ["mean"], len(head))
    assert (again.id, again.options, again.rows) == ("i", Options(Question(members=3)), rows)
    assert list(again.inputs) == names
    for name in names:
        assert again.inputs[name].dtype == arrays[name].dtype
        assert again.inputs[name].shape == arrays[name].shape
        assert again.inputs[name].tobytes() == arrays[name].tobytes()
