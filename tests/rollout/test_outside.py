"""Episodes by a server: `tarl_jax.serve`, behind a door that takes weights from a folder."""

import contextlib
import dataclasses
import functools
import http.server
import json
import threading
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest
from reference import token_log_probs
from serving import serving

from tarl_jax.config import ConfigError, from_config_dict
from tarl_jax.llm.errors import LLMError
from tarl_jax.models import decoder, hugging_face
from tarl_jax.rollout.outside import OutsideEngine
from tarl_jax.rollout.workers import Answer


class Door:
    """Stands before the server. `spoil`: what becomes of an answer, by the number of the turn."""

    def __init__(self, env):
        self.env, self.reloads, self.turns, self.url = env, [], [], ""
        self.spoil = lambda number, status, body: (status, body)
        self._stack = contextlib.ExitStack()
        door = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, body = door.answer(self.path, data)
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_): ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def answer(self, path, data):
        if path == "/take":
            self.reloads.append(data)
            model, vocab = self.env.config.model, self.env.vocab_size
            params = hugging_face.load_params(data["from"], model, vocab, dtype="float32")
            self._stack.close()
            self.url = self._stack.enter_context(serving(self.env, params))
            return 200, {"success": True}
        assert path == "/v1/completions"
        self.turns.append(data)
        request = urllib.request.Request(
            f"{self.url}/completions", json.dumps(data).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as found:
            return self.spoil(len(self.turns), 200, json.loads(found.read()))

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._stack.close()


@pytest.fixture(scope="module")
def door(tiny_env):
    door = Door(tiny_env)
    yield door
    door.close()


@pytest.fixture(scope="module")
def params(tiny_env, random_params):
    return random_params(tiny_env.config.model, tiny_env.vocab_size, 0)


def engine_of(env, door, folder, **fields):
    outside = dataclasses.replace(
        env.config.rollout.outside, base_url=door.base_url, folder=str(folder), reload="/take",
        reload_body='{"from": "{folder}"}', backoff_seconds=0.01, **fields)
    rollout = dataclasses.replace(env.config.rollout, outside=outside)
    return OutsideEngine(env.config.model, rollout, env.tokenizer.stop_ids, env.vocab_size)


class Talk:
    """A dialogue of `turns` turns, each answered with the same tokens."""

    outside, shared = False, 0

    def __init__(self, seed, turns=3, keep=None):
        self.seed, self.left, self.keep = seed, turns, keep
        self.context = np.random.default_rng(seed).integers(5, 90, 9).tolist()
        self.prompt, self.turns = list(self.context), []

    def start(self):
        return list(self.prompt)

    def turn(self, turn):
        self.turns.append((list(self.context), turn.ids, turn.log_probs, turn.drawn_log_probs))
        self.left -= 1
        self.context = [*(self.context + turn.ids)[: self.keep], 7, 8, 9]
        return Answer([7, 8, 9], self.keep) if self.left else None


@functools.partial(jax.jit, static_argnums=1)
def recomputed(params, model, tokens):
    scores = decoder.logits(params, decoder.hidden_states(params, model, tokens))
    return token_log_probs(scores[:, :-1], tokens[:, 1:], 1.0)[0][0]


def gap(params, model, talks):
    """The largest difference from a full recomputation, over all sampled tokens."""
    found = []
    for talk in talks:
        for context, ids, log_probs, drawn in talk.turns:
            tokens = np.zeros((1, 128), np.int32)
            tokens[0, : len(context) + len(ids)] = context + ids
            places = np.arange(len(context), len(context) + len(ids)) - 1
            expected = np.array(recomputed(params, model, tokens))[places]
            found.append(np.abs(expected - log_probs).max())
            assert drawn == log_probs
    return max(found)


def test_turns_are_the_servers_under_the_newest_weights(tiny_env, door, params, tmp_path):
    others = tmp_path / "weights-of-somebody"
    others.mkdir()
    (others / "model.safetensors").write_bytes(b"not ours")
    model, engine = tiny_env.config.model, engine_of(tiny_env, door, tmp_path)
    other = jax.tree.map(lambda x: x * 1.1, params)
    talks, ended, seen = [Talk(seed) for seed in range(3)], [], []
    stats = engine.run(params, talks, 1.0, lambda *n: seen.append(n), ended=ended.append)
    assert gap(params, model, talks) < 1e-4
    assert sorted(ended, key=id) == sorted(talks, key=id) and seen[-1] == (3, 3)
    written = [ids for talk in talks for _, ids, _, _ in talk.turns]
    assert stats.sampled_tokens == sum(map(len, written)) and len(written) == 9
    assert stats.forced_tokens == 3 * (9 + 2 * 3)
    assert max(map(len, written)) <= tiny_env.config.rollout.max_turn_tokens
    sent = {(tuple(turn["prompt"]), turn["seed"]) for turn in door.turns}
    assert len({seed for _, seed in sent}) == 9  # each turn has random numbers of its own
    again = [Talk(3, keep=5)]
    engine.run(params, again, 1.0)
    assert len(door.reloads) == 1  # it has these
    assert gap(params, model, again) < 1e-4
    engine.run(other, later := [Talk(4)], 1.0)
    assert len(door.reloads) == 2 and gap(other, model, later) < 1e-4 < gap(params, model, later)
    # What none of its policies needs is gone, and nothing else.
    assert set(tmp_path.iterdir()) == {others, Path(door.reloads[1]["from"])}
    assert (others / "model.safetensors").read_bytes() == b"not ours"


def test_what_was_left_is_played_on(tiny_env, door, params, tmp_path):
    engine = engine_of(tiny_env, door, tmp_path, max_in_flight=1)
    talks = [Talk(seed, turns=4) for seed in range(3)]
    turns = len(door.turns)
    stats = engine.run(params, talks, 1.0, leave=lambda: len(door.turns) >= turns + 3)
    assert stats.left and stats.unfinished
    rest = engine.run(params, [], 1.0, unfinished=stats.unfinished)
    assert not rest.unfinished and [len(talk.turns) for talk in talks] == [4, 4, 4]
    assert gap(params, tiny_env.config.model, talks) < 1e-4
    ended, more = [], [Talk(9, turns=2), Talk(10, turns=99)]
    stats = engine.run(params, more, 1.0, seconds=1e-9, ended=ended.append,
                       enough=lambda: bool(ended))
    assert ended == more[:1] and [u.episode for u in stats.unfinished] == more[1:]


def test_a_fault_that_passes_is_tried_again(tiny_env, door, params, tmp_path, monkeypatch):
    failed = []

    def spoil(number, status, body):
        if len(failed) < 2:
            failed.append(number)
            return (503, {"error": "busy"}) if len(failed) == 1 else (200, {"choices": []})
        return status, body

    monkeypatch.setattr(door, "spoil", spoil)
    talk = Talk(5, turns=1)
    engine_of(tiny_env, door, tmp_path).run(params, [talk], 1.0)
    assert len(failed) == 2 and gap(params, tiny_env.config.model, [talk]) < 1e-4


def without(name):
    def spoil(number, status, body):
        del body["choices"][0][name]
        return status, body

    return spoil


def changed(**fields):
    def spoil(number, status, body):
        body["choices"][0] |= fields
        return status, body

    return spoil


@pytest.mark.parametrize(("spoil", "kind", "said"), [
    (without("token_ids"), "setup", "no token_ids"),
    (without("logprobs"), "setup", "return_token_ids"),
    (changed(token_ids=[10**6]), "setup", "another model"),
    (changed(prompt_token_ids=[1]), "setup", "another prompt"),
    (changed(token_ids=[]), "malformed", "gave up after attempt 2 of 2"),
    (lambda number, status, body: (404, {"error": "no such model"}), "not_found", "404"),
])
def test_what_nothing_can_be_learned_from_ends_the_run(
    tiny_env, door, params, tmp_path, monkeypatch, spoil, kind, said
):
    monkeypatch.setattr(door, "spoil", spoil)
    with pytest.raises(LLMError, match=said) as caught:
        engine_of(tiny_env, door, tmp_path, max_attempts=2).run(params, [Talk(6)], 1.0)
    assert caught.value.kind == kind


def test_a_closed_engine_asks_nobody(tiny_env, door, params, tmp_path):
    engine, asked = engine_of(tiny_env, door, tmp_path), len(door.turns)
    engine.close()
    engine.close()
    with pytest.raises(LLMError, match="is closed"):
        engine.run(params, [Talk(6)], 1.0)
    assert len(door.turns) == asked


def test_weights_that_are_refused_end_the_run(tiny_env, door, params, tmp_path, monkeypatch):
    monkeypatch.setattr(
        door, "answer", lambda path, data: (200, {"success": False, "message": "no such folder"}))
    with pytest.raises(LLMError, match=r"/take: .*no such folder"):
        engine_of(tiny_env, door, tmp_path).run(params, [Talk(6)], 1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("fields", "said"), [
    ({"folder": ""}, "rollout.outside.folder"),
    ({"reload": "take"}, "rollout.outside.reload"),
    ({"reload_body": "{"}, "reload_body.*must be JSON"),
    ({"reload_body": "[]"}, "must be a JSON object"),
    ({"timeout_seconds": 0.0}, "timeout_seconds"),
    ({"base_url": "localhost"}, "base_url"),
])
def test_what_cannot_work_is_refused(fields, said):
    outside = {"base_url": "http://localhost:1/v1", "folder": "/tmp/w", **fields}
    with pytest.raises(ConfigError, match=said):
        from_config_dict({"rollout": {"outside": outside}})


def test_what_an_outside_engine_cannot_do_is_refused():
    outside = {"base_url": "http://localhost:1/v1", "folder": "/tmp/w"}
    with pytest.raises(ConfigError, match="constrain_calls"):
        from_config_dict({"rollout": {"outside": outside, "constrain_calls": True}})
