"""The judge against a real server that fails in every way, and what training gets of it."""

import dataclasses

import pytest
from judged import episode

from tarl_jax.config import JudgeConfig, LLMConfig, NoiseConfig, RunConfig, UserConfig
from tarl_jax.judge import rules
from tarl_jax.judge.service import Judge
from tarl_jax.llm.errors import LLMError
from tarl_jax.training.masking import masked

# What becomes of an episode of 3 turns whose requests meet these, at two attempts a call.
CURED = [["ok"], ["429", "ok"], ["500", "ok"], ["malformed", "ok"],
         ["truncated", "ok"], ["prose", "ok"], ["miscounted", "ok"], ["prose", "miscounted", "ok"],
         ["500", "prose", "429", "ok"], ["minors", "ok"], ["majors"]]
LOST = {"rate_limited": [["429", "429"], ["prose", "429", "429"]], "server_error": [["500", "500"]],
        "timeout": [["408", "408"]], "malformed": [["malformed", "malformed"]],
        "connection": [["drop", "drop"]], "bad_request": [["400"]],
        "unusable": [["prose", "miscounted", "prose"]]}


@pytest.fixture
def judge(openai_server, tmp_path):
    """Makes judges, with what they log; closes them."""
    made = []

    def make(max_majors=1, noise=NoiseConfig(), required=True, users=None, **llm):  # noqa: B008
        config = LLMConfig(**{"model": "judge", "base_url": openai_server.url, "api_key_env": "",
                              "temperature": 0.0, "max_attempts": 2, "backoff_seconds": 0.0,
                              "max_in_flight": 8, **llm})
        lines = []
        settings = JudgeConfig("llm", max_majors, 60.0, required, config, noise)
        one = Judge(settings, tmp_path, lines.append, users=users)
        one.lines = lines
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def episodes(count, turns=3):
    return [episode([0] * turns, task_id=str(i), seed=i, user=f"I am {i}.") for i in range(count)]


def scores(judgements):
    return [j.scores if j else None for j in judgements]


def test_every_turn_gets_its_grade_and_reason(openai_server, judge):
    openai_server.plan()
    found, = judge().judge_all(episodes(1, 5))
    assert found.scores == [1, 0, 1, 0, 1] and found.notes[4] == "reason 4"
    assert found.minors == [False, True, False, False, False]
    body = openai_server.report()["last"]["body"]
    assert body["response_format"]["json_schema"]["schema"]["properties"].keys() == {"turns"}
    assert body["temperature"] == 0


def test_each_fault_is_cured_or_an_abstention_of_its_kind(openai_server, judge):
    fates = [*CURED, *(fate for fates in LOST.values() for fate in fates)]
    openai_server.plan(*[step for fate in fates for step in fate], retry_after="0")
    played = episodes(len(fates))
    one = judge(max_in_flight=1)  # one at a time, so that each meets its own
    found = scores(one.judge_all(played))
    good = len(CURED)
    assert found[: good - 1] == [[1, 0, 1]] * (good - 1)
    assert found[good - 1] == [-1, 0, 0]  # of three -1s the later ones are knock-ons
    assert found[good:] == [None] * (len(fates) - good)
    counts = one.counts()
    assert {k: v for k, v in counts.items() if k.startswith("judge/abstained/")} == {
        f"judge/abstained/{kind}": len(those) for kind, those in LOST.items()}
    assert (counts["judge/repaired"], counts["judge/knock_ons"]) == (5, 2)
    assert counts["judge/requests"] == openai_server.report()["requests"] == sum(map(len, fates))
    assert counts["judge/faults/server_error"] == sum(f.count("500") for f in fates)
    assert len(one.lines) == len(LOST) and any("unusable" in line for line in one.lines)
    assert one.counts()["judge/calls"] == 0  # since the last time


def test_a_server_that_hangs_is_an_abstention(openai_server, judge):
    openai_server.plan(fractions={"hang": 1.0})
    one = judge(timeout_seconds=0.2)
    assert one.judge_all(episodes(3)) == [None] * 3
    assert one.counts()["judge/abstained/timeout"] == 3


