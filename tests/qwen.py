"""Qwen3's real tokenizer and template, read from ../shared; tests skip where it is absent."""

import functools
import gzip
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
def template_ids(text):
    """Ids of a rendered text, all its markup taken for markup, as transformers has it."""
    return hugging_face().encode(text, add_special_tokens=False)


def rendered(messages, tools=None, prompt=True, thinking=True):
    """What the template makes of a dialogue: its text."""
    return hugging_face().apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=prompt,
        enable_thinking=thinking,
    )
