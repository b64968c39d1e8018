"""Logs survive kills and resumes, and what is read equals what was written."""

import json
import logging
import math
import subprocess

import numpy as np
import pytest

from tarl_jax.parallel.files import WriteError
from tarl_jax.runs import metrics
from tarl_jax.speech.sound import Sound
from tarl_jax.types import Call, Segment, Task, Trajectory


def make_trajectory(seed=0):
    task = Task(
        task_id="t1",
        user_id="u1",
        instruction="Cancel order W1.\nBe brief \u2028 \u00e9.",
        gold_calls=(Call("cancel_order", {"order_id": "W1", "items": [1, 2]}),),
        outputs=("12",),
        split="train",
        source="shop",
        script={"requests": [{"kind": "cancel"}]},
        expert_turns=3,
    )
    agent = Segment(
        "agent", [5, 6, 7], [True, True, False], [-0.1, -2.5, 0.0], 0, "",
        calls=[Call("find", {"id": 3})],
    )
    user = Segment.forced("user", [1, 2], -1, "hi", intent="greet")
    return Trajectory(
        task,
        seed,
        [user, agent],
        "user_stop",
        None,
        turn_scores=[1],
        judge_notes=["fine"],
        diff=["a: 1 -> 2"],
        reward=2.5,
        seconds={"rollout": 1.5},
    )


def write_steps(run_dir, steps):
    with metrics.MetricsWriter(run_dir) as writer:
        for step in steps:
            writer.write(step, "train", {"train/pass_rate": step / 10})


def test_written_lines_are_on_disk_before_close(tmp_path):
    writer = metrics.MetricsWriter(tmp_path)
    writer.write(np.int64(3), "train", {"a": np.float32(0.5), "b": 2})
    assert metrics.read_metrics(tmp_path) == [{"step": 3, "kind": "train", "a": 0.5, "b": 2.0}]
    writer.close()


def test_non_finite_values_are_null_in_strict_json(tmp_path, caplog):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(1, "train", {"nan": math.nan, "inf": math.inf, "low": -math.inf, "ok": 1.0})
        writer.write(2, "train", {"ok": 2.0})
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    first, second = (json.loads(line, parse_constant=refuse) for line in text.splitlines())
    assert first == {"step": 1, "kind": "train", "nan": None, "inf": None, "low": None, "ok": 1.0}
    assert second["ok"] == 2.0
    assert not caplog.records  # a diverged run must not drown its log


