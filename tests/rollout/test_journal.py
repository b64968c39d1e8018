"""Episodes that a kill cut in two: nobody is asked twice, and the whole is what it would have been.

The user says something new at every request, so that an answer that was asked for again would show.
"""

import dataclasses
import json

import numpy as np
import pytest

from tarl_jax.config import LLMConfig, UserConfig
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.journal import Journal, Journals, KeptEpisode
from tarl_jax.rollout.workers import Answer, Turn


@pytest.fixture
def start(tiny_config, openai_server):
    """A start of a run: its environment, with a user that the server plays."""
    made = []

    def make(**rollout):
        llm = LLMConfig(model="react", base_url=openai_server.url, api_key_env="", max_attempts=2,
                        backoff_seconds=0.0)
        made.append(Environment.from_config(dataclasses.replace(
            tiny_config, user=UserConfig(kind="llm", strategy="react", llm=llm),
            rollout=dataclasses.replace(tiny_config.rollout, **rollout),
        )))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def journal():
    """Opens journals; closes them when the test is over, not where it kills their run."""
    made = []

    def make(path):
        made.append(Journal(path))
        return made[-1]

    yield make
    for one in made:
        one.close()


def turn_of(env, text, log_prob=-0.5):
    ids = env.chat.agent(text)
    return Turn(ids, [log_prob] * len(ids), [log_prob * 2] * len(ids))


def say(env, episode, text):
    return episode.turn(turn_of(env, text))


def content(episode):
    return json.dumps({**json.loads(episode.trajectory().to_json_line()), "seconds": 0})


@pytest.mark.parametrize("fed", [True, False])
def test_an_episode_goes_on_behind_its_last_turn(start, openai_server, tmp_path, journal, fed):
    openai_server.plan()
    first = start()
    task = first.train_tasks[0]
    first_journal = journal(tmp_path / "1.jsonl")
    episode = first.episode(task, "x", journal=first_journal)
    assert isinstance(episode, KeptEpisode) and episode.outside
    opening = episode.start()
    answers = [say(first, episode, text) for text in ("Who are you?", "And where?")]
    asked = openai_server.report()["requests"]
    assert asked == 3 and all(answers)
    # Killed here: nothing is closed.
    second = start()
    episode = second.episode(task, "x", journal=journal(tmp_path / "1.jsonl"))
    episode._fed = fed
    again = episode.start()
    sampled = [turn_of(second, text).ids for text in ("Who are you?", "And where?")]
    if fed:
        assert isinstance(again, Answer) and again.dropped == 0
        assert again.tokens == opening + sampled[0] + answers[0].tokens + sampled[1] + (
            answers[1].tokens
        )
    else:
        assert again == opening
        assert say(second, episode, "Who are you?") == answers[0]
        other = say(second, episode, "Another word")  # rounded otherwise: the first one stands
        assert other.keep == len(opening + sampled[0] + answers[0].tokens)
        assert other.tokens == sampled[1] + answers[1].tokens and other.dropped == 0
    assert openai_server.report()["requests"] == asked
    assert say(second, episode, "Goodbye then.") is None  # the user leaves
    assert openai_server.report()["requests"] == asked + 1
    kept = episode.trajectory()
    assert [t.text for t in kept.turns] == ["Who are you?", "And where?", "Goodbye then."]
    assert kept.turns[0].drawn_log_probs[0] == -1.0 and kept.turns[0].log_probs[0] == -0.5
    # A third start has all of it, and asks nothing.
    third = start()
    episode = third.episode(task, "x", journal=journal(tmp_path / "1.jsonl"))
    episode._fed = True
    assert episode.start() is None
    assert content(episode) == content(
        type("Same", (), {"trajectory": lambda self: kept})()
    ) and openai_server.report()["requests"] == asked + 1


@pytest.mark.parametrize("cut", [1, 7, 200])
def test_a_torn_or_foreign_journal_costs_turns_and_no_more(
    start, openai_server, tmp_path, journal, cut
):
    openai_server.plan()
    env = start()
    path = tmp_path / "1.jsonl"
    first_journal = journal(path)
    episode = env.episode(env.train_tasks[0], "x", journal=first_journal)
    episode.start()
    say(env, episode, "Who are you?")
    first_journal.close()
    path.write_bytes(path.read_bytes()[:-cut])
    episode = env.episode(env.train_tasks[0], "x", journal=journal(path))
    episode._fed = False
    episode.start()
    say(env, episode, "Who are you?")
    path.write_bytes(b'[1]\n{"task": 1}\n\xff\n{"digest": "a", "answer": 3}\n' + path.read_bytes())
    again = journal(path)
    assert len(again._turns[env.train_tasks[0].task_id, episode.seed]) == 1


