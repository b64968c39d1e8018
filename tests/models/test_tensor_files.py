"""Safetensors files that others wrote, cut, or made up: read as they say, or refused by name."""

import json

import numpy as np
import pytest

from tarl_jax.config import InputError
from tarl_jax.models.tensor_files import INDEX, SINGLE, open_tensors

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def numbers(*values):
    return np.array(values, np.float32).tobytes()


def test_a_file_is_read(tmp_path):
    write(tmp_path / SINGLE, {"__metadata__": {"format": "pt"}, "a": GOOD}, numbers(1, 2))
    np.testing.assert_array_equal(open_tensors(tmp_path)["a"], [1, 2])


@pytest.mark.parametrize("changes", [
    {"data_offsets": [-8, 0]}, {"data_offsets": [8, 0]}, {"data_offsets": [0, 4]},
    {"data_offsets": [0]}, {"data_offsets": [0.0, 8.0]}, {"data_offsets": ["0", "8"]},
    {"data_offsets": None}, {"shape": [-2]}, {"shape": [2, -1]}, {"shape": 2}, {"shape": [True, 2]},
    {"shape": [10**30]}, {"dtype": 1}, {"dtype": "F3"},
])
def test_an_entry_that_cannot_be_is_named(tmp_path, changes):
    write(tmp_path / SINGLE, {"a": GOOD | changes}, numbers(1, 2))
    with pytest.raises(InputError, match=r"model\.safetensors: "):
        open_tensors(tmp_path)


@pytest.mark.parametrize("header", [
    b"[]", b"77", b'{"a": 1}', b'{"a": NaN}', b"[" * 9999, b"\xff{",
])
def test_a_header_that_is_none_is_named(tmp_path, header):
    write(tmp_path / SINGLE, header, b"")
    with pytest.raises(InputError, match=r"model\.safetensors: .*damaged"):
        open_tensors(tmp_path)


def test_an_index_decides_which_file_a_tensor_comes_from(tmp_path):
    write(tmp_path / SINGLE, {"a": GOOD}, numbers(0, 0))  # left of another conversion
    write(tmp_path / "1.safetensors", {"a": GOOD}, numbers(1, 1))
    both = {"a": GOOD, "b": GOOD | {"data_offsets": [8, 16]}}
    write(tmp_path / "2.safetensors", both, numbers(2, 2, 3, 3))
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    found = open_tensors(tmp_path)
    assert {name: value[0] for name, value in found.items()} == {"a": 1, "b": 3}


@pytest.mark.parametrize("place, told", [
    ({"a": "1.safetensors", "c": "1.safetensors"}, "lacks c"),
    ({"a": "../1.safetensors"}, "weight_map"),
    ({"a": "2.safetensors"}, "not there"), ({}, "weight_map"), ([], "weight_map"),
    ({"a": 1}, "weight_map"),
])
def test_an_index_that_is_wrong_is_named(tmp_path, place, told):
    write(tmp_path / "1.safetensors", {"a": GOOD}, numbers(1, 1))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": place}))
    with pytest.raises(InputError, match=told):
        open_tensors(tmp_path)