def test_resume_drops_later_lines_and_keeps_the_evaluation_of_that_step(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(0, "base", {"eval/pass^1": 0.3})
        for step in (1, 2, 3):
            writer.write(step, "train", {"x": step})
            writer.write(step, "eval", {"eval/pass^1": 0.1 * step})
    with metrics.MetricsWriter(tmp_path, resume_step=2) as writer:
        writer.write(3, "train", {"x": 33})
    lines = [(r["step"], r["kind"], r.get("x")) for r in metrics.read_metrics(tmp_path)]
    assert lines == [
        (0, "base", None), (1, "train", 1), (1, "eval", None), (2, "train", 2), (2, "eval", None),
        (3, "train", 33),
    ]  # fmt: skip
    assert not list(tmp_path.glob(".*tmp"))


def test_resume_at_zero_keeps_only_the_base_evaluation(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(0, "base", {"eval/pass^1": 0.3})
        writer.write(1, "train", {"x": 1})
    metrics.MetricsWriter(tmp_path, resume_step=0).close()
    assert [r["kind"] for r in metrics.read_metrics(tmp_path)] == ["base"]


@pytest.mark.parametrize("resume_step", [None, 2])
def test_torn_last_line_does_not_swallow_the_next_one(tmp_path, resume_step):
    write_steps(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 2, "kind": "eval", "eval/pa')
    assert [r["step"] for r in metrics.read_metrics(tmp_path)] == [1, 2]
    with metrics.MetricsWriter(tmp_path, resume_step=resume_step) as writer:
        writer.write(3, "train", {"x": 3})
    assert [r["step"] for r in metrics.read_metrics(tmp_path)] == [1, 2, 3]


def test_whole_last_line_without_its_newline_is_kept(tmp_path):
    write_steps(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    write_steps(tmp_path, [3])
    assert [r["step"] for r in metrics.read_metrics(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("broken", ['{"step": 2, "ki', "[1, 2]", '{"kind": "train"}'])
def test_broken_line_is_named_and_survives_a_resume(tmp_path, broken):
    write_steps(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = broken
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: "):
        metrics.read_metrics(tmp_path)
    before = path.read_text()
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: "):
        metrics.MetricsWriter(tmp_path, resume_step=1)
    assert path.read_text() == before


def test_missing_metrics_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl: no such file"):
        metrics.read_metrics(tmp_path)


def test_bad_keys_and_values_leave_no_line(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="'step' is taken"):
            writer.write(1, "train", {"step": 1.0})
        with pytest.raises(TypeError, match="expected a number"):
            writer.write(1, "train", {"ok": 1.0, "name": "x"})
    assert metrics.read_metrics(tmp_path) == []


def test_tensorboard_starts_in_one_second_keep_both_files_and_log_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_steps(tmp_path, [1])
    with metrics.MetricsWriter(tmp_path, resume_step=1) as writer:
        writer.write(2, "eval", {"eval/pass^1": 0.5})
    files = sorted((tmp_path / "tensorboard").glob("events.*"))
    assert len(files) == 2
    contents = b"".join(f.read_bytes() for f in files)
    assert b"train/pass_rate" in contents and b"eval/pass_1" in contents
    assert not caplog.records


def test_trajectories_round_trip(tmp_path):
    written = [make_trajectory(seed) for seed in (1, 2)]
    path = metrics.append_trajectories(tmp_path, 12, written)
    assert path == tmp_path / "trajectories" / "step_000012.jsonl"
    assert metrics.read_trajectories(path) == written
    assert [p.name for p in path.parent.iterdir()] == ["step_000012.jsonl"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = metrics.append_trajectories(tmp_path, 1, [make_trajectory()])

    def fail():
        yield make_trajectory()
        raise RuntimeError("episode 2 broke")

    with pytest.raises(RuntimeError):
        metrics.append_trajectories(tmp_path, 1, fail())
    assert len(metrics.read_trajectories(path)) == 1


def test_trajectory_files_are_listed_by_number_and_kind(tmp_path):
    for step in (10, 9, 1_000_000):
        metrics.append_trajectories(tmp_path, step, [])
    metrics.append_trajectories(tmp_path, 20, [], kind="eval")
    (tmp_path / "trajectories" / ".step_000011.jsonl.tmp").write_text("")
    assert list(metrics.trajectory_files(tmp_path)) == [9, 10, 1_000_000]
    assert list(metrics.trajectory_files(tmp_path, "eval")) == [20]
    assert metrics.trajectory_files(tmp_path / "absent") == {}
    with pytest.raises(ValueError, match="choose one of"):
        metrics.trajectory_files(tmp_path, "evaluation")


@pytest.mark.parametrize("broken", ["{", "{}", '{"task": {}}', "[]"])
def test_broken_trajectory_names_file_and_line(tmp_path, broken):
    path = metrics.append_trajectories(tmp_path, 1, [make_trajectory()])
    path.write_text(path.read_text() + broken + "\n")
    with pytest.raises(ValueError, match=r"step_000001\.jsonl:2: not a trajectory"):
        metrics.read_trajectories(path)


def test_sound_lies_beside_the_episodes(tmp_path):
    pytest.importorskip("soundfile", reason="FLAC files need soundfile (the speech extra)")
    rng = np.random.default_rng(0)
    clips = [(rng.integers(-9000, 9000, n) / 32768).astype(np.float32) for n in (400, 900)]
    trajectories = [make_trajectory(seed) for seed in range(3)]
    for index, clip in ((0, clips[0]), (1, clips[1]), (2, clips[0])):
        trajectories[index].segments[0].sound = Sound(0, 2, clip)
    path = metrics.append_trajectories(tmp_path, 4, trajectories)
    assert metrics.read_trajectories(path) == trajectories
    assert len(list((path.parent / "clips").iterdir())) == 2  # one that two share is kept once
    assert metrics.trajectory_files(tmp_path) == {4: path}


# ---- what belongs together, and disks -----------------------------------------------------------


def test_episodes_without_their_line_go_when_a_run_goes_on(tmp_path):
    """A kill came between the two, or the line is dropped; what has its line stays."""
    write_steps(tmp_path, [1, 2, 3])
    for step in (1, 2, 3):
        metrics.append_trajectories(tmp_path, step, [make_trajectory()])
    metrics.append_trajectories(tmp_path, 0, [make_trajectory()], kind="eval")
    metrics.append_trajectories(tmp_path, 2, [make_trajectory()], kind="eval")
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(0, "base", {"eval/pass^1": 0.5})
    metrics.MetricsWriter(tmp_path, resume_step=2).close()
    assert list(metrics.trajectory_files(tmp_path)) == [1, 2]
    assert list(metrics.trajectory_files(tmp_path, "eval")) == [0]


def test_a_full_disk_ends_the_writer_with_a_message_and_whole_lines(tmp_path):
    """Neither the lines nor TensorBoard's copy hangs; what is there is read, and is added to."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting needs the rights of an administrator")
    try:
        steps = 0
        full = pytest.raises(WriteError, match=r"could not be written \(No space left")
        with metrics.MetricsWriter(tmp_path) as writer, full:
            for step in range(1000):
                writer.write(step, "train", {f"key/{n}": 1.0 for n in range(20)})
                steps += 1
        assert 10 < steps < 1000
        kept = metrics.read_metrics(tmp_path)
        assert [r["step"] for r in kept][:steps] == list(range(steps))
        (events,) = (tmp_path / "tensorboard").iterdir()
        found = list(read_events(events))
        assert len(found) == 20 * steps
        subprocess.run(["mount", "-o", "remount,size=1m", tmp_path], check=True)
        with metrics.MetricsWriter(tmp_path, resume_step=steps - 1) as writer:
            writer.write(steps, "train", {"x": 1.0})
        assert [r["step"] for r in metrics.read_metrics(tmp_path)] == list(range(steps + 1))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def read_events(path):
    """(step, tag, value) of an events file, by TensorFlow's record format; each sum is checked."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(data):
        value = crc32c(data)
        return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF

    data = path.read_bytes()
    while data:
        head, data = data[:12], data[12:]
        length = int.from_bytes(head[:8], "little")
        assert masked(head[:8]) == int.from_bytes(head[8:], "little")
        text, sum_, data = data[:length], data[length : length + 4], data[length + 4 :]
        assert len(text) == length and masked(text) == int.from_bytes(sum_, "little")
        event = Event.FromString(text)
        for value in event.summary.value:
            yield event.step, value.tag, value.simple_value


def test_tensorboard_reads_what_was_written(tmp_path):
    write_steps(tmp_path, [1, 2])
    with metrics.MetricsWriter(tmp_path, resume_step=1) as writer:
        writer.write(2, "eval", {"eval/pass^1": 0.25, "gap": math.nan})
        for path in (tmp_path / "tensorboard").iterdir():
            path.unlink()  # somebody clears the folder of copies
        writer.write(3, "eval", {"eval/pass^1": 0.5})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert list(read_events(events)) == [(3, "eval/pass_1", 0.5)]
