"""Errors as answers."""

import json

from app.errors import MethodNotAllowed, TooManyRequests
from app.middleware.answer import error_response


def test_status_headers_and_text_come_from_the_error():
    response = error_response(TooManyRequests("later", retry_after=3))
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.headers["content-type"] == "application/json"
    assert json.loads(response.body) == {"error": "later"}
    assert error_response(MethodNotAllowed("no", allow=["GET", "HEAD"])).headers["allow"] == "GET, HEAD"


def test_any_text_is_json():
    assert json.loads(error_response(TooManyRequests('"\n\x00\u2028ä')).body) == {"error": '"\n\x00\u2028ä'}
