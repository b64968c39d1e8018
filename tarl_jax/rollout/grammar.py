"""Which token may follow, so that every tool call that is sampled can be read.

`build` lifts the automaton over bytes of `text.call_syntax` to a tokenizer's ids, once, on the
host. On the device the engine keeps one state per row: `allowed` says which tokens the row may
sample, `advance` where the sampled one leads. A turn begins in state START; the stop token leads
back to it, but a turn that is cut at its limit inside a call stays cut, and `Chat.read` calls it
malformed: the engine sets the row back to START itself. Tokens that the environment forces are not
followed.

What is refused is only what would spoil a call. A turn may still be empty, or end inside `<think>`.
Markup that is written letter by letter counts like its own ids, because `Chat.read` reads text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from tarl_jax.config import InputError
from tarl_jax.text.call_syntax import CLOSE, DONE, OPEN, State, automaton, is_free
from tarl_jax.text.chat import Chat
from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer
from tarl_jax.text.tokenizer import Tokenizer
from tarl_jax.types import Call

START = 0  # the state of a turn of which nothing is written
_WORD = 32  # bits


@struct.dataclass
class Grammar:
    """The automaton over tokens. Few tokens differ in what they do, so they share columns.

    Attributes:
      next_state: int16 (int32 beyond 32,767 states) [states, classes]; -1: not allowed.
      token_class: int32 [V]; the column of each token. Where G grammars are `stacked`, [G, V], and
        each has as many states as any other.
      words: uint32 [states, ⌈V/32⌉]; the allowed tokens of each state as bits. With W words a row,
        token t is bit t // W of word t % W.
    """

    next_state: jax.Array | np.ndarray
    token_class: jax.Array | np.ndarray
    words: jax.Array | np.ndarray


def allowed(grammar: Grammar, states: Int[Array, " B"]) -> Bool[Array, "B V"]:
    """Which tokens may follow in each state; in every state at least one may."""
    rows = jnp.asarray(grammar.words)[states]
    shifts = jnp.arange(_WORD, dtype=jnp.uint32)
    bits = (rows[:, None, :] >> shifts[None, :, None]) & jnp.uint32(1)
    return bits.reshape(rows.shape[0], -1)[:, : grammar.token_class.shape[-1]] != 0


def advance(
    grammar: Grammar, states: Int[Array, " B"], tokens: Int[Array, " B"]
) -> Int[Array, " B"]:
    """The states after `tokens`, int32; -1 where a token was not allowed."""
    classes = jnp.asarray(grammar.token_class)
    if classes.ndim == 1:
        columns = classes[tokens]
    else:
        columns = classes[states // (len(grammar.next_state) // len(classes)), tokens]
    return jnp.asarray(grammar.next_state)[states, columns].astype(jnp.int32)


def stacked(grammars: Sequence[Grammar], states: int, classes: int) -> Grammar:
    """All of them in one set of arrays, for rows that follow different ones.

    states, classes: room for each, at least as many as any has. Number g begins in g * states.
    """
    tables, words = [], []
    for number, one in enumerate(grammars):
        have, columns = one.next_state.shape
        more = ((0, states - have), (0, classes - columns))
        table = np.asarray(one.next_state, np.int32)
        table = np.where(table < 0, -1, table + number * states)
        tables.append(np.pad(table, more, constant_values=-1))
        words.append(np.pad(np.asarray(one.words), (more[0], (0, 0))))
    return Grammar(
        np.concatenate(tables), np.stack([np.asarray(g.token_class) for g in grammars]),
        np.concatenate(words),
    )


def anything(vocab_size: int) -> Grammar:
    """The grammar that allows every token, in its one state."""
    classes = np.zeros(vocab_size, np.int32)
    table = np.zeros((1, 1), np.int16)
    return Grammar(table, classes, _packed(table >= 0, classes))


def after(grammar: Grammar, ids: Sequence[int], state: int = START) -> int:
    """The state that `ids` lead to, on the host; -1 where one is not allowed."""
    for token in ids:
        state = int(grammar.next_state[state, grammar.token_class[token]])
        if state < 0:
            break
    return state


def build(
    tokenizer: Tokenizer | PretrainedTokenizer,
    tool_names: Iterable[str],
    vocab_size: int | None = None,
    begin: Sequence[int] = (),
) -> Grammar:
    """The grammar of turns that call `tool_names`; without any, of turns in which no call begins.

    Args:
      vocab_size: V, where the model has more rows than the tokenizer has ids. The ids in excess are
        never allowed.
      begin: what every turn begins with, forced (`Chat.begin`); START is behind it.

    Raises ValueError if `vocab_size` is too small, if a tool cannot be called in this vocabulary,
    or if a call could be begun that no tokens can end; says what is missing.
    """
    names = tuple(sorted(tool_names))
    states, steps = _begun(*automaton(names), tokenizer.decode(list(begin)) if begin else "")
    pieces = tokenizer.pieces()
    size = len(pieces) if vocab_size is None else vocab_size
    if size < len(pieces):
        raise InputError(f"vocab_size = {size}: the tokenizer has {len(pieces)} ids")
    next_state, token_class = _lift(
        states, steps, pieces, size, tokenizer.special_ids, tokenizer.stop_ids
    )
    edges = _edges(next_state)
    reached = _closure(edges, START)
    if names:
        _check_ends(states, steps, edges, reached)
    next_state = _renumbered(next_state, reached)
    grammar = Grammar(next_state, token_class, _packed(next_state >= 0, token_class))
    chat = Chat(tokenizer)
    for name in names:
        ids = chat.agent(Call(name, {}))
        if states[START][0] == "thought":
            ids = [*tokenizer.encode_markup("\n</think>\n\n"), *ids]
        if after(grammar, ids) < 0:
            raise InputError(
                f"the tokenizer's own ids of a call to {name!r} are not a call: its vocabulary"
                " lacks a part of that name, or of the markup; use a tokenizer that can write both"
            )
    return grammar


def _begun(
    states: Sequence[State], steps: np.ndarray, text: str
) -> tuple[tuple[State, ...], np.ndarray]:
    """The automaton with the state behind a text as its first one."""
    state = 0
    for byte in text.encode():
        state = int(steps[state, byte])
    order = np.arange(len(states))
    order[[0, state]] = state, 0
    renamed = np.append(order, -1)  # the exchange is its own inverse
    return tuple(states[i] for i in order.tolist()), renamed[steps[order]].astype(np.int32)


def _lift(
    states: Sequence[State], steps: np.ndarray, pieces: list[bytes], size: int,
    special: frozenset[int], stop_ids: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [states, classes], int32 [V]): the automaton run over the bytes of every piece.

    A column, the state that a text leads to from each state, is found once for all texts that share
    it: the columns are interned, and "this column, then that byte" is looked up.
    """
    # State -1 is the last row: nothing leads out of it.
    by_byte = np.vstack([steps, np.full(256, -1, np.int32)]).T.copy()
    free = np.array([is_free(state) for state in states])
    here = np.arange(len(states), dtype=np.int32)
    columns: list[np.ndarray] = []
    known: dict[bytes, int] = {}
    products: dict[tuple[int, int], int] = {}

    def intern(column: np.ndarray) -> int:
        key = column.tobytes()
        if key not in known:
            known[key] = len(columns)
            columns.append(column)
        return known[key]

    start = intern(here)
    found = np.full(size, intern(np.full(len(states), -1, np.int32)))
    for token, piece in enumerate(pieces):
        column = start
        for byte in piece:
            after = products.get((column, byte))
            if after is None:
                after = intern(by_byte[byte][columns[column]])
                products[column, byte] = after
            column = after
        found[token] = column
        markup = piece.strip() in (OPEN.encode(), CLOSE.encode())
        if not piece or (token in special and not markup):
            found[token] = intern(np.where(free, columns[column], -1).astype(np.int32))
    ends = free | np.array([state == DONE for state in states])
    found[list(stop_ids)] = intern(np.where(ends, START, -1).astype(np.int32))
    used, token_class = np.unique(found, return_inverse=True)
    return np.stack([columns[i] for i in used], axis=1), token_class.astype(np.int32)


