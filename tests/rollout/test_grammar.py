"""Every call that can be sampled under the grammar is read; every good call can be sampled."""

import json
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained import write_tokenizer
from random_json import ASCII, random_arguments

from tarl_jax.config import ClerkConfig, ShopConfig, TaskConfig
from tarl_jax.rollout import grammar
from tarl_jax.rollout.grammar import START
from tarl_jax.sandbox import shop
from tarl_jax.sandbox.clerk import play
from tarl_jax.sandbox.dialogue import Dialogue, Malformed
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.text.call_syntax import automaton
from tarl_jax.text.chat import Chat
from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer
from tarl_jax.text.tokenizer import IM_END, Tokenizer
from tarl_jax.types import Call

DOMAIN = retail_domain(shop.make_shop(ShopConfig()))
NAMES = tuple(sorted(DOMAIN.tools))
CALL = '{"name": "think", "arguments": {}}'


class Rules:
    """A tokenizer with its grammar, followed on the host."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.chat = Chat(tokenizer)
        self.pieces = tokenizer.pieces()
        self.grammar = grammar.build(tokenizer, NAMES)
        self.table = self.grammar.next_state[:, self.grammar.token_class]  # [states, V]

    def end(self, ids, state=START):
        """The state behind `ids`; -1 where one was refused."""
        for token in ids:
            state = int(self.table[state, token])
            if state < 0:
                break
        return state

    def opened(self, content):
        """Ids of a call that has begun, its content in the tokenizer's own way."""
        markup = self.tokenizer.encode_markup
        return [*markup("<tool_call>\n"), *self.tokenizer.encode(content)]

    def accepts(self, content):
        markup = self.tokenizer.encode_markup
        ids = [*self.opened(content), *markup("\n</tool_call>"), *markup(IM_END)]
        return self.end(ids) == START


@pytest.fixture(scope="module", params=["embedded", "pretrained"])
def rules(request, tmp_path_factory):
    if request.param == "embedded":
        return Rules(Tokenizer())
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Rules(PretrainedTokenizer(folder))


def signs(rules):
    return ASCII if isinstance(rules.tokenizer, Tokenizer) else ASCII + "é€😀\u2028\x7f"


# --- the pieces -----------------------------------------------------------------------------------


def test_a_decoded_text_is_its_pieces(rules):
    rng = random.Random(0)
    for _ in range(50):
        ids = rng.choices(range(len(rules.pieces)), k=30)
        text = b"".join(rules.pieces[token] for token in ids).decode("utf-8", "replace")
        assert rules.tokenizer.decode(ids) == text


# --- what can be sampled --------------------------------------------------------------------------


def walk(rules, ids, rng, limit=100_000):
    """`ids`, then allowed tokens by chance, until the stop token."""
    ids, state = list(ids), rules.end(ids)
    choices = {}
    for _ in range(limit):
        if state not in choices:
            choices[state] = np.flatnonzero(rules.table[state] >= 0).tolist()
        ids.append(rng.choice(choices[state]))
        if ids[-1] == rules.chat.stop_id:
            return ids
        state = int(rules.table[state, ids[-1]])
    raise AssertionError(f"no end within {limit} tokens")


def test_a_call_that_was_begun_ends_as_a_call_of_a_known_tool(rules):
    names = set()
    for seed in range(25):
        ids = walk(rules, rules.opened(""), random.Random(seed))
        text, action = rules.chat.read(ids)
        assert isinstance(action, Call), text
        names.add(action.name)
    assert len(names) > 3 and names <= set(NAMES)


def test_a_turn_of_random_tokens_is_never_malformed_for_its_call(rules):
    seen = set()
    for seed in range(60):
        text, action = rules.chat.read(walk(rules, [], random.Random(seed)))
        if isinstance(action, Malformed):
            assert re.search("close <think>|empty", action.reason), text
        elif isinstance(action, Call):
            assert action.name in NAMES
        seen.add(type(action))
    assert {str, Call} <= seen


def test_from_every_state_the_turn_can_end(rules):
    assert (rules.table >= 0).any(axis=1).all()
    ends = rules.table[:, rules.chat.stop_id] == START
    for _ in range(len(ends)):
        ends = ends | np.where(rules.table >= 0, ends[rules.table], False).any(axis=1)
        if ends.all():
            break
    assert ends.all()


def test_it_is_the_automaton_of_bytes_run_over_pieces(rules):
    # At states along good calls, for every token that is text, against a plain walk.
    _, steps = automaton(NAMES)
    rng = random.Random(3)
    special = rules.tokenizer.special_ids
    text = [token for token in range(len(rules.pieces)) if token not in special]
    for name in rng.sample(NAMES, 4):
        call = Call(name, random_arguments(rng, signs(rules)))
        ids = rules.opened(json.dumps(call.to_json()))
        ids = ids[: rng.randrange(2, len(ids))]
        before = 0
        for byte in b"".join(rules.pieces[token] for token in ids):
            before = steps[before, byte]
        may = rules.table[rules.end(ids)] >= 0
        for token in text:
            state = before
            for byte in rules.pieces[token]:
                state = steps[state, byte] if state >= 0 else -1
            assert may[token] == (state >= 0), rules.pieces[token]


