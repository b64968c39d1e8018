"""Whatever is in a file from outside: its reader takes it, or says in one line which file it is."""

import dataclasses
import json
import shutil
import wave

import numpy as np
import pytest
import tokenizers
import transformers
from safetensors.numpy import save_file

from tarl_jax.config import RunConfig, TarlError
from tarl_jax.config.plain import read_json
from tarl_jax.judge.calibrate import load_groups
from tarl_jax.maths.problems import load_problems
from tarl_jax.models.hf_config import read_config, sampling_defaults
from tarl_jax.models.tensor_files import open_tensors
from tarl_jax.rl.calibration import load_table
from tarl_jax.runs.directory import check_run_dir, read_run, require_contents
from tarl_jax.runs.metrics import read_metrics, read_trajectories
from tarl_jax.runs.tau2_results import read_results
from tarl_jax.sandbox import load_benchmark_tasks, load_domain
from tarl_jax.sandbox.reviews import read_verdicts, review_file
from tarl_jax.sandbox.shop import make_shop
from tarl_jax.sandbox.tasks import load_tasks, make_tasks, save_tasks
from tarl_jax.speech.clips import load_clip
from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer
from tarl_jax.view.records import open_source

HF = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 64,
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "hidden_act": "silu",
}
STRANGE = {
    "nothing": b"",
    "null": b"null\n",
    "a number": b"7\n",
    "a list": b"[]\n",
    "a list of lists": b"[[]]\n",
    "an object": b"{}\n",
    "an object of numbers": b'{"tasks": 1, "simulations": 2, "weight_map": 3, "orders": 4}\n',
    "text": b"hello\n",
    "no UTF-8": b"\xff\xfe\x00\x80" * 40,
    "zeros": bytes(4096),
    "nested": b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}\n",
    "an integer of 6,000 digits": b'{"a": ' + b"9" * 6000 + b"}\n",
    "NaN": b'{"a": NaN}\n',
}
CUTS = (0.5, 0.98)


def small_wav(path):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", "not compressed"))
        file.writeframes(bytes(3200))


def published(folder):
    """A folder in tau2-bench's layout, with one task."""
    shop = make_shop(RunConfig().shop)
    database = {table: dict(list(rows.items())[:3]) for table, rows in shop.items()}
    for name, content in (
        ("db.json", database),
        ("tasks.json", [{"id": "0", "user_scenario": {"instructions": "Say hello."},
                         "evaluation_criteria": {"actions": []}}]),
        ("split_tasks.json", {"train": ["0"], "test": []}),
    ):
        (folder / name).write_text(json.dumps(content))
    (folder / "policy.md").write_text("Be kind.")


