import json
import math
import tracemalloc

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.errors import BadRequest
from app.protocol.datatypes import DATATYPES
from app.protocol.tensors import (
    MAX_ELEMENTS,
    TensorSpec,
    array_from_bytes,
    array_from_json,
    array_to_json,
    checked_shape,
)

IN_JSON = [name for name, row in DATATYPES.items() if row.in_json]
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)
X = TensorSpec("x", "FP32", (-1, 2))


def values_of(datatype, *, finite):
    if datatype in ("FP16", "FP32", "FP64"):
        width = DATATYPES[datatype].size * 8
        return st.floats(width=width, allow_nan=not finite, allow_infinity=not finite)
    return hnp.from_dtype(DATATYPES[datatype].dtype)


@st.composite
def tensors(draw, datatypes, *, finite, shapes=SHAPES):
    datatype = draw(st.sampled_from(datatypes))
    array = draw(hnp.arrays(DATATYPES[datatype].dtype, shapes, elements=values_of(datatype, finite=finite)))
    fixed = draw(st.lists(st.booleans(), min_size=array.ndim, max_size=array.ndim))
    shape = (-1, *(size if keep else -1 for size, keep in zip(array.shape[1:], fixed[1:], strict=True)))
    return TensorSpec("x", datatype, shape), array


def assert_identical(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.flags.c_contiguous
    assert actual.tobytes() == expected.tobytes()


def dumps(value):
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


# Round trips


@given(tensors(IN_JSON, finite=True), st.booleans())
def test_json_there_and_back_is_the_identity_nested_and_flat(tensor, scan):
    spec, array = tensor
    scan = scan or spec.datatype == "BOOL"
    value, had_nonfinite = array_to_json(array)
    assert not had_nonfinite
    nested = json.loads(dumps(value))
    flat = json.loads(dumps(array_to_json(array.reshape(-1))[0]))
    assert_identical(array_from_json(nested, spec, may_hold_booleans=scan), array)
    assert_identical(array_from_json(nested, spec, list(array.shape), may_hold_booleans=scan), array)
    assert_identical(array_from_json(flat, spec, list(array.shape), may_hold_booleans=scan), array)


@given(tensors(list(DATATYPES), finite=False, shapes=hnp.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=4)))
def test_bytes_there_and_back_are_the_identity_without_a_copy(tensor):
    spec, array = tensor
    raw = b"{}" + array.tobytes()
    again = array_from_bytes(memoryview(raw)[2:], spec.type, array.shape)
    assert_identical(again, array)
    assert array.size == 0 or np.shares_memory(again, np.frombuffer(raw, dtype=np.uint8))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_is_written_in_its_shortest_form(number):
    text = dumps(array_to_json(np.array([number], dtype=np.float32))[0])[1:-1].decode()
    assert np.float32(text).tobytes() == np.float32(number).tobytes()
    significant = text.split("e")[0].strip("-").replace(".", "").strip("0")
    shortest = np.format_float_scientific(np.float32(number), unique=True, trim="-").split("e")[0]
    assert len(significant) <= len(shortest.strip("-").replace(".", "").strip("0"))


# From JSON: what is accepted


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("FP32", [1, 2.5], [1.0, 2.5]),
        ("FP32", [3.4028235e38, -0.0], [3.4028234663852886e38, -0.0]),
        ("FP64", [2**53 + 1, 1e308], [2.0**53, 1e308]),
        ("INT8", [-128, 127], [-128, 127]),
        ("INT64", [-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1]),
        ("UINT64", [0, 2**64 - 1], [0, 2**64 - 1]),
        ("INT32", [3.0, -4], [3, -4]),
        ("INT64", [2.0**53, 2**53 + 1], [2**53, 2**53 + 1]),
        ("BOOL", [True, False], [True, False]),
    ],
)
def test_values_are_taken_exactly(datatype, data, expected):
    array = array_from_json(data, TensorSpec("x", datatype, (-1,)))
    assert array.tolist() == expected


# From JSON: what is refused


