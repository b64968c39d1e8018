"""Every command in README.md, CONTRIBUTING.md and docs/: program, files, flags and fields exist.

Commands of the project go through their own parsers, and configs through what a start checks before
anything is built. What needs a device, a key or data of others says so: a comment `# needs …` in
its block.
"""

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tarl_jax.config import RunConfig
from tarl_jax.runs import command
from tarl_jax.runs.directory import flat

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_COMMANDS = ("main", "evaluate", "export", "plan", "serve", "serve.__main__", "chat")
PYTHON = re.compile(r"(?:\.venv/bin/)?python3?")
INLINE = re.compile(r"`((?:python -m|tarl (?=[a-z-])|python (?:benchmarks|scripts|experiments)/)"
                    r"[^`]*)`")
OUTSIDE = ("curl", "sbatch", "tau2", "vllm")  # programs of others
# What stands for something that nobody finds in a checkout: others' models and data, keys, clouds.
ELSEWHERE = re.compile(r"\b(DIR|FOLDER|TAU_BENCH|TAU2|TUNIX|PORT|MODEL|OPENAI_API_KEY|BUCKET)\b"
                       r"|/mnt/|--engine=piper|\.kind=llm|user\.json|judge\.json")
QWEN = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 320,
        "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": True, "max_position_embeddings": 40960}

OMNI = {"architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"],
        "model_type": "qwen2_5_omni_thinker",
        "text_config": {**QWEN, "model_type": "qwen2_5_omni_text"},
        "audio_config": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2,
                         "encoder_ffn_dim": 32, "num_mel_bins": 128, "n_window": 100,
                         "output_dim": 32, "max_source_positions": 1500}}


@dataclasses.dataclass(frozen=True)
class Line:
    """A command of a page; `needs`: what its block says that it needs; `fenced`: or inline."""

    page: str
    words: tuple[str, ...]
    needs: str
    fenced: bool

    def __str__(self):
        return f"{self.page}: {' '.join(self.words)}"


def split(text):
    """The commands of a block, one list of words each; variables that it sets are put in."""
    known: dict[str, str] = {}
    joined = re.sub(r'"[^"]*"', lambda m: m[0].replace("\n", " "), text.replace("\\\n", " "))
    for line in joined.splitlines():
        line = re.sub(r"\$(\w+)", lambda m: known.get(m[1], m[0]), line)
        for words in _commands(shlex.split(line, comments=True)):
            if re.fullmatch(r"[A-Z_]+=.*", words[0]) and len(words) == 1:
                name, _, known[name] = words[0].partition("=")
            else:
                yield words


def _commands(words):
    found: list[str] = []
    for word in [*words, "&&"]:
        if word in ("&&", "&", "|"):
            if found:
                yield found
            found = []
        else:
            found.append(word)


def lines():
    for page in PAGES:
        text = page.read_text("utf-8")
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            needs = " ".join(re.findall(r"# needs (.*)", block))
            for words in split(block):
                yield Line(page.name, tuple(words), needs, True)
        outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for inline in re.findall(INLINE, outside):
            for words in split(" ".join(inline.split())):
                yield Line(page.name, tuple(words), "", False)


LINES = list(lines())


