"""Whole dialogues, as the policy sees them before each turn, against Qwen3's own template."""

import json
import random

import pytest
import transformers
from qwen import SHARED, folder_with_prompt, qwen_folder, rendered, template_ids

from tarl_jax.config import RolloutConfig
from tarl_jax.judge.request import evidence
from tarl_jax.rollout.episode import Episode
from tarl_jax.rollout.workers import Answer, Turn
from tarl_jax.sandbox.published import load_domain
from tarl_jax.sandbox.user import Reply
from tarl_jax.text.chat import Chat
from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer
from tarl_jax.types import Call, Task

ROOMY = RolloutConfig(max_turns=60, max_turn_tokens=512, max_episode_tokens=60_000,
                      brief_writes=False)
DIALOGUES = 50  # of each domain, for each way of thinking
THOUGHTS = ["hm", "Which order?\n\n1. #W1\n2. #W2 {\"a\": [1]}", "naïve <tool_call> 😀 ",
            "a\n", "def f():\n    return 1"]
SAYINGS = ["Which order is it?", "Done: $1,234.50.\n\n- a\n- b", "Ça va? 😀", "OK.", "[\"a\"]"]


class Canned:
    """A user who answers anything."""

    def __init__(self, rng):
        self._rng = rng

    def opening(self):
        return "Hi, I want to return #W1.\nPlease."

    def reply(self, message):
        return Reply(self._rng.choice(["Yes.", "#W123\n", "  no", "{\"x\": 1}", "ok 😀"]), {})


class Engine:
    """The context of one episode, as the engine has it, and the messages that it stands for."""

    def __init__(self, domain, chat, config, rng, system, template=None):
        self.template = template
        text, tools = system
        task = Task("t", "u", "", (), (), "train", "x", None, 1)
        self.chat, self.tools, self.thinking = chat, tools, config.thinking == "on"
        self.without = config.reasoning == "dropped"
        self.messages = [{"role": "system", "content": text}]
        self.episode = Episode(task, 0, domain, chat, config, (text, chat.system(text, tools)),
                               user=Canned(rng))
        self.context, self.seen, self.written = [], [], []
        self._take(Answer(self.episode.start()), "user")

    def _take(self, answer, role):
        keep = len(self.context) if answer.keep is None else answer.keep
        self.context = [*self.context[:keep], *answer.tokens]
        said = [s for s in self.episode._segments if s.role == role][-1]
        self.messages.append({"role": role, "content": said.text})

    def wanted(self):
        return template_ids.__wrapped__(
            rendered(self.messages, self.tools or None, thinking=self.thinking,
                     tokenizer=self.template)
        )

    def turn(self, action, thought=None):
        """thought: None: the turn has none, not even an empty one."""
        message = {"role": "assistant", "content": "" if isinstance(action, Call) else action}
        if isinstance(action, Call):
            asked = {"name": action.name, "arguments": dict(action.kwargs)}
            message["tool_calls"] = [{"function": asked}]
            call = json.dumps(asked, ensure_ascii=False)
            text = f"<tool_call>\n{call}\n</tool_call>"
        else:
            text = action
        if thought is not None:
            if not self.without:
                message["reasoning_content"] = thought
            opened = "" if self.chat.begin and self.thinking else "<think>\n"
            text = f"{opened}{thought.strip(chr(10))}\n</think>\n\n{text}"
        ids = [*template_ids.__wrapped__(text), self.chat.stop_id]
        self.written.append(ids)
        self.seen.append([*self.context, *ids])
        self.context = self.seen[-1]
        self.messages.append(message)
        answer = self.episode.turn(Turn(ids, [-1.0] * len(ids), [-1.0] * len(ids)))
        assert answer is not None
        self._take(answer, "tool" if isinstance(action, Call) else "user")


@pytest.fixture(scope="module")
def tokenizer():
    return PretrainedTokenizer(qwen_folder())


@pytest.fixture(scope="module", params=["retail", "airline"])
def plays(request):
    """A domain of tau-bench, its schemas, and per task the calls of its solution."""
    folder = SHARED / "tau_bench" / request.param
    domain = load_domain(request.param, str(folder))
    tools = json.loads((folder / "tools.json").read_text())
    split = "train" if request.param == "retail" else "dev"
    tasks = json.loads((folder / f"tasks_{split}.json").read_text())
    solutions = [[Call(a["name"], a["kwargs"]) for a in task["actions"]
                  if a["name"] in domain.tools and "transfer" not in a["name"]]
                 for task in tasks]
    return domain, tools, [calls for calls in solutions if calls]


def composed(rng, calls):
    """The actions of an agent who asks between its calls, so that there are several exchanges."""
    actions = [rng.choice(SAYINGS)]
    for call in calls[:5]:
        actions.append(call)
        if rng.random() < 0.4:
            actions.append(rng.choice(SAYINGS))
    return [*actions, rng.choice(SAYINGS), calls[0]]