@pytest.mark.parametrize(
    ("datatype", "bad", "message"),
    [
        ("FP32", "1.0", r"element \[0\]\[1\] is the text '1\.0'"),
        ("FP32", "NaN", r"element \[0\]\[1\] is the text 'NaN'"),
        ("FP32", None, r"element \[0\]\[1\] is null"),
        ("FP32", True, r"element \[0\]\[1\] is true"),
        ("FP32", False, r"element \[0\]\[1\] is false"),
        ("FP32", [], r"element \[0\]\[1\] is an empty list"),
        ("FP32", {}, r"element \[0\]\[1\] is an object"),
        ("FP32", 1e39, r"\(finite numbers up to ±3\.4028235e\+38\).* element \[0\]\[1\] is 1e\+39"),
        ("FP32", 3.4028236e38, r"element \[0\]\[1\] is 3\.4028236e\+38"),
        ("FP32", 10**400, r"element \[0\]\[1\] is a number beyond 64 bits"),
        ("FP64", 10**400, r"element \[0\]\[1\] is a number beyond 64 bits"),
        ("FP64", float("1e999"), r"element \[0\]\[1\] is not a finite number"),
        ("FP64", math.nan, r"element \[0\]\[1\] is not a finite number"),
        ("INT8", 128, r"whole numbers from -128 to 127\), however: element \[0\]\[1\] is 128"),
        ("UINT8", -1, r"whole numbers from 0 to 255\), however: element \[0\]\[1\] is -1"),
        ("INT32", 1.5, r"element \[0\]\[1\] is 1\.5"),
        ("INT32", True, r"element \[0\]\[1\] is true"),
        ("INT32", "1", r"element \[0\]\[1\] is the text '1'"),
        ("INT64", 2**63, r"element \[0\]\[1\] is 9223372036854775808"),
        (
            "INT64",
            -9223372036854775809.0,
            r"element \[0\]\[1\] is -9\.22\S+; beyond 2\*\*53 they must be written without a fraction or exponent",
        ),
        (
            "INT64",
            float(2**54),
            r"element \[0\]\[1\] is 1\.8\S+; beyond 2\*\*53 they must be written without a fraction or exponent",
        ),
        ("UINT64", 2**64, r"element \[0\]\[1\] is 18446744073709551616"),
        ("UINT64", 1.8446744073709552e19, r"element \[0\]\[1\] is 1\.8446744073709552e\+19; beyond .*"),
        ("INT64", math.inf, r"element \[0\]\[1\] is not a finite number; beyond .*"),
        ("BOOL", 1, r"true or false\), however: element \[0\]\[1\] is 1"),
        ("BOOL", 0.0, r"element \[0\]\[1\] is 0\.0"),
        ("BOOL", "true", r"element \[0\]\[1\] is the text 'true'"),
    ],
)
def test_a_wrong_element_is_named_with_its_place(datatype, bad, message):
    good = datatype == "BOOL" or 1
    spec = TensorSpec("x", datatype, (-1, 2))
    with pytest.raises(BadRequest, match=rf"^input 'x' must hold {datatype} values .*{message}$"):
        array_from_json([[good, bad]], spec)
    with pytest.raises(BadRequest, match=r"^input 'x' must hold .*element \[3\] is "):
        array_from_json([good, good, good, bad], spec, [2, 2])


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_travels_in_binary_only(datatype):
    with pytest.raises(BadRequest, match=f"input 'x' is {datatype}, which travels in binary only"):
        array_from_json([[1, 2]], TensorSpec("x", datatype, (-1, 2)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "a list of numbers, however: null"),
        (3, "a list of numbers, however: 3"),
        ("12", "a list of numbers, however: the text '12'"),
        ({"a": 1}, "a list of numbers, however: an object"),
        ([], "at least one row, however: the batch is empty"),
        ([1, 2], r"nested 2 deep as \[batch, 2\].*; a single row is a batch of one: \[\[\.\.\.\]\]"),
        ([[1, 2], [3]], "lists of equal length"),
        ([[1, 2, 3]], r"the shape \[batch, 2\], however: \[1, 3\]"),
        ([[[1, 2]]], r"nested 2 deep as \[batch, 2\], however: deeper"),
        ([[]], r"the shape \[batch, 2\], however: \[1, 0\]; no dimension may be empty"),
    ],
)
def test_wrong_nesting_is_refused_with_what_would_be_right(data, message):
    with pytest.raises(BadRequest, match=rf"^input 'x' must .*{message}"):
        array_from_json(data, X)


def test_nesting_beyond_any_depth_is_refused():
    data = [1.0]
    for _ in range(5000):
        data = [data]
    for shape in (None, [1, 1]):
        with pytest.raises(BadRequest, match=r"nested 2 deep as \[batch, 1\], however: deeper"):
            array_from_json(data, TensorSpec("x", "FP32", (-1, 1)), shape)


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        ([1, 2, 3], [2, 2], r"have 4 numbers, as its shape \[2, 2\] says, however: 3"),
        ([], [1, 2], "have 2 numbers.*however: 0"),
        ([[1, 2]], [2, 2], r"flat or nested as its shape \[2, 2\], however: \[1, 2\]"),
        ([[1, 2, 3, 4]], [2, 2], r"flat or nested as its shape \[2, 2\], however: \[1, 4\]"),
        ([[1], [2]], [1, 2], r"flat or nested as its shape \[1, 2\], however: \[2, 1\]"),
        ([1, 2, 3], [1, 3], r"the shape \[batch, 2\], however: \[1, 3\]"),
        ([1, 2], [2], r"however: \[2\]; a single row is a batch of one: \[1, 2\]"),
        ([1, 2], [1, 1, 2], r"the shape \[batch, 2\], however: \[1, 1, 2\]$"),
        ([], [0, 2], "the batch is empty"),
        ([1, 2], [-1, 2], "whole numbers from 0 up, however: -1"),
        ([1, 2], [-1, -2], "whole numbers from 0 up, however: -1"),
        ([1, 2], [1.0, 2], r"whole numbers from 0 up, however: 1\.0"),
        ([1, 2], [True, 2], "whole numbers from 0 up, however: true"),
        ([1, 2], ["1", 2], "whole numbers from 0 up, however: the text '1'"),
        ([1, 2], "12", r"a shape such as \[batch, 2\], however: the text '12'"),
        ([1, 2], {}, r"a shape such as \[batch, 2\], however: an object"),
        ([1, 2], [2**40, 2], f"product is at most {2**40}"),
        ([1, 2], [2**63, 2**63, 0], f"product is at most {2**40}"),
        ([1, 2], [0, 2**63], f"product is at most {2**40}"),
        ([1, 2], [1] * 33, "at most 32 dimensions, however: 33"),
        ([1, 2], [1] * 30, r"however: \[1, 1, 1, 1, 1, 1, \.\.\.\]$"),
    ],
)
def test_a_wrong_declared_shape_is_refused(data, shape, message):
    with pytest.raises(BadRequest, match=f"^input 'x' must .*{message}"):
        array_from_json(data, X, shape)


