"""The sandbox page: its code runs as it stands, and what it names is there."""

import json
import re
from pathlib import Path

import pytest

from tarl_jax.config import RolloutConfig
from tarl_jax.sandbox import load_benchmark_tasks, load_domain
from tarl_jax.sandbox.domain import Domain, Refusal
from tarl_jax.types import Call, Task

PAGE = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text("utf-8")
SURFACE, DUAL, REWARD, FAULTLESS, EMBEDDED, LIBRARY, _ = re.findall(
    r"```python\n(.*?)```", PAGE, re.DOTALL
)


@pytest.fixture
def library():
    """What the third example leaves."""
    names: dict = {"__name__": "library"}
    exec(compile(LIBRARY, "docs/sandbox.md", "exec"), names)
    return names


def test_the_surface_is_as_shown():
    exec(compile(SURFACE, "docs/sandbox.md", "exec"), {})
    for name in re.findall(r"`Domain\.(\w+)\(", PAGE):
        assert callable(getattr(Domain, name))
    for name in re.findall(r"`rollout\.(\w+)`", PAGE):
        assert name in RolloutConfig.__dataclass_fields__


TELECOM = Path(__file__).parents[3] / "shared" / "tau2" / "telecom" / "domain"


@pytest.mark.skipif(not TELECOM.is_dir(), reason="τ²-bench's telecom is not beside this checkout")
def test_dual_control_is_as_shown():
    step = {"env_type": "user", "func_name": "turn_roaming_off", "arguments": {}}
    task = Task("t", "", "", (), (), "train", "tau2", None, 1,
                initial_state={"initialization_actions": [step]})
    names: dict = {"FOLDER": TELECOM, "task": task}
    exec(compile(DUAL, "docs/sandbox.md", "exec"), names)
    assert names["state"].get("user", "device")["roaming_enabled"] is True


def test_the_reward_is_as_shown(tmp_path):
    record = {"id": "7", "user_scenario": {"instructions": "Ask."},
              "evaluation_criteria": {"actions": [], "communicate_info": ["cancelled"]}}
    for name, content in {"db": load_domain("retail").database, "tasks": [record]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "policy.md").write_text("Be kind.")
    names: dict = {"FOLDER": tmp_path}
    exec(compile(REWARD, "docs/sandbox.md", "exec"), names)
    assert names["found"].reward == 1.0 and names["tasks"][0].task_id.endswith("/7")


def test_embedded_tasks_are_made_and_solved_as_shown():
    names: dict = {}
    exec(compile(EMBEDDED, "docs/sandbox.md", "exec"), names)
    solved = names | {"domain": names["airline"]}
    exec(compile(FAULTLESS, "docs/sandbox.md", "exec"), solved)
    assert solved["opening"] and solved["turns"]
    assert {task.script["desk"] for task in names["tasks"]} == {"airline"}


def test_the_example_is_short_and_runs(library):
    assert LIBRARY.count("\n") < 100
    domain = library["domain"]
    assert list(domain.tools) == [
        "get_member", "find_books", "transfer_to_human_agents", "lend_book"]
    state = domain.new_state()
    assert domain.call(state, "find_books", {"author": "Eco"}) == '["b1"]'
    unknown = domain.call(state, "burn_book", {"book_id": "b1"})
    assert unknown == "Unknown action burn_book" and isinstance(unknown, Refusal)


def test_the_example_reads_folders_too(library, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "policy.md").write_text("Be quiet.")
    (folder / "db.json").write_text(
        '{"books": {"b9": {"author": "Ito", "lent_to": ""}}, "members": {}}')
    lend = '{"name": "lend_book", "kwargs": {"member_id": "m1", "book_id": "b9"}}'
    (folder / "tasks_train.json").write_text(
        f'[{{"user_id": "m1", "instruction": "Borrow.", "actions": [{lend}], "outputs": []}}]')
    database = json.loads((folder / "db.json").read_text())
    domain = library["library_domain"](database, "Be quiet.")
    (task,) = load_benchmark_tasks("library", folder, domain)
    assert task.gold_calls == (Call("lend_book", {"member_id": "m1", "book_id": "b9"}),)
