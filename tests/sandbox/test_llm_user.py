"""The user that a model plays: what it is told, what the agent sees of it, when it gives up.

The model is a function here; tests/llm/ and tests/test_llm_run.py have a server.
"""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarl_jax.config import LLMConfig, UserConfig
from tarl_jax.llm.errors import LLMError
from tarl_jax.llm.ledger import Ledger
from tarl_jax.llm.service import Completion
from tarl_jax.sandbox.llm_user import GREETING, TRIES, LLMUser, message_in

STOP = "###STOP###"
WISH = "You are Ada. Cancel $5 order #W1 {now}."


class Model:
    """Stands in for the service: answers in order, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked, self.keys = [], []
        self.ledger = Ledger()

    def complete(self, messages, *, key, deadline, tools=(), kept=None):
        self.asked.append([dict(m) for m in messages])
        self.keys.append(key)
        self.tools = tools
        answer = self.answers.pop(0)
        return answer if isinstance(answer, Completion) else Completion(answer)


def play(*answers, **changes):
    model = Model(*answers)
    config = UserConfig(kind="llm", llm=LLMConfig(model="m"))
    return LLMUser(WISH, model, dataclasses.replace(config, **changes), "task/7"), model


def test_the_model_plays_the_user_and_the_agent_writes_to_it():
    user, model = play("Cancel my order.", "Ada.", f"Thanks! {STOP}")
    assert user.opening() == "Cancel my order."
    assert user.reply("Who are you?").text == "Ada."
    last = user.reply("Done.")
    assert last.stop and last.text == f"Thanks! {STOP}"
    system, *rest = model.asked[-1]
    assert system["role"] == "system" and WISH in system["content"]
    assert [(m["role"], m["content"]) for m in rest] == [
        ("user", GREETING), ("assistant", "Cancel my order."), ("user", "Who are you?"),
        ("assistant", "Ada."), ("user", "Done."),
    ]
    assert model.keys == ["task/7/1", "task/7/2", "task/7/3"]


@pytest.mark.parametrize("strategy", ["llm", "react", "verify", "reflection"])
def test_every_prompt_is_filled_in(strategy):
    answers = {
        "llm": ["Hi."], "react": ["User Response: Hi."], "verify": ["Hi.", "Verdict: good"],
        "reflection": ["Hi.", "Verdict: bad", "User Response: Ho.", "Verdict: good"],
    }[strategy]
    user, model = play(*answers, strategy=strategy)
    user.opening()
    assert not model.answers
    for asked in model.asked:
        text = asked[0]["content"]
        assert WISH in text and STOP in text
        for name in ("$instruction", "$stop", "$transcript", "$response", "$reason"):
            assert name not in text


# ---- thoughts -----------------------------------------------------------------------------------


def test_a_thought_stays_with_the_model():
    user, model = play("Thought:\nSECRET plan\n\nUser Response:\nCancel my order.",
                       f"Thought: SECRET, all done\nUser Response: {STOP}", strategy="react")
    assert user.opening() == "Cancel my order."
    reply = user.reply("Done.")
    assert reply.text == STOP and reply.stop
    assert "SECRET" in model.asked[1][2]["content"]  # it goes on from what it thought
    assert "SECRET" in reply.info["model_text"]


def test_a_stop_in_a_thought_ends_nothing():
    user, _ = play("User Response: Hi.", f"Thought: not yet {STOP}\nUser Response: Wait.",
                   strategy="react")
    user.opening()
    assert not user.reply("Done?").stop


GOOD = {
    "Thought: SECRET\nUser Response: Hello.": "Hello.",
    "**Thought:** SECRET\n\n**User Response:** Hello.": "Hello.",
    "thought: SECRET\nuser response: Hello.\nBye.": "Hello.\nBye.",
    "User_Response: Hello.": "Hello.",
    "<think>SECRET</think>Thought: SECRET\nUser Response: Hello.": "Hello.",
    f"Thought: SECRET\nUser Response:{STOP}": STOP,
    "SECRET SECRET\nUser Response: Hello.": "Hello.",
    "Thought: SECRET. User Response: Hello.": "Hello.",
}
BAD = [
    "Hello.", "Thought: SECRET", "Thought: SECRET\nHello.", "SECRET", "", "User Response:",
    "User Response: Hello.\nThought: SECRET",
    "User Response: Hello. Thought: SECRET",
    "User Response: Hello.\n**Thought**: SECRET",
    "User Response: Hello.\n(Thoughts : SECRET)",
    "Thought: say User Response: SECRET\nUser Response: Hello.",
    "User Response: SECRET\nUser Response: Hello.",
    "<think>SECRET\nUser Response: SECRET",
    "User Response: Hello. <think>SECRET",
    "User Response: Hello. </think> SECRET",
    "User Response: <think>SECRET</think>",
    "User Response: Hello.\nReflection: SECRET",
    "Response: SECRET", "User: SECRET", "Thought: SECRET\nUser Reply: Hello.",
]


@pytest.mark.parametrize("text", GOOD)
def test_a_message_is_told_from_its_thought(text):
    assert message_in(text, labelled=True) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_what_cannot_be_told_apart_is_asked_for_again(text):
    user, model = play(text, text, "Thought: x\nUser Response: Hello.", strategy="react")
    assert user.opening() == "Hello."
    assert model.keys == ["task/7/1", "task/7/2", "task/7/3"]
    assert model.ledger.snapshot()["unusable"] == 2
    user, _ = play(*[text] * TRIES, strategy="react")
    with pytest.raises(LLMError, match="3 answers in a row") as caught:
        user.opening()
    assert caught.value.kind == "malformed" and not caught.value.fatal


PIECES = st.sampled_from([
    "Thought:", "thought :", "**Thought:**", "\n", " ", "User Response:", "USER RESPONSE :", "hi",
    "<think>", "</think>", "<thinking>", "Reflection:", "THOUGHTS:", STOP, "- ",
])


@given(st.lists(PIECES, max_size=12))
def test_no_mixture_of_marks_lets_a_thought_through(pieces):
    """SECRET stands after each mark of a thought; nothing but that mark precedes it."""
    thinks = ("thought", "think", "reflection")
    text = "".join(
        f"{p} SECRET\n" if any(t in p.lower() for t in thinks) and "/" not in p else f"{p} "
        for p in pieces
    )
    for labelled in (True, False):
        try:
            said = message_in(text, labelled)
        except ValueError:
            continue
        assert "SECRET" not in said and said


@pytest.mark.parametrize("strategy", ["llm", "verify", "reflection"])
def test_a_model_that_thinks_aloud_unasked_is_not_passed_on(strategy):
    user, _ = play("Thought: SECRET\nUser Response: Hi.", "<think>SECRET",
                   "<think>SECRET</think>Hi.", "Verdict: good", strategy=strategy)
    assert user.opening() == "Hi."


# ---- supervision --------------------------------------------------------------------------------


def test_a_message_is_written_anew_until_it_is_good():
    user, model = play("One.", "So so.\nVerdict: bad", "Two.", "**Verdict:** good",
                       strategy="verify")
    assert user.opening() == "Two."
    assert "One." in model.asked[1][0]["content"] and "Two." in model.asked[3][0]["content"]
    assert f"Agent: {GREETING}" in model.asked[1][0]["content"]
    assert model.asked[2] == model.asked[0] and model.keys[2] != model.keys[0]


def test_the_last_try_is_taken_as_it_is():
    user, model = play("One.", "Verdict: bad", "Two.", "Verdict: bad", "Three.", strategy="verify")
    assert user.opening() == "Three." and not model.answers


def test_reflection_says_what_was_wrong_and_keeps_it_to_itself():
    user, model = play("One.", "It invents a name.\nVerdict: bad",
                       "Reflection: SECRET\nUser Response: Two.", "Verdict: good", "Three.",
                       "Verdict: good", strategy="reflection")
    assert user.opening() == "Two."
    assert "It invents a name." in model.asked[2][0]["content"]
    assert user.reply("And?").text == "Three."
    assert "SECRET" not in str(model.asked[4])


@pytest.mark.parametrize("unclear", ["Fine.", "Verdict: good\nVerdict: bad", "Verdict: perhaps"])
def test_a_verdict_that_cannot_be_read_is_no_verdict(unclear):
    user, _ = play("One.", unclear, "Verdict: good", strategy="verify")
    assert user.opening() == "One."
    user, _ = play("One.", *[unclear] * TRIES, strategy="verify")
    with pytest.raises(LLMError, match="Verdict: good"):
        user.opening()


# ---- ends ---------------------------------------------------------------------------------------


def test_a_dialogue_does_not_end_before_it_begins():
    user, _ = play(STOP, "Hi.")
    assert user.opening() == "Hi."


def test_an_episode_may_make_so_many_calls():
    user, _ = play("One.", "Two.", "Three.", max_calls=2)
    user.opening()
    user.reply("?")
    with pytest.raises(LLMError, match=r"config\.user\.max_calls = 2") as caught:
        user.reply("?")
    assert caught.value.kind == "episode_budget" and not caught.value.fatal


def test_an_episode_may_take_so_many_seconds(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("tarl_jax.sandbox.llm_user.time.monotonic", lambda: clock[0])
    left = []

    class Slow(Model):
        def complete(self, messages, *, key, deadline, tools=(), kept=None):
            left.append(deadline - clock[0])
            clock[0] += 4
            return super().complete(messages, key=key, deadline=deadline)

    user = LLMUser(WISH, Slow("1", "2", "3"), UserConfig(max_seconds=10.0), "k")
    user.opening()
    clock[0] += 1000  # the agent's time is not the user's
    user.reply("?")
    user.reply("?")
    assert left == [10.0, 6.0, 2.0]


# ---- tools of its own -----------------------------------------------------------------------


SCHEMA = {"type": "function", "function": {"name": "toggle_data", "parameters": {}}}


def asks(*calls, text=""):
    return Completion(text, calls=[{"name": n, "arguments": a} for n, a in calls])


def with_phone(*answers, **changes):
    model, made = Model(*answers), []
    config = dataclasses.replace(UserConfig(kind="llm", llm=LLMConfig(model="m")), **changes)
    user = LLMUser(WISH, model, config, "task/7", [SCHEMA])

    def act(name, kwargs):
        made.append((name, kwargs))
        return f"answer {len(made)}"

    user.take(act)
    return user, model, made


@pytest.mark.parametrize("strategy", ["llm", "react"])
def test_it_uses_its_tools_and_the_agent_reads_the_message_alone(strategy):
    says = "User Response: It is on." if strategy == "react" else "It is on."
    opens = "User Response: Hi." if strategy == "react" else "Hi."
    user, model, made = with_phone(
        opens, asks(("toggle_data", "{}"), text="SECRET"),
        asks(("look", '{"at": "bar"}'), ("look", "{}")), says, strategy=strategy,
    )
    assert user.opening() == "Hi." and model.tools == [SCHEMA]
    reply = user.reply("Turn it on, please.")
    assert reply.text == "It is on." and reply.info["calls"] == 3
    assert made == [("toggle_data", {}), ("look", {"at": "bar"}), ("look", {})]
    told = model.asked[-1][-5:]
    assert [m["role"] for m in told] == ["assistant", "tool", "assistant", "tool", "tool"]
    assert told[0]["tool_calls"][0]["id"] == told[1]["tool_call_id"] == "call_1"
    assert told[0]["content"] == "SECRET" and told[2]["content"] is None
    assert [m["content"] for m in told if m["role"] == "tool"] == [
        "answer 1", "answer 2", "answer 3"]
    assert "Your tools:" in model.asked[0][0]["content"]


def test_arguments_that_are_none_are_answered_and_no_call_is_made():
    user, model, made = with_phone("Hi.", asks(("toggle_data", "{")), asks(("x", "[1]")), "Done.")
    user.opening()
    assert user.reply("Now?").text == "Done." and made == []
    assert model.asked[-1][-1]["content"] == "Error: the arguments are no JSON object"
    assert model.ledger.snapshot()["unusable"] == 2


def test_calls_without_end_use_up_the_episode():
    user, _, made = with_phone("Hi.", *[asks(("toggle_data", "{}"))] * 9, max_calls=5)
    user.opening()
    with pytest.raises(LLMError, match=r"user\.max_calls = 5") as caught:
        user.reply("Now?")
    assert caught.value.kind == "episode_budget" and len(made) == 4


def test_without_the_means_or_tools_none_are_offered():
    user, model = play("Hi.")
    user.opening()
    assert model.tools == () and "Your tools" not in model.asked[0][0]["content"]