@pytest.mark.parametrize("thinking, reasoning, thinks", [
    ("on", "template", True), ("off", "template", False), ("on", "dropped", True),
    ("on", "kept", False),
])
def test_every_turn_is_written_in_the_templates_context(
    tokenizer, plays, thinking, reasoning, thinks
):
    domain, tools, solutions = plays
    config = RolloutConfig(**{**vars(ROOMY), "thinking": thinking, "reasoning": reasoning})
    chat = Chat(tokenizer, thinking=thinking == "on")
    rng = random.Random(0)
    for number in range(DIALOGUES):
        system = (domain.policy, tools) if number < 2 else ("Be brief.", tools[:1])
        engine = Engine(domain, chat, config, rng, system)
        assert engine.context == engine.wanted()
        for action in composed(rng, solutions[number % len(solutions)]):
            thought = rng.choice([*THOUGHTS, ""]) if thinks else None
            engine.turn(action, thought)
            if number % 10 == 3:
                assert engine.context == engine.wanted()
        assert engine.context == engine.wanted()


@pytest.mark.parametrize("thinking, reasoning", [
    ("on", "template"), ("off", "template"), ("off", "kept"), ("on", "dropped"),
])
def test_what_was_seen_at_once_is_what_is_trained_on(tokenizer, plays, thinking, reasoning):
    domain, _, solutions = plays
    config = RolloutConfig(**{**vars(ROOMY), "thinking": thinking, "reasoning": reasoning})
    engine = Engine(domain, Chat(tokenizer, thinking=thinking == "on"), config, random.Random(1),
                    ("Be brief.", []))
    actions = composed(random.Random(1), solutions[0])
    for action in actions:
        engine.turn(action, "hm" if thinking == "on" else None)
    engine.episode.cut()
    trajectory = engine.episode.trajectory()
    tokens, sampled, log_probs = trajectory.arrays()
    written = [t for ids in engine.written for t in ids]
    assert tokens[sampled].tolist() == written and set(log_probs[sampled]) == {-1.0}
    contexts = [tokens[at].tolist() for at, counts in trajectory.parts()]
    trained = [tokens[at[counts]].tolist() for at, counts in trajectory.parts()]
    assert [t for ids in trained for t in ids] == written
    for ids in engine.seen:  # each turn in the context that it was written in
        assert any(of[: len(ids)] == ids for of in contexts)
    exchanges = sum(isinstance(action, str) for action in actions) + 1
    if thinking == "off" and reasoning == "template":
        exchanges = len(actions)  # an empty thought leaves with its turn
    parts = {"kept": 1, "template": exchanges, "dropped": len(actions)}
    assert len(contexts) == parts[reasoning]


def test_a_model_whose_template_opens_the_thought(plays):
    domain, tools, solutions = plays
    folder = folder_with_prompt("<|im_start|>assistant\n<think>\n")
    chat = Chat(PretrainedTokenizer(folder))
    config = RolloutConfig(**{**vars(ROOMY), "reasoning": "template"})
    template, rng = transformers.AutoTokenizer.from_pretrained(folder), random.Random(4)
    for number in range(5):
        engine = Engine(domain, chat, config, rng, ("Be brief.", tools[:1]), template)
        assert engine.context == engine.wanted()
        for action in composed(rng, solutions[number]):
            engine.turn(action, rng.choice(THOUGHTS))
            assert engine.context == engine.wanted()
        assert all(turn.thought for turn in engine.episode._segments if turn.role == "agent")


def test_kept_thoughts_are_the_templates_within_an_exchange(tokenizer, plays):
    domain, tools, solutions = plays
    engine = Engine(domain, Chat(tokenizer), ROOMY, random.Random(2), ("Be brief.", tools[:2]))
    for call in solutions[0][:4]:
        engine.turn(call, "Let me look.")
        assert engine.context == engine.wanted()
    engine.turn("Done?", "Say so.")
    assert engine.context != engine.wanted()
    assert tokenizer.decode(engine.context).count("<think>\n") == len(engine.written)


def test_several_calls_of_a_turn_are_answered_as_the_template_has_it(tokenizer, plays):
    domain, tools, solutions = plays
    calls = next(of for of in solutions if len(of) > 2)[:3]
    engine = Engine(domain, Chat(tokenizer, "all"), ROOMY, random.Random(3),
                    ("Be brief.", tools[:2]))
    asked = [{"function": {"name": c.name, "arguments": dict(c.kwargs)}} for c in calls]
    text = "\n".join(
        f"<tool_call>\n{json.dumps(a['function'], ensure_ascii=False)}\n</tool_call>" for a in asked
    )
    ids = [*template_ids(f"Let me see.\n{text}"), engine.chat.stop_id]
    answer = engine.episode.turn(Turn(ids, [-1.0] * len(ids), [-1.0] * len(ids)))
    engine.context += [*ids, *answer.tokens]
    answers = [s for s in engine.episode._segments if s.role == "tool"]
    engine.messages += [
        {"role": "assistant", "content": "Let me see.", "tool_calls": asked},
        *({"role": "tool", "content": s.text} for s in answers),
    ]
    assert len(answers) == 3 and engine.context == engine.wanted()
    transfer = engine.chat.agent(Call("transfer_to_human_agents", {"summary": "x"}))
    handed = [*ids[:-1], *transfer[:-1], *ids[4:]]
    engine.episode.turn(Turn(handed, [-1.0] * len(handed), [-1.0] * len(handed)))
    trajectory = engine.episode.trajectory()
    first, second = trajectory.turns
    assert first.calls == calls and first.unheard == "Let me see." and not first.message
    assert [len(of) for of in trajectory.answers.values()] == [1, 3, 4]
    # Behind the transfer none was made.
    assert [c.name for c in second.calls] == [*(c.name for c in calls), "transfer_to_human_agents"]
    assert evidence(trajectory)["dialogue"][2] == {"turn": 0, "calls": [c.to_json() for c in calls]}
