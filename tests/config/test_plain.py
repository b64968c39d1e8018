"""Text from outside: what is mended, what is refused, and in which words."""

import json

import pytest

from tarl_jax.config import InputError, MissingFileError
from tarl_jax.config.plain import (
    MAX_DEPTH,
    dumps,
    loads,
    plain,
    read_json,
    read_lines,
    read_text,
    without_thoughts,
)


@pytest.mark.parametrize("text, made", [
    ("Cool \ud83d.", "Cool \ufffd."), ("\ude00", "\ufffd"), ("\ud83d\ude00", "\U0001f600"),
    ("é\u2028\x85\x00\U0001f600", "é\u2028\x85\x00\U0001f600"), ("\ude00\ud83d", "\ufffd\ufffd"),
])
def test_half_a_character_becomes_the_sign_for_one(text, made):
    assert plain(text) == made
    for escaped in (True, False):
        assert loads(json.dumps({text: [text]}, ensure_ascii=escaped)) == {made: [made]}


@pytest.mark.parametrize("text", [
    "NaN", "[-Infinity]", '{"a": Infinity}', "1e999", "-1e400", "[" * 100_000, '{"a":' * 2_000,
    "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "9" * 5_000, "", "{", "'a'",
])
def test_what_other_readers_do_not_take_is_no_json(text):
    with pytest.raises(ValueError):
        loads(text)


def test_json_up_to_the_depth_is_read_and_can_be_written():
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(loads(text)) == text
    assert loads(b"\xef\xbb\xbf[1, 2.5, null, true]") == [1, 2.5, None, True]


def test_a_line_is_json_for_any_reader():
    line = dumps({"a": (float("nan"), 1.5), "b": {"c": float("-inf")}, "d": "\u2028"})
    assert json.loads(line, parse_constant=pytest.fail) == {
        "a": ["NaN", 1.5], "b": {"c": "-Infinity"}, "d": "\u2028",
    }
    assert line.isascii() and "\n" not in line
    with pytest.raises(TypeError):
        dumps({"a": {1, 2}})


def test_lines_end_with_line_feeds_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff"a\u2028b\x85c"\r\n\n"d\x1ce"'.encode())
    assert [(where, loads(line)) for where, line in read_lines(path) if "\x1c" not in line] == [
        (f"{path}:1", "a\u2028b\x85c"),
    ]
    assert [where for where, _ in read_lines(path)] == [f"{path}:1", f"{path}:3"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(MissingFileError, match=r"a\.json: is not there"):
        read_text(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_text(tmp_path)
    path.write_bytes("é".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.json: byte 0 is no UTF-8"):
        read_json(path)
    path.write_text('{"a":\n1,}')
    with pytest.raises(InputError, match=r"a\.json:2: not valid JSON"):
        read_json(path)
    path.write_text("[NaN]")
    with pytest.raises(InputError, match=r"a\.json: not valid JSON: NaN"):
        read_json(path)


@pytest.mark.parametrize("text, left", [
    ("Hello.", "Hello."), ("<think>a</think>Hello.", "Hello."),
    ("a\n</think>\n\nHello.", "\n\nHello."),
    ("</think>Hello.", "Hello."), ("<Thinking>a<think>b</thinking>Hello.", "Hello."),
    ("One <think>a</think>two <think>b</think>three", "One two three"),
    ("a <think>b</think> c</think>Hello.", "Hello."),
])
def test_what_a_model_thinks_is_taken_out(text, left):
    assert without_thoughts(text) == left


@pytest.mark.parametrize("text", ["<think>a", "a</think>b<think>c", "<think>" * 100_000])
def test_a_thought_without_an_end_is_told(text):
    with pytest.raises(ValueError, match="unfinished <think>"):
        without_thoughts(text)
