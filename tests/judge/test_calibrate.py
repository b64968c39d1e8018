"""The command on saved episodes: what it prints, warns of, draws and refuses."""

import json

from judged import episode

from tarl_jax.judge.calibrate import load_groups, main
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


def test_two_judges_on_a_run(tmp_path, capsys):
    saved(tmp_path)
    assert main([str(tmp_path), "--judge", "saved", "--judge", "saved"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "8 episodes, 0 of them passed" in out and "same 1.000, kappa 1.000" in out
    assert "reward.denominator = taken the reward pays for giving up" in out
    assert "reward.denominator = expert the reward" not in out
    assert (tmp_path / "judges.png").read_bytes()[:4] == b"\x89PNG"


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
