import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol.wording import describe, listing, quote


@given(st.text(st.characters(exclude_categories=[]), max_size=300))
def test_a_quote_is_short_and_on_one_line_and_printable(text):
    quoted = quote(text)
    assert len(quoted) <= 64
    assert quoted.isprintable()


def test_a_short_text_is_quoted_in_full_and_a_long_one_is_cut():
    assert quote("mean") == "'mean'"
    assert quote("a" * 60) == f"'{'a' * 60}'"
    assert quote("a" * 61) == f"'{'a' * 60}…'"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        ("x", "the text 'x'"),
        ([], "an empty list"),
        ([1], "a list"),
        ({}, "an object"),
        (-3, "-3"),
        (2.5, "2.5"),
        (1e39, "1e+39"),
        (math.inf, "not a finite number"),
        (math.nan, "not a finite number"),
        (10**400, "a number beyond 64 bits"),
        (object(), "something that JSON has no word for"),
    ],
)
def test_values_are_described_in_the_words_of_json(value, words):
    assert describe(value) == words


def test_listing():
    assert listing(["a", "b"]) == "'a', 'b'"


def test_an_integer_too_long_for_python_to_print_is_described():
    assert describe(-(10**5000)) == "a number beyond 64 bits"