def test_markup_inside_a_call_is_refused(rules):
    inside = rules.end(rules.opened('{"name": "think", "arguments": {"thought": "x'))
    assert not (rules.table[inside, sorted(rules.tokenizer.special_ids)] >= 0).any()
    assert rules.table[START, rules.chat.stop_id] == START


# --- what must be possible ------------------------------------------------------------------------


def test_what_the_clerk_writes_is_accepted(rules):
    calls = set()
    for task in make_tasks(DOMAIN, ShopConfig(), TaskConfig(num_train=40), "train"):
        for action, _ in play(Dialogue(task, DOMAIN, ScriptedUser(task, 1)), ClerkConfig(), 1):
            assert rules.end(rules.chat.agent(action)) == START, action
            calls |= {action.name} if isinstance(action, Call) else set()
    assert len(calls) > 5


def test_random_json_is_accepted_in_whatever_pieces(rules):
    rng = random.Random(4)
    ids_of = {}
    for token, piece in enumerate(rules.pieces):
        if piece and token not in rules.tokenizer.special_ids:
            ids_of[piece] = token
    lengths = sorted({len(piece) for piece in ids_of})
    embedded = isinstance(rules.tokenizer, Tokenizer)
    for _ in range(100):
        call = Call(rng.choice(NAMES), random_arguments(rng, signs(rules))).to_json()
        for separators in ((", ", ": "), (",", ":")):
            text = json.dumps(call, ensure_ascii=embedded, separators=separators)
            assert rules.accepts(text), text
            data, at, state = text.encode(), 0, rules.end(rules.opened(""))
            while at < len(data):
                fits = [n for n in lengths if data[at : at + n] in ids_of]
                size = rng.choice(fits)
                state = int(rules.table[state, ids_of[data[at : at + size]]])
                assert state >= 0, (text, at)
                at += size
            assert state == rules.end(rules.opened(text))


def test_characters_beyond_ascii_stand_in_strings(tmp_path):
    write_tokenizer(tmp_path)
    rules = Rules(PretrainedTokenizer(tmp_path))
    begun = '{"name": "think", "arguments": {"thought": "'
    assert rules.accepts(begun + 'Zoë 😀 東京"}}')
    [first, second] = rules.tokenizer.encode("é")
    quote = rules.tokenizer.encode('"')
    assert rules.end([*rules.opened(begun), first, second, *quote]) > START
    assert rules.end([*rules.opened(begun), first, *quote]) == -1  # half a character
    assert rules.end([*rules.opened(begun), second]) == -1
    assert rules.end([*rules.opened('{"name": "think", "arguments": {'), first]) == -1


@pytest.mark.parametrize("content", [
    '{"name": "thinks", "arguments": {}}',
    '{"name": "think", "arguments": {"a": 1,}}',
    '{"name": "think", "arguments": {},}',
    '{"name": "think", "arguments": {"a": "x}}',
    '{"name": "think", "arguments": {"a": [[[1]]]}}',
    '{"name": "think"}',
    CALL + CALL,
    "",
])
def test_what_is_no_call_is_refused(rules, content):
    assert rules.accepts(CALL) and not rules.accepts(content)


def test_a_turn_holds_one_call_and_nothing_behind_it(rules):
    markup = rules.tokenizer.encode_markup
    done = rules.end([*rules.opened(CALL), *markup("\n</tool_call>")])
    assert np.flatnonzero(rules.table[done] >= 0).tolist() == [rules.chat.stop_id]
    said = rules.tokenizer.encode("One moment.\n")
    assert rules.end([*said, *rules.chat.agent(Call("think", {}))]) == START
    thought = [*markup("<think>\n"), *rules.tokenizer.encode("hm"), *markup("\n</think>\n\n")]
    assert rules.end([*thought, *rules.chat.agent(Call("think", {}))]) == START


# --- on the device --------------------------------------------------------------------------------


def test_the_device_reads_the_same_table(rules):
    states = np.random.default_rng(0).integers(0, len(rules.table), 64)
    states[0] = START
    may = np.asarray(jax.jit(grammar.allowed)(rules.grammar, jnp.asarray(states)))
    np.testing.assert_array_equal(may, rules.table[states] >= 0)
    tokens = np.random.default_rng(1).integers(0, len(rules.pieces), 64)
    after = jax.jit(grammar.advance)(rules.grammar, jnp.asarray(states), jnp.asarray(tokens))
    assert after.dtype == jnp.int32
    np.testing.assert_array_equal(after, rules.table[states, tokens])


# --- other vocabularies ---------------------------------------------------------------------------


