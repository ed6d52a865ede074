"""Errors as answers."""

import json

from app.errors import Forbidden, MethodNotAllowed, NotFound, TooManyRequests
from app.middleware.answer import error_response


def test_status_headers_and_text_come_from_the_error():
    response = error_response({}, TooManyRequests("later", retry_after=3))
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.headers["content-type"] == "application/json"
    assert json.loads(response.body) == {"error": "later"}
    assert error_response({}, MethodNotAllowed("no", allow=["GET", "HEAD"])).headers["allow"] == "GET, HEAD"


def test_any_text_is_json():
    assert json.loads(error_response({}, TooManyRequests('"\n\x00\u2028ä')).body) == {"error": '"\n\x00\u2028ä'}


def test_why_a_request_is_refused_is_noted_beside_what_else_is_known_of_it():
    scope = {"state": {"model": "m"}}
    error_response(scope, NotFound("no"))
    assert scope == {"state": {"model": "m"}}
    error_response(scope, Forbidden("no"))
    assert scope == {"state": {"model": "m", "refused": "forbidden"}}
    bare: dict = {}
    error_response(bare, TooManyRequests("later", reason="bodies_full"))
    assert bare == {"state": {"refused": "bodies_full"}}
