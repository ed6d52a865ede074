"""A thread's sockets: what they do once the time of a request is over, whatever it is spent on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
import time

import httpcore
import pytest

from app.client.sockets import BlockingSockets, _Stream

SECONDS = 0.3


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def connected(listener, host="127.0.0.1"):
    sockets = BlockingSockets()
    return sockets, sockets.connect_tcp(host, listener.getsockname()[1], 5.0)


def test_a_request_that_is_taken_little_by_little_has_no_more_time_than_another(listener):
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
    given_up = threading.Event()

    def read_slowly():
        taking, _ = listener.accept()
        with taking, contextlib.suppress(OSError):
            while not given_up.is_set() and taking.recv(2**16):
                time.sleep(SECONDS / 20)

    reader = threading.Thread(target=read_slowly)
    reader.start()
    sockets, stream = connected(listener)
    sockets.end = time.monotonic() + SECONDS
    try:
        # Would take seconds, with hardly a wait between one piece and the next.
        with pytest.raises(httpcore.WriteTimeout):
            stream.write(bytes(2**25))
    finally:
        given_up.set()
        stream.close()
        reader.join()


def test_nothing_is_begun_once_the_time_is_over(listener):
    sockets, stream = connected(listener)
    sockets.end = time.monotonic() - 1
    with pytest.raises(httpcore.ReadTimeout):
        stream.read(1)
    with pytest.raises(httpcore.WriteTimeout):
        stream.write(bytes(2**17))
    with pytest.raises(httpcore.ConnectTimeout):
        sockets.connect_tcp("127.0.0.1", listener.getsockname()[1], 5.0)
    stream.close()


def test_every_address_of_a_name_is_tried(listener, monkeypatch):
    real, there = socket.getaddrinfo, ["127.0.0.2", "127.0.0.1"]

    def resolve(host, port, *rest, **more):
        if host != "a.name":
            return real(host, port, *rest, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in there]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    _, stream = connected(listener, "a.name")
    assert stream.get_extra_info("server_addr") == listener.getsockname()
    stream.close()
    there.pop()
    with pytest.raises(httpcore.ConnectError):
        connected(listener, "a.name")


def test_a_connection_that_the_system_gave_up_is_broken_and_not_late():
    class GivenUp:
        async def read(self, most):
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    class Late:
        async def read(self, most):
            raise TimeoutError

    async def read(reader):
        await _Stream(reader, None).read(1)

    with pytest.raises(httpcore.ReadError, match="Connection timed out"):
        asyncio.run(read(GivenUp()))
    with pytest.raises(TimeoutError):
        asyncio.run(read(Late()))


def test_a_name_that_there_is_not_is_no_connection(listener, monkeypatch):
    def resolve(*rest, **more):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(httpcore.ConnectError, match="not known"):
        connected(listener, "a.name")
