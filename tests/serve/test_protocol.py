"""What comes before a request is whole is not kept without end."""

import contextlib
import socket
import threading

import pytest
import uvicorn

from tarl_jax.serve.protocol import MAX_HEAD, Protocol

LINE = b"POST / HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture(scope="module")
def port():
    async def app(scope, receive, send):
        count, more = 0, True
        while more:
            message = await receive()
            count, more = count + len(message.get("body", b"")), message.get("more_body", False)
        body = str(count).encode()
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off",
                                           http=Protocol))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()
    listener.close()


def endless(begin, piece):
    """The begin, then pieces for as long as they are taken, at most ten times what may be kept."""
    yield begin
    for _ in range(10 * MAX_HEAD // len(piece)):
        yield piece


@pytest.mark.parametrize("parts", [
    endless(b"GET /", b"a" * 999), endless(LINE, b"a: " + b"b" * 997 + b"\r\n"),
    endless(LINE + b"a", b"b" * 1000), endless(LINE + b"a: ", b"b" * 1000),
    endless(LINE + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"a: " + b"b" * 997 + b"\r\n"),
    endless(LINE + b"transfer-encoding: chunked\r\n\r\n1;a=", b"b" * 1000),
], ids=["path", "headers", "a name", "a value", "trailers", "an extension"])
def test_a_head_without_an_end_is_refused(port, parts):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        answer = b""
        with contextlib.suppress(ConnectionError):
            for part in parts:
                sock.sendall(part)
        with contextlib.suppress(ConnectionError):
            answer = sock.recv(1000)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


def test_long_bodies_and_requests_behind_each_other_are_taken(port):
    body = b"x" * (3 * MAX_HEAD)
    request = LINE + b"content-length: %d\r\n\r\n" % len(body) + body
    pieces = b"".join(b"%x\r\n%s\r\n" % (1000, b"y" * 1000) for _ in range(200))
    chunked = LINE + b"transfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\na: b\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        reader = sock.makefile("rb")
        for sent, counts in ((request, [len(body)]), (chunked, [200_000]),
                             (request + chunked + request, [len(body), 200_000, len(body)])):
            sock.sendall(sent)
            for count in counts:
                assert reader.readline().startswith(b"HTTP/1.1 200")
                while reader.readline() != b"\r\n":
                    pass
                assert reader.read(len(str(count))) == str(count).encode()
