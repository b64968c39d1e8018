"""Published data describe their tools in their own words, which are shown as they are."""

import dataclasses
import json
from pathlib import Path

import pytest

from tarl_jax.config import InputError
from tarl_jax.rollout.environment import Environment
from tarl_jax.sandbox import load_domain
from tarl_jax.sandbox.published import embedded_domain
from tarl_jax.sandbox.tool_schemas import schemas_of

SHARED = Path(__file__).parents[3] / "shared/tau_bench"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")


def tool_file(name, description):
    words = name.title().replace("_", "")
    return f'''
raise RuntimeError("parsed, never run")

class {words}(Tool):
    @staticmethod
    def invoke(data, order_id):
        return {{"type": "not the schema"}}

    @staticmethod
    def get_info():
        return {{
            "type": "function",
            "function": {{"name": "{name}", "description": ("{description}, "
                "in two parts"), "parameters": {{"type": "object"}}}},
        }}
'''


@pytest.fixture
def checkout(tmp_path):
    """A folder of tools as τ-bench's code has it."""
    code = tmp_path / "tools"
    code.mkdir()
    for name in ("a_tool", "b_tool", "c_tool"):
        (code / f"{name}.py").write_text(tool_file(name, f"does {name}"))
    (code / "__init__.py").write_text(
        "from .a_tool import ATool\nfrom .b_tool import BTool\nALL_TOOLS = [BTool, ATool]\n"
    )
    return tmp_path


def test_code_is_parsed_in_the_order_of_its_list(checkout):
    found = schemas_of(checkout, {"a_tool", "b_tool"})
    assert [schema["function"]["name"] for schema in found] == ["b_tool", "a_tool"]
    assert found[1]["function"]["description"] == "does a_tool, in two parts"


def test_a_tool_without_a_description_is_named_with_the_way_out(checkout):
    with pytest.raises(InputError, match=r"c_tool; mend it, or .*tool_schemas=own"):
        schemas_of(checkout, {"a_tool", "b_tool", "c_tool"})  # the list leaves it out


@pytest.mark.parametrize("text, said", [
    ("class A:\n    def get_info():\n        return make()\n", "no literal"),
    ("class A:\n    def get_info(:\n", "no Python"),
])
def test_code_that_cannot_be_read_is_named(checkout, text, said):
    (checkout / "tools/a_tool.py").write_text(text)
    with pytest.raises(InputError, match=rf"a_tool\.py.*{said}"):
        schemas_of(checkout, {"b_tool"})


@pytest.mark.parametrize("data", [{"tools": []}, ["get_x"], [{"function": {}}], 3, None], ids=str)
def test_a_list_of_something_else_is_refused(tmp_path, data):
    (tmp_path / "tools.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="no list of OpenAI function schemas"):
        schemas_of(tmp_path, {"x"})


def test_a_folder_may_have_none(tmp_path):
    assert schemas_of(tmp_path, {"x"}) is None


@needs_data
@pytest.mark.parametrize("name", ["retail", "airline"])
def test_the_agent_is_shown_the_datas_words(name, tiny_env):
    folder = SHARED / name
    data = json.loads((folder / "tools.json").read_text())
    domain = load_domain(name, folder)
    assert domain.schemas == data
    shown = tiny_env.tokenizer.decode(tiny_env.chat.system(domain.policy, domain.schemas))
    assert domain.policy == (folder / "policy.md").read_text()
    for schema in data:
        assert json.dumps(schema["function"]["description"])[1:-1] in shown
    own = load_domain(name, folder, own_words=True)
    assert own.schemas == [tool.schema for tool in own.tools.values()] != data
    assert load_domain(name, folder, "tau2").schemas != data  # whose tools are others


@needs_data
@pytest.mark.parametrize("words", ["data", "own"])
def test_a_run_shows_what_its_config_says(words, tiny_config):
    replace = dataclasses.replace
    config = replace(
        tiny_config,
        sandbox=replace(tiny_config.sandbox, data=str(SHARED / "retail"), tool_schemas=words),
        rollout=replace(tiny_config.rollout, system_prompt="full", max_episode_tokens=20_000),
        user=replace(tiny_config.user, kind="llm"),
    )
    env = Environment.from_config(config)
    described = json.loads((SHARED / "retail/tools.json").read_text())[0]["function"]
    shown = env.tokenizer.decode(env.system[1])
    assert (described["description"] in shown) == (words == "data")
    assert env.domain.tools[described["name"]].problem({}) == "missing argument 'expression'"


def test_embedded_domains_keep_their_own(tiny_config):
    domain = embedded_domain("retail", tiny_config.shop)
    assert domain.schemas == [tool.schema for tool in domain.tools.values()]
