"""What is half-written, empty, broken, or gone is said in words, and the rest is shown."""

import json
import os
import shutil
import threading
import urllib.error
import urllib.request

import pytest

from tarl_jax.config import InputError, RunConfig
from tarl_jax.runs.directory import open_run_dir
from tarl_jax.runs.metrics import MetricsWriter, append_trajectories
from tarl_jax.types import Segment, Task, Trajectory
from tarl_jax.view.__main__ import main
from tarl_jax.view.records import answer, open_source
from tarl_jax.view.server import make_server

TASK = Task("shop-0", "ada_1", "Wants a lamp.", (), (), "train", "shop", None, 3)
EPISODE = Trajectory(
    TASK, 1, [Segment.forced("user", [3], -1, "Hi."),
              Segment("agent", [5], [True], [-0.5], 0, "Hello.", "Hello.")],
    "user_stop", True, turn_scores=[1], judge_notes=["kind"], reward=1.0, advantages=[[0.5]])
LINE = EPISODE.to_json_line()


@pytest.fixture
def run(tmp_path):
    made = open_run_dir(RunConfig(workdir=str(tmp_path / "a" / "run")))
    append_trajectories(made, 1, [EPISODE])
    with MetricsWriter(made) as writer:
        writer.write(1, "train", {"train/pass_rate": 0.5})
    return made


def changed(**fields):
    """The line of an episode with other values; of its first segment with `segment_…`."""
    data = json.loads(LINE)
    for name, value in fields.items():
        place = data["segments"][0] if name.startswith("segment_") else data
        place[name.removeprefix("segment_")] = value
    return json.dumps(data)


def states(*paths):
    return answer([open_source(str(path)) for path in paths], "state")


# ---- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, content", [
    ("config.json", '{"rl.steps": 3'), ("config.json", "[]"), ("config.json", '"text"'),
    ("versions.json", "{}"), ("versions.json", "[{"), ("config.json", b"\xff\xfe{"),
])
def test_a_broken_file_is_named_and_hides_no_other_run(run, tmp_path, name, content):
    good = shutil.copytree(run, tmp_path / "good")
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    first, second = states(run, good)
    assert str(run / name) in first["problem"] and first["name"] == "run"
    assert "problem" not in second and second["files"]["train"] == [1]


def test_a_run_is_shown_whatever_is_not_there_yet(run):
    for name in ("metrics.jsonl", "versions.json", "trajectories"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        (found,) = states(run)
        assert "problem" not in found
    assert found["files"] == {"train": [], "eval": []} and found["steps"] == 60
    assert answer([open_source(str(run))], "metrics/0") == []


def test_a_run_that_is_deleted_while_the_page_is_open_is_gone_in_words(run, tmp_path):
    good = shutil.copytree(run, tmp_path / "good")
    sources = [open_source(str(path)) for path in (run, good)]
    before = answer(sources, "state")[0]["stamp"]
    shutil.rmtree(run)
    first, second = answer(sources, "state")
    assert "is gone" in first["problem"] and first["stamp"] != before and not first["live"]
    assert "problem" not in second
    with pytest.raises(InputError, match="no episodes"):
        answer(sources, "episodes/0/train/1")


def test_a_run_whose_steps_take_long_is_live_while_its_lock_is_held(run):
    for path in (run / "metrics.jsonl", *(run / "trajectories").iterdir()):
        os.utime(path, (0, 0))
    assert not states(run)[0]["live"]
    (run / "run.lock").write_text("{}")
    assert states(run)[0]["live"]
    (run / "summary.json").write_text("{}")
    os.utime(run / "run.lock", (0, 0))  # its owner was killed
    assert not states(run)[0]["live"]


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "b" / "run")
    third = shutil.copytree(run, tmp_path / "b" / "third")
    assert [s["name"] for s in states(run, other, third)] == ["a/run", "b/run", "third"]
    assert [s["name"] for s in states(run, third)] == ["run", "third"]


@pytest.mark.parametrize("line", ['{"step": 1e999, "kind": "train"}', '{"kind": "train"}', "[1]"])
def test_a_broken_line_of_metrics_is_named(run, line):
    path = run / "metrics.jsonl"
    path.write_text(f"{line}\n" + path.read_text())
    with pytest.raises(InputError, match=r"metrics\.jsonl:1: not a JSON object with a step"):
        answer([open_source(str(run))], "metrics/0")


