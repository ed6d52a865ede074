"""What the client writes and reads, against the service's own codec."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app.client import InputError, InvalidAnswer
from app.client.codec import Inputs, decode, encode, read_metadata
from app.protocol import DATATYPES, TensorSpec, bfloat16_bits, bfloat16_values, decode_infer, encode_infer
from app.protocol.request import InferRequest, RequestedOutput
from app.protocol.v2 import HEADER_LENGTH, parse_header_length

JSON = [name for name, datatype in DATATYPES.items() if datatype.in_json]


def takes(**datatypes: str) -> Inputs:
    return Inputs("m", {name: DATATYPES[datatype] for name, datatype in datatypes.items()})


def received(inputs, about: Inputs, *, binary: bool, outputs=None, parameters=None) -> InferRequest:
    """What the service makes of a request."""
    body, headers = encode(inputs, about, outputs, parameters or {}, binary=binary)
    specs = [TensorSpec(name, datatype.name, (-1, -1)) for name, datatype in about.datatypes.items()]
    return decode_infer(body, specs, ["mean", "std"], ["mean"], parse_header_length(headers.get(HEADER_LENGTH)))


def values(datatype: str):
    dtype = DATATYPES[datatype].dtype
    if datatype == "BF16":
        dtype = np.dtype(np.float32)
    elements = st.floats(-1e4, 1e4, width=16) if dtype.kind == "f" else arrays.from_dtype(dtype)
    return arrays.arrays(dtype, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=elements)


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_the_service_reads_what_the_client_writes(datatype, data):
    array = data.draw(values(datatype))
    for binary in [True] + [False] * (datatype in JSON):
        got = received({"x": array}, takes(x=datatype), binary=binary)
        sent = bfloat16_bits(array) if datatype == "BF16" else array
        assert got.inputs["x"].dtype == DATATYPES[datatype].dtype
        np.testing.assert_array_equal(got.inputs["x"], sent)
        assert got.outputs == (RequestedOutput("mean", binary),)


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_the_client_reads_what_the_service_writes(datatype, data):
    array = data.draw(values(datatype))
    wire = bfloat16_bits(array) if datatype == "BF16" else array
    want = bfloat16_values(wire) if datatype == "BF16" else array
    for binary in [True] + [False] * (datatype in JSON):
        request = InferRequest("a", {}, (RequestedOutput("x", binary), RequestedOutput("y", binary)), 1)
        said = encode_infer("m", "3", request, {"x": wire, "y": wire}, {"x": datatype, "y": datatype},
                            {"members": 4, "seed": 7, "else": 1})  # fmt: skip
        got = decode(said.body, {name.lower(): value for name, value in said.headers.items()})
        for name in ("x", "y"):
            np.testing.assert_array_equal(got[name], want)
            # The caller's own, to do with as it likes.
            assert got[name].flags.writeable
            assert got[name].flags.aligned
        assert (got.model, got.version, got.members, got.seed) == ("m", "3", 4, 7)
        assert got.parameters == {"else": 1}
        assert "x" in got
        assert "z" not in got


def test_nan_and_infinity_travel_as_bytes_and_are_null_in_json():
    array = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    np.testing.assert_array_equal(received(array, takes(x="FP32"), binary=True).inputs["x"], array)
    with pytest.raises(InputError, match="holds NaN or infinity, which JSON does not carry: use binary"):
        encode(array, takes(x="FP32"), None, {}, binary=False)
    document = {
        "model_name": "m",
        "outputs": [{"name": "x", "datatype": "FP64", "shape": [2], "data": [None, 1.5]}],
    }
    np.testing.assert_array_equal(decode(json.dumps(document).encode(), {})["x"], [np.nan, 1.5])


def test_outputs_and_parameters_are_asked_for():
    given = {"members": 3, "tolerance": None, "priority": 1}
    for binary in (True, False):
        got = received([[1.0]], takes(x="FP32"), binary=binary, outputs=["std", "mean"], parameters=given)
        assert got.outputs == (RequestedOutput("std", binary), RequestedOutput("mean", binary))
        assert got.options.question.members == 3
        assert got.options.question.tolerance is None


@pytest.mark.parametrize(
    ("given", "datatype", "want"),
    [
        ([[1, 2]], "FP32", np.float32),
        ([[1.5, 2]], "FP64", np.float64),
        (np.ones((1, 2)), "FP16", np.float16),
        ([[1, 2]], "UINT8", np.uint8),
        (np.ones((1, 2), ">f4"), "FP32", np.float32),
        (np.ones((2, 1), np.float32).T, "FP32", np.float32),
        (np.ones((4, 4), np.float32)[::2, ::2], "FP32", np.float32),
        ([[True, False]], "BOOL", np.bool_),
    ],
)
def test_arrays_are_converted_where_that_loses_precision_at_most(given, datatype, want):
    got = received(given, takes(x=datatype), binary=True).inputs["x"]
    assert got.dtype == want
    np.testing.assert_array_equal(got, np.asarray(given))


@pytest.mark.parametrize(
    ("given", "datatype", "says"),
    [
        ([[1.5]], "INT64", "input 'x' must be INT64, however: an array of float64"),
        ([[True]], "FP32", "input 'x' must be FP32, however: an array of bool"),
        ([[1]], "BOOL", "input 'x' must be BOOL, however: an array of int64"),
        ([["a"]], "FP32", "input 'x' must be FP32, however: an array of <U1"),
        ([[1j]], "FP32", "input 'x' must be FP32, however: an array of complex128"),
        ([[300]], "UINT8", "input 'x' must hold whole numbers from 0 to 255"),
        ([[-1]], "UINT64", "input 'x' must hold whole numbers from 0"),
        ([[1e300]], "FP32", "input 'x' has numbers that are too large for FP32"),
        ([[1, 2], [3]], "FP32", "input 'x' is no array: "),
        ({"y": [[1.0]]}, "FP32", "model 'm' takes 'x', however: 'y'"),
        ({}, "FP32", "model 'm' takes 'x', however: 'x' missing"),
    ],
)
def test_inputs_that_cannot_be_sent_say_why(given, datatype, says):
    with pytest.raises(InputError) as refused:
        encode(given, takes(x=datatype), None, {}, binary=True)
    assert str(refused.value).startswith(says)
    assert isinstance(refused.value, ValueError)


def test_a_model_with_several_inputs_wants_names():
    with pytest.raises(InputError, match="model 'm' takes 'a', 'b': give a dict with an array for each"):
        encode([[1.0]], takes(a="FP32", b="INT64"), None, {}, binary=True)
    with pytest.raises(InputError, match="FP16, which JSON does not carry: use binary"):
        encode([[1.0]], takes(a="FP16"), None, {}, binary=False)


GOOD = {"model_name": "m", "outputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"<html>", {}),
        (b"[]", {}),
        (b"{}", {}),
        (b"\xff", {}),
        (json.dumps({**GOOD, "model_name": None, "outputs": 5}).encode(), {}),
        (json.dumps(GOOD).replace("FP32", "FP128").encode(), {}),
        (json.dumps(GOOD).replace("[1]", "[2]").encode(), {}),
        (json.dumps(GOOD).replace("[1.0]", "null").encode(), {}),
        (json.dumps(GOOD).encode(), {"inference-header-content-length": "x"}),
        (json.dumps(GOOD).replace('"data": [1.0]', '"parameters": {"binary_data_size": 4}').encode(), {}),
        (json.dumps(GOOD).replace('"data": [1.0]', '"parameters": {"binary_data_size": -4}').encode(), {}),
    ],
)
def test_an_answer_that_is_none_says_so(body, headers):
    with pytest.raises(InvalidAnswer, match=r"the answer cannot be read: .*\(request 7\)"):
        decode(body, {**headers, "x-request-id": "7"})


@pytest.mark.parametrize("document", [{}, {"name": "m"}, {"name": "m", "inputs": [{"name": "x", "datatype": "BYTES"}]},
                                      {"name": "m", "inputs": 3}, [], None])  # fmt: skip
def test_metadata_that_is_none_says_so(document):
    with pytest.raises(InvalidAnswer, match="metadata cannot be read"):
        read_metadata(document)


def test_timings_are_seconds_and_what_is_no_timing_is_passed_over():
    header = "queue;dur=1.500, infer;dur=20, total;dur=22.25, cache;desc=hit, x"
    got = decode(json.dumps(GOOD).encode(), {"server-timing": header})
    assert got.timings == pytest.approx({"queue": 0.0015, "infer": 0.02, "total": 0.02225})
