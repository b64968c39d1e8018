"""The copy at Weights & Biases, offline: what its own reader finds in the file."""

import importlib
import json
import struct
import time

import pytest

from tarl_jax.config import ConfigError
from tarl_jax.runs.wandb_copy import WandbCopy, check

wandb = pytest.importorskip("wandb", reason="no wandb here: pip install -e '.[wandb]'")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def records(path):
    """The records of a file: a header of 7 bytes, then LevelDB's log in blocks of 32 KiB."""
    pb = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, place, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no room for a header: the block's rest is padding
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = pb.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_numbers_and_config_are_in_its_file_and_the_run_keeps_its_name(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for steps in ((0, 1), (1, 2)):  # the second start writes step 1 again
        copy = WandbCopy(run, "tests", {"rl.steps": 3})
        for step in steps:
            copy.write(step, {"eval/pass^1": 0.5 + step, "rl/kl": 0.25})
        copy.close()
        time.sleep(1.1)  # wandb names a start's folder by the second
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    identity = (run / "wandb_id").read_text()
    assert files and all(identity in file.name for file in files)
    found, config = [], {}
    for file in files:
        for record in records(file):
            if record.HasField("history"):
                items = record.history.item
                found.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json)
                              for i in items})
            if record.HasField("run"):
                config |= {u.key or ".".join(u.nested_key): json.loads(u.value_json)
                           for u in record.run.config.update}
                assert record.run.display_name == "run" and record.run.project == "tests"
    assert [(f["step"], f["eval/pass^1"], f["rl/kl"]) for f in found] == [
        (0, 0.5, 0.25), (1, 1.5, 0.25), (1, 1.5, 0.25), (2, 2.5, 0.25)]
    assert config["rl.steps"] == 3


def test_without_a_key_it_is_refused_before_a_run_begins(monkeypatch):
    check("")
    check("tests")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError, match=r"config\.log\.wandb = 'tests': no key .*WANDB_API_KEY"):
        check("tests")
