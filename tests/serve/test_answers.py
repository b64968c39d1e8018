"""What a server keeps beside conversations, and that it is not more and more."""

import asyncio
import types

import numpy as np
import pytest

from tarl_jax.rollout.grammar import Grammar
from tarl_jax.serve import answers as module
from tarl_jax.serve.answers import Answers
from tarl_jax.serve.requests import Refused


def answers():
    chat = types.SimpleNamespace(begin=())
    return Answers(types.SimpleNamespace(counts={}, tokenizer=None, chat=chat), 10)


def made(tokenizer, names, vocab_size, begin):
    if "bad" in names:
        raise ValueError("a part of that name is missing")
    return Grammar(np.zeros((2, 2), np.int16), np.zeros(8, np.int32), np.zeros((2, 1), np.uint32))


@pytest.mark.parametrize("most, kept", [(10_000, 3), (60, 2), (1, 1)])
def test_grammars_are_kept_within_their_number_and_bytes(monkeypatch, most, kept):
    """One has 48 bytes, one that was not made none; the ones used last stay."""
    monkeypatch.setattr(module, "build", made)
    monkeypatch.setattr(module, "MAX_GRAMMARS", 3)
    monkeypatch.setattr(module, "GRAMMAR_BYTES", most)

    async def ask():
        known = answers()
        for names in (("a",), ("b",), ("a",), ("c",), ("d",)):
            await known._grammar(names)
        with pytest.raises(Refused, match="a part of that name"):
            await known._grammar(("bad",))
        return list(known._grammars)

    assert asyncio.run(ask()) == [("c",), ("d",), ("bad",)][-kept:]


def test_answers_that_nobody_came_back_for_are_kept_within_their_number(monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT", 2)

    async def run():
        known, never = answers(), asyncio.Event()
        open_one = asyncio.ensure_future(never.wait())
        done = [asyncio.ensure_future(asyncio.sleep(0)) for _ in range(4)]
        await asyncio.gather(*done)
        known._running["open"] = open_one, 0.0
        for number, task in enumerate(done):
            known._running[str(number)] = task, module.time.monotonic()
        known._tidy()
        open_one.cancel()
        return list(known._running)

    assert asyncio.run(run()) == ["open", "2", "3"]
