import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.errors import BadRequest
from app.protocol.datatypes import DATATYPES
from app.protocol.request import Options, Question, RequestedOutput
from app.protocol.tensors import TensorSpec
from app.protocol.v2 import HEADER_LENGTH, decode_infer, parse_header_length

X = TensorSpec("x", "FP32", (-1, 2))
MASK = TensorSpec("mask", "BOOL", (-1,))
BITS = TensorSpec("bits", "BF16", (-1, 3))
OUTPUTS = ("mean", "std", "label")
DEFAULTS = ("mean", "label")

VALID = {
    "id": "r-1",
    "parameters": {"timeout": 1000, "members": 4},
    "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 2]}],
    "outputs": [{"name": "std"}, {"name": "mean"}],
}


def decode(document, tail=b"", specs=(X,), *, header=None):
    head = json.dumps(document).encode()
    length = len(head) if tail or header else None
    return decode_infer(head + tail, specs, OUTPUTS, DEFAULTS, length, most_members=6)


def changed(path, value):
    """VALID with one field replaced, or removed if the value is `...`."""
    document = copy.deepcopy(VALID)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return document


def binary_input(spec, array, **parameters):
    return {
        "name": spec.name,
        "shape": list(array.shape),
        "datatype": spec.datatype,
        "parameters": {"binary_data_size": array.nbytes, **parameters},
    }


# What is right


def test_a_json_request():
    request = decode(VALID)
    assert request.id == "r-1"
    assert request.options == Options(Question(members=4), timeout=0.001)
    assert request.outputs == (RequestedOutput("std"), RequestedOutput("mean"))
    assert request.rows == 1
    assert request.inputs["x"].dtype == np.float32
    assert request.inputs["x"].tolist() == [[0.5, 2.0]]


@pytest.mark.parametrize("outputs", [..., None, []])
def test_no_outputs_means_the_default_ones(outputs):
    assert decode(changed(["outputs"], outputs)).outputs == tuple(map(RequestedOutput, DEFAULTS))


def test_unknown_keys_of_extensions_are_ignored():
    document = {**VALID, "extension": {"a": [1]}}
    document["inputs"] = [{**VALID["inputs"][0], "extension": 1, "parameters": {"other": True}}]
    document["outputs"] = [{"name": "std", "extension": 1, "parameters": {"other": 3}}]
    assert decode(document).inputs["x"].tolist() == [[0.5, 2.0]]


def test_optional_fields_may_be_null():
    document = changed(["inputs", 0, "parameters"], None) | {"id": None, "parameters": None}
    request = decode(document)
    assert request.id is None
    assert request.options == Options()


@st.composite
def batches(draw):
    """Specs, an array for each, and which of them travel in binary."""
    rows = draw(st.integers(1, 3))
    datatypes = draw(st.lists(st.sampled_from(list(DATATYPES)), min_size=1, max_size=4))
    specs, arrays, binary = [], [], []
    for index, datatype in enumerate(datatypes):
        row = draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
        as_bytes = not DATATYPES[datatype].in_json or draw(st.booleans())
        dtype = DATATYPES[datatype].dtype
        elements = hnp.from_dtype(dtype, allow_nan=as_bytes, allow_infinity=as_bytes) if dtype.kind == "f" else None
        arrays.append(draw(hnp.arrays(dtype, (rows, *row), elements=elements)))
        specs.append(TensorSpec(f"in{index}", datatype, (-1, *row)))
        binary.append(as_bytes)
    return specs, arrays, binary


@given(batches(), st.randoms(use_true_random=False))
def test_inputs_in_either_form_and_any_order_arrive_as_they_were(batch, random):
    tensors = list(zip(*batch, strict=True))
    random.shuffle(tensors)
    inputs, tail = [], b""
    for spec, array, as_bytes in tensors:
        entry = {"name": spec.name, "shape": list(array.shape), "datatype": spec.datatype}
        if as_bytes:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            entry["data"] = random.choice([array, array.reshape(-1)]).tolist()
        inputs.append(entry)
    request = decode({"inputs": inputs}, tail, batch[0], header=True)
    assert request.rows == len(tensors[0][1])
    assert request.inputs.keys() == {spec.name for spec in batch[0]}
    for spec, array, _ in tensors:
        received = request.inputs[spec.name]
        assert received.dtype == array.dtype
        assert received.shape == array.shape
        assert received.tobytes() == array.tobytes()


