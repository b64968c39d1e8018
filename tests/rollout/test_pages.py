"""The engine whose caches are in pages, against a plain loop over full forward passes."""

import dataclasses
import gc
import threading

import jax
import numpy as np
import pytest
from scripted import (
    CONFIG,
    MODEL,
    STOP,
    TEMPERATURE,
    VOCAB,
    Forgetful,
    Scripted,
    Slow,
    play_plainly,
)

from tarl_jax.config import ConfigError, MeshConfig
from tarl_jax.models import decoder
from tarl_jax.parallel import hosts
from tarl_jax.parallel.mesh import make_mesh, tree_shardings
from tarl_jax.rollout.compiled import Compiled
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.page_pool import PagePool

PAGES = dataclasses.replace(CONFIG, cache="pages", page=16, feed_tokens=48, slots=8)


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(MODEL, VOCAB, 0)


def engine_of(**changes):
    return Engine(MODEL, dataclasses.replace(PAGES, **changes), STOP, make_mesh())


@pytest.fixture(scope="module")
def contiguous(params):
    """What the engine with contiguous caches samples; its own tests hold it to be right."""
    episodes = [Scripted.random(seed) for seed in range(40)]
    Engine(MODEL, CONFIG, STOP, make_mesh()).run(params, episodes, TEMPERATURE)
    return episodes


