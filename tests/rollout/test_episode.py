"""An episode's record against what passed between it and the engine, token by token."""

import dataclasses
import json

import numpy as np
import pytest
from telecom_small import small_telecom

from tarl_jax.config import JudgeConfig, RolloutConfig
from tarl_jax.judge.request import evidence
from tarl_jax.judge.rules import judge as rules
from tarl_jax.judge.service import Judge
from tarl_jax.rl.calibration import turn_kind
from tarl_jax.rollout.episode import CLOSING, SHORT, Episode
from tarl_jax.rollout.workers import Turn
from tarl_jax.sandbox.clerk import FAULTLESS, play
from tarl_jax.sandbox.dialogue import Dialogue
from tarl_jax.sandbox.phrases import STOP
from tarl_jax.sandbox.user import Reply, ScriptedUser
from tarl_jax.text.chat import Chat
from tarl_jax.training.evaluation import behaviour
from tarl_jax.training.stages import stages_of
from tarl_jax.types import STOP_REASONS, Call, Check, Task, Trajectory
from tarl_jax.view.terminal import render

ROOMY = RolloutConfig(max_turns=40, max_turn_tokens=96, max_episode_tokens=4000)
SEED = 5


class Wire:
    """Plays the engine's side of one episode, and records every token that crosses."""

    def __init__(self, env, task, config=ROOMY, system="Be brief.", supervisor=None):
        self.chat = env.chat
        self.episode = Episode(
            task, SEED, env.domain, env.chat, config, (system, env.chat.system(system)),
            supervisor=supervisor,
        )
        self.ids, self.sampled, self.log_probs = [], [], []
        self.rng = np.random.default_rng(0)
        self.force(self.episode.start())
        self.ended = False

    def force(self, ids: list[int]) -> None:
        self.ids += ids
        self.sampled += [False] * len(ids)
        self.log_probs += [0.0] * len(ids)

    def turn(self, ids: list[int]) -> list[int] | None:
        """Has the policy sample `ids`; returns the answer."""
        log_probs = (-self.rng.random(len(ids)) - 0.01).tolist()
        self.ids += ids
        self.sampled += [True] * len(ids)
        self.log_probs += log_probs
        answer = self.episode.turn(Turn(list(ids), list(log_probs), list(log_probs)))
        self.ended = answer is None
        self.force(answer.tokens if answer else [])
        return answer and answer.tokens

    def say(self, action: Call | str) -> list[int] | None:
        return self.turn(self.chat.agent(action))

    def trajectory(self):
        """The record, after checking that it is what crossed the wire."""
        trajectory = self.episode.trajectory()
        ids, sampled, log_probs = trajectory.arrays()
        assert ids.tolist() == self.ids
        assert sampled.tolist() == self.sampled
        assert log_probs.tolist() == np.float32(self.log_probs).tolist()
        assert trajectory.num_tokens == len(self.ids)
        for segment in trajectory.segments:
            assert segment.sampled == [segment.role == "agent"] * len(segment.token_ids)
        assert [s.turn for s in trajectory.turns] == list(range(len(trajectory.turns)))
        assert trajectory.stop_reason in STOP_REASONS
        assert trajectory.seed == SEED
        return trajectory


def right_actions(env, task, config=ROOMY):
    """What a faultless clerk does, with the answer to each action."""
    dialogue = Dialogue(task, env.domain, ScriptedUser(task, SEED),
                        max_turns=config.max_turns, brief_writes=config.brief_writes)
    return play(dialogue, FAULTLESS, SEED)


@pytest.fixture(scope="module")
def writing_task(tiny_env):
    """A task with something to write."""
    return next(t for t in tiny_env.train_tasks if t.gold_calls)


def test_a_faultless_episode_succeeds_and_is_recorded_token_for_token(tiny_env):
    for task in tiny_env.train_tasks:
        wire = Wire(tiny_env, task)
        history = right_actions(tiny_env, task)
        for action, _ in history:
            assert not wire.ended
            wire.say(action)
        assert wire.ended
        trajectory = wire.trajectory()
        assert trajectory.stop_reason == "user_stop"
        assert trajectory.success is True and trajectory.gold_diff == []
        assert bool(trajectory.diff) == bool(task.gold_calls)
        actions = [s.calls[0] if s.calls else s.message for s in trajectory.turns]
        assert actions == [action for action, _ in history]


