"""The server: OpenAI's protocol over HTTP, in front of `answers.Answers`."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tarl_jax.parallel.compilations import all_compilations
from tarl_jax.serve import wire
from tarl_jax.serve.policy import HttpLimits, Served
from tarl_jax.serve.recording import Recorder
from tarl_jax.serve.requests import (
    ChatRequest,
    Refused,
    body_of,
    read_chat,
    read_completion,
)
from tarl_jax.serve.turns import Answer

EPISODE = "x-episode-id"  # the header that names an episode of a recording


class Server:
    """The application's routes; one per process.

    token: that clients have to show; None: none.
    """

    def __init__(
        self, served: Served, limits: HttpLimits, token: str | None = None,
        recorder: Recorder | None = None,
    ):
        self._served = served
        self._limits = limits
        self._token = token
        self._recorder = recorder
        self._open = 0
        self._statuses: dict[int, int] = {}
        self._seconds = 0.0

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
            Route("/v1/completions", self._guarded(self._complete), methods=["POST"]),
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/models/{name:path}", self._guarded(self._models)),
            Route("/metrics", self._guarded(self._metrics)),
            Route("/health", self._health),
        ]
        if self._recorder:
            routes.append(Route("/v1/episodes/{episode}/reward", self._guarded(self._reward),
                                methods=["POST"]))
        return Starlette(routes=routes, exception_handlers={HTTPException: _unknown})

    # ---- routes ------------------------------------------------------------------------------

    async def _chat(self, request: Request) -> Response:
        data = body_of(await self._body(request))
        chat = read_chat(data, self._served.defaults, self._limits.messages)
        episode = request.headers.get(EPISODE, "")
        if chat.options.stream:
            return self._stream(lambda emit: self._one(chat, episode, emit), chat.options,
                                wire.ChatStream(chat.options, self._served.name))
        resent = request.headers.get("x-stainless-retry-count", "0") != "0"
        answer = await _unless_gone(request, self._one(chat, episode, None, resent))
        return JSONResponse(wire.chat_completion(answer, chat.options, self._served.name,
                                                 self._served.env.tokenizer))

    async def _one(
        self, chat: ChatRequest, episode: str, emit: Any = None, resent: bool = False
    ) -> Answer:
        answer = await self._served.answers.chat(chat, emit, resent, episode)
        if self._recorder and episode:
            self._recorder.add(episode, answer)
        return answer

    async def _complete(self, request: Request) -> Response:
        data = body_of(await self._body(request))
        env, answers = self._served.env, self._served.answers
        completion = read_completion(data, self._served.defaults, env.vocab_size)
        options = completion.options
        if options.stream:
            if len(completion.prompts) > 1:
                raise Refused(400, "stream: give one prompt")
            return self._stream(lambda emit: _first(answers.complete(completion, emit)), options,
                                wire.TextStream(options, self._served.name))
        found = await _unless_gone(request, answers.complete(completion))
        return JSONResponse(wire.completion(found, options, self._served.name, env.tokenizer))

    def _stream(
        self, answer: Callable[[Callable[[str, str], None]], Coroutine[Any, Any, Answer]],
        options: Any, stream: wire.Stream,
    ) -> Response:
        """The answer in pieces, as server-sent events; a failure on the way is an event too."""

        async def events() -> AsyncIterator[str]:
            self._open += 1  # until the stream is over, not the handler
            parts: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
            task = asyncio.create_task(answer(lambda *said: parts.put_nowait(said)))
            try:
                for event in stream.begin():
                    yield _event(event)
                while not task.done() or not parts.empty():
                    waiting = asyncio.create_task(parts.get())
                    await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
                    if waiting.done():
                        for event in stream.more(*waiting.result()):
                            yield _event(event)
                    else:
                        waiting.cancel()
                try:
                    found = task.result()
                except (Refused, RuntimeError) as error:
                    status = error.status if isinstance(error, Refused) else 500
                    yield _event(_error_of(status, str(error)))
                    return
                for event in stream.end(found):
                    yield _event(event)
                yield "data: [DONE]\n\n"
            finally:
                self._open -= 1

        return StreamingResponse(events(), media_type="text/event-stream",
                                 headers={"cache-control": "no-cache"})

    async def _models(self, request: Request) -> Response:
        model = {"id": self._served.name, "object": "model", "created": 0, "owned_by": "tarl_jax",
                 "max_model_len": self._served.max_tokens}
        if not request.path_params.get("name"):
            return JSONResponse({"object": "list", "data": [model]})
        if request.path_params["name"] != self._served.name:
            raise Refused(404, f"this server has one model, {self._served.name!r}")
        return JSONResponse(model)

    async def _reward(self, request: Request) -> Response:
        assert self._recorder is not None
        data = body_of(await self._body(request))
        reward = data.get("reward")
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise Refused(400, "reward should be a number")
        count = self._recorder.finish(request.path_params["episode"], float(reward),
                                      str(data.get("task", "")))
        return JSONResponse({"trajectories": count})

    async def _health(self, request: Request) -> Response:
        fine = self._served.session.alive
        return JSONResponse({"status": "ok" if fine else "the engine has stopped",
                             "model": self._served.name}, 200 if fine else 503)

    async def _metrics(self, request: Request) -> Response:
        session, answers = self._served.session, self._served.answers
        values: dict[str, float] = {f"{k}_total": v for k, v in answers.counts.items()}
        values |= {
            "requests_open": self._open, "request_seconds_total": self._seconds,
            "turns_writing": session.writing, "contexts_kept": session.contexts,
            "conversations_kept": len(answers.conversations),
            "engine_failures_total": session.failures,
            "programs_compiled_total": all_compilations()[0],
            "engine_sampled_tokens_total": session.stats.sampled_tokens,
            "engine_fed_tokens_total": session.stats.fed_tokens,
            "engine_ticks_total": session.stats.ticks,
            "engine_row_steps_total": session.stats.row_steps,
            "engine_extend_seconds_total": session.stats.extend_seconds,
            "engine_decode_seconds_total": session.stats.decode_seconds,
        }
        return PlainTextResponse(wire.metrics(values, self._statuses),
                                 media_type="text/plain; version=0.0.4")

    # ---- what all of them share --------------------------------------------------------------

    def _guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """With the token asked for, the limits kept, and refusals in words."""

        async def answer(request: Request) -> Response:
            begun = time.perf_counter()
            response = await self._response(handler, request)
            self._seconds += time.perf_counter() - begun
            self._statuses[response.status_code] = self._statuses.get(response.status_code, 0) + 1
            return response

        return answer

    async def _response(
        self, handler: Callable[[Request], Awaitable[Response]], request: Request
    ) -> Response:
        if self._token is not None:
            shown = request.headers.get("authorization", "").encode("utf-8", "replace")
            if not hmac.compare_digest(shown, f"Bearer {self._token}".encode()):
                return _error(401, "give the server's token as `Authorization: Bearer TOKEN`")
        if request.method == "POST" and self._open >= self._limits.requests:
            return _error(429, f"{self._open} requests are open; come back", {"retry-after": "1"})
        self._open += 1
        try:
            return await handler(request)
        except Refused as refused:
            return _error(refused.status, str(refused))
        except ClientDisconnect:
            return _error(499, "the client has gone")
        except RuntimeError as error:
            if self._served.session.alive:
                return _error(500, f"the engine failed: {error}")
            return _error(503, "the engine has stopped", {"retry-after": "5"})
        finally:
            self._open -= 1

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "the body should be sent without a content-encoding")
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > self._limits.body:
                raise Refused(413, f"the body is longer than {self._limits.body} bytes")
        return bytes(content)


async def _first(answers: Coroutine[Any, Any, list[Answer]]) -> Answer:
    return (await answers)[0]


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """What the work comes to. Raises ClientDisconnect where nobody waits for it any more."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    gone.add_done_callback(lambda _: task.cancel())
    try:
        return await task
    except asyncio.CancelledError:
        if gone.done() and not gone.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(data: Any) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _error_of(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": status, "param": None}}


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    more = {"www-authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse(_error_of(status, message), status, {**more, **(headers or {})})


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is no such path", 405: "this path takes another method"}
    return _error(error.status_code, words.get(error.status_code, str(error.detail)),
                  dict(error.headers or {}))