@pytest.mark.parametrize("changes", [
    {}, {"page": 7, "feed_tokens": 9}, {"share_prefix": 16}, {"slots": 2}, {"page": 512},
    {"straggler_fraction": 0.0, "slots": 4},
    {"cache_tokens": 2 * 512, "page": 8}, {"cache_tokens": 2 * 512, "share_prefix": 1, "page": 8},
], ids=str)
def test_tokens_equal_those_of_contiguous_caches(params, contiguous, changes):
    engine = engine_of(**changes)
    earlier = engine.programs.compilations  # of this process
    engine.programs.compile(params)
    before = engine.programs.compilations
    episodes = [e.twin() for e in contiguous]
    stats = engine.run(params, episodes, TEMPERATURE)
    for own, other in zip(episodes, contiguous, strict=True):
        assert own.sampled_ids == other.sampled_ids, own.seed
        for (_, mine), (_, theirs) in zip(own.turns, other.turns, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert engine.programs.compilations == before <= earlier + 4
    if "cache_tokens" in changes:  # some gave their pages up and were fed again
        assert stats.fed_tokens > stats.forced_tokens
    if not changes:  # lengths are mixed: half of the others' room, and nobody's page, is enough
        lengths = [len(e.sequence()[0]) for e in episodes]
        assert min(lengths) < 40 and max(lengths) > 250
        plain = Compiled(MODEL, dataclasses.replace(PAGES, cache="contiguous"), STOP, make_mesh())
        pool, room = engine.programs.cache_bytes()[0], plain.cache_bytes()[0]
        assert 0.5 < pool / room <= 0.5 + 1 / engine.programs.pages
        turns = sum(len(e.turns) for e in episodes)  # whose last tokens are fed with the answers
        assert stats.fed_tokens <= stats.forced_tokens + turns  # nothing else was fed again


@pytest.mark.parametrize("seed", [1, 4])
def test_tokens_equal_a_plain_loop(params, seed):
    episode = Scripted(seed, 150, [1, 130, 64, 65])
    engine_of().run(params, [episode], TEMPERATURE)
    assert episode.sampled_ids == play_plainly(params, episode, TEMPERATURE).sampled_ids


def test_what_begins_alike_is_fed_once(params):
    """Eight copies of a prompt: one feeds it; the others hold its full pages."""
    episodes = [Scripted(seed, 1, [3]) for seed in range(8)]
    prompt = np.random.default_rng(0).integers(0, VOCAB, 200).tolist()
    for episode in episodes:
        episode.prompt = list(prompt)
    engine = engine_of(share_prefix=16, slots=16)
    stats = engine.run(params, episodes, TEMPERATURE)
    shards = engine.programs.shards
    assert stats.fed_tokens < shards * 200 + 8 * (16 + 3) + 8 * 2
    for episode in episodes:
        assert episode.sampled_ids == play_plainly(params, episode, TEMPERATURE).sampled_ids


@pytest.mark.parametrize("changes", [{}, {"share_prefix": 1, "page": 4}], ids=str)
def test_contexts_that_lose_tokens(params, changes):
    episodes = [Forgetful(seed, 40, [5, 17, 9]) for seed in range(6)]
    engine_of(**changes).run(params, episodes, TEMPERATURE)
    for episode in episodes:
        assert episode.sampled_ids == play_plainly(params, episode, TEMPERATURE).sampled_ids


def test_a_run_that_is_cut_off_goes_on(params):
    gate = threading.Event()
    slow = [Slow(seed, 30, [4, 4], wait=lambda: gate.wait(20)) for seed in range(3)]
    quick = [Scripted(seed, 30, [4, 4]) for seed in range(3, 6)]
    engine = engine_of(share_prefix=4, page=4)
    engine.programs.compile(params)
    left = engine.run(params, [*slow, *quick], TEMPERATURE, seconds=1.0).unfinished
    assert set(slow) <= {u.episode for u in left}
    gate.set()
    assert not engine.run(params, [], TEMPERATURE, unfinished=left).unfinished
    for episode in slow + quick:
        assert episode.sampled_ids == play_plainly(params, episode, TEMPERATURE).sampled_ids


def test_a_pool_too_small_for_one_dialogue_is_refused():
    with pytest.raises(ConfigError, match=r"rollout.cache_tokens = 600.*1024 or more"):
        engine_of(cache_tokens=600)


def test_pages_are_counted():
    pool = PagePool(5, 4)
    pages = [pool.take() for _ in range(3)]
    key = (0, (1, 2, 3, 4))
    pool.know(pages[0], key)
    assert pool.find(key) == pages[0] and pool.find((1, (1, 2, 3, 4))) is None
    pool.release(pages)
    assert pool.available == 3  # the known one is held once more
    pool.release(pages[:1])
    assert pool.available == 4 and pool.find(key) == pages[0]
    pool.release(pages[:1])
    taken = [pool.take() for _ in range(4)]
    assert sorted(taken) == [1, 2, 3, 4] and taken[-1] == pages[0]  # known ones go last
    assert pool.find(key) is None and not pool.available


def test_compiling_runs_nothing(params, monkeypatch):
    """It makes no array either: programs are compiled from shapes."""
    engine = engine_of(share_prefix=4)
    monkeypatch.setattr(engine.programs, "_empty", _RunsNot(engine.programs._empty))
    monkeypatch.setattr(engine.programs, "_mixed", _RunsNot(engine.programs._mixed))
    monkeypatch.setattr(engine.programs, "_decode", _RunsNot(engine.programs._decode))
    held, told = len(jax.live_arrays()), []
    engine.programs.compile(params, progress=lambda *of: told.append(of))
    assert len(jax.live_arrays()) == held
    assert [of[:2] for of in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert list(engine.programs.model_sized(params)) == ["feed", "decode"]


class _RunsNot:
    """A jitted function that is lowered and never called."""

    def __init__(self, jitted):
        self.lower = jitted.lower


def test_the_pool_goes_with_the_run(params):
    engine = engine_of()
    engine.run(params, [Scripted(1, 30, [4])], TEMPERATURE)
    gc.collect()
    pages = {engine.programs.shards * engine.programs.pages * MODEL.num_layers}
    assert not [x for x in jax.live_arrays() if pages & set(x.shape)]


def test_parameters_of_another_dtype_are_cast_on_their_way(params):
    """And what has the dtype and lies there already is taken as it is."""
    model = dataclasses.replace(MODEL, dtype="bfloat16")
    engine = Engine(model, PAGES, STOP, make_mesh())
    mesh = make_mesh(MeshConfig(data=1, fsdp=2))  # training's
    placed = hosts.put(params, tree_shardings(mesh, decoder.logical_axes(params)))
    made = engine.programs.prepare(placed)
    for x, y, like in zip(*map(jax.tree.leaves, (made, placed, engine.programs.shapes(placed))),
                          strict=True):
        assert x.dtype == "bfloat16" and x.sharding.is_equivalent_to(like.sharding, x.ndim)
        np.testing.assert_array_equal(x, y.astype("bfloat16"))
    again = engine.programs.prepare(made)
    assert all(x is y for x, y in zip(*map(jax.tree.leaves, (made, again)), strict=True))
