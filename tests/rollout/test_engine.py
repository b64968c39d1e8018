"""The engine against a plain loop over full forward passes, with scripted dialogues."""

import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import token_log_probs
from scripted import CONFIG, LONGEST, MODEL, STOP, TEMPERATURE, VOCAB, Scripted, play_plainly

from tarl_jax.models import cache, decoder
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rollout import compiled, programs
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.grammar import anything
from tarl_jax.rollout.workers import Answer


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(MODEL, VOCAB, 0)


@pytest.fixture(scope="module")
def engine(params):
    """Compiled before the first dialogue, as in a run."""
    engine = Engine(MODEL, CONFIG, STOP, make_mesh())
    engine.programs.compile(params)
    return engine


@pytest.fixture(scope="module")
def played(engine, params):
    """Four times as many dialogues as slots."""
    episodes = [Scripted.random(seed) for seed in range(64)]
    stats = engine.run(params, episodes, TEMPERATURE)
    return episodes, stats


# ---- what is sampled ------------------------------------------------------------------------


def test_log_probs_equal_a_full_recompute(params, played):
    @jax.jit
    def recompute(params, tokens):
        scores = decoder.logits(params, decoder.hidden_states(params, MODEL, tokens))
        return token_log_probs(scores[:, :-1], tokens[:, 1:], TEMPERATURE)[0]

    episodes, _ = played
    sequences = [e.sequence() for e in episodes]
    tokens = np.zeros((len(episodes), LONGEST), np.int32)
    for row, (ids, _, _) in enumerate(sequences):
        tokens[row, : len(ids)] = ids
    expected = np.concatenate([recompute(params, part) for part in np.split(tokens, 8)])
    for row, (_, sampled, log_probs) in enumerate(sequences):
        places = np.flatnonzero(sampled)
        given = np.array(log_probs)[places]
        np.testing.assert_allclose(given, expected[row, places - 1], atol=1e-4)


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_tokens_equal_a_plain_loop(params, played, seed):
    episode = played[0][seed]
    twin = play_plainly(params, episode, TEMPERATURE)
    assert episode.sampled_ids == twin.sampled_ids


def test_tokens_longer_than_every_chunk(engine, params):
    """Prompt and answers that need several of the longest chunk, and a cache that grows."""
    episode = Scripted(7, 150, [1, 130, 64, 65])
    engine.run(params, [episode], TEMPERATURE)
    assert episode.sampled_ids == play_plainly(params, episode, TEMPERATURE).sampled_ids


@pytest.mark.parametrize("chunks", [((7, 3),), ((256, 64), (5, 1)), ((1, 16),)], ids=str)
def test_tokens_do_not_depend_on_the_chunks(params, played, monkeypatch, chunks):
    monkeypatch.setattr(compiled, "CHUNKS", chunks)
    engine = Engine(MODEL, dataclasses.replace(CONFIG, slots=8), STOP, make_mesh())
    episodes = [Scripted.random(seed) for seed in range(0, 64, 9)]
    engine.run(params, episodes, TEMPERATURE)
    for episode in episodes:
        assert episode.sampled_ids == played[0][episode.seed].sampled_ids


def test_any_of_several_end_tokens_ends_a_turn(params, played):
    seed = next(e.seed for e in played[0] if len(e.sampled_ids[0]) > 2)
    turn = played[0][seed].sampled_ids[0]
    engine = Engine(MODEL, dataclasses.replace(CONFIG, slots=8), (STOP, turn[1]), make_mesh())
    episode = Scripted.random(seed)
    engine.run(params, [episode], TEMPERATURE)
    assert episode.sampled_ids[0] == turn[: turn.index(turn[1]) + 1]


def test_long_prompts_have_a_chunk_of_their_own():
    long = dataclasses.replace(CONFIG, max_episode_tokens=compiled.LONG)
    for config, chunks in ((CONFIG, compiled.CHUNKS),
                           (long, (compiled.LONG_CHUNK, *compiled.CHUNKS))):
        assert Engine(MODEL, config, STOP, make_mesh()).programs.chunks == chunks


def test_a_prompt_of_one_token(engine, params):
    episode = Scripted(8, 1, [1, 1])
    engine.run(params, [episode], TEMPERATURE)
    assert episode.sampled_ids == play_plainly(params, episode, TEMPERATURE).sampled_ids


def test_tokens_do_not_depend_on_the_batch(engine, params, played):
    crowd = {e.seed: e.sampled_ids for e in played[0]}
    others = [Scripted.random(seed) for seed in (40, 3, 17, 60, 0, 9, 33, 12, 1, 63, 5, 28)]
    engine.run(params, others, TEMPERATURE)
    alone = [Scripted.random(seed) for seed in (2, 3, 61)]
    for episode in alone:
        engine.run(params, [episode], TEMPERATURE)
    for episode in others + alone:
        assert episode.sampled_ids == crowd[episode.seed], episode.seed