def test_thirty_in_a_hundred_requests_fail_and_nothing_is_paid_twice(
    openai_server, judge, tmp_path
):
    faults = ("429", "500", "malformed", "truncated", "drop", "prose", "miscounted", "majors")
    openai_server.plan(fractions=dict.fromkeys(faults, 0.3 / len(faults)), seed=3,
                       retry_after="0")
    played, record = episodes(200), str(tmp_path / "record.jsonl")
    first = judge(record=record)
    found, counts = scores(first.judge_all(played)), first.counts()
    report = openai_server.report()
    assert report["injected"].keys() == set(faults) and counts["judge/requests"] == (
        report["requests"])
    lost = found.count(None)
    assert 0 < lost < 60 and lost == sum(v for k, v in counts.items() if "/abstained/" in k)
    assert all(s in (None, [1, 0, 1], [-1, 0, 0]) for s in found)
    assert counts["judge/knock_ons"] == 2 * found.count([-1, 0, 0]) > 0

    openai_server.plan()
    replayed = judge(replay=record)
    assert scores(replayed.judge_all(played)) == found
    again = judge()  # the cache: only what failed is asked again, and judged this time
    better = scores(again.judge_all(played))
    unusable = counts.get("judge/abstained/unusable", 0)
    assert openai_server.report()["requests"] == lost - unusable
    assert [b for b, s in zip(better, found, strict=True) if s] == [s for s in found if s]
    assert better.count(None) == unusable
    openai_server.plan()
    assert scores(judge().judge_all(played)) == better
    assert openai_server.report()["requests"] == 0


def test_a_spent_budget_abstains_and_says_so_once(openai_server, judge):
    openai_server.plan()
    one = judge(max_calls=3)
    found = scores(one.judge_all(episodes(8)))
    assert found.count(None) == 5 == one.counts()["judge/abstained/budget"]
    assert len(one.lines) == 1 and "config.judge.llm.max_calls = 3" in one.lines[0]
    one.judge_all(episodes(9)[8:])
    assert len(one.lines) == 1 and one.counts()["judge/abstained/budget"] == 1


def test_several_majors_where_they_are_allowed(openai_server, judge):
    openai_server.plan("majors")
    assert scores(judge(max_majors=2).judge_all(episodes(1))) == [[-1, -1, 0]]


def test_what_cannot_be_judged_is_not_asked_about(openai_server, judge):
    openai_server.plan()
    broken = episode([1], success=None)
    maths = episode([1])
    maths.task = dataclasses.replace(maths.task, kind="maths")
    assert scores(judge().judge_all([broken, maths, episode([])])) == [None] * 3
    assert openai_server.report()["requests"] == 0


def test_equal_episodes_are_asked_about_once_and_repeats_anew(openai_server, judge):
    openai_server.plan()
    one, twin = judge(), dataclasses.replace(episode([1, 1]), seed=5)
    one.judge_all([episode([1, 1]), twin])
    assert openai_server.report()["requests"] == 1
    one.judge_all([twin], repeat=1)
    assert openai_server.report()["requests"] == 2


def test_judging_begins_when_an_episode_ends(openai_server, judge):
    class Ended:
        def __init__(self, trajectory):
            self.trajectory = lambda: trajectory

    openai_server.plan("hold", "hold")
    one, played = judge(), episodes(2)
    for trajectory in played:
        one.begin(Ended(trajectory))
    while openai_server.report()["in_flight"] < 2:
        pass  # both are under way at once, and nobody waits for them
    openai_server.release()
    assert scores(one.judge_all(played)) == [[1, 0, 1]] * 2
    assert one.counts()["judge/calls"] == 2


def test_noise_is_for_training_alone(openai_server, judge):
    openai_server.plan()
    one = judge(noise=NoiseConfig(optimism=1.0))
    assert scores(one.judge_all(episodes(1))) == [[1, 1, 1]]
    assert scores(one.judge_all(episodes(1), exact=True)) == [[1, 0, 1]]


def test_a_missing_key_is_told_before_the_run(judge):
    with pytest.raises(LLMError, match=r"JUDGE_KEY .*config\.judge\.llm\.api_key_env"):
        judge(api_key_env="JUDGE_KEY").check()


def test_the_rules_stand_behind_the_same_interface(tmp_path, tiny_env):
    script = tiny_env.train_tasks[0]
    scripted = dataclasses.replace(episode([1]), task=script)
    with Judge(JudgeConfig(), tmp_path) as one:
        one.check()
        assert one.judge_all([scripted, episode([1])]) == [rules.judge(scripted), None]
        assert one.counts() == {} and not list(tmp_path.iterdir())


def test_a_model_that_refuses_everything_stops_the_run(openai_server, judge):
    openai_server.plan(*["401"] * 4)
    one = judge(max_in_flight=1)
    with pytest.raises(LLMError, match="401") as caught:
        one.judge_all(episodes(2))
    assert caught.value.kind == "unauthorized"
    assert any("unauthorized" in line for line in one.lines)


def test_a_model_that_refuses_may_be_done_without(openai_server, judge):
    openai_server.plan(*["401"] * 4)
    assert judge(max_in_flight=1, required=False).judge_all(episodes(2)) == [None, None]