def test_binary_inputs_are_not_copied():
    array = np.arange(200, dtype=np.float32).reshape(100, 2)
    head = json.dumps({"inputs": [binary_input(X, array)]}).encode()
    body = head + array.tobytes()
    request = decode_infer(body, [X], OUTPUTS, DEFAULTS, len(head))
    assert np.shares_memory(request.inputs["x"], np.frombuffer(body, dtype=np.uint8))
    assert not request.inputs["x"].flags.writeable


# Which outputs come back in binary


@pytest.mark.parametrize(
    ("default", "own", "binary"),
    [
        (None, None, False),
        (True, None, True),
        (False, None, False),
        (True, False, False),
        (False, True, True),
        (None, True, True),
    ],
)
def test_an_outputs_own_flag_wins_over_the_requests(default, own, binary):
    parameters = {} if default is None else {"binary_data_output": default}
    outputs = [{"name": "mean", "parameters": {} if own is None else {"binary_data": own}}]
    request = decode({**VALID, "parameters": parameters, "outputs": outputs})
    assert request.outputs == (RequestedOutput("mean", binary),)


def test_the_requests_flag_holds_for_the_default_outputs():
    request = decode(changed(["outputs"], ...) | {"parameters": {"binary_data_output": True, "other": 1}})
    assert request.outputs == (RequestedOutput("mean", True), RequestedOutput("label", True))


# The header's length


@pytest.mark.parametrize(("value", "length"), [(None, None), ("0", 0), ("17", 17), (" 17 ", 17), ("007", 7)])
def test_header_length(value, length):
    assert parse_header_length(value) == length


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.0", "1e3", "x", "1 2", "0x10", "١", "1_0", "9" * 19, "9" * 5000])
def test_a_header_length_that_is_no_number_of_bytes(value):
    with pytest.raises(BadRequest, match=f"^{HEADER_LENGTH} must be a number of bytes, 0 or more, however: '"):
        parse_header_length(value)


@pytest.mark.parametrize("length", [10**6, -1])
def test_a_header_length_past_the_body(length):
    with pytest.raises(BadRequest, match=f"must be at most the body's 9 bytes, however: {length}"):
        decode_infer(b"{} 456789", [X], OUTPUTS, DEFAULTS, length)


def test_a_raw_body_is_a_batch_of_one_and_all_comes_back_in_binary():
    body = np.array([np.nan, 2], dtype=np.float32).tobytes()
    request = decode_infer(body, [X], OUTPUTS, DEFAULTS, 0, timeout=0.5)
    np.testing.assert_array_equal(request.inputs["x"], np.array([[np.nan, 2]], dtype=np.float32))
    assert (request.rows, request.id, request.options) == (1, None, Options(timeout=0.5))
    assert request.outputs == (RequestedOutput("mean", True), RequestedOutput("label", True))


def test_a_raw_body_tells_the_size_of_one_variable_dimension():
    spec = TensorSpec("x", "INT16", (-1, 2, -1, 3))
    request = decode_infer(bytes(48), [spec], OUTPUTS, DEFAULTS, 0)
    assert request.inputs["x"].shape == (1, 2, 4, 3)
    for wrong in (0, 11, 18):
        with pytest.raises(BadRequest, match=f"one row of .batch, 2, any, 3., a multiple of 12, however: {wrong}"):
            decode_infer(bytes(wrong), [spec], OUTPUTS, DEFAULTS, 0)


def test_a_raw_body_cannot_tell_two_variable_dimensions():
    with pytest.raises(BadRequest, match="several variable dimensions"):
        decode_infer(bytes(8), [TensorSpec("x", "FP32", (-1, -1, -1))], OUTPUTS, DEFAULTS, 0)