def a_run(folder):
    from tarl_jax.runs.directory import open_run_dir

    open_run_dir(RunConfig(workdir=str(folder)))
    (folder / "checkpoints" / "0").mkdir(parents=True)
    require_contents(folder, {"training tasks": "a"})
    (folder / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n')


def checkpoint(folder):
    (folder / "config.json").write_text(json.dumps(HF))
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": [1, 2]}')
    save_file({"model.norm.weight": np.ones(16, np.float32)}, folder / "model.safetensors")


def a_tokenizer(folder):
    words = {word: i for i, word in enumerate(("[UNK]", "a", "<|im_start|>", "<|im_end|>"))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    ).save_pretrained(folder)


TASKS = {}


def some_tasks():
    if not TASKS:
        config = RunConfig()
        tasks = dataclasses.replace(config.tasks, num_train=2)
        TASKS["all"] = make_tasks(load_domain("retail"), config.shop, tasks, "train")
    return TASKS["all"]


# reader: (the file that is spoilt, what makes the folder, what reads it)
READERS = {
    "json": ("x.json", lambda f: (f / "x.json").write_text('{"a": [1, 2]}'),
             lambda f: read_json(f / "x.json")),
    "tasks": ("tasks.jsonl", lambda f: save_tasks(f / "tasks.jsonl", some_tasks()),
              lambda f: load_tasks(f / "tasks.jsonl")),
    "reviews": (review_file("t.jsonl").name,
                lambda f: review_file(f / "t.jsonl").write_text('{"digest": "1"}\n'),
                lambda f: read_verdicts(f / "t.jsonl", some_tasks())),
    "maths": ("m.jsonl", lambda f: (f / "m.jsonl").write_text(
        '{"problem": "1 + 1?", "answer": "2"}\n' * 3), lambda f: load_problems(f / "m.jsonl")),
    "calibration": ("table.json", lambda f: (f / "table.json").write_text(
        '{"reads": {"worth": 0.5, "count": 3}}'), lambda f: load_table(f / "table.json")),
    "published database": ("db.json", published, lambda f: load_domain("retail", f, "tau2")),
    "published tasks": ("tasks.json", published, lambda f: load_benchmark_tasks("retail", f)),
    "published splits": ("split_tasks.json", published,
                         lambda f: load_benchmark_tasks("retail", f)),
    "published policy": ("policy.md", published, lambda f: load_domain("retail", f, "tau2")),
    "run": ("config.json", a_run, lambda f: read_run(f)),
    "run that goes on": ("config.json", a_run,
                         lambda f: check_run_dir(RunConfig(workdir=str(f)))),
    "contents of a run": ("contents.json", a_run,
                          lambda f: require_contents(f, {"training tasks": "a"})),
    "metrics": ("metrics.jsonl", a_run, lambda f: read_metrics(f)),
    "episodes": ("e.jsonl", lambda f: (f / "e.jsonl").write_text('{"task": {}}\n'),
                 lambda f: read_trajectories(f / "e.jsonl")),
    "episodes to judge": ("e.jsonl", lambda f: (f / "e.jsonl").write_text('{"task": {}}\n'),
                          lambda f: load_groups(f / "e.jsonl", "step", 1, 4)),
    "shape of a checkpoint": ("config.json", checkpoint, lambda f: read_config(f)),
    "sampling of a checkpoint": ("generation_config.json", checkpoint,
                                 lambda f: sampling_defaults(f)),
    "tensors": ("model.safetensors", checkpoint, lambda f: open_tensors(f)),
    "index of tensors": (
        "model.safetensors.index.json",
        lambda f: (checkpoint(f), (f / "model.safetensors.index.json").write_text(
            '{"weight_map": {"model.norm.weight": "model.safetensors"}}')),
        lambda f: open_tensors(f)),
    "tokenizer": ("tokenizer.json", a_tokenizer, lambda f: PretrainedTokenizer(f)),
    "config of a tokenizer": ("tokenizer_config.json", a_tokenizer,
                              lambda f: PretrainedTokenizer(f)),
    "results of tau2-bench": (
        "results.json", lambda f: (f / "results.json").write_text('{"simulations": []}'),
        lambda f: read_results(f / "results.json")),
    "what is shown": ("results.json",
                      lambda f: (f / "results.json").write_text('{"simulations": []}'),
                      lambda f: open_source(str(f / "results.json"))),
    "sound": ("a.wav", lambda f: small_wav(f / "a.wav"), lambda f: load_clip(f / "a.wav")),
}


def strange_files(good: bytes):
    yield from STRANGE.items()
    for share in CUTS:
        yield f"{share:.0%} of it", good[: int(len(good) * share)]
    middle = len(good) // 2
    yield "a flipped byte", good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1:]


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_takes_a_file_or_names_it(reader, tmp_path):
    name, make, read = READERS[reader]
    folder = tmp_path / "given"
    folder.mkdir()
    make(folder)
    path = folder / name
    good = path.read_bytes()
    wrong, refused = [], 0
    for what, content in strange_files(good):
        path.write_bytes(content)
        try:
            read(folder)
        except TarlError as error:
            refused += 1
            if name not in str(error) or len(str(error)) > 600:
                wrong.append(f"{what}: {str(error)[:600]!r} does not name {name}")
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
    path.unlink()
    path.mkdir()
    try:
        read(folder)
    except TarlError as error:
        refused += 1
        if name not in str(error) and str(folder) not in str(error):
            wrong.append(f"a folder: {error}")
    except Exception as error:
        wrong.append(f"a folder: {type(error).__name__}: {str(error)[:200]}")
    assert not wrong, "\n".join(wrong)
    assert refused or reader == "metrics"
    shutil.rmtree(folder)
