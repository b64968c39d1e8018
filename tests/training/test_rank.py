"""Gradients of a table against its expected return, and ways of crediting on made episodes."""

import itertools
import json
import math

import numpy as np
import pytest
from judged import episode as saved_episode

from tarl_jax.runs.metrics import append_trajectories
from tarl_jax.training.gradient_signal import BLOCKS, estimates, make_design, signal
from tarl_jax.training.rank import judge_anew, main, rank
from tarl_jax.training.tabular import fit, gradients, read_turns, states_of
from tarl_jax.types import Call, Segment, Task, Trajectory

OWN = """
from tarl_jax.config.presets import sized
from tarl_jax.training.parts import Parts
import numpy as np

def get_config(size="tiny"):
    return sized(size)

def key_turn(groups, config):
    def of(group, t):
        passed = t.success - np.mean([e.success for e in group])
        return np.concatenate([
            np.full(len(s.token_ids), passed * any(call.name == "decide" for call in s.calls))
            for s in t.segments
        ])
    return [[of(group, t) for t in group] for group in groups]

def get_parts():
    return Parts(advantage=key_turn)
"""


# ---- the table ------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_expected_return():
    # From s0 action a leads to s1, b to the end; each visited as often as the policy says.
    played = [("ax", 1, 1.0), ("ay", 2, -0.5), ("b", 1, 0.3)]  # (actions, how often, return)
    states, actions, returns = [], [], []
    for word, times, value in played:
        for _ in range(times):
            for place, action in enumerate(word):
                states.append(f"s{place}")
                actions.append(action)
                returns.append(value)
    policy = fit(states, actions)
    found = gradients(policy, np.array(returns) / 4, np.zeros(len(states), int), 1)[0]

    def expected(logits):
        chance = {}
        for state, of in (("s0", "ab"), ("s1", "xy")):
            total = sum(math.exp(logits[state, a]) for a in of)
            chance.update({(state, a): math.exp(logits[state, a]) / total for a in of})
        return sum(
            value * math.prod(chance[f"s{i}", a] for i, a in enumerate(word))
            for word, _, value in played
        )

    cells = {(s, a): policy.cell[i] for i, (s, a) in enumerate(zip(states, actions, strict=True))}
    at = {key: math.log(policy.probability[cell]) for key, cell in cells.items()}
    assert len(cells) == len(policy.state) == 4 and policy.states == 2
    for key, cell in cells.items():
        above, below = ({**at, key: at[key] + step} for step in (1e-5, -1e-5))
        slope = (expected(above) - expected(below)) / 2e-5
        assert found[cell] == pytest.approx(slope, abs=1e-9)


def test_groups_keep_their_own_gradients():
    policy = fit(["s", "s", "s", "t"], ["a", "b", "a", "a"])
    group = np.array([0, 1, 1, 0])
    found = gradients(policy, np.array([1.0, 2.0, -1.0, 5.0]), group, 3)
    # Cells (s, a), (s, b), (t, a); pi(a | s) = 2/3.
    np.testing.assert_allclose(found, [[1 / 3, -1 / 3, 0], [-1 - 2 / 3, 2 - 1 / 3, 0], [0, 0, 0]])


# ---- directions -----------------------------------------------------------------------------


def gradients_of(mean, groups, noise, seed):
    rng = np.random.default_rng(seed)
    return mean + noise * rng.standard_normal((groups, len(mean)))


def test_cosines_are_those_of_summed_vectors():
    reference = gradients_of(np.ones(5), 12, 1.0, 0)
    way = gradients_of(np.arange(5.0), 12, 1.0, 1)
    design = make_design([str(i) for i in range(12)], 4, 7, seed=3)
    expected = []
    for (drawn, against), order in zip(design.halves, design.orders, strict=True):
        assert set(drawn) | set(against) == set(range(12)) and not set(drawn) & set(against)
        goal = reference[against].sum(axis=0)
        for draw in order:
            mine = way[draw[:4]].sum(axis=0)
            expected.append(mine @ goal / np.linalg.norm(mine) / np.linalg.norm(goal))
    assert estimates(design, [way], [reference])[0][0, 0] == pytest.approx(np.mean(expected))
    # One array per half is the same, where all are the same.
    again = estimates(design, [way] * len(design.halves), [way, reference])[1]
    np.testing.assert_allclose(again, estimates(design, [way], [reference])[0])


def test_the_asymptotic_cosine_sees_through_noise():
    reference = gradients_of(np.array([1.0, 0, 0, 0, 0, 0]), 900, 1.0, 0)
    biased = gradients_of(np.array([1.0, 1, 0, 0, 0, 0]), 900, 1.0, 1)
    design = make_design([str(i) for i in range(900)], 16, 20, seed=0)
    baseline, = estimates(design, [reference], [reference])
    of = signal(*estimates(design, [biased], [reference]), baseline)
    assert of.cosine < of.asymptotic - 0.05
    assert of.asymptotic == pytest.approx(math.sqrt(0.5), abs=0.1)
    assert of.asymptotic_error < 0.1
    of = signal(baseline, baseline)
    assert (of.equivalent, of.equivalent_error) == (1, 0)
    assert of.asymptotic == pytest.approx(1) and of.cosine_error > 0