def placed(words, folder):
    """The words with what is optional, and with something in place of placeholders."""
    omni = "omni" in " ".join(words)
    model, run = str(folder / ("omni" if omni else "model")), str(folder / "run")
    whole = dict.fromkeys(("RUN", "RUN_OR_FILE", "FILE_OR_FOLDER", "runs/NAME", "/mnt/runs/first",
                           "gs://BUCKET/RUN"), run)
    kept: list[str] = []
    for word in words:
        if word.startswith("["):
            word = word.removeprefix("[")
        if "[" not in word:
            word = word.removesuffix("]")
        if word in ("…", "...", "") or "KEY=VALUE" in word:
            if word and kept and re.fullmatch(r"--\w+", kept[-1]):
                kept.pop()  # a flag whose value is left out
            continue
        word = re.sub(r"^--config=(FILE.*|…)$", "--config=configs/grpo_tarl.py:tiny", word)
        word = re.sub(r"/mnt/runs/Qwen3-[\w.]+|\b(DIR|FOLDER)\b", model, word)
        kept.append(whole.get(word, word))
    return kept


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with what placeholders stand for: a model's config, and a run's."""
    folder = tmp_path_factory.mktemp("named")
    for name, content in (("model", QWEN), ("omni", OMNI), ("run", flat(RunConfig()))):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(content))
    return folder


def check_run_command(module, words):
    """A command of a run: its flags by its own parser, its config as a start would have it."""
    overrides, rest = command._overrides(words)
    parser = command._parser("", "")
    if hasattr(module, "_options"):
        module._options(parser)
    if "--help" in rest:
        return
    given, unknown = parser.parse_known_args(rest)
    assert not unknown, unknown
    if given.run or given.config:
        command._config(given, overrides)


def check_other_module(module, words):
    """A command with a parser of its own; where no function makes it, its flags by the source."""
    make = getattr(module, "parser", getattr(module, "_parser", None))
    if make is None:
        return check_script(Path(module.__file__), words)
    parser = make()
    parser.exit_on_error = False
    flags = [w for w in words if w.startswith("-")]
    if "--help" in flags or not words:
        return None
    found, unknown = parser.parse_known_args(words)
    assert isinstance(found, argparse.Namespace) and not unknown, unknown
    return None


def check_script(path, words):
    """Flags of a script, against those that its source names."""
    strings = {node.value for node in ast.walk(ast.parse(path.read_text("utf-8")))
               if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    own = words[: words.index("--")] if "--" in words else words  # the rest is another program's
    flags = [w.partition("=")[0] for w in own if re.match(r"--\w", w)]
    known = {"--help"} | strings | {f"--{s}" for s in strings}
    unknown = [f for f in flags if f not in known and not f.startswith("--config.")]
    assert not unknown, f"{path.name} has no {unknown}"


@pytest.mark.parametrize("line", [pytest.param(x, id=str(x)[:110]) for x in LINES])
def test_it_names_what_is_there(line, here, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = line.words
    while re.fullmatch(r"[A-Z_]+=.*", program):  # a variable before the command
        program, *words = words
    if program in ("…", "..."):
        return
    if line.fenced and (program in OUTSIDE or program.startswith("scripts/tpu.sh")
                        or ELSEWHERE.search(" ".join(line.words))):
        assert line.needs, f"{line}: a checkout lacks what it needs: say '# needs …' in its block"
    if program == "tarl":
        name = "main" if words[0] in ("train", "--help") else words[0]
        program, words = "python", ["-m", f"tarl_jax.{name}", *words[1:]]
    if program.endswith("/pip") or program == "pip":
        extras = re.findall(r"\.\[([\w,]+)\]", " ".join(words))
        known = (ROOT / "setup.py").read_text("utf-8").partition("extras_require")[2]
        assert all(f'"{e}":' in known for found in extras for e in found.split(","))
    elif program == "export":
        assert all(re.fullmatch(r"[A-Z_]+=.+", word) for word in words)
    elif program.startswith("scripts/") or program == "sbatch":
        assert (ROOT / (words[0] if program == "sbatch" else program)).is_file()
        flags = [w for w in placed(words, here) if w.startswith("--")]
        if any(f.startswith("--config=") for f in flags):
            check_run_command(importlib.import_module("tarl_jax.main"), flags)
    elif PYTHON.fullmatch(program) or program.endswith("/python"):
        check_python(words, here)
    elif program in OUTSIDE:
        pass
    else:
        assert program.startswith(".venv/bin/"), f"{line}: what is {program}?"
        assert importlib.util.find_spec(Path(program).name), program


def check_python(words, here):
    if words[0] == "-c":
        ast.parse(words[1])
    elif words[0] != "-m":
        assert (ROOT / words[0]).is_file(), words[0]
        check_script(ROOT / words[0], words[1:])
    elif words[1].startswith("tarl_jax"):
        name = words[1].removeprefix("tarl_jax.")
        spec = importlib.util.find_spec(words[1])
        assert spec is not None, words[1]
        package = bool(spec.submodule_search_locations)
        module = importlib.import_module(f"{words[1]}.__main__" if package else words[1])
        arguments = placed(words[2:], here)
        (check_run_command if name in RUN_COMMANDS else check_other_module)(module, arguments)
    else:
        assert importlib.util.find_spec(words[1]), words[1]


def test_the_pages_have_commands_and_a_wrong_one_would_be_seen(here):
    assert len([x for x in LINES if x.fenced]) > 60 and len(LINES) > 80
    assert {page.name for page in PAGES} > {x.page for x in LINES} > {"README.md", "speech.md"}
    for words in (["-m", "tarl_jax.absent"], ["-m", "tarl_jax.main", "--config.rl.stepz=3"],
                  ["-m", "tarl_jax.main", "--config=configs/absent.py"],
                  ["-m", "tarl_jax.evaluate", "RUN", "--no_such_flag"],
                  ["-m", "tarl_jax.main", "RUN", "--config.rl.steps=-3"],
                  ["-m", "tarl_jax.view", "RUN", "--paper"],
                  ["benchmarks/rollout.py", "--nothing=1"], ["benchmarks/absent.py"]):
        with pytest.raises((AssertionError, ValueError, ModuleNotFoundError, SystemExit)):
            check_python(words, here)


def test_every_field_that_the_pages_name_is_one():
    known = set(flat(RunConfig()))
    groups = {key[:place] for key in known for place, c in enumerate(key) if c == "."}
    named = re.compile(rf"(?<![\w/.-])(?:--config\.)?((?:{'|'.join(groups)})\.[a-z_][a-z_.]*)")
    files = re.compile(r"\.(py|json|jsonl|md)\b")
    said = {(page.name, name.rstrip(".")) for page in PAGES
            for code in re.findall(r"`([^`\n]+)`", page.read_text("utf-8"))
            for name in named.findall(code) if not files.search(name)}
    assert len({name for _, name in said}) > 100
    assert not {(page, name) for page, name in said if name not in known | groups}


def test_the_messages_of_troubleshooting_are_said():
    source = " ".join(re.sub(r'"\s+f?"', "", path.read_text("utf-8"))
                      for path in (ROOT / "tarl_jax").rglob("*.py"))
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    seen = [s for s in re.findall(r"^\| `([^`]+)` \|", page, re.M) if not s.startswith("No module")]
    parts = [part.strip(" :;") for message in seen for part in re.split("…|RUN", message)]
    assert len(seen) > 3 and not [p for p in parts if p not in source]


def test_those_that_take_seconds_are_run(here, tmp_path):
    """As the pages have them, in another folder where they write, on what takes no model."""
    wanted = {"tarl_jax.speech": "--out=cancel.wav", "tarl_jax.sandbox.synthesis": "--seed=0"}
    if importlib.util.find_spec("espeakng_loader") is None:
        del wanted["tarl_jax.speech"]
    for module, part in wanted.items():
        line = next(x for x in LINES if module in x.words and part in x.words)
        words = ["--num=40" if w == "--num=3000" else w for w in line.words[1:]]
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True,
                              text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        (out,) = [w.partition("=")[2] for w in words if w.startswith("--out=")]
        assert (tmp_path / out).stat().st_size > 1000