def test_a_turn_that_was_sampled_in_another_context_is_not_taken(
    start, openai_server, tmp_path, journal
):
    openai_server.plan()
    env = start()
    path = tmp_path / "1.jsonl"
    episode = env.episode(env.train_tasks[0], "x", journal=journal(path))
    episode.start()
    say(env, episode, "Who are you?")
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in lines if "digest" not in line))
    episode = env.episode(env.train_tasks[0], "x", journal=journal(path))
    episode._fed = True
    tokens = episode.start()  # the user has opened in other words
    assert isinstance(tokens, list)
    assert say(env, episode, "Who?") is not None
    assert [s.text for s in episode._episode._segments if s.role == "agent"] == ["Who?"]


def test_who_needs_no_journal_has_none(tiny_env, tmp_path, journal):
    first_journal = journal(tmp_path / "1.jsonl")
    episode = tiny_env.episode(tiny_env.train_tasks[0], "x", journal=first_journal)
    assert not isinstance(episode, KeptEpisode) and not (tmp_path / "1.jsonl").exists()


@pytest.mark.parametrize("reasoning", ["kept", "dropped"])
@pytest.mark.parametrize("fed", [True, False])
def test_the_engine_goes_on_with_the_same_tokens(
    start, openai_server, tmp_path, random_params, monkeypatch, journal, fed, reasoning
):
    """In the midst of dialogues, context and random numbers are those of a run without a break."""
    openai_server.plan()
    env = start(in_flight=1, slots=2, reasoning=reasoning, max_turns=3)
    tasks = env.train_tasks[:2]
    params = random_params(env.config.model, env.vocab_size, seed=3)
    engine = env.engine()

    def play(kept, count):
        class Killed(BaseException):
            pass

        left = [count]
        asked = KeptEpisode.turn

        def turn(self, turn):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return asked(self, turn)

        monkeypatch.setattr(KeptEpisode, "turn", turn)
        episodes = [env.episode(task, "x", journal=kept) for task in tasks]
        for episode in episodes:
            episode._fed = fed
        try:
            engine.run(params, episodes, 1.0)
        except Killed:
            return None
        finally:
            monkeypatch.setattr(KeptEpisode, "turn", asked)
        return episodes

    assert play(journal(tmp_path / "1.jsonl"), 4) is None
    asked = openai_server.report()["requests"]
    resumed = play(journal(tmp_path / "1.jsonl"), 100)
    total = openai_server.report()["requests"]
    assert asked <= total <= asked + 4
    # The same answers, now to a run without a break.
    answers = [line for line in (tmp_path / "1.jsonl").read_text().splitlines() if "digest" in line]
    (tmp_path / "2.jsonl").write_text("".join(f"{line}\n" for line in answers))
    whole = play(journal(tmp_path / "2.jsonl"), 100)
    assert openai_server.report()["requests"] == total
    for one, other in zip(resumed, whole, strict=True):
        ids, sampled, log_probs = one.trajectory().arrays()
        expected, _, expected_log_probs = other.trajectory().arrays()
        np.testing.assert_array_equal(ids, expected)
        assert sampled.sum() > 12
        if fed:
            np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-5)
        else:
            assert log_probs.tobytes() == expected_log_probs.tobytes()


def test_journals_go_with_the_checkpoints_of_their_steps(tmp_path):
    journals = Journals(tmp_path / "journal")
    for name in (1, 2, 12, "eval-2"):
        journals.of(name).put("x", {"text": str(name)})
    assert journals.of(2) is journals.of("2")
    journals.close()
    later = Journals(tmp_path / "journal")
    assert later.of(12).get("x") == {"text": "12"}
    later.forget(2)
    assert sorted(p.name for p in (tmp_path / "journal").iterdir()) == [
        "12-0.jsonl", "eval-2-0.jsonl"
    ]
    later.done("eval-2")
    assert later.of("eval-2").get("x") is None
    later.close()
