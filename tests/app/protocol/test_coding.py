import gzip
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from app.protocol.coding import CODINGS, PIECE, Inflater, accepted_coding, compress, content_coding

ENCODE = {"gzip": gzip.compress, "deflate": zlib.compress}
DECODE = {"gzip": gzip.decompress, "deflate": zlib.decompress}
BOTH = pytest.mark.parametrize("coding", CODINGS)


def inflate(coding, pieces, limit=2**30):
    """All that an inflater gives for what it is fed."""
    inflater = Inflater(coding, limit)
    found = []
    for fed in pieces:
        inflater.feed(fed)
        while (piece := inflater.piece()) is not None:
            assert 0 < len(piece) <= PIECE
            found.append(piece)
    inflater.end()
    return b"".join(found)


def cut(data, places):
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.sampled_from(list(CODINGS)), st.binary(max_size=2000), st.lists(st.integers(0, 10**6), max_size=5))
def test_whatever_is_deflated_comes_back_however_it_is_cut(coding, data, places):
    assert inflate(coding, cut(ENCODE[coding](data), places)) == data


@BOTH
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 5 * PIECE + 77])
@pytest.mark.parametrize("noise", [False, True])
def test_large_bodies_come_in_pieces(coding, size, noise):
    data = np.random.default_rng(size).bytes(size) if noise else bytes(size)
    assert inflate(coding, [ENCODE[coding](data)], limit=size) == data


@BOTH
def test_a_bomb_is_left_after_the_limit(coding):
    bomb = ENCODE[coding](bytes(64 * 2**20))
    assert len(bomb) < 2**17
    inflater = Inflater(coding, 10 * PIECE)
    inflater.feed(bomb)
    assert [len(inflater.piece()) for _ in range(10)] == [PIECE] * 10
    with pytest.raises(PayloadTooLarge, match=f"the body may have {10 * PIECE} bytes at most once it is inflated"):
        inflater.piece()


@BOTH
@pytest.mark.parametrize("limit", [0, 1, 99])
def test_one_byte_over_the_limit_is_too_many(coding, limit):
    data = bytes(limit)
    assert inflate(coding, [ENCODE[coding](data)], limit) == data
    with pytest.raises(PayloadTooLarge):
        inflate(coding, [ENCODE[coding](data + b"x")], limit)


@BOTH
def test_every_beginning_is_refused(coding):
    whole = ENCODE[coding](b"some numbers: 1, 2, 3, 4, 5, 6, 7")
    for length in range(len(whole)):
        with pytest.raises(BadRequest, match=f"its {coding} data end too early"):
            inflate(coding, [whole[:length]])


@given(st.sampled_from(list(CODINGS)), st.binary(min_size=1, max_size=300), st.data())
def test_changed_bytes_are_noticed_or_harmless(coding, data, draw):
    whole = bytearray(ENCODE[coding](data))
    place = draw.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= draw.draw(st.integers(1, 255))
    try:
        # Some bits of gzip's head mean nothing here: a time, an operating system.
        assert inflate(coding, [bytes(whole)], 10_000) == data
    except (BadRequest, PayloadTooLarge) as refused:
        check_words(refused.message)


@given(st.sampled_from(list(CODINGS)), st.lists(st.binary(max_size=50), max_size=4))
def test_arbitrary_bytes(coding, pieces):
    try:
        inflate(coding, pieces, 10_000)
    except (BadRequest, PayloadTooLarge) as refused:
        check_words(refused.message)


def check_words(message):
    assert 20 < len(message) < 200
    assert message.isprintable()


def test_a_gzip_body_may_have_several_members_and_a_deflate_body_only_one():
    whole = b"".join(gzip.compress(part) for part in (b"one, ", b"", b"two, ", b"three"))
    assert inflate("gzip", [whole]) == inflate("gzip", [bytes([byte]) for byte in whole]) == b"one, two, three"
    with pytest.raises(BadRequest, match="must end with its deflate data, however: more bytes follow"):
        inflate("deflate", [zlib.compress(b"one") + zlib.compress(b"two")])
    with pytest.raises(BadRequest, match="more bytes follow"):
        inflate("gzip", [gzip.compress(b"") * 101])
    with pytest.raises(BadRequest, match="its gzip data are broken"):
        inflate("gzip", [gzip.compress(b"one") + b"two"])


def test_deflate_without_zlibs_frame_is_told_that_it_lacks_it():
    raw = zlib.compressobj(wbits=-15)
    with pytest.raises(BadRequest, match="or lack the frame of zlib"):
        inflate("deflate", [raw.compress(b"abc" * 100) + raw.flush()])


@pytest.mark.parametrize(
    ("values", "coding"),
    [
        ([], None),
        (["identity"], None),
        (["Identity"], None),
        (["gzip"], "gzip"),
        (["GZIP"], "gzip"),
        (["x-gzip"], "gzip"),
        ([" deflate\t"], "deflate"),
        (["identity, gzip"], "gzip"),
        (["identity", "deflate"], "deflate"),
    ],
)
def test_the_coding_of_a_request(values, coding):
    assert content_coding(values) == coding


@pytest.mark.parametrize(
    "values", [["br"], ["zstd"], ["gzip, gzip"], ["gzip", "gzip"], ["deflate, gzip"], [""], ["gzip;q=1"], ["x" * 5000]]
)
def test_other_codings_and_several_are_told_which_are_read(values):
    with pytest.raises(UnsupportedMediaType, match="must be one of gzip, deflate or identity, however: '") as refused:
        content_coding(values)
    assert refused.value.headers == {"Accept-Encoding": "gzip, deflate"}
    check_words(refused.value.message)


@pytest.mark.parametrize(
    ("values", "coding"),
    [
        ([], None),
        ([""], None),
        (["gzip"], "gzip"),
        (["deflate"], "deflate"),
        (["gzip, deflate, br, zstd"], "gzip"),
        (["deflate, gzip"], "gzip"),
        (["gzip;q=0.5, deflate;q=0.8"], "deflate"),
        (["gzip; q=0.5 ,deflate ;q=0.4"], "gzip"),
        (["GZIP;Q=0.5"], "gzip"),
        (["x-gzip"], "gzip"),
        (["gzip;q=0"], None),
        (["gzip;q=0, deflate"], "deflate"),
        (["*"], "gzip"),
        (["*;q=0"], None),
        (["gzip;q=0, *"], "deflate"),
        (["gzip", "deflate;q=0.9"], "gzip"),
        (["identity"], None),
        (["identity;q=1, gzip;q=0.5"], None),
        (["identity;q=0.5, gzip"], "gzip"),
        (["br"], None),
        (["gzip;q=x, deflate;q=2"], None),
        (["gzip;level=9"], None),
        (["gzip;q=nan"], None),
        ([";;,,=;q=="], None),
    ],
)
def test_the_coding_that_a_client_likes_best(values, coding):
    assert accepted_coding(values) == coding


@given(st.lists(st.text(max_size=40), max_size=3))
def test_any_header_is_read(values):
    assert accepted_coding(values) in (None, *CODINGS)


@BOTH
def test_what_repeats_is_compressed_and_what_does_not_is_not(coding):
    numbers = b", ".join(b"%d.25" % number for number in range(5000))
    small = compress(numbers, coding)
    assert small is not None
    assert len(small) < len(numbers) / 2
    assert DECODE[coding](small) == numbers == inflate(coding, [small])
    assert compress(np.random.default_rng(0).bytes(50_000), coding) is None
