import json
import re

import pytest

from app import connection, errors
from tests.app.support import ROOT

# Of each its status, and the word under which the metrics count it.
PLAIN = {
    errors.BadRequest: (400, None),
    errors.Unauthorized: (401, "unauthorized"),
    errors.Forbidden: (403, "forbidden"),
    errors.NotFound: (404, None),
    errors.MethodNotAllowed: (405, None),
    errors.Gone: (410, None),
    errors.RequestTimeout: (408, "too_slow"),
    errors.PayloadTooLarge: (413, "too_large"),
    errors.UnsupportedMediaType: (415, None),
    errors.Misdirected: (421, "misdirected"),
    errors.TooManyRequests: (429, None),
    errors.ClientGone: (499, None),
    errors.InternalError: (500, None),
    errors.Unavailable: (503, None),
    errors.DeadlineExceeded: (504, None),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_the_answer_follows_from_the_class(kind):
    error = kind("words")
    assert isinstance(error, errors.ServiceError)
    assert (error.status, error.reason) == PLAIN[kind]
    assert json.loads(json.dumps(error.body())) == {"error": error.message}
    assert str(error) == error.message
    assert "words" in error.message


def test_all_lists_every_error_and_nothing_else():
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert set(errors.__all__) == defined == {kind.__name__ for kind in PLAIN} | {"ServiceError"}


def test_headers_belong_to_one_error():
    first = errors.Unavailable("x", headers={"Retry-After": "3"})
    assert first.headers == {"Retry-After": "3"}
    assert errors.Unavailable("x").headers == {}


@pytest.mark.parametrize(("seconds", "header"), [(0, "1"), (-3, "1"), (0.2, "1"), (1.01, "2"), (1e12, "3600")])
def test_retry_after_is_in_whole_seconds_and_bounded(seconds, header):
    assert errors.TooManyRequests("busy", retry_after=seconds).headers == {"Retry-After": header}


def test_why_there_is_no_room_is_said_where_it_is_known():
    assert errors.TooManyRequests("busy", reason="bodies_full").reason == "bodies_full"


def test_method_not_allowed_lists_methods():
    assert errors.MethodNotAllowed("no", allow=["GET", "HEAD"]).headers == {"Allow": "GET, HEAD"}
    assert errors.MethodNotAllowed("no").headers == {}


def test_a_missing_key_is_told_how_to_send_one():
    assert errors.Unauthorized("no key").headers == {"WWW-Authenticate": 'Bearer realm="ensembled"'}


def test_an_internal_error_says_nothing_but_the_request_id():
    a, b = errors.InternalError("r-1"), errors.InternalError("r-2")
    assert a.request_id == "r-1"
    assert a.message.replace("r-1", "r-2") == b.message


@pytest.mark.parametrize(
    ("page", "lists"),
    [("README.md", r"with the status that fits: ([^.]+)\."), ("docs/protocol.md", r"^\| (\d{3}(?:, \d{3})*) \|")],
)
def test_the_pages_list_every_status_that_an_error_has(page, lists):
    listed = " ".join(re.findall(lists, (ROOT / page).read_text(), re.MULTILINE))
    own = {kind.status for kind in PLAIN} - {errors.ClientGone.status}
    refused = {value.status.value for value in vars(connection).values() if isinstance(value, connection._Refusal)}
    assert sorted(int(status) for status in re.findall(r"\d{3}", listed)) == sorted(own | refused)
