import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from app.errors import BadRequest
from app.protocol.datatypes import DATATYPES
from app.protocol.nested import pack, unnest


def unnest_x(data, rank):
    return unnest(data, rank, subject="input 'x'", layout="[batch, ...]")


def pack_x(flat, datatype, *, may_hold_booleans=True):
    return pack(flat, DATATYPES[datatype], (len(flat),), subject="x", may_hold_booleans=may_hold_booleans)


@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=1, max_dims=5, max_side=4)))
def test_unnest_finds_the_sizes_and_the_elements_in_order(array):
    sizes, flat = unnest_x(array.tolist(), array.ndim)
    assert sizes == array.shape
    assert flat == array.reshape(-1).tolist()


def test_unnest_stops_at_its_rank():
    assert unnest_x([[[1], 2]], 2) == ((1, 2), [[1], 2])


@pytest.mark.parametrize(
    ("data", "rank", "message"),
    [
        ([[1, 2], [3]], 2, r"equal length, however: element \[0\] has 2 and element \[1\] has 1"),
        ([[[1], [2]], [[3], [4, 5]]], 3, r"element \[0\]\[0\] has 1 and element \[1\]\[1\] has 2"),
        ([1, 2], 2, r"nested 2 deep as \[batch, \.\.\.\], however: element \[0\] is 1; a single row is a batch of one"),
        ([[1], 2], 2, r"however: element \[1\] is 2$"),
        ([[1], None], 2, r"however: element \[1\] is null$"),
        (["ab", "cd"], 2, r"however: element \[0\] is the text 'ab'"),
        ([{"a": 1}], 2, r"however: element \[0\] is an object"),
        ([[], []], 3, "must not be empty, however: level 2 of its lists has no elements"),
    ],
)
def test_unnest_refuses(data, rank, message):
    with pytest.raises(BadRequest, match=message):
        unnest_x(data, rank)


@pytest.mark.parametrize("position", [0, 1, 1023, 1024, 2999])
def test_the_culprit_is_found_wherever_it_is(position):
    flat = [0.5] * 3000
    flat[position] = None
    with pytest.raises(BadRequest, match=rf"element \[{position}\] is null"):
        pack_x(flat, "FP32")


def test_a_promise_of_no_booleans_is_believed():
    assert pack_x([True, 2], "INT8", may_hold_booleans=False).tolist() == [1, 2]
    with pytest.raises(BadRequest, match=r"element \[0\] is true"):
        pack_x([True, 2], "INT8")


@pytest.mark.parametrize("datatype", [name for name, row in DATATYPES.items() if row.in_json])
def test_what_is_packed_is_new_and_writable(datatype):
    packed = pack_x([False, True] if datatype == "BOOL" else [0, 1], datatype)
    assert packed.flags.writeable
    assert packed.flags.aligned
    assert packed.flags.c_contiguous
    assert packed.dtype == DATATYPES[datatype].dtype
