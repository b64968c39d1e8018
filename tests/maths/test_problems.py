"""Problem files, and problems as tasks."""

import dataclasses
import json

import pytest

from tarl_jax.config.maths import MathsConfig
from tarl_jax.maths.problems import load_problems, maths_tasks
from tarl_jax.types import Task

RECORDS = [
    {"problem": "What is $1+1$?", "answer": "2", "solution": "It is \\boxed{2}."},
    {"problem": " What is $\\sqrt{8}$? ", "answer": "2\\sqrt{2}", "source": "x"},
    {"problem": "What is 7?", "answer": 7},
    {"problem": "What is $1+1$?", "answer": "two"},
]


@pytest.fixture(params=["json", "jsonl"])
def write(request, tmp_path):
    def go(records):
        path = tmp_path / f"problems.{request.param}"
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        path.write_text(f"[{', '.join(lines)}]" if request.param == "json" else "\n".join(lines))
        return path

    return go


def test_a_list_and_lines_read_the_same(write):
    problems = load_problems(write(RECORDS))
    assert [(p.text, p.answer) for p in problems] == [
        ("What is $1+1$?", "2"), ("What is $\\sqrt{8}$?", "2\\sqrt{2}"), ("What is 7?", "7"),
    ]
    assert problems[0].solution == "It is \\boxed{2}." and problems[1].solution == ""


@pytest.mark.parametrize("broken, named", [
    ({"problem": "x"}, "'answer' is None"),
    ({"answer": "1"}, "'problem' is None"),
    ({"problem": "  ", "answer": "1"}, "'problem' is '  '"),
    ({"problem": "x", "answer": ["1"]}, "'answer' is \\['1'\\]"),
    ({"problem": "x", "answer": True}, "'answer' is True"),
    ({"problem": "x", "answer": "1", "solution": 3}, "'solution' is 3"),
    (["x", "1"], "expected an object"),
])
def test_a_broken_record_is_named_by_file_and_number(write, broken, named):
    path = write([RECORDS[0], broken, RECORDS[1]])
    place = f"{path}:2" if path.suffix == ".jsonl" else f"{path}: record 2"
    with pytest.raises(ValueError, match=named) as caught:
        load_problems(path)
    assert str(caught.value).startswith(place)


def test_a_file_that_is_no_json_is_named(write, tmp_path):
    path = write([RECORDS[0], '{"problem": '])
    with pytest.raises(ValueError, match="not valid JSON") as caught:
        load_problems(path)
    assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_problems(tmp_path / "absent.json")
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    with pytest.raises(ValueError, match="holds no problem"):
        load_problems(empty)


def test_tasks_of_both_splits_share_no_problem():
    config = MathsConfig(num_train=60, num_held_out=20)
    train, held_out = maths_tasks(config)
    assert (len(train), len(held_out)) == (60, 20)
    assert len({t.instruction for t in train + held_out}) == 80
    assert len({t.task_id for t in train + held_out}) == 80
    for task in train + held_out:
        assert task.kind == "maths" and task.script is None and len(task.outputs) == 1
        assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task
    assert maths_tasks(config) == (train, held_out)
    other, _ = maths_tasks(dataclasses.replace(config, seed=1))
    assert [t.instruction for t in other] != [t.instruction for t in train]


def test_a_file_is_shuffled_and_split(tmp_path):
    path = tmp_path / "many.json"
    path.write_text(json.dumps([{"problem": f"Say {n}.", "answer": str(n)} for n in range(30)]))
    config = MathsConfig(file=str(path), num_train=100, num_held_out=10)
    train, held_out = maths_tasks(config)
    assert (len(train), len(held_out)) == (20, 10)
    said = [int(t.outputs[0]) for t in held_out + train]
    assert sorted(said) == list(range(30)) and said != sorted(said)
    assert all(t.instruction == f"Say {t.outputs[0]}." and t.source == "many" for t in train)
    assert len(maths_tasks(dataclasses.replace(config, num_train=5))[0]) == 5
    with pytest.raises(ValueError, match="nothing is left to train on"):
        maths_tasks(dataclasses.replace(config, num_held_out=30))


def test_a_byte_order_mark_and_other_ends_of_lines(tmp_path):
    record = {"problem": "1+1\u2028\x85=?", "answer": "2"}
    for name, text in (("a.jsonl", json.dumps(record, ensure_ascii=False) + "\r\n"),
                       ("a.json", json.dumps([record]))):
        (tmp_path / name).write_bytes(f"\ufeff{text}".encode())
        assert [p.text for p in load_problems(tmp_path / name)] == [record["problem"]]
