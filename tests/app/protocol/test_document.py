import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import BadRequest
from app.protocol.document import MAX_CONTAINERS, MAX_DEPTH, parse_json


def nested(depth, *, inner="1"):
    """An object that is `depth` levels deep, itself included."""
    return ('{"a":' + "[" * (depth - 1) + inner + "]" * (depth - 1) + "}").encode()


def depth_of(value):
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


def test_an_object_is_parsed():
    assert parse_json(b' {"a": [1, 2.5, null, true, "x"]} ') == {"a": [1, 2.5, None, True, "x"]}


def test_an_empty_body_is_told_so():
    with pytest.raises(BadRequest, match="the body is empty"):
        parse_json(b"")


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"x"', b"true"])
def test_a_body_must_be_an_object(body):
    with pytest.raises(BadRequest, match="must be a JSON object"):
        parse_json(body)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"{", "line 1, column 2"),
        (b'{"a": 1 2}', "line 1, column 9"),
        (b'{"a":\n 1,\n  x}', "line 3, column 3"),
        ('{"é": x}'.encode(), "line 1, column 7"),
        (b"{} {}", "line 1, column 4"),
    ],
)
def test_what_is_not_json_is_located(body, where):
    with pytest.raises(BadRequest, match=f"not JSON at {where}: "):
        parse_json(body)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "nan", "inf"])
def test_nan_and_infinity_are_named(word):
    with pytest.raises(BadRequest, match=r"line 1, column [78]: .*JSON has no NaN or infinity"):
        parse_json(f'{{"a":[{word}]}}'.encode())


def test_a_number_beyond_float64_is_named():
    with pytest.raises(BadRequest, match="a number at line 1, column 7 that is too large"):
        parse_json(b'{"a":[1e999]}')


def test_text_that_is_not_utf8_is_named():
    with pytest.raises(BadRequest, match="byte 6 is not UTF-8"):
        parse_json(b'{"a":"\xff"}')


@pytest.mark.parametrize("inner", ["1", '"["', '"\\"["', '"\\\\"', r'"\u005b]]]"'])
def test_the_depth_limit_is_exact(inner):
    assert depth_of(parse_json(nested(MAX_DEPTH, inner=inner))) == MAX_DEPTH
    with pytest.raises(BadRequest, match="nested at most 100 deep"):
        parse_json(nested(MAX_DEPTH + 1, inner=inner))


@pytest.mark.parametrize("depth", [101, 1000, 1024, 1025, 5000, 100_000])
@pytest.mark.parametrize("closed", [True, False])
def test_any_greater_depth_is_refused_for_its_depth(depth, closed):
    body = nested(depth)
    with pytest.raises(BadRequest, match="nested at most 100 deep"):
        parse_json(body if closed else body[: depth + 5])


@pytest.mark.parametrize("empty", [b"[]", b"{}"])
def test_more_lists_and_objects_than_are_good_for_memory_are_refused(empty):
    def body(containers: int) -> bytes:
        # The object itself and the list are two of them.
        return b'{"a":[' + b",".join([empty] * (containers - 2)) + b"]}"

    assert len(parse_json(body(MAX_CONTAINERS))["a"]) == MAX_CONTAINERS - 2
    with pytest.raises(BadRequest, match="at most 1000000 lists and objects, however: 1000001; V2 takes"):
        parse_json(body(MAX_CONTAINERS + 1))


def test_depth_of_objects_counts_as_that_of_lists():
    assert parse_json(b'{"a":' * 99 + b"{}" + b"}" * 99)
    with pytest.raises(BadRequest, match="nested at most 100 deep"):
        parse_json(b'{"a":' * 100 + b"{}" + b"}" * 100)


def test_closing_brackets_in_texts_hide_no_depth():
    level = '["]]]]]}}}}}",'
    body = ('{"a":' + level * 100 + "1" + "]" * 100 + "}").encode()
    assert depth_of(json.loads(body)) == 101
    with pytest.raises(BadRequest, match="nested at most 100 deep"):
        parse_json(body)


def test_many_brackets_are_not_depth():
    rows = [[[]] * 7] * 1000
    texts = ["[[[[[[[[[[" * 30, '"{\\"[', "\\"]
    document = {"a": rows, "b": texts, "[" * 200: {"{": "["}}
    assert parse_json(json.dumps(document).encode()) == document


def test_depth_is_found_beyond_the_first_chunk():
    wide = "[]," * 300_000
    body = '{"a":[' + wide + "[" * 97 + '"x"' + "]" * 97 + "]}"
    assert parse_json(body.encode())
    with pytest.raises(BadRequest, match="nested at most 100 deep"):
        parse_json(('{"a":[' + wide + "[" * 99 + '"x"' + "]" * 99 + "]}").encode())


@settings(deadline=None)
@given(st.data())
def test_the_depth_limit_agrees_with_a_walk(data):
    noise = st.sampled_from([1, "[[[", "]]]", '"', '\\"[', "\\", [], {}, [[]], {"}": "{"}])
    value = data.draw(noise)
    for _ in range(data.draw(st.integers(95, 102))):
        siblings = data.draw(st.lists(noise, max_size=1))
        value = [*siblings, value] if data.draw(st.booleans()) else {'k"]': siblings, "v": value}
    document = {"a": value}
    body = json.dumps(document).encode()
    if depth_of(document) <= MAX_DEPTH:
        assert parse_json(body) == document
    else:
        with pytest.raises(BadRequest, match="nested at most 100 deep"):
            parse_json(body)
