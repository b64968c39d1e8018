"""Datasets of tensorflow-datasets, prepared here: tasks and maths problems come back as given."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from tarl_jax.config import InputError, MathsConfig, RunConfig
from tarl_jax.maths.problems import maths_tasks
from tarl_jax.rollout.environment import Environment
from tarl_jax.sandbox import load_domain
from tarl_jax.sandbox.prepare import main, write
from tarl_jax.sandbox.synthesis.pipeline import Plan, synthesise
from tarl_jax.sandbox.tasks import dataset_tasks, load_tasks, save_tasks
from tarl_jax.sandbox.tfds import examples

tfds = pytest.importorskip("tensorflow_datasets", reason="needs tensorflow-datasets (tfds extra)")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class Sums(tfds.core.GeneratorBasedBuilder):
    """Problems under names of another kind, a text and an integer; a builder on the spot."""

    VERSION = tfds.core.Version("2.1.0")

    def _info(self):
        features = {"question": tfds.features.Text(), "sum": tfds.features.Scalar(np.int64),
                    "solution": tfds.features.Text(), "both": tfds.features.Tensor(
                        shape=(2,), dtype=np.int64)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features),
                                     disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for n in range(count):
            question = f"What is {n} + {count}?"
            yield n, {"question": question, "sum": n + count, "solution": "é", "both": [n, count]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(task file, its tasks, TFDS's folder with both datasets)"""
    folder = tmp_path_factory.mktemp("tfds")
    tasks = synthesise(load_domain("retail"), Plan(12, held_out=0.25)).tasks
    save_tasks(folder / "tasks.jsonl", tasks)
    write(folder / "tasks.jsonl", "small", str(folder / "data"))
    tfds.disable_progress_bar()
    for file_format in ("array_record", "tfrecord"):
        sums = Sums(data_dir=folder / file_format, file_format="array_record")
        sums.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    # As a dataset that was prepared in TFDS's default format looks from outside.
    info = folder / "tfrecord" / "sums" / "2.1.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    return folder / "tasks.jsonl", load_tasks(folder / "tasks.jsonl"), folder


@pytest.fixture(autouse=True)
def data_dir(made, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made[2] / "data"))


def sums_at(made, split=""):
    return f"{made[2] / 'array_record' / 'sums' / '2.1.0'}{split}"


def test_tasks_come_back_by_name_by_folder_and_by_split(made):
    _, tasks, folder = made
    everything = sorted(tasks, key=lambda t: t.split != "train")
    assert dataset_tasks(["tarl_tasks/small"]) == everything
    assert dataset_tasks(["tarl_tasks/small:1.0.0"]) == everything
    assert dataset_tasks([str(folder / "data" / "tarl_tasks" / "small" / "1.0.0")]) == everything
    held_out = [t for t in tasks if t.split == "held_out"]
    train = [t for t in tasks if t.split == "train"]
    assert dataset_tasks(["tarl_tasks/small@held_out", "tarl_tasks/small@train[:4]"]) == [
        *held_out, *train[:4]]
    with pytest.raises(InputError, match=r"example 1: the task_id .* is that of .* already"):
        dataset_tasks(["tarl_tasks/small", "tarl_tasks/small@train"])


def test_a_run_trains_on_them_as_on_the_file(made):
    file, _, _ = made
    config = RunConfig()

    def environment(**given):
        return Environment.from_config(
            dataclasses.replace(config, tasks=dataclasses.replace(config.tasks, **given)))

    by_name, by_file = environment(tfds=("tarl_tasks/small",)), environment(file=str(file))
    assert by_name.contents() == by_file.contents()
    assert len(by_name.train_tasks) == 9 and len(by_name.held_out_tasks) == 3
    with pytest.raises(InputError, match="@train: none has the split 'held_out'"):
        environment(tfds=("tarl_tasks/small@train",))


def test_problems_under_other_names(made):
    config = MathsConfig(tfds=(sums_at(made),), tfds_features=("question", "sum"), num_held_out=5)
    train, held_out = maths_tasks(config)
    assert (len(train), len(held_out)) == (19, 5)
    for task in train + held_out:
        a, b = map(int, re.findall(r"\d+", task.instruction))
        assert task.outputs == (str(a + b),)
    part = dataclasses.replace(config, tfds=(sums_at(made, "@test"), sums_at(made, "@train[10:]")))
    assert sum(map(len, maths_tasks(part))) == 14
    (_, first), *_ = examples(sums_at(made, "@test"), "maths.tfds", ("sum",), ("solution", "no"))
    assert first == {"sum": 4, "solution": "é"}


@pytest.mark.parametrize("entry, said", [
    ("nothing_like_it", "no dataset of this name is prepared in .*, and none is known: mend"),
    ("tarl_tasks/small:3.0.0", "prepared in|cannot be opened"),
    ("mnist", "is known but not prepared here: python -c"),
    ("/absent/folder", "cannot be opened .*give NAME"),
    ("", "cannot be opened|no dataset"),
    ("tarl_tasks/small@test", "Unknown split 'test'.*; its splits are train, held_out"),
    ("tarl_tasks/small@train[:3", "split.*its splits are train, held_out"),
    ("SUMS", "has the features .*question.*, but not task: name another dataset"),
    ("TFRECORD", "its files are tfrecord, which cannot be read here: prepare it anew"),
])
def test_what_cannot_be_read_is_named_with_a_remedy(made, entry, said):
    entry = {"SUMS": sums_at(made), "TFRECORD": sums_at(made).replace("array_r", "tfr")}.get(
        entry, entry)
    needed = ("question",) if "tfrecord" in entry else ("task",)
    with pytest.raises(InputError, match=said) as caught:
        list(examples(entry, "tasks.tfds", needed))
    assert str(caught.value).startswith(f"config.tasks.tfds = {entry!r}: ")
    assert "\n" not in str(caught.value)


def test_examples_of_another_kind_are_named(made, tmp_path):
    with pytest.raises(InputError, match="test, example 1: its feature 'both' is array"):
        list(examples(sums_at(made, "@test"), "maths.tfds", ("both",)))
    with pytest.raises(InputError, match=r"maths.tfds.*but not problem"):
        maths_tasks(MathsConfig(tfds=(sums_at(made),)))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"config.tasks.tfds = 'x': needs tensorflow-datasets .*"
                                         r"pip install -e '\.\[tfds\]'"):
        dataset_tasks(["x"])


def test_the_command_prepares_once_and_tensorflow_is_never_loaded(made, tmp_path, capsys):
    file, tasks, _ = made
    command = [str(file), "--name=again", f"--data_dir={tmp_path}"]
    assert main(command) == 0
    assert "--config.tasks.tfds=tarl_tasks/again" in capsys.readouterr().out
    assert main(command) == 2 and "is there already" in capsys.readouterr().err
    assert main([str(file), "--name=No way"]) == 2 and "--name" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.jsonl")]) == 2
    code = ("import json, sys; from tarl_jax.sandbox.tasks import dataset_tasks as read\n"
            f"found = read([{str(tmp_path / 'tarl_tasks/again/1.0.0')!r}])\n"
            "print(json.dumps([len(found), 'tensorflow' in sys.modules]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [len(tasks), False]
