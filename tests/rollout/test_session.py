"""Turns asked for at any time, against the engine's own runs and a plain loop."""

import concurrent.futures
import dataclasses
import threading

import numpy as np
import pytest
from scripted import CONFIG, MODEL, STOP, TEMPERATURE, VOCAB, Scripted, play_plainly

from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.grammar import Grammar, anything
from tarl_jax.rollout.sampling import Sampling
from tarl_jax.rollout.scheduler import SpokenInputs
from tarl_jax.rollout.session import Ask, Session

WARM = Sampling(TEMPERATURE)
SERVING = dataclasses.replace(CONFIG, slots=4, parked=2, share_prefix=16)


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(MODEL, VOCAB, 0)


@pytest.fixture(scope="module", params=["contiguous", "pages"])
def session(request, params):
    serving = dataclasses.replace(SERVING, cache=request.param, page=8, feed_tokens=40)
    engine = Engine(MODEL, serving, STOP, make_mesh(), anything(VOCAB), burst=5)
    session = Session(engine, params, anything(VOCAB))
    yield session
    session.close()
    assert not session.alive


def play(session, episode, sampling=WARM, row=-1):
    """The whole dialogue, each turn asked for behind its context; returns tokens that were fed."""
    context, fed = episode.start(), []
    while True:
        ask = Ask(context, episode.seed, sampling, CONFIG.max_turn_tokens, row=row)
        written = session.ask(ask).result(600)
        row = written.row
        fed.append(written.fed)
        answer = episode.turn(written.turn)
        if answer is None:
            return fed
        context = [*context, *written.turn.ids, *answer.tokens]


def test_turns_are_those_of_a_plain_loop(session, params):
    for seed in (1, 2):
        episode = Scripted.random(seed)
        twin = play_plainly(params, episode, TEMPERATURE)
        play(session, episode)
        assert episode.sampled_ids == twin.sampled_ids


