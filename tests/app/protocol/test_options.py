import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BadRequest
from app.protocol.options import (
    DEFAULT_PRIORITY,
    LONGEST_TIMEOUT,
    PRIORITIES,
    parse_timeout,
    read_plain_options,
    read_v2_options,
)
from app.protocol.request import Options, Question

BOTH = pytest.mark.parametrize("read", [read_v2_options, read_plain_options])


@BOTH
def test_no_parameters_are_no_wishes(read):
    nothing = {"members": None, "tolerance": None, "priority": None}
    assert read({}) == read(nothing) == Options()


def test_all_that_v2_knows():
    parameters = {"members": 8, "tolerance": 0.01, "confidence_level": 0.8, "levels": [0.5, 0.1]}
    parameters |= {"timeout": 1_500_000, "priority": 1}
    assert read_v2_options(parameters, most_members=8) == Options(Question(8, 0.01, 0.8, (0.5, 0.1)), 1.5, 4)


def test_all_that_the_plain_api_knows():
    parameters = {"members": 8, "tolerance": 1, "confidence_level": 0.8, "levels": 0.5}
    parameters |= {"timeout_seconds": 1.5, "priority": 9}
    assert read_plain_options(parameters, most_members=8) == Options(Question(8, 1.0, 0.8, (0.5,)), 1.5, -4)


@BOTH
def test_the_most_urgent_level_becomes_the_greatest_number_and_the_default_becomes_zero(read):
    found = [read({"priority": level}).priority for level in range(1, PRIORITIES + 1)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == PRIORITIES
    assert read({"priority": DEFAULT_PRIORITY}).priority == read({"priority": 0}).priority == 0


@BOTH
@pytest.mark.parametrize("value", [0, -1, 9, 2**63, True, False, 1.0, 2.5, "3", [], {}])
def test_members_are_a_whole_number_that_the_model_has(read, value):
    with pytest.raises(BadRequest, match=r"parameters.members must be a whole number from 1 to 8, however: "):
        read({"members": value}, most_members=8)


@BOTH
@pytest.mark.parametrize("value", [-1, PRIORITIES + 1, True, 1.0, "1", [1]])
def test_a_priority_is_a_level(read, value):
    with pytest.raises(BadRequest, match=r"parameters.priority must be a whole number from 0 to 9, however: "):
        read({"priority": value})


@BOTH
@pytest.mark.parametrize("value", [0, 0.0, -0.0, -1e-9, math.nan, math.inf, True, "0.1", [0.1]])
def test_a_tolerance_is_a_number_above_zero(read, value):
    with pytest.raises(BadRequest, match=r"parameters.tolerance must be a number above 0, however: "):
        read({"tolerance": value})


@BOTH
@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.1, math.nan, math.inf, True, "0.9", [0.9]])
def test_a_confidence_level_is_a_number_between_0_and_1(read, value):
    with pytest.raises(BadRequest, match=r"confidence_level must be a number between 0 and 1, such as 0\.9, however: "):
        read({"confidence_level": value})


@BOTH
@pytest.mark.parametrize(
    ("value", "levels"),
    [
        ([0.05, 0.5], (0.05, 0.5)),
        ([0.9, 0.1], (0.9, 0.1)),
        ("0.05,0.5", (0.05, 0.5)),
        (" .5 ,\t0.25 ", (0.5, 0.25)),
        ("0.5", (0.5,)),
        (0.5, (0.5,)),
        (None, None),
        ([0.5] * 100, (0.5,) * 100),
    ],
)
def test_levels_are_a_list_a_text_or_a_number(read, value, levels):
    assert read({"levels": value}).question.levels == levels


@BOTH
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "must be 1 to 100 numbers between 0 and 1, however: 0"),
        ([0.5] * 101, "must be 1 to 100 numbers between 0 and 1, however: 101"),
        (",".join(["0.5"] * 101), "must be 1 to 100 numbers between 0 and 1, however: 101"),
        ("0.5," * 100_000, "must be numbers between 0 and 1 with commas, such as 0.05,0.95, however: "),
        ("", "must be numbers between 0 and 1 with commas"),
        ("0.5;0.6", "must be numbers between 0 and 1 with commas"),
        ("٠.٥", "must be numbers between 0 and 1 with commas"),
        ("0.5,1.5", "each of parameters.levels must be a number between 0 and 1"),
        ([0.5, 1], "each of parameters.levels must be a number between 0 and 1, such as 0.9, however: 1"),
        ([0.5, None], "each of parameters.levels must be a number between 0 and 1, such as 0.9, however: null"),
        ([True], "each of parameters.levels must be a number between 0 and 1, such as 0.9, however: true"),
        ({"a": 1}, "each of parameters.levels must be a number between 0 and 1, such as 0.9, however: an object"),
    ],
)
def test_what_is_no_level_is_refused(read, value, text):
    with pytest.raises(BadRequest, match=text) as refused:
        read({"levels": value})
    check_words(refused.value.message)


