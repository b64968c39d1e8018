"""The command on saved episodes: what it prints, warns of, draws and refuses."""

import json

from judged import episode

from tarl_jax.judge.calibrate import judged, load_groups, main, remarks
from tarl_jax.judge.rules import Judgement
from tarl_jax.runs.metrics import append_trajectories


def saved(folder):
    """A step of two tasks whose scores pay for giving up, all episodes failing."""
    played = []
    for name in ("a", "b"):
        for done in (0, 1, 2, 3):
            played.append(episode(
                [1] * (2 + 2 * done) + [0] * 3 * done, task_id=name, seed=done, success=False,
                diff=[f"orders #W{i} x: 0 -> 1" for i in range(done)],
                gold_diff=[f"orders #W{i} x: 1 -> 0" for i in range(done, 4)], expert_turns=20,
            ))
    return append_trajectories(folder, 1, played)


def said(task, success, score, note):
    """An episode of one turn, which does the only goal if the episode passed."""
    found = episode([score], task_id=task, success=success)
    found.segments[-1].info["fulfilled"] = [0] if success else []
    found.turn_minors, found.judge_notes = [score == 0], [note]
    return found


def test_two_judges_on_a_run(tmp_path, capsys):
    saved(tmp_path)
    assert main([str(tmp_path), "--judge", "saved", "--judge", "saved"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "8 episodes, 0 of them passed" in out and "same 1.000, kappa 1.000" in out
    assert "reward.denominator = taken the reward pays for giving up" in out
    assert "reward.denominator = expert the reward" not in out
    assert (tmp_path / "judges.png").read_bytes()[:4] == b"\x89PNG"


def test_what_the_notes_tell_of_the_outcome(tmp_path, capsys):
    """One turn each: right where the episode passed, and one that says so."""
    path = append_trajectories(tmp_path, 1, [
        said(f"t{i}", i % 2 == 0, 1 if i % 4 < 3 else 0, f"grants #W{i}" if i % 2 == 0 else "loses")
        for i in range(40)
    ])
    assert main([str(path), "--judge", "saved", "--plot", str(tmp_path / "a.png")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "grants │ 20 │ 1.00" in out and "loses │ 10 │ 0.00" in out
    assert "right │ (all) │ 30 │ 0.67" in out and "minor │ (all) │ 10 │ 0.00" in out
    assert "all turns │ 40 │ 0.50" in out
    # "right" on 30 turns, of which 20: 1 - 0.75 H(2/3) bits, with as many cells more as less. The
    # note tells all: 1 bit, and (2 + 1 - 2) / 80 nats of correction.
    assert "│ 0.3113 ± " in out and "│ 1.0180 ± " in out


def test_a_judge_without_notes_and_minors_is_read_as_it_was_saved():
    old = episode([1, 0, -1])
    (judgement,), = judged("saved", [old], None, 1)
    assert judgement == Judgement([1, 0, -1], [""] * 3)
    old.turn_scores = None
    assert judged("saved", [old], None, 1) == [[None]]


def test_a_remark_is_of_the_request_that_the_turn_belongs_to():
    t = episode([1, 0, 0], success=False)
    t.segments[5].info["fulfilled"] = [0]  # the call of turn 1 does the only goal
    judgement = Judgement([1, 0, 0], ["a", "b 12", "c"], [False, False, True])
    assert [(r.right, r.note, r.grade) for r in remarks([t], [judgement])] == [
        (True, "a", "right"), (True, "b", "neutral"), (False, "c", "minor")]
    assert remarks([t], [None]) == []
    t.success = None
    assert remarks([t], [judgement]) == []


def test_free_text_is_not_listed(tmp_path, capsys):
    letters = [f"{a}{b}" for a in "abcdefghijk" for b in "abcdefghijk"]
    path = append_trajectories(tmp_path, 1, [
        said(f"t{i}", i % 2 == 0, 1, note) for i, note in enumerate(letters)])
    assert main([str(path), "--plot", str(tmp_path / "a.png")]) == 0
    out = capsys.readouterr().out
    assert "free text" in out and " ab " not in out


def test_groups_are_whole(tmp_path):
    path = saved(tmp_path)
    assert [len(g) for g in load_groups(path, "step", 0, 0)] == [4, 4]
    assert [len(g) for g in load_groups(tmp_path, "step", 1, 7)] == [4]


def test_a_wrong_judge_or_folder_is_told(tmp_path, capsys):
    path = saved(tmp_path)
    (tmp_path / "judge.json").write_text(json.dumps({"kind": "llm", "lm": {}}))
    assert main([str(path), "--judge", str(tmp_path / "judge.json")]) == 2
    assert "did you mean 'llm'" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing")]) == 2
    assert "holds no episode" in capsys.readouterr().err