def test_a_task_stands_on_one_side_only():
    tasks = [str(i // 2) for i in range(20)]
    design = make_design(tasks, 3, 2, seed=0)
    for drawn, against in design.halves:
        assert not {tasks[i] for i in drawn} & {tasks[i] for i in against}
    assert all(design.blocks[2 * i] == design.blocks[2 * i + 1] for i in range(10))


def test_errors_are_a_jackknife():
    values = np.random.default_rng(0).standard_normal(BLOCKS)
    means = [values.mean(), *(np.delete(values, i).mean() for i in range(BLOCKS))]
    of = signal(np.array([means, means]), np.ones((2, BLOCKS + 1)))
    assert of.cosine_error == pytest.approx(values.std(ddof=1) / math.sqrt(BLOCKS))


# ---- episodes -------------------------------------------------------------------------------


def episode(task, seed, good, others, scores=None, notes=()):
    """A turn "decide", whose note says whether it was good, among turns that do nothing."""
    segments = [Segment.forced("user", [1], -1, "Hello.")]
    for turn, (name, _) in enumerate(others):
        segments += [
            Segment("agent", [5, 6], [True, True], [-1.0, -1.0], turn, "",
                    calls=[Call(name, {})]),
            Segment.forced("tool", [0, 7], turn, "{}", error=False, wrote=False),
        ]
    record = Task(f"t{task}", "u", "", (Call("decide", {}),), (), "train", "own", None, len(others))
    return Trajectory(
        record, seed, segments, "user_stop", good, turn_scores=scores,
        judge_notes=list(notes) or [note for _, note in others],
        gold_diff=[] if good else ["orders #1 x: 0 -> 1"], diff=["orders #1 x: 1 -> 0"] * good,
    )


def toy(tasks=48, size=6, judged=True):
    """Success is what "decide" does; the judge, who likes every other turn, says nothing of it."""
    rng = np.random.default_rng(0)
    groups = []
    for task in range(tasks):
        group = []
        for seed in range(size):
            good = bool(rng.random() < 0.5)
            others = [(f"look_{rng.integers(4)}", "") for _ in range(6)]
            others.insert(3, ("decide", "good" if good else "bad"))
            scores = [int(rng.integers(0, 2)) for _ in others] if judged else None
            group.append(episode(task, seed, good, others, scores))
        groups.append(group)
    return groups


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(OWN)
    return rank(toy(), 8, 40, 0, [path])


def test_the_way_that_finds_the_deciding_turn_comes_first(ranked):
    rows = {row.way: row for row in ranked.rows}
    assert ranked.rows[0].way == "mine"
    assert rows["mine"].signal.equivalent > 1.5
    assert rows["mine"].signal.asymptotic == pytest.approx(1, abs=0.15)
    # The judge's scores are noise here, which costs.
    assert rows["TARL, divided"].signal.equivalent < 1 < rows["mine"].signal.equivalent
    assert rows["TARL + turns"].signal.equivalent < rows["TARL, divided"].signal.equivalent


def test_rows_that_must_agree(ranked):
    rows = {row.way: row for row in ranked.rows}
    base = rows["verdict, undivided"].signal
    assert base.equivalent == 1 and base.equivalent_error == 0
    for one, other in (("verdict, undivided", "verdict, RLOO"),
                       ("TARL, undivided", "TARL, batch")):  # the same but for a constant
        assert rows[one].signal.cosine == pytest.approx(rows[other].signal.cosine)
    assert "value model" in ranked.left_out["PPO"]
    assert ranked.facts["mixed_groups"] == sum(
        0 < sum(t.success for t in g) < len(g) for g in toy()
    ) == round(48 * rows["verdict, undivided"].share)
    # All of the task is one record, so its share that is right is the verdict.
    assert base == rows["verdict, undivided"].goals


def test_the_same_seed_gives_the_same_numbers(ranked):
    def rows(seed):
        return rank(toy(), 8, 40, seed).to_json()["rows"]

    again = rows(0)
    assert again == [row for row in ranked.to_json()["rows"] if row["way"] != "mine"]
    assert rows(1) != again


def test_an_advantage_per_token_becomes_one_per_turn():
    turns = read_turns([[episode(0, 0, True, [("look", ""), ("decide", "")])]])
    # Tokens: the user's, two of a turn, two of the tool, two of a turn, two of the tool.
    given = np.array([9, 1, 3, 9, 9, 5, 5, 9, 9.0])
    np.testing.assert_allclose(turns.mean_over_tokens([given]), [2, 5])
    np.testing.assert_allclose(turns.mean_over_tokens([0.25]), [0.25, 0.25])


def test_free_notes_count_as_their_scores():
    def cells(texts):
        groups = [[episode(0, i, True, [("look", "")], [i % 2], [text])]
                  for i, text in enumerate(texts)]
        return len(read_turns(groups).policy.state)

    assert cells([f"reads order #W{i}" for i in range(100)]) == 1  # an id is not a note
    assert cells(["right", "wrong"] * 50) == 2
    letters = itertools.product("abcdefghij", repeat=2)
    assert cells(["".join(pair) for pair in letters]) == 2  # too many: the two scores


def test_states_of_a_scripted_task():
    script = {"requests": [{"kind": "cancel", "denial": ""}, {"kind": "return", "denial": "late"}]}
    t = episode(0, 0, True, [("look", ""), ("", ""), ("", ""), ("look", "")])
    t.task = Task("t", "u", "", (), (), "train", "shop", script, 4)
    answers = [s for s in t.segments if s.role == "tool"]
    answers[0].info.update(request=0, error=True)
    for answer, event in zip(answers[1:3], ("changed_mind", "next_request"), strict=True):
        answer.role = "user"
        answer.info.update(request=0, event=event)
    answers[3].info = {"malformed": True}
    for turn in t.turns[1:3]:
        turn.calls = []
    assert states_of(t) == [
        ("cancel", False, False, "opening", 0),
        ("cancel", False, False, ("tool", True, "", "look"), 1),
        ("cancel", False, True, ("user", False, "changed_mind", ""), 2),
        ("return", True, False, ("user", False, "next_request", ""), 0),
    ]


def test_states_of_any_other_task():
    t = episode(0, 0, True, [("decide", ""), ("look", "")])
    t.segments[2].info["wrote"] = True
    done = (0, "opening", ""), (1, ("tool", False, "", "decide"), "decide")
    assert tuple(states_of(t)) == done
    t.segments[2].info["fulfilled"] = []  # what the database shows counts more than the call
    assert states_of(t)[1][0] == 0


# ---- the command ----------------------------------------------------------------------------


def saved(folder, groups):
    return append_trajectories(folder, 1, [t for g in groups for t in g])


def test_the_command(tmp_path, capsys):
    groups = toy(24, judged=False)
    groups[0][0].success = None  # broken from outside
    saved(tmp_path, [*groups, groups[0][:2]])
    out = tmp_path / "rows.json"
    assert main([str(tmp_path), "--groups", "6", "--draws", "20", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "verdict, undivided" in said and "data-equiv." in said
    assert "left out: TARL, divided: needs a judge" in " ".join(said.split())
    assert "2 episodes in groups of another size" in said
    assert max(map(len, said.splitlines())) <= 80
    record = json.loads(out.read_text())
    assert record["groups"] == 24 and record["judged"] == 0
    assert next(r["way"] for r in record["rows"] if r["equivalent"] == 1).startswith("verdict")
    assert "PPO" in record["left_out"]


def test_few_mixed_groups_are_told(tmp_path, capsys):
    saved(tmp_path, toy(8))
    assert main([str(tmp_path), "--groups", "3", "--draws", "10"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Only 8 groups are mixed" in said or "Only 7 groups are mixed" in said
    assert said.count("way cosine") == 2


def fails(arguments, capsys):
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_what_the_command_refuses(tmp_path, capsys):
    assert "no such run" in fails([tmp_path / "nothing"], capsys)
    assert "holds no episode" in fails([tmp_path], capsys)
    path = saved(tmp_path, toy(8))
    assert "--groups 5: 8 groups of 8 tasks" in fails([path, "--groups", "5"], capsys)
    assert "no such file" in fails([path, "--groups", "3", "--config", "no.py"], capsys)
    assert "--judge no.json" in fails([path, "--judge", "no.json"], capsys)
    saved(tmp_path, toy(8, size=1))
    assert "groups of one episode" in fails([tmp_path], capsys)
    failing = toy(8)
    for t in (t for g in failing for t in g):
        t.success = False
    saved(tmp_path, failing)
    assert "all episodes of all 8 groups fail" in fails([tmp_path], capsys)
    failing[0][0].success = True
    saved(tmp_path, failing)
    assert "1 of 8 groups hold both" in fails([tmp_path], capsys)


def test_a_judge_asked_anew_leaves_nothing_of_the_saved_one(tmp_path):
    one = saved_episode([0, 1])  # without a script: the rules abstain
    one.turn_minors, one.judge_notes = [True, False], ["a", "b"]
    judge_anew("rules", [[one]], tmp_path)
    assert one.turn_scores is None and one.turn_minors is None and one.judge_notes == []
