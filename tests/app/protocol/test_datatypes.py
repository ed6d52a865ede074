import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.protocol.datatypes import DATATYPES, all_finite, bfloat16_bits, bfloat16_values, datatype_of

SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}


def test_the_table_is_that_of_the_protocol():
    assert {name: row.size for name, row in DATATYPES.items()} == SIZES
    assert {name for name, row in DATATYPES.items() if not row.in_json} == {"FP16", "BF16"}
    assert all(name == row.name for name, row in DATATYPES.items())


def test_bytes_is_no_datatype_of_a_model():
    assert "BYTES" not in DATATYPES


@pytest.mark.parametrize("name", sorted(SIZES.keys() - {"BF16"}))
def test_dtype_and_datatype_are_inverses(name):
    dtype = DATATYPES[name].dtype
    assert datatype_of(dtype).name == name
    assert datatype_of(dtype.newbyteorder(">")).name == name


@pytest.mark.parametrize("dtype", ["U3", "O", "c8", "M8[s]"])
def test_a_dtype_without_a_datatype_is_refused(dtype):
    with pytest.raises(ValueError, match="dtype must be one of"):
        datatype_of(np.dtype(dtype))


def test_every_bfloat16_becomes_the_number_that_torch_says():
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(bfloat16_values(bits).view(np.uint32), expected.view(np.uint32))


def test_every_bfloat16_but_signalling_nans_survives_the_way_there_and_back():
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    values = bfloat16_values(bits)
    again = bfloat16_bits(values)
    np.testing.assert_array_equal(again[~np.isnan(values)], bits[~np.isnan(values)])
    assert np.isnan(bfloat16_values(again[np.isnan(values)])).all()


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, min_side=0), elements=st.floats(width=32)))
def test_rounding_to_bfloat16_is_that_of_torch(values):
    bits = bfloat16_bits(values)
    assert bits.shape == values.shape
    assert bits.dtype == np.uint16
    rounded = bfloat16_values(bits)
    expected = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    np.testing.assert_array_equal(rounded, expected)
    np.testing.assert_array_equal(np.signbit(rounded[rounded == 0]), np.signbit(expected[expected == 0]))


def test_bfloat16_ties_go_to_even_and_the_largest_float32_to_infinity():
    patterns = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800001, 0xFFFFFFFF], dtype=np.uint32)
    bits = bfloat16_bits(patterns.view(np.float32))
    assert bits[:4].tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80]
    assert np.isnan(bfloat16_values(bits[4:])).all()


def test_bfloat16_of_a_strided_array():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    np.testing.assert_array_equal(bfloat16_values(bfloat16_bits(values)), values)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_one_number_that_is_not_finite_is_seen_wherever_it_is(dtype):
    for bad in (np.nan, np.inf, -np.inf):
        for place in range(6):
            array = np.zeros(6, dtype)
            assert all_finite(array.reshape(2, 3))
            array[place] = bad
            assert not all_finite(array.reshape(2, 3))