@pytest.mark.parametrize("value", [0, -1, 86_400_000_001, 2**64, True, 1e6, "1000", [1]])
def test_a_v2_timeout_is_a_whole_number_of_microseconds(value):
    message = "parameters.timeout must be a whole number of microseconds from 1 to 86400000000, however: "
    with pytest.raises(BadRequest, match=message):
        read_v2_options({"timeout": value})


@pytest.mark.parametrize("value", [0, -1, 86_400.1, math.nan, math.inf, True, "1"])
def test_a_plain_timeout_is_a_number_of_seconds(value):
    message = "parameters.timeout_seconds must be a number above 0 and up to 86400, however: "
    with pytest.raises(BadRequest, match=message):
        read_plain_options({"timeout_seconds": value})


@pytest.mark.parametrize("name", ["timeout", "member", "sequence_id", "x" * 1000])
def test_the_plain_api_refuses_names_that_it_does_not_know(name):
    known = "'members', 'tolerance', 'confidence_level', 'levels', 'timeout_seconds', 'priority'"
    with pytest.raises(BadRequest, match=f"parameters must be among {known}, however: '") as refused:
        read_plain_options({name: 1})
    assert len(refused.value.message) < 220


def test_v2_passes_over_names_that_it_does_not_know():
    assert read_v2_options({"custom": [1], "headers": {}, "triton_enable_empty_final_response": True}) == Options()


@pytest.mark.parametrize("number", [1, "a", True, [0]])
def test_a_sequence_is_refused(number):
    with pytest.raises(BadRequest, match="no state is kept between requests here: send them without sequence_id"):
        read_v2_options({"sequence_id": number, "sequence_start": True, "sequence_end": False})


@pytest.mark.parametrize("nothing", [0, "", None])
def test_no_sequence_is_none(nothing):
    assert read_v2_options({"sequence_id": nothing, "sequence_start": False, "sequence_end": False}) == Options()


@pytest.mark.parametrize(
    ("own", "header", "timeout"), [(2, None, 2), (None, 3.5, 3.5), (2, 3.5, 2), (4, 3.5, 3.5), (None, None, None)]
)
def test_the_earlier_deadline_holds(own, header, timeout):
    micros = None if own is None else own * 1_000_000
    assert read_v2_options({"timeout": micros}, timeout=header).timeout == timeout
    assert read_plain_options({"timeout_seconds": own}, timeout=header).timeout == timeout


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, None), ("1", 1), ("0.25", 0.25), (" 2 ", 2), ("86400", 86400), ("0.000001", 1e-6)]
)
def test_seconds_in_the_header(value, seconds):
    assert parse_timeout(value) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "0", "0.0", "-1", "+1", "nan", "inf", "1e3", "86400.5", "9" * 400, "1,5", "1s", "٣", "1.", ".5"],
)
def test_a_header_that_is_no_seconds(value):
    with pytest.raises(BadRequest, match="X-Request-Timeout must be seconds above 0 and up to 86400") as refused:
        parse_timeout(value)
    assert len(refused.value.message) < 220


def check_words(message):
    assert 20 < len(message) < 300
    assert message.isprintable()


@given(st.text(max_size=30) | st.from_regex(r"[-+0-9.eEnai]{0,12}", fullmatch=True))
def test_any_header_is_seconds_or_refused(value):
    try:
        seconds = parse_timeout(value)
    except BadRequest as refused:
        check_words(refused.message)
        return
    assert seconds == float(value)
    assert 0 < seconds <= LONGEST_TIMEOUT


NAMES = ["members", "tolerance", "priority", "confidence_level", "levels"]
VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)


@given(st.dictionaries(st.sampled_from([*NAMES, "timeout", "timeout_seconds"]), VALUES))
def test_any_parameters_are_wishes_that_can_be_met_or_refused(parameters):
    for read in (read_v2_options, read_plain_options):
        try:
            options = read(parameters, most_members=6)
        except BadRequest as refused:
            check_words(refused.message)
            continue
        assert options.question.members is None or (
            type(options.question.members) is int and 1 <= options.question.members <= 6
        )
        assert options.question.tolerance is None or 0 < options.question.tolerance < math.inf
        assert options.question.confidence_level is None or 0 < options.question.confidence_level < 1
        assert options.question.levels is None or all(0 < level < 1 for level in options.question.levels)
        assert options.timeout is None or 0 < options.timeout <= LONGEST_TIMEOUT
        assert -4 <= options.priority <= 4