# ---- episodes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [
    {"segments": None}, {"segments": [3]}, {"turn_scores": "+1"}, {"diff": {"a": 1}},
    {"advantages": 3}, {"task": "shop-0"}, {"reward_parts": [1]}, {"segment_text": None},
    {"segment_token_ids": 7}, {"segment_token_ids": [[7]]}, {"segment_calls": ["call"]},
    {"segment_info": []}, {"segment_sound": "clip.flac"}, {"segment_log_probs": "x"},
])
def test_what_is_no_episode_is_named_with_its_line(tmp_path, fields):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{LINE}\n{changed(**fields)}\n")
    with pytest.raises(InputError, match=r"mine\.jsonl:2: not an episode .*; mend or delete"):
        open_source(str(path))


def test_a_line_that_is_still_being_added_is_left_out(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{LINE}\n{LINE[:200]}")
    assert len(answer([open_source(str(path))], "episodes/0/train/0")) == 1
    path.write_text(f"{LINE[:200]}\n{LINE}\n")
    with pytest.raises(InputError, match=r"mine\.jsonl:1"):
        open_source(str(path))


@pytest.mark.parametrize("token", [10**9, 2**70, -1])
def test_tokens_of_another_tokenizer_are_numbers(tmp_path, token):
    path = tmp_path / "mine.jsonl"
    path.write_text(changed(segment_token_ids=[token]) + "\n")
    found = answer([open_source(str(path))], "episode/0/train/0/0")
    assert found["segments"][0]["ids"] == [token] and found["pieces"] == {}


# ---- what is no run ----------------------------------------------------------------------------


@pytest.mark.parametrize("content", [
    "{}", "[]", "3", "{", '{"info": [], "tasks": [], "simulations": []}',
    '{"info": {"environment_info": {"domain_name": "x"}, "agent_info": "me"}, "tasks": [],'
    ' "simulations": []}',
    '{"info": {"environment_info": {"domain_name": "x"}}, "tasks": [{"id": "1"}],'
    ' "simulations": [{"task_id": "1"}]}',
    '{"info": {"environment_info": {"domain_name": "x"}}, "tasks": [{"id": "1", "user_scenario":'
    ' {"instructions": ""}}], "simulations": [{"task_id": "1", "messages": [],'
    ' "termination_reason": "user_stop", "reward_info": {"reward": 1, "action_checks": [3]}}]}',
])
@pytest.mark.parametrize("flags", [["--dry_run"], ["--out=report.html"]])
def test_what_is_no_result_of_tau2_is_one_line(tmp_path, monkeypatch, capsys, content, flags):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.json").write_text(content)
    assert main(["results.json", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: results.json:") and said.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_results_without_a_simulation_yet_are_shown(tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text('{"info": {"environment_info": {"domain_name": "x"}}, "tasks": [],'
                    ' "simulations": []}')
    sources = [open_source(str(path))]
    assert answer(sources, "metrics/0") == [{"step": 0, "kind": "eval", "eval/tasks": 0.0}]
    assert answer(sources, "episodes/0/eval/0") == []
    assert main([str(path), "--dry_run"]) == 0
    assert main([str(path), "--list"]) == 2
    assert "the file holds no trajectories" in capsys.readouterr().err


# ---- the server --------------------------------------------------------------------------------


def test_a_fault_of_the_page_itself_is_an_answer_and_numbers_that_are_none_are_words(run, capfd):
    class Odd(type(open_source(str(run)))):
        def metrics(self):
            return [{"step": 1, "kind": "train", "rl/kl": float("nan")}]

        def episodes(self, kind, step):
            raise ZeroDivisionError("nobody foresaw this")

    with make_server([Odd(run)]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/api/"
        with urllib.request.urlopen(address + "metrics/0", timeout=10) as response:
            assert json.loads(response.read())[0]["rl/kl"] == "NaN"
        with pytest.raises(urllib.error.HTTPError) as found:
            urllib.request.urlopen(address + "episodes/0/train/1", timeout=10)
        assert found.value.code == 500 and "nobody foresaw" in json.load(found.value)["error"]
        server.shutdown()
    assert "ZeroDivisionError" in capfd.readouterr().err