def test_variable_dimensions_take_any_size_but_none():
    spec = TensorSpec("x", "FP32", (-1, -1, 2))
    assert checked_shape([7, 9, 2], spec) == (7, 9, 2)
    with pytest.raises(BadRequest, match=r"\[batch, any, 2\], however: \[7, 0, 2\]; no dimension may be empty"):
        checked_shape([7, 0, 2], spec)
    with pytest.raises(BadRequest, match=r"\[batch, any, 2\], however: \[9, 2\]; a single row .*: \[1, 9, 2\]"):
        checked_shape([9, 2], spec)


def test_a_model_of_one_number_a_row():
    spec = TensorSpec("x", "FP32", (-1,))
    assert array_from_json([1, 2, 3], spec).tolist() == [1, 2, 3]
    with pytest.raises(BadRequest, match=r"must have the shape \[batch\], however: \[\]; a single row .*: \[1\]"):
        array_from_json([1], spec, [])


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (["a" * 100_000, *[1.0] * 9_999], None),
        (["a" * 100_000, *[1.0] * 9_999], [10_000]),
        ([1.0], [MAX_ELEMENTS]),
        ([], [MAX_ELEMENTS]),
    ],
)
def test_memory_follows_from_the_data_alone(data, shape):
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest):
            array_from_json(data, TensorSpec("x", "FP32", (-1,)), shape)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# From bytes


def test_bytes_are_little_endian_and_row_major():
    raw = bytes([1, 0, 2, 0, 3, 0, 0, 1])
    array = array_from_bytes(memoryview(raw), DATATYPES["UINT16"], (2, 2))
    assert array.tolist() == [[1, 2], [3, 256]]


@pytest.mark.parametrize("count", [0, 7, 9])
def test_bytes_must_be_as_many_as_the_shape_takes(count):
    with pytest.raises(BadRequest, match=rf"must have 8 bytes, as FP32 \[1, 2\] takes, however: {count}"):
        array_from_bytes(memoryview(bytes(count)), DATATYPES["FP32"], (1, 2))


@pytest.mark.parametrize("shape", [(-1, -2), (2**30, 2**30), (0, 2**41), (1.0, 2), (1,) * 33])
def test_no_array_is_made_over_an_impossible_shape(shape):
    with pytest.raises(BadRequest, match="the tensor must have"):
        array_from_bytes(memoryview(bytes(8)), DATATYPES["FP32"], shape)


def test_bool_bytes_are_zero_or_one():
    assert array_from_bytes(memoryview(b"\x00\x01"), DATATYPES["BOOL"], (2,)).tolist() == [False, True]
    with pytest.raises(BadRequest, match="BOOL bytes that are 0 or 1"):
        array_from_bytes(memoryview(b"\x00\x02"), DATATYPES["BOOL"], (2,))


# To JSON


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_becomes_null_and_is_reported(dtype, bad):
    value, had_nonfinite = array_to_json(np.array([[1.5, bad]], dtype=dtype))
    assert had_nonfinite
    assert json.loads(dumps(value)) == [[1.5, None]]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2],
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.arange(3, dtype=">f8"),
        np.array([0.1, 65504], dtype=np.float16),
        np.zeros((2, 0), dtype=np.float32),
        np.array(2.5, dtype=np.float32),
        np.array([[True, False]]),
    ],
)
def test_arrays_of_any_layout_are_written(array):
    value, had_nonfinite = array_to_json(array)
    assert not had_nonfinite
    again = np.array(json.loads(dumps(value)), dtype=array.dtype)
    np.testing.assert_array_equal(again, array)


# The spec


@pytest.mark.parametrize(
    ("datatype", "shape", "message"),
    [
        ("BYTES", (-1,), "datatype must be one of"),
        ("fp32", (-1,), "datatype must be one of"),
        ("FP32", (), "shape must be -1 for the batch"),
        ("FP32", (3, 2), "shape must be -1 for the batch"),
        ("FP32", (-1, -2), "shape must be -1 for the batch"),
    ],
)
def test_a_spec_that_no_model_can_have_is_refused(datatype, shape, message):
    with pytest.raises(ValueError, match=message):
        TensorSpec("x", datatype, shape)