def test_one_answer_is_enough_to_go_on(openai_server, judge):
    openai_server.plan("401", "ok", "401")
    found = judge(max_in_flight=1).judge_all(episodes(3))
    assert [j is not None for j in found] == [False, True, False]


def spoken_to(count, wrong=()):
    """Episodes of a task without a script and without gold writes: no rule decides on its user."""
    played = [episode([0] * 3, task_id=str(i), seed=i, task="Ask for the weather.",
                      user="WRONG." if i in wrong else f"I am {i}.") for i in range(count)]
    for t in played:
        t.task = dataclasses.replace(t.task, gold_calls=())
    return played


def test_users_that_no_rule_decides_on_are_judged_by_the_model(openai_server, judge):
    openai_server.plan()
    played = spoken_to(6, wrong=(1, 4))
    one = judge(model="inspector", users=UserConfig(kind="llm"))
    one.check_users(played)
    wrong = [["contradicts: it says WRONG"] * 2]
    assert [t.user_faults for t in played] == [[], *wrong, [], [], *wrong, []]
    report = openai_server.report()
    assert report["requests"] == 5  # two say the same
    schema = report["last"]["body"]["response_format"]["json_schema"]["schema"]
    assert schema["properties"].keys() == {"faults"}
    # Kept: nothing is asked twice.
    one.check_users(played)
    assert openai_server.report()["requests"] == 5


def test_a_user_that_nobody_could_judge_is_unknown_and_counted(openai_server, judge):
    openai_server.plan("500", "500", "prose", "prose", "prose", "prose", "ok")
    played = spoken_to(3)
    one = judge(model="inspector", users=UserConfig(kind="llm"), max_in_flight=1)
    one.check_users(played)
    assert [t.user_faults for t in played] == [None, None, []]
    counts = one.counts()
    assert counts["judge/users_abstained/server_error"] == 1
    assert counts["judge/users_abstained/unusable"] == 1
    assert "judge/abstained/unusable" not in counts  # of scores


def expected_of(count, *assertions, basis=("DB", "NL_ASSERTION"), success=True):
    """Episodes whose tasks expect these, as tau2-bench's do."""
    played = [episode([0] * 2, task_id=str(i), seed=i, user=f"I am {i}.", success=success)
              for i in range(count)]
    for t in played:
        t.task = dataclasses.replace(t.task, assertions=assertions, reward_basis=basis)
    return played


def test_assertions_that_a_reward_hangs_on_are_asked_of_the_model(openai_server, judge):
    openai_server.plan()
    one = judge(model="reader")
    met, = expected_of(1, "Is polite.", "Gives the total.")
    missed, = expected_of(1, "Is polite.", "Is WRONG.")
    idle = [*expected_of(1), *expected_of(1, "Is WRONG.", basis=("DB",)),
            *expected_of(1, "Is WRONG.", success=False)]
    one.check_assertions([met, missed, *idle])
    assert met.assertions_met == [True, True] and met.success
    assert missed.assertions_met == [True, False] and missed.success is False
    assert missed.gold_diff[-1] == "not met: Is WRONG."
    assert [t.assertions_met for t in idle] == [None] * 3
    assert [t.success for t in idle] == [True, True, False]
    report = openai_server.report()
    assert report["requests"] == 2
    body = report["last"]["body"]
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"].keys() == {"results"}
    assert "Is polite." in body["messages"][1]["content"]
    again, = expected_of(1, "Is polite.", "Gives the total.")
    one.check_assertions([again])
    assert again.assertions_met == [True, True]
    assert openai_server.report()["requests"] == 2  # kept: nothing is asked twice


def test_assertions_without_an_answer_are_open_counted_and_teach_nothing(openai_server, judge):
    openai_server.plan("500", "500", "prose", "prose", "prose", "ok")
    played = expected_of(3, "Is polite.")
    one = judge(model="reader", max_in_flight=1)
    one.check_assertions(played)
    assert [t.assertions_met for t in played] == [[], [], [True]]
    assert [t.success for t in played] == [True] * 3  # what the rules say; nobody knows the rest
    counts = one.counts()
    assert counts["judge/assertions_abstained/server_error"] == 1
    assert counts["judge/assertions_abstained/unusable"] == 1
    assert [t.success for t in masked(played, RunConfig())] == [None, None, True]
    # Rules read no assertion: there the verdict is of what rules can tell.
    played = expected_of(2, "Is polite.")
    Judge(JudgeConfig(), "").check_assertions(played)
    assert [t.assertions_met for t in played] == [None] * 2
    assert [t.success for t in masked(played, RunConfig())] == [True] * 2
