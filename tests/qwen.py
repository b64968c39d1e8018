"""Qwen3's real tokenizer and template, read from ../shared; tests skip where it is absent."""

import functools
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@functools.cache
def qwen_folder():
    """A folder that transformers loads a tokenizer from."""
    source = SHARED / "qwen"
    if not source.is_dir():
        pytest.skip(f"{source} is not there: Qwen3's tokenizer is not part of the repository")
    folder = Path(tempfile.mkdtemp(prefix="qwen-"))
    shutil.copy(source / "tokenizer_config.json", folder)
    with gzip.open(source / "tokenizer.json.gz") as packed:
        (folder / "tokenizer.json").write_bytes(packed.read())
    return folder


@functools.cache
def hugging_face():
    """transformers' own tokenizer of it."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(qwen_folder())


@functools.cache
def folder_with_prompt(prompt):
    """The same with a template that begins the agent's turns so, whatever one asks for."""
    folder = Path(tempfile.mkdtemp(prefix="qwen-"))
    for path in qwen_folder().iterdir():
        shutil.copyfile(path, folder / path.name)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    template = settings["chat_template"]
    cut = template.index("{%- if add_generation_prompt %}")
    settings["chat_template"] = template[:cut] + (
        f"{{%- if add_generation_prompt %}}{{{{- {prompt!r} }}}}{{%- endif %}}"
    )
    path.write_text(json.dumps(settings))
    return folder


@functools.cache
def template_ids(text):
    """Ids of a rendered text, all its markup taken for markup, as transformers has it."""
    return hugging_face().encode(text, add_special_tokens=False)


def rendered(messages, tools=None, prompt=True, thinking=True, tokenizer=None):
    """What the template makes of a dialogue: its text; `tokenizer`: of another template."""
    return (tokenizer or hugging_face()).apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=prompt,
        enable_thinking=thinking,
    )
