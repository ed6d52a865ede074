"""Compressed requests and answers, through the real service."""

from __future__ import annotations

import gzip
import json
import zlib

import numpy as np
import pytest

from tests.app.support import assert_same, expected, plain_body, read_answer, rows_of, v2_arrays, v2_body

ENCODE = {"gzip": gzip.compress, "deflate": zlib.compress}
DECODE = {"gzip": gzip.decompress, "deflate": zlib.decompress}
LENGTH = "Inference-Header-Content-Length"
BOTH = pytest.mark.parametrize("coding", ENCODE)


@BOTH
def test_a_compressed_request_is_answered_as_a_plain_one(client, loaded, coding):
    inputs = rows_of("classes", 200)
    body = ENCODE[coding](json.dumps(plain_body(inputs)).encode())
    answer = client.post("/predict", content=body, headers={"Content-Encoding": coding})
    assert_same(answer.json()["outputs"], expected(loaded["classes"], inputs))


@BOTH
def test_the_header_of_a_binary_request_means_the_plain_body(client, loaded, coding):
    inputs = rows_of("pair", 300)
    body = v2_body(inputs)
    for tensor, array in zip(body["inputs"], inputs.values(), strict=True):
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": array.nbytes}
    head = json.dumps(body).encode()
    whole = ENCODE[coding](head + b"".join(array.tobytes() for array in inputs.values()))
    headers = {"Content-Encoding": coding, LENGTH: str(len(head))}
    answer = client.post("/v2/models/pair/infer", content=whole, headers=headers)
    assert_same(v2_arrays(answer.json()), expected(loaded["pair"], inputs))


@BOTH
def test_the_header_of_a_binary_answer_means_the_plain_body(service, loaded, coding):
    inputs = rows_of("classes", 700)
    body = json.dumps({**v2_body(inputs, ["mean", "label"]), "parameters": {"binary_data_output": True}}).encode()
    status, headers, packed = service.raw(
        b"POST /v2/models/classes/infer HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\naccept-encoding: %s\r\n"
        b"content-length: %d\r\n\r\n" % (coding.encode(), len(body)) + body
    )
    assert (status, headers["content-encoding"], headers["vary"]) == (200, coding, "Accept-Encoding")
    assert int(headers["content-length"]) == len(packed)
    whole = DECODE[coding](packed)
    length = int(headers[LENGTH.lower()])
    mean, label = json.loads(whole[:length])["outputs"]
    size = mean["parameters"]["binary_data_size"]
    assert length + size + label["parameters"]["binary_data_size"] == len(whole)
    want = expected(loaded["classes"], inputs, ["mean", "label"])
    np.testing.assert_array_equal(np.frombuffer(whole[length + size :], np.int64), want["label"])
    got = np.frombuffer(whole[length : length + size], np.float32).reshape(mean["shape"])
    np.testing.assert_allclose(got, want["mean"], rtol=1e-5, atol=1e-6)


def test_a_json_answer_is_compressed_for_whoever_asks(client, loaded):
    inputs = rows_of("house", 200)
    plain = client.post("/v1/models/house/predict", json=plain_body(inputs), headers={"Accept-Encoding": "identity"})
    packed = client.post("/v1/models/house/predict", json=plain_body(inputs), headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(plain.content)
    assert plain.json() == packed.json()
    assert_same(packed.json()["outputs"], expected(loaded["house"], inputs))


def test_small_answers_and_those_to_other_questions_are_sent_plain(client):
    headers = {"Accept-Encoding": "gzip"}
    body = plain_body(rows_of("classes", 1))
    replies = [client.post("/predict", json=body, headers=headers), client.get("/openapi.json", headers=headers)]
    for reply in replies:
        assert reply.status_code == 200
        assert "content-encoding" not in reply.headers


@BOTH
def test_bombs_are_413_and_broken_bodies_400(client, coding):
    # The service of the tests takes 1 MiB that is sent, and the default of 64 MiB that it becomes.
    bomb = ENCODE[coding](b"[" + b" " * 65 * 2**20)
    assert len(bomb) < 2**20
    headers = {"Content-Encoding": coding}
    reply = client.post("/predict", content=bomb, headers=headers)
    assert reply.status_code == 413
    assert reply.json()["error"].startswith(f"the body may have {64 * 2**20} bytes at most once it is inflated")
    for broken in (b"", b"{}", ENCODE[coding](b"{}")[:-1]):
        reply = client.post("/predict", content=broken, headers=headers)
        assert reply.status_code == 400, broken[:20]
        assert list(reply.json()) == ["error"]
    assert client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "gzip, deflate"])
def test_other_codings_are_415_and_say_which_are_read(client, coding):
    reply = client.post("/predict", content=b"x", headers={"Content-Encoding": coding})
    assert reply.status_code == 415
    assert reply.headers["accept-encoding"] == "gzip, deflate"


def test_what_is_inflated_counts_not_against_what_is_sent(client, loaded):
    """1 MiB of body may be sent, and JSON of twice that fits into it."""
    inputs = {"input": np.round(rows_of("classes", 4000)["input"], 1)}
    body = json.dumps(plain_body(inputs, ["label"]), indent=60).encode()
    assert len(body) > 2**20
    assert client.post("/predict", content=body).status_code == 413
    answer = client.post("/predict", content=gzip.compress(body), headers={"Content-Encoding": "gzip"})
    assert_same(answer.json()["outputs"], expected(loaded["classes"], inputs, ["label"]))


def test_a_request_in_chunks_is_inflated_as_it_comes(service, loaded):
    inputs = rows_of("classes", 3)
    packed = gzip.compress(json.dumps(plain_body(inputs)).encode())
    with service.connection() as connected:
        connected.sendall(
            b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for byte in packed:
            connected.sendall(b"1\r\n%c\r\n" % byte)
        connected.sendall(b"0\r\n\r\n")
        status, _, body = read_answer(connected)
    assert status == 200
    assert_same(json.loads(body)["outputs"], expected(loaded["classes"], inputs))