def _edges(next_state: np.ndarray) -> np.ndarray:
    """bool [states, states]: whether some token leads from one state to the other."""
    edges = np.zeros((len(next_state), len(next_state)), bool)
    for row, targets in zip(edges, next_state, strict=True):
        row[targets[targets >= 0]] = True
    return edges


def _closure(edges: np.ndarray, start: int) -> np.ndarray:
    """bool [states]: what can be reached from `start`, itself included."""
    reached = np.zeros(len(edges), bool)
    reached[start] = True
    fresh = reached
    while fresh.any():
        fresh = edges[fresh].any(axis=0) & ~reached
        reached = reached | fresh
    return reached


def _check_ends(
    states: Sequence[State], steps: np.ndarray, edges: np.ndarray, reached: np.ndarray
) -> None:
    """Raises ValueError unless a call that has begun can be ended wherever it is."""
    done = states.index(DONE)
    ended = _closure(edges.T, done)
    stuck = [i for i in np.flatnonzero(reached & ~ended).tolist() if not is_free(states[i])]
    if not stuck:
        return
    texts = _endings(steps, done)
    # From the stuck state that is nearest to the end no token leads nearer, so no piece is the
    # single byte that does.
    text = min((texts[i] for i in stuck), key=len)
    raise InputError(
        f"the vocabulary can begin calls that it cannot end: where {_shown(text)} would be the"
        f" shortest way to the end it has no piece {_shown(text[:1])}; use a tokenizer that can"
        " write every byte, or at least all of printable ASCII"
    )


def _endings(steps: np.ndarray, done: int) -> dict[int, bytes]:
    """A shortest text from each state to the end of the call."""
    texts = {done: b""}
    layer = [done]
    while layer:
        before = []
        for state, byte in np.argwhere(np.isin(steps, layer)).tolist():
            if state not in texts:
                texts[state] = bytes([byte]) + texts[int(steps[state, byte])]
                before.append(state)
        layer = before
    return texts


def _shown(text: bytes) -> str:
    return repr(text)[1:] if text.isascii() else f"the bytes {text.hex(' ')}"


def _renumbered(next_state: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Without the states that no tokens lead to (parts of a character, in some vocabularies)."""
    small = np.int16 if reached.sum() < 2**15 else np.int32
    number = np.append(np.where(reached, np.cumsum(reached) - 1, -1), -1).astype(small)
    return number[next_state[reached]]


def _packed(may: np.ndarray, token_class: np.ndarray) -> np.ndarray:
    """uint32 [states, ⌈V/32⌉] from bool [states, classes]."""
    width = -(-len(token_class) // _WORD)
    words = np.zeros((len(may), width), np.uint32)
    for bit in range(_WORD):
        plane = token_class[bit * width : (bit + 1) * width]
        words[:, : len(plane)] |= may[:, plane].astype(np.uint32) << np.uint32(bit)
    return words