def test_tokens_do_not_depend_on_slots_or_stragglers(params, played):
    patient = dataclasses.replace(CONFIG, slots=4, straggler_fraction=0.0)
    engine = Engine(MODEL, patient, STOP, make_mesh())
    episodes = [Scripted.random(seed) for seed in range(0, 64, 7)]
    engine.run(params, episodes, TEMPERATURE)
    for episode in episodes:
        assert episode.sampled_ids == played[0][episode.seed].sampled_ids


def test_seed_and_position_change_the_tokens(played):
    """64 dialogues with their own seeds: turns repeat no more often than chance allows."""
    turns = [tuple(ids) for e in played[0] for ids in e.sampled_ids if len(ids) >= 10]
    assert len(turns) > 50 and len(set(turns)) == len(turns)


# ---- turns ----------------------------------------------------------------------------------


def test_a_turn_ends_at_the_stop_token_or_at_the_limit(played):
    ends = collections.Counter()
    for episode in played[0]:
        for ids, log_probs in episode.turns:
            assert 1 <= len(ids) <= CONFIG.max_turn_tokens
            assert len(log_probs) == len(ids) and max(log_probs) <= 0
            assert STOP not in ids[:-1]
            if ids[-1] != STOP:
                assert len(ids) == CONFIG.max_turn_tokens  # cut: without a stop token
            ends[ids[-1] == STOP] += 1
    assert min(ends[True], ends[False]) > 10  # the case above did occur, and so did the other


def test_every_dialogue_is_played_to_its_end_and_counted(played):
    episodes, stats = played
    assert [len(e.turns) for e in episodes] == [len(e.answers) + 1 for e in episodes]
    sequences = [e.sequence() for e in episodes]
    sampled = sum(sum(s) for _, s, _ in sequences)
    assert stats.episodes == len(episodes)
    assert stats.sampled_tokens == sampled
    assert stats.forced_tokens == sum(len(ids) for ids, _, _ in sequences) - sampled
    assert stats.seconds > 0 and stats.tokens_per_second > 0


def test_progress_reaches_the_end(engine, params):
    seen = []
    engine.run(params, [Scripted.random(s) for s in range(20)], 1.0,
               lambda done, total: seen.append((done, total)))
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# ---- compiled programs ----------------------------------------------------------------------


class UntilFull(Scripted):
    """Goes on for as long as another turn fits, as an episode does; the last one just fits."""

    def turn(self, turn):
        self.turns.append((list(turn.ids), list(turn.log_probs)))
        rng = np.random.default_rng([self.seed, len(self.turns)])
        room = LONGEST - CONFIG.max_turn_tokens - len(self.sequence()[0])
        if room <= 0:
            return None
        answer = rng.integers(0, VOCAB, room if room < 80 else rng.integers(1, 30)).tolist()
        self.answers.append(answer)
        return Answer(answer)


def test_nothing_compiles_after_compile(engine, params):
    before = engine.programs.compilations
    assert before > 0
    # More dialogues than slots; at the end a few long ones, so that the batch shrinks; caches
    # that grow; rows that stop in the middle of a turn.
    engine.run(params, [Scripted.random(s) for s in range(40)], 1.0)
    engine.run(params, [Scripted.random(s) for s in range(3)], 0.7)
    short = [Scripted(s, 5, []) for s in range(30)]
    engine.run(params, [*short, Scripted(99, 120, [60] * 5)], 1.0)
    assert engine.programs.compilations == before


def test_nothing_compiles_for_dialogues_as_long_as_allowed(engine, params):
    before = engine.programs.compilations
    episodes = [UntilFull(s, 100, []) for s in range(24)]
    engine.run(params, episodes, TEMPERATURE)
    lengths = [len(e.sequence()[0]) for e in episodes]
    assert LONGEST - CONFIG.max_turn_tokens < min(lengths) and max(lengths) == LONGEST
    assert engine.programs.compilations == before


@pytest.mark.parametrize(
    ("length", "sizes"),
    [
        (60, [60]),
        (300, [128, 128, 44]),
        (1280, [128] * 8 + [256]),
        (2048, [128] * 8 + [256] * 4),
        (5000, [128] * 8 + [256] * 4 + [512] * 4 + [904]),
    ],
)
def test_parts_of_a_cache_are_few_and_close_to_what_is_needed(length, sizes):
    assert cache.part_sizes(length) == sizes


