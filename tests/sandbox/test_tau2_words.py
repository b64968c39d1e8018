"""What the agent is told by τ²'s rules: as its harness sent it, or as its source has it."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tarl_jax.config import InputError
from tarl_jax.rollout.environment import Environment
from tarl_jax.sandbox import load_domain
from tarl_jax.sandbox.tau2_words import prompt_around, schemas_around

SHARED = Path(__file__).parents[2] / "../shared/tau2"
needs_data = pytest.mark.skipif(not (SHARED / "wire").is_dir(), reason="no recorded requests here")


def sent(name):
    """The agent's first request in a recorded simulation: (system prompt, tools)."""
    [path] = SHARED.glob(f"wire/{name}_gold*.jsonl.gz")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    requests = [json.loads(line)["request"] for line in lines]
    asked = next(r for r in requests if r["messages"][0]["content"].startswith("<instructions>"))
    return asked["messages"][0]["content"], asked["tools"]


def unpacked(folder, name):
    """A domain's folder as users have it."""
    target = folder / name
    target.mkdir()
    for path in (SHARED / ("telecom/domain" if name == "telecom" else name)).iterdir():
        if path.suffix == ".gz":
            plain = path.stem.replace(f"{name}_db", "db")
            (target / plain).write_bytes(gzip.decompress(path.read_bytes()))
        else:
            (target / path.name).write_bytes(path.read_bytes())
    return target


@needs_data
@pytest.mark.parametrize("name", ["retail", "airline", "telecom"])
def test_prompt_and_schemas_are_those_that_the_harness_sends(name, tmp_path):
    folder = unpacked(tmp_path, name)
    own = load_domain(name, folder)  # no recording, no source: the same form, in our words
    (tmp_path / "wire").symlink_to(SHARED / "wire")
    domain = load_domain(name, folder)
    prompt, tools = sent(name)
    assert domain.prompt == prompt
    assert json.dumps(domain.schemas) == json.dumps(tools)  # in order, and so are their keys
    begin = "<instructions>\n"
    assert own.prompt.startswith(begin) and own.prompt.endswith(prompt.partition("<policy>\n")[2])
    assert own.prompt != prompt and own.schemas != tools
    assert {s["function"]["name"] for s in own.schemas} == {s["function"]["name"] for s in tools}
    ours = load_domain(name, folder, own_words=True)
    assert ours.prompt == prompt and ours.schemas == own.schemas


@needs_data
def test_it_is_what_a_run_on_the_data_shows(tiny_config, tmp_path):
    folder = unpacked(tmp_path, "airline")
    (tmp_path / "wire").symlink_to(SHARED / "wire")

    def system(**rollout):
        config = replace(
            tiny_config,
            sandbox=replace(tiny_config.sandbox, domain="airline", data=str(folder)),
            rollout=replace(tiny_config.rollout, **rollout),
            user=replace(tiny_config.user, kind="llm"),
        )
        env = Environment.from_config(config)
        return env.system[0], env.tokenizer.decode(env.system[1])

    prompt, tools = sent("airline")
    text, shown = system()
    assert text == prompt and shown.count("\n{") == 14 and json.dumps(tools[0]) in shown
    assert system(system_prompt="brief")[0] != prompt
    assert Environment.from_config(tiny_config).system[0] != prompt


AGENT = '''
FIRST = 1
AGENT_INSTRUCTION = """
Serve.
""".strip()
SYSTEM_PROMPT = """
<instructions>
{agent_instruction}
</instructions>
<policy>
{domain_policy}
</policy>
""".strip()
'''
MODELS = '''
from typing import Literal
Size = Literal["s", "m"]
class Base(BaseModel):
    """What all have."""
    key: str = Field(description="The key")
class Part(Base):
    count: int = 3
    owner: "Owner"
    note: Optional[str] = Field(None, description="A note")
class Owner(BaseModel):
    name: str
class Mood(str, Enum):
    GOOD = "good"
    BAD = "bad"
'''
TOOLS = '''
class BankTools(ToolKitBase):
    """Tools."""
    @is_tool(ToolType.READ)
    def look(self) -> str:
        """Look around."""
    def _not_a_tool(self): ...
    @is_tool(ToolType.WRITE)
    def pay(self, who_pays: str, parts: List[Part | dict], size: Size, mood: Mood = None,
            amount: float = 1.5, only: Literal["x"] = "x", more: Dict[str, int] = None) -> str:
        """Pay for it.

        Be careful: it costs.
          Twice.

        Args:
            who_pays (str): The payer, such as 'x:1'.
                Or another.
            parts: The parts.

        Returns:
            A word.
        """
'''


