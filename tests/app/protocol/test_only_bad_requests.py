"""Whatever bytes arrive, they are decoded to what the model takes, or refused in one short sentence."""

import copy
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.errors import BadRequest
from app.protocol.document import parse_json
from app.protocol.plain import decode_predict
from app.protocol.tensors import TensorSpec, array_from_json
from app.protocol.v2 import decode_infer, parse_header_length

SPECS = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("n", "INT8", (-1, -1)), TensorSpec("b", "BOOL", (-1,)))
ONE = (TensorSpec("x", "FP32", (-1, 2)),)
OUTPUTS = ("mean", "std")

VALID = {
    "id": "r-1",
    "parameters": {"members": 4, "tolerance": 0.5, "timeout": 9, "priority": 1, "binary_data_output": True},
    "inputs": [
        {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[0.5, 2], [1e3, -0.25]]},
        {"name": "n", "shape": [2, 3], "datatype": "INT8", "data": [1, 2, 3, 4, 5, 6]},
        {"name": "b", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}},
    ],
    "outputs": [{"name": "std"}, {"name": "mean", "parameters": {"binary_data": False}}],
}
PLAIN = {
    "inputs": {"x": [[0.5, 2], [1e3, -0.25]], "n": [[1, 2, 3], [4, 5, 6]], "b": [True, False]},
    "outputs": ["std"],
    "id": 3,
    "parameters": {"members": 4, "tolerance": 0.5, "timeout_seconds": 9, "priority": 1},
}
TAIL = b"\x01\x00"

WORDS = st.sampled_from(
    [
        "x",
        "n",
        "b",
        "mean",
        "std",
        "FP32",
        "INT8",
        "BOOL",
        "BYTES",
        "name",
        "shape",
        "datatype",
        "data",
        "id",
        "inputs",
        "outputs",
        "parameters",
        "binary_data_size",
        "binary_data",
        "binary_data_output",
        "members",
        "tolerance",
        "timeout",
        "timeout_seconds",
        "priority",
    ]
)
TEXT = WORDS | st.text(st.characters(exclude_categories=[]), max_size=200)
NUMBERS = st.sampled_from([0, 1, 2, 8, -1, 2**31, 2**40, 2**63, 2**64, -(2**63)]) | st.integers() | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def check(decode, specs):
    """Runs a decoder; what it lets through must be what the model takes, what it refuses must be well said."""
    try:
        request = decode()
    except BadRequest as error:
        check_words(error.message)
        return
    assert request.inputs.keys() == {spec.name for spec in specs}
    for spec in specs:
        array = request.inputs[spec.name]
        assert array.dtype == spec.type.dtype
        assert array.shape[0] == request.rows >= 1
        assert all(size == wanted or wanted == -1 for size, wanted in zip(array.shape, spec.shape, strict=True))
        assert array.flags.c_contiguous
    assert {output.name for output in request.outputs} <= set(OUTPUTS)
    assert request.outputs
    assert request.id is None or request.id.isascii()


def check_words(message):
    assert 10 < len(message) < 400
    assert message.isprintable()
    for leak in ("Traceback", "Error(", 'File "', ".py", "object at 0x"):
        assert leak not in message


def infer(body, specs, length):
    return lambda: decode_infer(body, specs, OUTPUTS, OUTPUTS, length)


def predict(body, specs):
    return lambda: decode_predict(body, specs, OUTPUTS, OUTPUTS)