def test_only_long_caches_grow():
    assert cache.cache_rooms(768) == [768]
    assert cache.cache_rooms(60) == [128]
    assert cache.cache_rooms(4096) == [4096]
    assert cache.cache_rooms(8000) == [1792, 8064]
    assert cache.cache_rooms(8192) == [2048, 8192]
    assert cache.cache_rooms(32_768) == [2048, 8192, 32_768]
    for rooms in (cache.cache_rooms(8000), cache.cache_rooms(32_768)):
        for room, longer in itertools.pairwise(rooms):  # what is added begins where a part ends
            parts = cache.part_sizes(room)
            assert cache.part_sizes(longer)[: len(parts)] == parts


def test_tokens_do_not_depend_on_the_room_of_a_cache(params, played, monkeypatch):
    monkeypatch.setattr(cache, "_GROWN", 128)
    monkeypatch.setattr(cache, "_GRAIN", LONGEST // 4)
    config = dataclasses.replace(CONFIG, slots=8)
    engine = Engine(MODEL, config, STOP, make_mesh())
    assert (engine.programs.shortest, engine.programs.longest) == (LONGEST // 4, LONGEST)
    episodes = [Scripted.random(seed) for seed in range(0, 64, 9)]
    engine.run(params, episodes, TEMPERATURE)
    assert max(len(e.sequence()[0]) for e in episodes) > 128
    for episode in episodes:
        assert episode.sampled_ids == played[0][episode.seed].sampled_ids


def test_moves_take_what_was_there_before():
    def of(*rows):
        numbers = np.array(rows, np.float32)[:, None, None, None]
        return ({"k": jnp.asarray(numbers), "v": jnp.asarray(-numbers)},)

    filler = (0, 9)
    pairs = ([(0, 2), filler], [(1, 1), filler], [(1, 0), (2, 1)])
    moved, store = programs.move(
        of(10, 11, 12, 13), of(20, 21), *(np.array(p, np.int32) for p in pairs)
    )
    # Slot 0 to slot 2; place 1 to slot 1; slots 1 and 2 to places 0 and 1.
    assert moved[0]["k"].ravel().tolist() == [10, 21, 10, 13]
    assert store[0]["v"].ravel().tolist() == [-11, -12]


def test_caches_that_are_too_small_for_every_dialogue_are_left_out(params, played, monkeypatch):
    assert cache.cache_rooms(32_768, 4000) == [8192, 32_768]
    assert cache.cache_rooms(300, 500) == [384]  # the largest stays, for the error's sake
    monkeypatch.setattr(cache, "_GROWN", 128)
    monkeypatch.setattr(cache, "_GRAIN", LONGEST // 4)
    engine = Engine(MODEL, CONFIG, STOP, make_mesh(), least=LONGEST // 4 + 1)
    episodes = [Scripted.random(seed) for seed in range(0, 64, 9)]
    engine.run(params, episodes, TEMPERATURE)
    for episode in episodes:
        assert episode.sampled_ids == played[0][episode.seed].sampled_ids
    whole = Engine(MODEL, CONFIG, STOP, make_mesh())
    few, all_ = (
        len(p.wanted(p.prepare.shapes(params), p.sizes()))
        for p in (engine.programs, whole.programs)
    )
    assert 0 < few < all_


def test_a_dialogue_beyond_the_longest_is_an_error(engine, params):
    too_long = Scripted(0, LONGEST, [])
    with pytest.raises(ValueError, match=f"rollout.max_episode_tokens is {LONGEST}"):
        engine.run(params, [too_long], TEMPERATURE)


# ---- sampling -------------------------------------------------------------------------------


def test_near_zero_temperature_is_greedy(params, engine):
    episode = Scripted(5, 20, [4])
    engine.run(params, [episode], 1e-4)
    twin = play_plainly(params, episode, 1e-4)
    assert episode.sampled_ids == twin.sampled_ids
    first = twin.sampled_ids[0][0]
    hidden = jax.jit(functools.partial(decoder.hidden_states, config=MODEL))(
        params, tokens=np.array([episode.prompt])
    )
    assert first == int(jnp.argmax(decoder.logits(params, hidden[0, -1])))


@pytest.mark.parametrize("constrained", [False, True])
def test_ids_that_pad_the_vocabulary_are_never_drawn(params, constrained):
    ids = VOCAB // 2
    grammar = anything(VOCAB) if constrained else None
    engine = Engine(MODEL, CONFIG, STOP, make_mesh(), grammar, ids=ids)
    episodes = [Scripted.random(seed) for seed in range(16)]
    engine.run(params, episodes, TEMPERATURE)
    drawn = [t for e in episodes for turn in e.sampled_ids for t in turn]
    assert len(drawn) > 100 and max(drawn) < ids
    free = [Scripted.random(seed) for seed in range(16)]
    Engine(MODEL, CONFIG, STOP, make_mesh(), ids=VOCAB).run(params, free, TEMPERATURE)
    assert max(t for e in free for turn in e.sampled_ids for t in turn) >= ids