@pytest.mark.parametrize("count", [0, 7, 9, 16])
def test_a_raw_body_must_be_one_row(count):
    with pytest.raises(BadRequest, match=rf"input 'x' must have 8 bytes, as FP32 \[1, 2\] takes, however: {count}"):
        decode_infer(bytes(count), [X], OUTPUTS, DEFAULTS, 0)


def test_a_raw_body_is_for_models_with_one_input():
    with pytest.raises(BadRequest, match="only for a model with one input, however: this one takes 'x', 'mask'"):
        decode_infer(bytes(8), [X, MASK], OUTPUTS, DEFAULTS, 0)


# What is wrong


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["id"], "a b", "id must be"),
        (["parameters"], [], "parameters must be an object, however: an empty list"),
        (["parameters", "binary_data_output"], 1, "parameters.binary_data_output must be true or false, however: 1"),
        (["parameters", "members"], 7, "parameters.members must be a whole number from 1 to 6, however: 7"),
        (["parameters", "timeout"], True, "parameters.timeout must be a whole number of microseconds"),
        (["parameters", "sequence_id"], 3, "no state is kept between requests"),
        (["inputs", 0, "parameters"], {"shared_memory_region": "a"}, "without shared_memory_region"),
        (["inputs"], ..., "inputs must be a list of objects .* however: null"),
        (["inputs"], [], "inputs must be a list of objects .* however: an empty list"),
        (["inputs"], {"x": [1, 2]}, "inputs must be a list of objects .* however: an object"),
        (["inputs", 0], [1, 2], "inputs must hold objects .* however: a list"),
        (["inputs"], VALID["inputs"] * 2, "input 'x' must be given only once"),
        (["inputs", 0, "name"], ..., "input must have a name that is one of 'x', however: null"),
        (["inputs", 0, "name"], "y", "input must have a name that is one of 'x', however: the text 'y'"),
        (["inputs", 0, "name"], ["x"], "input must have a name that is one of 'x', however: a list"),
        (["inputs", 0, "datatype"], ..., "input 'x' must have datatype FP32, however: null"),
        (["inputs", 0, "datatype"], "FP64", "input 'x' must have datatype FP32, however: the text 'FP64'"),
        (["inputs", 0, "datatype"], "BYTES", "'BYTES'; BYTES is not served, as models here take numbers"),
        (["inputs", 0, "datatype"], {}, "input 'x' must have datatype FP32, however: an object"),
        (["inputs", 0, "shape"], ..., r"input 'x' must have a shape such as \[batch, 2\], however: null"),
        (["inputs", 0, "shape"], [2], r"input 'x' must have the shape \[batch, 2\], however: \[2\]; a single row"),
        (["inputs", 0, "shape"], [2, 2], "input 'x' must have 4 numbers, as its shape"),
        (["inputs", 0, "data"], ..., "input 'x' must have data, or parameters.binary_data_size and bytes"),
        (["inputs", 0, "data"], None, "input 'x' must have data, or parameters.binary_data_size and bytes"),
        (["inputs", 0, "data"], "AAAA", "input 'x' must have data that is a list of numbers"),
        (["inputs", 0, "data"], [True, 1.5], r"element \[0\] is true"),
        (["inputs", 0, "parameters"], 3, "parameters of input 'x' must be an object, however: 3"),
        (["inputs", 0, "parameters"], {"binary_data_size": 8}, "either data or binary_data_size, however: both"),
        (["outputs"], "mean", "outputs must be a list of objects with a name, however: the text 'mean'"),
        (["outputs"], ["mean"], "outputs must hold objects with a name, however: the text 'mean'"),
        (["outputs", 0, "name"], ..., "an output's name must be text, however: null"),
        (["outputs", 0, "name"], "var", "output must be one of 'mean', 'std', 'label', however: 'var'"),
        (["outputs", 0, "name"], "mean", "output 'mean' must be asked for only once"),
        (["outputs", 0, "parameters"], 1, "parameters of output 'std' must be an object, however: 1"),
        (["outputs", 0, "parameters"], {"binary_data": "yes"}, "binary_data of output 'std' must be true or false"),
        (["outputs", 0, "parameters"], {"classification": 3}, "'std' must be asked for without classification"),
        (["outputs", 0, "parameters"], {"shared_memory_region": "a"}, "without shared_memory_region"),
    ],
)
def test_each_wrong_field_is_named(path, value, message):
    with pytest.raises(BadRequest, match=message):
        decode(changed(path, value))