class Listed:
    """A tokenizer whose vocabulary is a list: an unknown piece, markup, then any bytes."""

    stop_id = 1
    stop_ids = (1,)
    special_ids = frozenset(range(4))

    def __init__(self, pieces):
        self._pieces = [b"?", IM_END.encode(), b"<tool_call>\n", b"\n</tool_call>", *pieces]
        self._ids = {piece: i for i, piece in enumerate(self._pieces) if i > 3}

    def pieces(self):
        return list(self._pieces)

    def encode(self, text):
        return [self._ids.get(bytes([byte]), 0) for byte in text.encode()]

    def encode_markup(self, text):
        texts = [IM_END] if text == IM_END else text.split(IM_END)[:1]
        ids = [self._pieces.index(t.encode()) for t in texts]
        return tuple(ids + [self.stop_id] * (text != IM_END and text.endswith(IM_END)))

    ascii_json = True

    def wrap(self, before, text, after):
        return [*self.encode_markup(before), *self.encode(text), *self.encode_markup(after)]

    def begin(self, thinking):
        return ()

    def decode(self, ids):
        return b"".join(self._pieces[i] for i in ids).decode()


BYTES = [bytes([byte]) for byte in range(256)]


def without(*missing):
    return Listed([byte for byte in BYTES if byte not in missing])


@pytest.mark.parametrize("missing, named", [
    (b"}", r"no piece '}'"),
    (b":", r"no piece ':'"),
    (b"k", r"no piece 'k'"),  # of "think"
])
def test_a_vocabulary_that_cannot_end_a_call_is_refused(missing, named):
    with pytest.raises(ValueError, match=named):
        grammar.build(without(missing), ["think"])


def test_half_a_character_that_nothing_completes_is_refused():
    rest = [bytes([byte]) for byte in range(0x80, 0xC0)]
    with pytest.raises(ValueError, match="no piece the bytes 80"):
        grammar.build(without(*rest), ["think"])
    # Neither half: strings are ASCII then, and all is well.
    grammar.build(without(*BYTES[128:]), ["think"])


def test_a_tool_that_cannot_be_named_is_refused():
    with pytest.raises(ValueError, match="a call to 'zap'"):
        grammar.build(without(b"z"), ["think", "zap"])


def test_without_tools_no_call_begins():
    tokenizer = without()
    rules = grammar.build(tokenizer, [])
    said, call = tokenizer.encode("a < b"), list(tokenizer.encode_markup("<tool_call>\n"))
    assert grammar.after(rules, [*said, tokenizer.stop_id]) == START
    assert grammar.after(rules, [*said, *call]) < 0
    spelled = tokenizer.encode("<tool_call>")
    assert grammar.after(rules, spelled[:-1]) >= 0 > grammar.after(rules, spelled)


def test_stacked_grammars_are_each_as_alone():
    """Random walks through each, by all three functions of the device."""
    tokenizer = without()
    size = len(tokenizer.pieces())
    alone = [grammar.build(tokenizer, names) for names in (["think"], [], ["get", "get_order"])]
    alone.append(grammar.anything(size))
    states, classes = (max(g.next_state.shape[axis] for g in alone) for axis in (0, 1))
    together = grammar.stacked(alone, states + 3, classes + 2)
    rng = np.random.default_rng(0)
    here = np.zeros(len(alone), int)
    for _ in range(60):
        offsets = np.arange(len(alone)) * (states + 3)
        may = np.asarray(grammar.allowed(together, jnp.asarray(offsets + here)))
        for number, one in enumerate(alone):
            expected = grammar.allowed(one, jnp.asarray(here[number : number + 1]))[0]
            np.testing.assert_array_equal(may[number], expected)
        tokens = np.array([rng.choice(np.flatnonzero(row)) for row in may])
        after = np.asarray(grammar.advance(together, jnp.asarray(offsets + here), tokens))
        here = np.array([
            grammar.after(one, [token], state)
            for one, token, state in zip(alone, tokens, here, strict=True)
        ])
        np.testing.assert_array_equal(after, offsets + here)
        anywhere = rng.random(len(alone)) < 0.1
        here = np.where(anywhere, [rng.integers(len(g.next_state)) for g in alone], here)


def test_ids_beyond_the_tokenizers_are_never_drawn():
    tokenizer = without()
    size = len(tokenizer.pieces())
    rules = grammar.build(tokenizer, ["think"], size + 5)
    inside = rules.next_state[START, rules.token_class[2]]
    may = np.asarray(grammar.allowed(rules, jnp.array([START, inside])))
    assert may.shape == (2, size + 5)
    assert may[0, :size].any() and not may[:, size:].any()
    with pytest.raises(ValueError, match=f"vocab_size = 5: the tokenizer has {size} ids"):
        grammar.build(tokenizer, ["think"], 5)


def test_a_vocabulary_of_qwens_size_takes_little_memory():
    rng = np.random.default_rng(0)
    texts = {bytes(rng.choice(np.frombuffer(ASCII.encode() + b'{}[]",:', np.uint8), n))
             for n in rng.integers(2, 9, 20_000)}
    words = {f" w{i:x}".encode() for i in range(140_000)}
    pieces = [*BYTES, *sorted(texts), *sorted(words)][:151_665]
    rules = grammar.build(Listed(pieces), NAMES, 151_936)
    assert rules.token_class.shape == (151_936,)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(rules)) < 150e6