def test_dialogues_that_come_and_go_are_those_of_one_run(session, params):
    """More at a time than slots and parked places; log-probs too."""
    engine = Engine(MODEL, CONFIG, STOP, make_mesh())
    expected = [Scripted.random(seed) for seed in range(24)]
    engine.run(params, expected, TEMPERATURE)
    found = [Scripted.random(seed) for seed in range(24)]
    threads = [threading.Thread(target=play, args=(session, episode)) for episode in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        assert one.sampled_ids == other.sampled_ids
        for (_, mine), (_, theirs) in zip(one.turns, other.turns, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert session.writing == 0


def test_a_turn_costs_its_new_tokens_alone(session):
    episode = Scripted(5, 60, [7] * 12)
    fed = play(session, episode)
    assert fed[0] <= 60 and max(fed[1:]) <= 7 + 1


def test_each_turn_is_sampled_in_its_own_way(session):
    prompt = Scripted(9, 30, []).start()
    greedy = Ask(prompt, 1, Sampling(0.0), 6)
    first = session.ask(greedy).result(600)
    others = [session.ask(dataclasses.replace(greedy, seed=seed)) for seed in range(5)]
    hot = [session.ask(Ask(prompt, seed, Sampling(3.0), 6)) for seed in range(5)]
    short = session.ask(dataclasses.replace(greedy, limit=2)).result(600)
    assert {tuple(w.result(600).turn.ids) for w in others} == {tuple(first.turn.ids)}
    assert len({tuple(w.result(600).turn.ids) for w in hot}) > 1
    assert short.turn.ids == first.turn.ids[:2] and max(first.turn.drawn_log_probs) == 0


def test_a_branch_of_a_context_is_as_if_it_were_new(session):
    """Behind an earlier place of a row that has gone on, by a row that is told to go back."""
    prompt = Scripted(11, 40, []).start()
    ask = Ask(prompt, 3, Sampling(TEMPERATURE), 10)
    first = session.ask(ask).result(600)
    context = [*prompt, *first.turn.ids, 1, 2, 3]
    second = session.ask(dataclasses.replace(ask, tokens=context, row=first.row)).result(600)
    again = session.ask(dataclasses.replace(ask, row=second.row)).result(600)
    assert again.turn.ids == first.turn.ids and again.row == first.row
    other = session.ask(dataclasses.replace(ask, tokens=[*prompt[:20], *context])).result(600)
    back = session.ask(dataclasses.replace(
        ask, tokens=[*prompt[:20], *context], row=again.row)).result(600)
    assert other.turn.ids == back.turn.ids


def test_a_listener_hears_each_burst_and_may_end_the_turn(session):
    prompt = next(
        p for seed in range(50)
        if len(session.ask(Ask(p := Scripted(seed, 9, []).start(), 1, Sampling(TEMPERATURE), 14))
               .result(600).turn.ids) == 14
    )
    ask, heard = Ask(prompt, 1, Sampling(TEMPERATURE), 14), []
    whole = session.ask(ask, lambda ids: heard.append(list(ids))).result(600)
    # Where caches are in pages, the step that feeds the context writes a token too.
    assert [len(ids) for ids in heard] in ([5, 10], [1, 6, 11])
    assert all(ids == whole.turn.ids[: len(ids)] for ids in heard)
    part = session.ask(ask, lambda ids: True).result(600)
    assert part.stopped and part.turn.ids == heard[0]


def only(*tokens):
    """Of a token that is not the end one: any of these."""
    classes = np.zeros(VOCAB, np.int32)
    classes[list(tokens)] = 1
    words = np.array([[sum(1 << t for t in tokens)]], np.uint32)
    return Grammar(np.array([[-1, 0]], np.int16), classes, words)


def test_rows_follow_grammars_of_their_own(session):
    """More grammars than have a place at a time."""
    prompts = [Scripted(seed, 12, []).start() for seed in range(40)]
    pairs = [(a, b) for a in range(4, 10) for b in range(4, a)]
    rules = [only(*pair) for pair in pairs]
    asked = [session.ask(Ask(p, seed, Sampling(2.0), 8, rules[seed % len(pairs)]))
             for seed, p in enumerate(prompts)]
    free = session.ask(Ask(prompts[0], 0, Sampling(2.0), 8))
    for seed, written in enumerate(asked):
        assert set(written.result(600).turn.ids) <= set(pairs[seed % len(pairs)])
    assert free.result(600).turn.ids


def test_contexts_that_nobody_continues_are_forgotten(params):
    engine = Engine(MODEL, SERVING, STOP, make_mesh())
    session = Session(engine, params, anything(VOCAB), idle_seconds=0.0)
    prompt = Scripted(3, 200, []).start()
    ask = Ask(prompt, 3, Sampling(TEMPERATURE), 10)
    first = session.ask(ask).result(600)
    second = session.ask(dataclasses.replace(ask, row=first.row)).result(600)
    assert second.turn.ids == first.turn.ids and second.row != first.row
    session.close()
    assert session.contexts == 0


def test_a_failure_of_the_device_is_told_and_survived(session, params, monkeypatch):
    episode = Scripted.random(1)
    expected = play_plainly(params, episode, TEMPERATURE).sampled_ids

    def broken(*args):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(session._programs, "decode", broken)
        asked = [session.ask(Ask([n], n, Sampling(), 5)) for n in range(3)]
        for written in asked:
            with pytest.raises(RuntimeError, match="out of memory"):
                written.result(600)
    assert session.failures and session.alive
    play(session, episode)
    assert episode.sampled_ids == expected


def test_what_cannot_be_written_is_refused(session, params):
    with pytest.raises(ValueError, match="no room for a turn of 14"):
        session.ask(Ask([1] * 500, 0, Sampling(), 14))
    with pytest.raises(ValueError, match="at least one"):
        session.ask(Ask([], 0, Sampling(), 14))
    closed = Session(Engine(MODEL, SERVING, STOP, make_mesh()), params, anything(VOCAB))
    last = closed.ask(Ask([1], 0, Sampling(), 14))
    closed.close()
    assert last.done() and last.result().turn.ids
    with pytest.raises(RuntimeError, match="closed"):
        closed.ask(Ask([1], 0, Sampling(), 14))


def test_what_was_read_is_counted_for_each_turn_alone(session):
    """Several at a time, the caches of some given up meanwhile: of a new one all, later the new."""
    episodes = [Scripted(100 + n, 20 + n, [5] * 3) for n in range(3)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        fed = list(pool.map(lambda episode: play(session, episode), episodes))
    assert [one[0] for one in fed] == [20, 21, 22]
    assert {count for one in fed for count in one[1:]} <= {6}  # the last that was written, too


@pytest.mark.parametrize("cache", ["contiguous", "pages"])
def test_those_who_go_on_keep_their_caches(params, cache):
    """Many who never come back do not crowd out the ones that do."""
    serving = dataclasses.replace(SERVING, cache=cache, page=8, feed_tokens=40)
    session = Session(Engine(MODEL, serving, STOP, make_mesh(), anything(VOCAB), burst=5), params,
                      anything(VOCAB), most=6)
    going, fed = Scripted(50, 20, [5] * 4), []
    context, row = going.start(), -1
    for turn in range(4):
        written = session.ask(Ask(context, 1, WARM, 6, row=row)).result(600)
        fed.append(written.fed)
        context, row = [*context, *written.turn.ids, 4, 5, 6], written.row
        for other in range(4):
            gone = Scripted(60 + 4 * turn + other, 60, []).start()
            session.ask(Ask(gone, 1, WARM, 6)).result(600)
    assert fed[0] == 20 and set(fed[1:]) == {4}
    assert session.contexts <= 6
    session.close()


def test_what_was_read_ahead_is_not_read_again(session):
    prompt = Scripted(31, 90, []).start()
    others = [session.ask(Ask(Scripted(s, 40, []).start(), s, WARM, 6)) for s in range(4)]
    ahead = session.ask(Ask(prompt[:50], 4, WARM, 0)).result(600)
    assert not (ahead.turn.ids or ahead.turn.log_probs or ahead.stopped) and ahead.fed == 49
    again = session.ask(Ask(prompt[:50], 4, WARM, 0, row=ahead.row)).result(600)
    assert (again.fed, again.row) == (0, ahead.row)
    wrong = session.ask(Ask([*prompt[:60], 9, 9], 4, WARM, 0, row=ahead.row)).result(600)
    assert wrong.fed == 12
    found = session.ask(Ask(prompt, 4, WARM, 6, row=ahead.row)).result(600)
    assert found.fed <= 90 - 56  # from a whole page on
    expected = session.ask(Ask(prompt, 4, WARM, 6)).result(600)
    assert found.turn.ids == expected.turn.ids
    np.testing.assert_allclose(found.turn.log_probs, expected.turn.log_probs, atol=1e-4)
    assert all(other.result(600).turn.ids for other in others)


def test_sound_that_no_row_could_hear_is_refused_and_nobody_loses_a_turn(session):
    def sound(first, shape):
        return SpokenInputs(first, np.zeros(shape, np.float32), np.zeros(9, np.float32), -5)

    for wrong in ([sound(2, (3, 16))], [sound(0, (3, 17))], [sound(1, (3,))]):
        with pytest.raises(ValueError, match=r"sound of shape \(3.* does not stand behind 0"):
            session.ask(Ask([1] * 9, 0, WARM, 4, spoken=wrong))