@pytest.fixture(scope="module")
def objection(tmp_path_factory):
    """The rule judge as a supervisor."""
    with Judge(JudgeConfig(), tmp_path_factory.mktemp("judge")) as judge:
        yield judge.objection


def test_a_supervisor_interrupts_after_a_grave_turn(tiny_env, objection):
    config = dataclasses.replace(ROOMY, interruptions=1)
    task = next(t for t in tiny_env.train_tasks if len(t.gold_calls) > 1)
    wire = Wire(tiny_env, task, config, supervisor=objection)
    first, second = task.gold_calls[:2]
    wire.say("What can I do for you?")  # not grave
    before = len(wire.ids)
    wire.say(first)  # nobody has agreed to it
    added = tiny_env.tokenizer.decode(wire.ids[before:])
    assert "[Supervisor] Your last step was wrong: " in added
    assert added.endswith("before you go on.\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    wire.say(second)  # grave too, but once is enough
    wire.say(Call("transfer_to_human_agents", {"summary": "no"}))
    trajectory = wire.trajectory()  # what is forced has no log-probs
    answers = [s for s in trajectory.segments if s.turn >= 0 and s.role != "agent"]
    assert ["interruption" in s.info for s in answers] == [False, True, False, False]
    assert "[Supervisor]" not in answers[1].text
    plain = Wire(tiny_env, task)
    for segment in trajectory.turns:
        plain.say(*segment.calls or [segment.message])
    unseen = [s.text for s in plain.trajectory().segments]
    assert [s.text for s in trajectory.segments] == unseen


def test_a_supervisor_lets_right_turns_pass(tiny_env, objection):
    config = dataclasses.replace(ROOMY, interruptions=9)
    for task in tiny_env.train_tasks[:4]:
        watched = Wire(tiny_env, task, config, supervisor=objection)
        alone = Wire(tiny_env, task)
        for action, _ in right_actions(tiny_env, task):
            watched.say(action)
            alone.say(action)
        assert watched.ids == alone.ids


def test_the_answer_to_the_last_turn_has_text_but_no_tokens(tiny_env, writing_task):
    wire = Wire(tiny_env, writing_task)
    for action, _ in right_actions(tiny_env, writing_task):
        wire.say(action)
    last = wire.trajectory().segments[-1]
    assert last.role == "user" and "###STOP###" in last.text
    assert last.token_ids == [] and last.sampled == [] and last.log_probs == []


def test_segments_read_as_the_chat_they_are(tiny_env, writing_task):
    system = "You are the clerk."
    wire = Wire(tiny_env, writing_task, system=system)
    wire.say("Who are you?")
    wire.say(Call("get_order_details", {"order_id": "#none"}))
    wire.say(Call("transfer_to_human_agents", {"summary": "no"}))
    segments = wire.trajectory().segments
    roles = ["system", "user", "agent", "user", "agent", "tool", "agent", "tool"]
    assert [s.role for s in segments] == roles
    assert [s.turn for s in segments] == [-1, -1, 0, 0, 1, 1, 2, 2]
    text = tiny_env.tokenizer.decode(wire.ids)
    assert text.startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n")
    assert "<|im_start|>assistant\nWho are you?<|im_end|>\n<|im_start|>user\n" in text
    assert "<tool_response>\nError: " in text and segments[5].info["error"]


def test_a_transfer_ends_the_episode_without_success(tiny_env, writing_task):
    wire = Wire(tiny_env, writing_task)
    assert wire.say(Call("transfer_to_human_agents", {"summary": "no"})) is None
    trajectory = wire.trajectory()
    assert trajectory.stop_reason == "transfer"
    assert trajectory.success is False and trajectory.gold_diff and trajectory.diff == []


def test_a_wrong_database_is_no_success(tiny_env, writing_task):
    wire = Wire(tiny_env, writing_task)
    for action, _ in right_actions(tiny_env, writing_task):
        is_write = action in writing_task.gold_calls
        wire.say(Call("get_order_details", {"order_id": "#none"}) if is_write else action)
    while not wire.ended:
        wire.say("It is done.")
    trajectory = wire.trajectory()
    assert trajectory.success is False and trajectory.gold_diff


def test_a_malformed_turn_is_answered_and_marked(tiny_env, writing_task):
    wire = Wire(tiny_env, writing_task)
    encode, markup = tiny_env.tokenizer.encode, tiny_env.tokenizer.encode_markup
    broken = [*markup("<tool_call>\n"), *encode('{"name": '), *markup("<|im_end|>")]
    assert wire.turn(broken)
    assert wire.turn([wire.chat.stop_id])  # nothing but the end
    wire.say(Call("transfer_to_human_agents", {"summary": "no"}))
    trajectory = wire.trajectory()
    assert ["malformed" in s.info for s in trajectory.turns] == [True, True, False]
    for segment in trajectory.segments[3:6:2]:
        assert segment.role == "tool" and segment.text.startswith("Error: ")
    assert trajectory.turns[0].calls == [] and trajectory.turns[0].message == ""


def test_as_served_unreadable_turns_cost_nothing_and_the_third_is_a_short_message(
    tiny_env, writing_task
):
    tight = dataclasses.replace(ROOMY, as_served=True, max_messages=5, max_errors=1, max_turns=3)
    wire = Wire(tiny_env, writing_task, tight)
    begin = len(wire.ids)
    for _ in range(3):
        assert wire.turn([wire.chat.stop_id])
    error = wire.chat.tool("Error: the turn is empty")
    told = tiny_env.tokenizer.decode(wire.ids[begin:])
    assert told.count("Error: ") == 3 and told.count(SHORT) == 1
    assert len(wire.ids) > begin + 3 * (1 + len(error)) - 9
    assert wire.turn([wire.chat.stop_id])  # the first of three again
    assert wire.say("Who are you?") is None
    trajectory = wire.episode.trajectory()
    assert trajectory.arrays()[0].tolist() == wire.ids
    assert trajectory.stop_reason == "max_messages"
    said = [(s.message, "malformed" in s.info, any(s.sampled)) for s in trajectory.turns]
    assert said == [("", True, True)] * 3 + [(SHORT, False, False), ("", True, True),
                                             ("Who are you?", False, True)]
    assert [s.turn for s in trajectory.turns] == list(range(6))
    assert [s.role for s in trajectory.segments[2:]] == [
        "agent", "tool"] * 3 + ["agent", "user", "agent", "tool", "agent", "user"]


class Patient:
    """A user that leaves when it is told goodbye so many times."""

    def __init__(self, goodbyes):
        self.left = goodbyes

    def opening(self):
        return "Hello."

    def reply(self, message):
        self.left -= message == CLOSING
        return Reply("Go on." if self.left else STOP, {})


@pytest.mark.parametrize("goodbyes, end", [(2, "user_stop"), (99, "max_turns")])
def test_as_served_a_full_context_is_told_to_the_user_until_it_leaves(
    tiny_env, writing_task, goodbyes, end
):
    """The verdict is of what was done, as for a client that hears of no limit."""
    config = dataclasses.replace(ROOMY, as_served=True, max_turn_tokens=20, max_episode_tokens=120)
    nothing = dataclasses.replace(writing_task, gold_calls=(), outputs=(), actions=())
    episode = Episode(nothing, SEED, tiny_env.domain, tiny_env.chat, config,
                      ("", tiny_env.chat.system("")), Patient(goodbyes))
    answer, turns = episode.start(), 0
    while answer is not None:
        ids = tiny_env.chat.agent("Who are you?")
        answer, turns = episode.turn(Turn(ids, [-1.0] * len(ids), [-1.0] * len(ids))), turns + 1
    trajectory = episode.trajectory()
    assert trajectory.num_tokens <= 120 and trajectory.stop_reason == end
    assert trajectory.success is (end == "user_stop")
    said = [s.message for s in trajectory.turns]
    assert said[:turns] == ["Who are you?"] * turns and set(said[turns:]) == {CLOSING}
    assert len(said) == turns + 2 if end == "user_stop" else len(said) == ROOMY.max_turns
    assert not any(s.token_ids for s in trajectory.segments if s.message == CLOSING)
    assert [s.turn for s in trajectory.turns] == list(range(len(said)))


def test_a_cut_turn_is_closed_by_a_forced_stop_token(tiny_env, writing_task):
    """The policy never sampled the stop token, so it must not be trained on it."""
    wire = Wire(tiny_env, writing_task)
    cut = tiny_env.tokenizer.encode("I would like to tell you that")
    answer = wire.turn(cut)
    assert answer[0] == wire.chat.stop_id
    wire.say(Call("transfer_to_human_agents", {"summary": "no"}))
    trajectory = wire.trajectory()
    turn, after = trajectory.segments[2:4]
    assert turn.token_ids == cut and "malformed" in turn.info
    assert after.token_ids[0] == wire.chat.stop_id and not any(after.sampled)
    # A turn with its stop token gets no second one.
    whole = Wire(tiny_env, writing_task).turn([*cut, wire.chat.stop_id])
    assert wire.chat.stop_id not in whole[:1]


def test_a_cut_last_turn_ends_without_further_tokens(tiny_env, writing_task):
    wire = Wire(tiny_env, writing_task, dataclasses.replace(ROOMY, max_turns=1))
    assert wire.turn(tiny_env.tokenizer.encode("I would like")) is None
    assert wire.trajectory().stop_reason == "max_turns"


def test_max_turns_cuts_the_episode_off(tiny_env, writing_task):
    wire = Wire(tiny_env, writing_task, dataclasses.replace(ROOMY, max_turns=3))
    for place in range(3):
        assert (wire.say("Who are you?") is None) == (place == 2)
    trajectory = wire.trajectory()
    assert trajectory.stop_reason == "max_turns" and len(trajectory.turns) == 3
    assert trajectory.segments[-1].token_ids == [] and trajectory.segments[-1].text


def test_max_tokens_cuts_the_episode_off_before_it_could_overflow(tiny_env, writing_task):
    """Whatever the turns' lengths: the next one at its longest would still have fitted."""
    rng = np.random.default_rng(1)
    reasons = set()
    for _ in range(20):
        config = dataclasses.replace(
            ROOMY, max_turn_tokens=20, max_episode_tokens=int(rng.integers(110, 300))
        )
        wire = Wire(tiny_env, writing_task, config)
        while not wire.ended:
            assert len(wire.ids) + config.max_turn_tokens <= config.max_episode_tokens
            n = rng.integers(1, config.max_turn_tokens + 1)
            wire.turn([int(t) for t in rng.choice(tiny_env.tokenizer.encode("Who are you"), n)])
        trajectory = wire.trajectory()
        assert trajectory.num_tokens <= config.max_episode_tokens
        assert trajectory.success is False
        assert trajectory.segments[-1].token_ids == [] and trajectory.segments[-1].text
        reasons.add(trajectory.stop_reason)
    assert "max_tokens" in reasons


def test_an_episode_cut_off_after_the_right_write_is_no_success(tiny_env, writing_task):
    history = right_actions(tiny_env, writing_task)
    actions = [action for action, _ in history]
    last_write = max(i for i, action in enumerate(actions) if action in writing_task.gold_calls)
    assert last_write < len(actions) - 1

    config = dataclasses.replace(ROOMY, max_turns=last_write + 1)
    by_turns = Wire(tiny_env, writing_task, config)
    for action in actions[: last_write + 1]:
        by_turns.say(action)
    assert by_turns.ended

    probe = Wire(tiny_env, writing_task)
    for action in actions[: last_write + 1]:
        probe.say(action)
    config = dataclasses.replace(ROOMY, max_episode_tokens=len(probe.ids) + 95)
    by_tokens = Wire(tiny_env, writing_task, config)
    for action in actions[: last_write + 1]:
        by_tokens.say(action)
    assert by_tokens.ended

    for wire, reason in ((by_turns, "max_turns"), (by_tokens, "max_tokens")):
        trajectory = wire.trajectory()
        assert trajectory.stop_reason == reason
        assert trajectory.gold_diff == []  # the database is right
        assert trajectory.success is False


def test_a_prompt_without_room_for_a_turn_raises(tiny_env, writing_task):
    config = dataclasses.replace(ROOMY, max_episode_tokens=100)
    with pytest.raises(ValueError, match=r"shop-.*max_episode_tokens = 100"):
        Wire(tiny_env, writing_task, config)


def test_a_running_episode_has_no_record(tiny_env, writing_task):
    wire = Wire(tiny_env, writing_task)
    wire.say("Who are you?")
    with pytest.raises(RuntimeError, match="has not ended"):
        wire.episode.trajectory()


THOUGHT = "<think>\nWho is it?\n</think>\n\n"


def think(env, text: str) -> list[int]:
    """A turn that begins with a thought."""
    markup, encode = env.tokenizer.encode_markup, env.tokenizer.encode
    return [*encode(THOUGHT), *encode(text), *markup("<|im_end|>")]


@pytest.mark.parametrize("reasoning", ["kept", "dropped"])
def test_reasoning_leaves_the_context_only_where_it_should(tiny_env, writing_task, reasoning):
    config = dataclasses.replace(ROOMY, reasoning=reasoning)
    episode = Episode(writing_task, SEED, tiny_env.domain, tiny_env.chat, config,
                      ("Be brief.", tiny_env.chat.system("Be brief.")))
    context, seen, written = episode.start(), [], []
    for text in ("Who are you?", "And your email?"):
        ids = think(tiny_env, text)
        written.append(ids)
        seen.append([*context, *ids])
        answer = episode.turn(Turn(ids, [-1.0] * len(ids), [-1.0] * len(ids)))
        context = seen[-1] if answer.keep is None else context[: answer.keep]
        context = [*context, *answer.tokens]
    last = tiny_env.chat.agent(Call("transfer_to_human_agents", {"summary": "no"}))
    seen.append([*context, *last])
    written.append(last)
    episode.turn(Turn(last, [-1.0] * len(last), [-1.0] * len(last)))
    assert tiny_env.tokenizer.decode(seen[2]).count("<think>") == 2 * (reasoning == "kept")
    trajectory = episode.trajectory()
    tokens, sampled, _ = trajectory.arrays()
    parts = trajectory.parts()
    if reasoning == "kept":
        assert len(parts) == 1 and tokens[parts[0][0]].tolist() == seen[2]
        assert parts[0][1].tolist() == sampled.tolist()
        return
    # Each turn is trained on in the context in which it was written, and once.
    assert [tokens[at].tolist() for at, _ in parts] == seen
    assert [tokens[at[counts]].tolist() for at, counts in parts] == written
    assert sum(counts.sum() for _, counts in parts) == sampled.sum()


def test_only_a_whole_thought_at_the_beginning_is_reasoning(tiny_env):
    chat, encode = tiny_env.chat, tiny_env.tokenizer.encode
    assert chat.reasoning(think(tiny_env, "Hello.")) == len(encode(THOUGHT))
    for text in ("Hello.", "<think>\nWho", f"Hello. {THOUGHT}"):
        assert chat.reasoning([*encode(text), chat.stop_id]) == 0


def test_an_episode_out_of_time_is_cut_off(tiny_env, writing_task):
    wire = Wire(tiny_env, writing_task, dataclasses.replace(ROOMY, episode_seconds=1e-9))
    assert wire.say("Who are you?") is None
    trajectory = wire.trajectory()
    assert trajectory.stop_reason == "max_seconds" and trajectory.success is False


def test_an_episode_can_be_cut_off_from_outside(tiny_env, writing_task):
    wire = Wire(tiny_env, writing_task)
    wire.say("Who are you?")
    wire.episode.cut()
    assert wire.trajectory().stop_reason == "max_seconds"
    done = Wire(tiny_env, writing_task)
    done.say(Call("transfer_to_human_agents", {"summary": "no"}))
    done.episode.cut()
    assert done.trajectory().stop_reason == "transfer"


def test_log_probs_of_a_truncated_draw_are_kept_beside(tiny_env, writing_task):
    episode = Wire(tiny_env, writing_task).episode
    ids = tiny_env.chat.agent("Who are you?")
    episode.turn(Turn(ids, [-2.0] * len(ids), [-1.0] * len(ids)))
    ids = tiny_env.chat.agent(Call("transfer_to_human_agents", {"summary": "no"}))
    episode.turn(Turn(ids, [-2.0] * len(ids), [-2.0] * len(ids)))
    trajectory = episode.trajectory()
    assert [len(s.drawn_log_probs) > 0 for s in trajectory.turns] == [True, False]
    _, sampled, whole = trajectory.arrays()
    _, _, drawn = trajectory.arrays(drawn=True)
    assert set(whole[sampled]) == {-2.0} and set(drawn[sampled]) == {-1.0, -2.0}
    assert not whole[~sampled].any() and not drawn[~sampled].any()


def test_the_seed_is_of_task_stream_and_run(tiny_env, tiny_config):
    first, second = tiny_env.train_tasks[:2]
    other_run = dataclasses.replace(tiny_env, config=dataclasses.replace(tiny_config, seed=1))
    episodes = [
        tiny_env.episode(first, "train", 1, 0),
        tiny_env.episode(second, "train", 1, 0),
        tiny_env.episode(first, "train", 2, 0),
        tiny_env.episode(first, "train", 1, 1),
        tiny_env.episode(first, "eval", 1, 0),
        other_run.episode(first, "train", 1, 0),
    ]
    assert len({e.seed for e in episodes}) == len(episodes)
    again = tiny_env.episode(first, "train", 1, 0)
    assert again.seed == episodes[0].seed and again.start() == episodes[0].start()


def test_the_benchmark_whose_task_it_is_says_what_ends_an_episode(tiny_env):
    task = tiny_env.train_tasks[0]
    theirs = dataclasses.replace(task, reward_basis=("DB",))
    handed = Call("transfer_to_human_agents", {"summary": "x"})
    for played, after_transfer, over in [
        (task, "rules", True), (theirs, "rules", False), (theirs, "end", True),
        (task, "go on", False),
    ]:
        wire = Wire(tiny_env, played, dataclasses.replace(ROOMY, after_transfer=after_transfer))
        wire.say(handed)
        assert wire.ended == over
    wrong = Call("get_order_details", {"order_id": "none"})
    for max_errors, count in ((-1, 10), (2, 2)):
        wire = Wire(tiny_env, theirs, dataclasses.replace(ROOMY, max_errors=max_errors))
        for _ in range(count):
            assert not wire.ended
            wire.say(wrong)
        assert wire.ended and wire.trajectory().stop_reason == "max_errors"


def test_a_users_own_calls_stand_between_its_messages_unseen(tiny_env):
    domain = small_telecom()
    task = Task(
        "t", "C2", "", (), (), "train", "tau2", None, 3, reward_basis=("ENV_ASSERTION",),
        checks=(Check("assert_can_send_mms", {"expected_status": True}),),
        initial_state={"initialization_actions": [
            {"env_type": "user", "func_name": "set_user_info",
             "arguments": {"name": "Ada", "phone_number": "801-2"}},
            {"env_type": "user", "func_name": "turn_data_off", "arguments": {}},
        ]},
    )
    wire = Wire(dataclasses.replace(tiny_env, domain=domain), task)
    wire.say(Call("get_customer_by_phone", {"phone_number": "801-2"}))
    wire.say("Please turn mobile data on.")
    assert wire.ended
    trajectory = wire.trajectory()
    assert (trajectory.success, trajectory.stop_reason) == (True, "user_stop")
    assert trajectory.segments[2].info["fulfilled"] == []  # behind the greeting
    answer = trajectory.segments[-1]
    assert [c["name"] for c in answer.info["user_calls"]] == [
        "check_network_status", "toggle_data", "can_send_mms"]
    assert answer.info["fulfilled"] == [0]
    assert "Airplane" not in "".join(s.text for s in trajectory.segments)
    assert trajectory.diff == ["user device data_enabled: False -> True"]
    assert Trajectory.from_json_line(trajectory.to_json_line()) == trajectory
    lines = "".join(str(part) for part in render(trajectory)[-4:])
    assert lines  # the viewer takes it

    failed = Wire(dataclasses.replace(tiny_env, domain=domain), task)
    for _ in range(6):
        if not failed.ended:
            failed.say("Hello.")
    assert failed.ended and failed.trajectory().success is False
    assert failed.trajectory().gold_diff == [
        "user assert_can_send_mms {'expected_status': True}: not True"]


def test_the_agents_greeting_comes_first_where_the_benchmark_has_one(tiny_env):
    task = tiny_env.train_tasks[0]
    theirs = dataclasses.replace(task, reward_basis=("DB",))
    for played, greeting, greets in [
        (task, "rules", False), (theirs, "rules", True), (theirs, "off", False), (task, "on", True),
    ]:
        wire = Wire(tiny_env, played, dataclasses.replace(ROOMY, greeting=greeting))
        begun = tiny_env.tokenizer.decode(wire.ids)
        said = "<|im_end|>\n<|im_start|>assistant\nHi! How can I help you today?<|im_end|>\n<|im_st"
        assert (said in begun) == greets
        wire.say("Done.")
        wire.episode.cut()
        trajectory = wire.trajectory()
        roles = ["system", *["greeting"] * greets, "user", "agent"]
        assert [s.role for s in trajectory.segments][: len(roles)] == roles
        assert [t.turn for t in trajectory.turns] == [0]  # the greeting is no turn
        assert Trajectory.from_json_line(trajectory.to_json_line()) == trajectory


@pytest.mark.parametrize(("mine", "max_turns", "reason"), [
    (True, -1, "max_turns"), (False, -1, "max_messages"), (False, 7, "max_turns"),
    (True, 0, "max_tokens"),
])
def test_the_benchmark_whose_task_it_is_says_how_long_an_episode_is(
    tiny_env, mine, max_turns, reason
):
    task = tiny_env.train_tasks[0]
    task = task if mine else dataclasses.replace(task, reward_basis=("DB",))
    config = dataclasses.replace(ROOMY, max_turns=max_turns, max_episode_tokens=7000, max_errors=0)
    wire, turns = Wire(tiny_env, task, config), 0
    while not wire.ended:
        wire.say(Call("think", {"thought": "x"}))
        turns += 1
    assert wire.trajectory().stop_reason == reason
    assert turns == {"max_messages": 100, "max_turns": 30 if mine else 7}.get(reason, turns)


# ---- what was said ---------------------------------------------------------------------------


def thoughtful(env, task, config, thought):
    """The episode of a faultless clerk whose every turn begins with a thought."""
    episode = Episode(task, SEED, env.domain, env.chat, config,
                      ("Be brief.", env.chat.system("Be brief.")))
    episode.start()
    for action, _ in right_actions(env, task, config):
        ids = [*env.tokenizer.encode(thought), *env.chat.agent(action)]
        episode.turn(Turn(ids, [-1.0] * len(ids), [-1.0] * len(ids)))
    return episode.trajectory()


@pytest.mark.parametrize("thought", [
    "<think>\nIs it pending, order 2 of 3? The policy allows it.\n</think>\n\n",
    "<think>No, do not? cancelled</think>", "denied?\n</think>\n",
])
def test_thoughts_change_no_verdict_no_score_and_no_count(tiny_env, thought):
    roomy = dataclasses.replace(ROOMY, max_turn_tokens=300, max_episode_tokens=20_000)
    for task in tiny_env.train_tasks:
        plain, thinks = (thoughtful(tiny_env, task, roomy, of) for of in ("", thought))
        assert all(t.thought for t in thinks.turns) and not any(t.thought for t in plain.turns)
        assert [t.message for t in thinks.turns] == [t.message for t in plain.turns]
        assert thinks.success is plain.success is True
        assert rules(thinks) == rules(plain)
        assert behaviour([thinks])["waits"] == behaviour([plain])["waits"]
        assert stages_of(thinks) == stages_of(plain)
        assert list(map(turn_kind, thinks.turns)) == list(map(turn_kind, plain.turns))
        asked = [json.dumps(evidence(t)["dialogue"]) for t in (thinks, plain)]
        assert asked[0] == asked[1]


@pytest.mark.parametrize("text, found", [
    ("It costs 1,234.50 in all.", True),
    ("<think>\nIt costs 1,234.50 in all.\n</think>\n\nOne moment.", False),
    ("It costs 1,234.50.</think>One moment.", False),
    ('It costs 1,234.50.\n<tool_call>\n{"name": "think", "arguments": {}}\n</tool_call>', False),
    ('<tool_call>\n{"name": "think", "arguments": {"thought": "1,234.50"}}\n</tool_call>', False),
    ("<tool_call>\n1,234.50\n</tool_call>", False),
    ("<think>\nIt costs 1,234.50 in all.", False),
])
def test_only_what_the_user_was_told_counts_as_said(tiny_env, writing_task, text, found):
    task = dataclasses.replace(writing_task, outputs=("1234.5",))
    wire = Wire(tiny_env, task)
    wire.turn([*tiny_env.tokenizer.encode(text), wire.chat.stop_id])
    wire.say(Call("transfer_to_human_agents", {"summary": "no"}))
    assert wire.trajectory().outputs_found is found


def test_a_turn_that_is_not_to_think_begins_with_an_empty_thought(tiny_env, writing_task):
    chat = Chat(tiny_env.tokenizer, thinking=False)
    empty = tiny_env.tokenizer.encode_markup("<think>\n\n</think>\n\n")
    episode = Episode(writing_task, SEED, tiny_env.domain, chat, ROOMY,
                      ("Be brief.", chat.system("Be brief.")))
    context = list(episode.start())
    assert context[-len(empty):] == list(empty)
    for action in ("Who are you?", Call("transfer_to_human_agents", {"summary": "no"})):
        ids = chat.agent(action)
        answer = episode.turn(Turn(ids, [-1.0] * len(ids), [-1.0] * len(ids)))
        context += [*ids, *(answer.tokens if answer else [])]
    trajectory = episode.trajectory()
    tokens, sampled, log_probs = trajectory.arrays()
    assert tokens.tolist() == context
    first = trajectory.turns[0]
    assert first.sampled == [False] * len(empty) + [True] * (len(first.token_ids) - len(empty))
    assert set(log_probs[sampled]) == {-1.0} and not log_probs[~sampled].any()
    assert first.thought == "" and first.message == "Who are you?"
    assert Trajectory.from_json_line(trajectory.to_json_line()) == trajectory


def test_of_several_calls_the_first_is_made(tiny_env, writing_task):
    chat = Chat(tiny_env.tokenizer, "first")
    look = Call("get_order_details", {"order_id": "#none"})
    handed = Call("transfer_to_human_agents", {"summary": "no"})
    both = [*chat.agent(look)[:-1], *chat.agent(handed)]
    for used in (chat, tiny_env.chat):
        episode = Episode(writing_task, SEED, tiny_env.domain, used, ROOMY,
                          ("Be brief.", used.system("Be brief.")))
        episode.start()
        assert episode.turn(Turn(both, [-1.0] * len(both), [-1.0] * len(both)))
        episode.cut()
        turn = episode.trajectory().turns[0]
        assert turn.calls == ([look] if used is chat else [])
        assert ("malformed" in turn.info) == (used is not chat)