def checkout(folder, tools=TOOLS):
    for path, text in (("src/tau2/agent/llm_agent.py", AGENT),
                       ("src/tau2/domains/bank/data_model.py", MODELS),
                       ("src/tau2/domains/bank/tools.py", tools)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    data = folder / "data/tau2/domains/bank"
    data.mkdir(parents=True, exist_ok=True)
    return data


def test_a_checkouts_source_is_parsed(tmp_path):
    data = checkout(tmp_path)
    assert prompt_around(data, "Be {kind}.") == (
        "<instructions>\nServe.\n</instructions>\n<policy>\nBe {kind}.\n</policy>")
    look, pay = schemas_around(data, "bank", {"look", "pay"})
    assert json.dumps(look) == json.dumps({"type": "function", "function": {
        "name": "look", "description": "Look around.",
        "parameters": {"properties": {}, "title": "parameters", "type": "object"},
    }})
    # By hand, from what pydantic 2 says of the same models; the keys are in its order.
    text = {"type": "string"}
    assert json.dumps(pay["function"]) == json.dumps({
        "name": "pay",
        "description": "Pay for it.\n\nBe careful: it costs.\n  Twice.",
        "parameters": {
            "$defs": {
                "Mood": {"enum": ["good", "bad"], "title": "Mood", **text},
                "Owner": {"properties": {"name": {"title": "Name", **text}},
                          "required": ["name"], "title": "Owner", "type": "object"},
                "Part": {
                    "properties": {
                        "key": {"description": "The key", "title": "Key", **text},
                        "count": {"default": 3, "title": "Count", "type": "integer"},
                        "owner": {"$ref": "#/$defs/Owner"},
                        "note": {"anyOf": [text, {"type": "null"}], "default": None,
                                 "description": "A note", "title": "Note"},
                    },
                    "required": ["key", "owner"], "title": "Part", "type": "object",
                },
            },
            "properties": {
                "who_pays": {"description": "The payer, such as 'x:1'.\nOr another.",
                             "title": "Who Pays", **text},
                "parts": {
                    "description": "The parts.",
                    "items": {"anyOf": [{"$ref": "#/$defs/Part"},
                                        {"additionalProperties": True, "type": "object"}]},
                    "title": "Parts", "type": "array",
                },
                "size": {"enum": ["s", "m"], "title": "Size", **text},
                "mood": {"$ref": "#/$defs/Mood", "default": None},
                "amount": {"default": 1.5, "title": "Amount", "type": "number"},
                "only": {"const": "x", "default": "x", "title": "Only", **text},
                "more": {"additionalProperties": {"type": "integer"}, "default": None,
                         "title": "More", "type": "object"},
            },
            "required": ["who_pays", "parts", "size"], "title": "parameters", "type": "object",
        },
    })


def test_a_source_of_another_form(tmp_path):
    data = checkout(tmp_path)
    assert schemas_around(data, "bank", {"look"}) is None  # other tools than ours
    assert schemas_around(data, "bistro", {"look"}) is None
    (tmp_path / "src/tau2/agent/llm_agent.py").write_text("SYSTEM_PROMPT = build()")
    assert "Serve." not in prompt_around(data, "Be kind.")
    checkout(tmp_path, TOOLS.replace("Size,", "Callable[[int], str],"))
    with pytest.raises(InputError, match=r"tools\.py:9: the annotation Callable"):
        schemas_around(data, "bank", {"look", "pay"})
    checkout(tmp_path, "class (")
    with pytest.raises(InputError, match="is no Python"):
        schemas_around(data, "bank", {"look", "pay"})


@pytest.mark.parametrize(("name", "content", "told"), [
    ("a.jsonl", b"{}\n", "a.jsonl:1: is no recorded request"),
    ("a.jsonl", b'\n{"request": {"messages": [3]}}', "a.jsonl:1: is no recorded request"),
    ("a.jsonl", b"\xff", "cannot be read"), ("a.jsonl.gz", b"\x1f\x8b\x08broken", "cannot be read"),
    ("a.jsonl.gz", b"no gzip", "cannot be read"),
])
def test_a_broken_recording_is_named(tmp_path, name, content, told):
    (tmp_path / "wire").mkdir()
    (tmp_path / "wire" / name).write_bytes(content)
    with pytest.raises(InputError, match=told):
        prompt_around(tmp_path, "Be kind.")


def test_recordings_of_others_say_nothing(tmp_path):
    (tmp_path / "wire").mkdir()
    for request in ({"messages": []}, {"messages": [{"role": "user", "content": "Hi"}]},
                    {"messages": [{"role": "system", "content": None}], "tools": None}):
        (tmp_path / "wire/a.jsonl").write_text(json.dumps({"request": request}))
        assert prompt_around(tmp_path, "Be kind.").endswith("<policy>\nBe kind.\n</policy>")
        assert schemas_around(tmp_path, "bank", {"look"}) is None