@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("parameters", [{}, {"binary_data_output": True}])
def test_either_boolean_among_numbers_is_seen_whatever_else_the_document_holds(boolean, parameters):
    document = changed(["inputs", 0, "data"], [1, boolean]) | {"parameters": parameters}
    with pytest.raises(BadRequest, match=rf"element \[1\] is {str(boolean).lower()}"):
        decode(document)


def test_all_inputs_must_be_there_with_the_same_rows():
    with pytest.raises(BadRequest, match="all inputs of the model must be given, however: 'mask' missing"):
        decode(VALID, specs=[X, MASK])
    mask = {"name": "mask", "shape": [2], "datatype": "BOOL", "data": [True, False]}
    with pytest.raises(BadRequest, match="same number of rows, however: 'x' has 1 and 'mask' has 2"):
        decode({"inputs": [*VALID["inputs"], mask]}, specs=[X, MASK])


@pytest.mark.parametrize(
    ("size", "shape", "tail", "message"),
    [
        (8, [1, 2], 7, "must be followed by the 8 bytes of its binary_data_size, however: 7 are left"),
        (8, [1, 2], 9, "must end with the last binary tensor, however: 1 bytes are left over"),
        (4, [1, 2], 4, r"must have 8 bytes, as FP32 \[1, 2\] takes, however: 4"),
        (16, [1, 2], 16, r"must have 8 bytes, as FP32 \[1, 2\] takes, however: 16"),
        (-8, [1, 2], 8, "binary_data_size of input 'x' must be a number of bytes, however: -8"),
        (8.0, [1, 2], 8, r"binary_data_size of input 'x' must be a number of bytes, however: 8\.0"),
        ("8", [1, 2], 8, "binary_data_size of input 'x' must be a number of bytes, however: the text '8'"),
        (True, [1, 2], 8, "binary_data_size of input 'x' must be a number of bytes, however: true"),
        (2**64 - 1, [1, 2], 8, "must be followed by the 18446744073709551615 bytes"),
        (8, [-1, -2], 8, "whole numbers from 0 up, however: -1"),
        (8, [2**62, 2], 8, "product is at most"),
        (0, [0, 2], 1, "the batch is empty"),
        (8, [2], 8, "a single row is a batch of one"),
    ],
)
def test_binary_sizes_must_agree(size, shape, tail, message):
    entry = {"name": "x", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": size}}
    with pytest.raises(BadRequest, match=message):
        decode({"inputs": [entry]}, bytes(tail))


def test_bytes_without_the_header_are_refused():
    entry = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    with pytest.raises(BadRequest, match=f"so the request must have the header {HEADER_LENGTH}"):
        decode({"inputs": [entry]})


def test_bytes_that_no_input_takes_are_left_over():
    with pytest.raises(BadRequest, match="3 bytes are left over"):
        decode(VALID, b"abc")


def test_bytes_of_two_inputs_go_in_the_order_of_the_inputs():
    first = np.array([[1, 2]], dtype=np.float32)
    second = np.array([[7, 8, 9]], dtype=np.uint16)
    document = {"inputs": [binary_input(BITS, second), binary_input(X, first)]}
    request = decode(document, second.tobytes() + first.tobytes(), [X, BITS])
    assert request.inputs["x"].tolist() == [[1, 2]]
    assert request.inputs["bits"].tolist() == [[7, 8, 9]]


def test_a_bool_byte_that_is_neither_is_refused():
    entry = {"name": "mask", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    with pytest.raises(BadRequest, match="input 'mask' must hold BOOL bytes that are 0 or 1"):
        decode({"inputs": [entry]}, b"\x01\x02", [MASK])


def test_half_precision_as_json_is_refused():
    entry = {"name": "bits", "shape": [1, 3], "datatype": "BF16", "data": [1, 2, 3]}
    with pytest.raises(BadRequest, match="input 'bits' is BF16, which travels in binary only"):
        decode({"inputs": [entry]}, specs=[BITS])
