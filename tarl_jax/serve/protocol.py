"""HTTP/1.1 as uvicorn speaks it with a parser in C, and a bound on what that keeps.

The parser itself keeps a request's head, or a header behind its body, however long it is.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 << 10  # bytes of a request's first line and headers, beyond what came first


class Protocol(HttpToolsProtocol):
    """A connection; one whose request has a longer head gets status 400, and is closed."""

    _unread = 0  # bytes since a head, a piece of a body or a request was whole

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(f"the headers are longer than {MAX_HEAD} bytes")

    def on_headers_complete(self) -> None:
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()