def places(value, path=()):
    """The path of every value within a JSON document."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def replaced(document, path, value):
    if not path:
        return value
    document = copy.deepcopy(document)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return document


def test_the_valid_bodies_that_are_mutated_below_are_valid():
    head = json.dumps(VALID).encode()
    assert decode_infer(head + TAIL, SPECS, OUTPUTS, OUTPUTS, len(head)).rows == 2
    assert decode_predict(json.dumps(PLAIN).encode(), SPECS, OUTPUTS, OUTPUTS).rows == 2


@given(st.binary(max_size=200), st.none() | st.integers(-2, 210))
@example(b"", None)
@example(b"", 0)
def test_arbitrary_bytes(body, length):
    for specs in (SPECS, ONE):
        check(infer(body, specs, length), specs)
        check(predict(body, specs), specs)


@given(JSON)
def test_arbitrary_documents(document):
    body = json.dumps(document).encode()
    try:
        assert isinstance(parse_json(body), dict)
    except BadRequest as error:
        check_words(error.message)
    for specs in (SPECS, ONE):
        check(infer(body, specs, None), specs)
        check(predict(body, specs), specs)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_valid_documents_with_one_value_replaced(data):
    value = data.draw(JSON)
    document = replaced(VALID, data.draw(st.sampled_from(list(places(VALID)))), value)
    head = json.dumps(document).encode()
    check(infer(head + TAIL, SPECS, len(head)), SPECS)
    plain = replaced(PLAIN, data.draw(st.sampled_from(list(places(PLAIN)))), value)
    check(predict(json.dumps(plain).encode(), SPECS), SPECS)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_valid_bodies_with_some_bytes_changed(data):
    head = json.dumps(VALID).encode()
    bodies = [bytearray(head + TAIL), bytearray(json.dumps(PLAIN).encode())]
    for body in bodies:
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(body) - 1))
            many = data.draw(st.integers(0, 3))
            patch = data.draw(
                st.binary(max_size=3) | st.sampled_from([b"[", b"]", b"{", b'"', b",", b"-", b"9", b"e9"])
            )
            body[at : at + many] = patch
    length = data.draw(st.sampled_from([None, len(head), len(head) - 1, len(bodies[0]), len(bodies[0]) - 2]))
    check(infer(bytes(bodies[0]), SPECS, length), SPECS)
    check(predict(bytes(bodies[1]), SPECS), SPECS)


def test_every_beginning_of_a_valid_body_is_refused():
    head, plain = json.dumps(VALID).encode(), json.dumps(PLAIN).encode()
    whole = head + TAIL
    for length in range(len(whole)):
        for json_length in (len(head), min(length, len(head))):
            with pytest.raises(BadRequest) as refused:
                decode_infer(whole[:length], SPECS, OUTPUTS, OUTPUTS, json_length)
            check_words(refused.value.message)
    for length in range(len(plain)):
        with pytest.raises(BadRequest) as refused:
            decode_predict(plain[:length], SPECS, OUTPUTS, OUTPUTS)
        check_words(refused.value.message)


@given(JSON, st.none() | JSON, st.sampled_from(SPECS))
def test_arbitrary_values_as_tensors(data, shape, spec):
    try:
        array = array_from_json(data, spec, shape)
    except BadRequest as error:
        check_words(error.message)
        return
    assert isinstance(array, np.ndarray)
    assert array.dtype == spec.type.dtype
    assert array.ndim == len(spec.shape)


@given(st.text(max_size=40) | st.from_regex(r"[-+ 0-9.]{0,30}", fullmatch=True))
def test_arbitrary_header_lengths(value):
    try:
        length = parse_header_length(value)
    except BadRequest as error:
        check_words(error.message)
        return
    assert length is not None
    assert length == int(value) >= 0


@pytest.mark.parametrize("specs", [SPECS, ONE])
def test_long_user_texts_are_not_echoed(specs):
    long = "secret " * 1000
    for document in (
        {"inputs": [{"name": long}], "outputs": [{"name": long}]},
        {"inputs": [{"name": "x", "datatype": long}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [long, 1]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": long}]},
        {"inputs": {long: 1}},
        {"id": long, "inputs": [[1, 2]]},
        {long: 1},
        {"inputs": [[1, 2]], "outputs": [long]},
    ):
        body = json.dumps(document).encode()
        for decode in (infer(body, specs, None), predict(body, specs)):
            with pytest.raises(BadRequest) as caught:
                decode()
            assert caught.value.message.count("secret") <= 15
            check_words(caught.value.message)
