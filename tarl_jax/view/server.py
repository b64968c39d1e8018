"""The page over HTTP, for this machine alone: answers from the run's files as they are now."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tarl_jax.config import ConfigError, InputError
from tarl_jax.config.plain import dumps
from tarl_jax.view.document import MIME, document
from tarl_jax.view.records import Source, answer

HOST = "127.0.0.1"


def make_server(sources: Sequence[Source], port: int = 0) -> ThreadingHTTPServer:
    """A server of the page on HOST; `serve_forever` runs it. port 0: one that is free.

    It answers GET and HEAD for `/`, `/api/…` (`records.answer`) and `/clip/RUN/NAME`, and to its
    own name alone, so that no page of elsewhere reads it. Raises ConfigError where the port is
    taken.
    """
    page = document().encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            path = unquote(urlsplit(self.path).path)
            if host not in (HOST, "localhost"):
                self._send(403, _json({"error": f"this page is at http://{HOST}"}))
            elif path == "/":
                self._send(200, page, "text/html; charset=utf-8")
            elif path.startswith("/api/"):
                self._answer(path.removeprefix("/api/"))
            elif path.startswith("/clip/"):
                self._clip(path.removeprefix("/clip/"))
            else:
                self._send(404, _json({"error": "no such page"}))

        do_HEAD = do_GET

        def _answer(self, question: str) -> None:
            try:
                status, found = 200, answer(sources, question)
            except (InputError, OSError) as error:
                status, found = 404, {"error": str(error)}
            except Exception as error:  # one nobody foresaw: the page says it and goes on
                traceback.print_exc()
                status, found = 500, {"error": f"{type(error).__name__}: {error} (the terminal in"
                                               " which the page was opened has the traceback)"}
            self._send(status, _json(found))

        def _clip(self, name: str) -> None:
            run, _, clip = name.partition("/")
            try:
                path = sources[int(run)].clip(clip)
                data = path.read_bytes()
            except (InputError, OSError, ValueError, IndexError) as error:
                self._send(404, _json({"error": str(error)}))
                return
            self._send(200, data, MIME[path.suffix])

        def _send(self, status: int, data: bytes, kind: str = "application/json") -> None:
            with contextlib.suppress(ConnectionError):  # whoever asked has gone
                self._write(status, data, kind)

        def _write(self, status: int, data: bytes, kind: str) -> None:
            self.send_response(status)
            for name, value in (
                ("Content-Type", kind), ("Content-Length", str(len(data))),
                ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"),
                ("X-Frame-Options", "DENY"), ("Referrer-Policy", "no-referrer"),
            ):
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Says nothing: the terminal belongs to whoever looks."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--port={port}: cannot be taken ({reason}); choose another, or leave it"
                          " out") from error


def _json(value: Any) -> bytes:
    return dumps(value).encode()  # what is no number becomes a word
