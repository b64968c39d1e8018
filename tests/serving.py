"""A server in a thread of this process, and the conversations that the engine plays without one."""

import contextlib
import socket
import threading

import uvicorn

from tarl_jax.rollout.episode import ATTEMPTS, SHORT
from tarl_jax.rollout.workers import Answer
from tarl_jax.serve.http import Server
from tarl_jax.serve.policy import HttpLimits, ServeConfig, serve_policy
from tarl_jax.serve.protocol import Protocol


@contextlib.contextmanager
def serving(env, params, recorder=None, limits=None, **how):
    """The server's address, up to /v1; how: fields of `ServeConfig`."""
    config = ServeConfig(**{"slots": 8, "lazy": True, **how})
    served = serve_policy("policy", env, params, config, lambda s: None)
    listener = socket.create_server(("127.0.0.1", 0))
    app = Server(served, limits or HttpLimits(), recorder=recorder).app()
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", http=Protocol))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
        served.session.close()
        listener.close()
        if recorder:
            recorder.close()


class Played:
    """A conversation as an episode of the engine's: what the client sends behind each answer, and
    what the server answers inside.

    Attributes:
      answers: (token ids, log-probs) of each answer; empty ones where the server gave up.
    """

    outside, shared = False, 0

    def __init__(self, env, turns, seed, opening="hello", further="go on"):
        self.seed, self._chat, self._left, self._further = seed, env.chat, turns, further
        self._short = [*env.tokenizer.encode(SHORT), env.chat.stop_id]
        self._prompt = [*env.chat.system(env.system[0]), *env.chat.user(opening)]
        self._attempts = 0
        self.answers = []

    def start(self):
        return list(self._prompt)

    def turn(self, turn):
        written, _ = self._chat.read(turn.ids)
        told = [] if turn.ids[-1] in self._chat.stop_ids else [self._chat.stop_id]
        said, ids, log_probs = bool(written.calls), turn.ids, turn.log_probs
        if written.problem:
            self._attempts += 1
            told += self._chat.tool(f"Error: {written.problem}")
            if self._attempts < ATTEMPTS:
                return Answer(told)
            told, said, ids, log_probs = told + self._short, False, [], []
        self.answers.append((ids, log_probs))
        self._left, self._attempts = self._left - 1, 0
        tell = self._chat.tool if said else self._chat.user
        return Answer(told + tell(self._further)) if self._left else None

    def cut(self): ...
