"""Recordings: what is written, what survives a torn file, what a replay answers."""

import json

import pytest

from tarl_jax.config import InputError, LLMConfig
from tarl_jax.llm.errors import LLMError
from tarl_jax.llm.service import ChatService
from tarl_jax.llm.store import Cache, Recording, digest
from tarl_jax.parallel.files import WriteError
from tarl_jax.parallel.lock import LockedError

ASK = [{"role": "user", "content": "Hello?"}]


def asked(config, key=""):
    with ChatService(config, "user.llm") as service:
        try:
            return service.complete(ASK, key=key).text, service.ledger.snapshot()
        except LLMError as error:
            return error, service.ledger.snapshot()


@pytest.fixture
def recorded(openai_server, tmp_path):
    """(config that records, config that replays)."""
    path = str(tmp_path / "folder" / "record.jsonl")
    common = {"model": "user", "api_key_env": "", "backoff_seconds": 0.0, "max_attempts": 2}
    return (LLMConfig(base_url=openai_server.url, record=path, **common),
            LLMConfig(base_url="http://127.0.0.1:9/v1", replay=path, **common))


def test_a_replay_answers_the_same_without_a_server(openai_server, recorded):
    openai_server.plan()
    record, replay = recorded
    texts = {key: asked(record, key)[0] for key in "ab"}
    assert texts["a"] != texts["b"]
    for key in "ba":
        text, counts = asked(replay, key)
        assert text == texts[key] and counts["replayed"] == 1 and counts["requests"] == 0


def test_a_recording_that_grows_answers_what_it_holds(openai_server, recorded):
    openai_server.plan()
    record, _ = recorded
    assert asked(record, "a")[0] == asked(record, "a")[0]
    assert openai_server.report()["requests"] == 1


def test_a_failure_is_replayed_as_it_was_and_asked_again_when_recording_goes_on(
    openai_server, recorded
):
    record, replay = recorded
    openai_server.plan("500", "500")
    error, _ = asked(record)
    again, _ = asked(replay)
    assert (again.kind, str(again)) == ("server_error", str(error))
    openai_server.plan()
    text, _ = asked(record)
    assert asked(replay)[0] == text


def test_what_ends_a_run_is_not_recorded(openai_server, recorded):
    record, replay = recorded
    openai_server.plan("401")
    assert asked(record)[0].kind == "unauthorized"
    assert asked(replay)[0].kind == "not_recorded"


def test_what_is_not_there_is_an_error_that_says_so(openai_server, recorded):
    openai_server.plan()
    record, replay = recorded
    asked(record, "a")
    error, _ = asked(replay, "b")
    assert error.fatal and record.record in str(error)
    assert "key 'b'" in str(error) and "'Hello?'" in str(error)


def test_what_the_cache_knew_is_recorded_too(openai_server, recorded, tmp_path):
    from dataclasses import replace

    openai_server.plan()
    record, play = recorded
    cached = replace(record, record="", cache_dir=str(tmp_path / "cache"))
    text, _ = asked(cached)
    assert asked(replace(cached, record=record.record))[1]["cache_hits"] == 1
    assert asked(play)[0] == text


def test_a_torn_last_line_is_dropped_and_written_anew(tmp_path):
    path = tmp_path / "r.jsonl"
    one = Recording(path, write=True)
    one.put("a", {"key": "a"}, {"answer": {"text": "A"}})
    one.put("b", {"key": "b"}, {"answer": {"text": "B"}})
    one.close()
    whole = path.read_bytes()
    for cut in (1, 10, len(whole.splitlines()[1])):
        path.write_bytes(whole[:-cut])
        assert Recording(path, write=False).get("b") is None
        assert path.read_bytes() == whole[:-cut]  # reading changes nothing
        torn = Recording(path, write=True)
        assert torn.get("a") == {"answer": {"text": "A"}}
        torn.put("b", {"key": "b"}, {"answer": {"text": "B"}})
        torn.close()
        assert path.read_bytes() == whole


def test_a_line_is_there_before_the_next_is_asked_for(tmp_path):
    one = Recording(tmp_path / "r.jsonl", write=True)
    one.put("a", {}, {"answer": {}})
    assert json.loads((tmp_path / "r.jsonl").read_text())["digest"] == "a"
    one.close()


@pytest.mark.parametrize("line", [
    "nonsense", "[]", '{"digest": "a"}', '{"answer": {}}', '{"digest": "a", "answer": {"text": 1}}',
    '{"digest": "a", "answer": "A"}', '{"digest": "a", "error": {"kind": "timeout"}}', "[" * 9999,
    '{"digest": "a", "answer": {"text": "A", "prompt_tokens": NaN}}',
])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"digest": "a", "answer": {{"text": "A"}}}}\n{line}\n')
    with pytest.raises(ValueError, match=r"r\.jsonl:2: not a line of a recording"):
        Recording(path, write=False)
    before = path.read_bytes()
    with pytest.warns(UserWarning, match=r"r\.jsonl:2: .* 1 such lines .*r\.jsonl\.broken"):
        one = Recording(path, write=True)
    one.put("b", {}, {"answer": {"text": "B"}})
    one.close()
    assert (tmp_path / "r.jsonl.broken").read_bytes() == before
    again = Recording(path, write=False)
    assert [again.get(name)["answer"]["text"] for name in "ab"] == ["A", "B"]


def test_two_processes_do_not_write_one_recording(tmp_path):
    one = Recording(tmp_path / "r.jsonl", write=True)
    with pytest.raises(LockedError, match=r"recording .*r\.jsonl: is in use by process"):
        Recording(tmp_path / "r.jsonl", write=True)
    one.close()
    Recording(tmp_path / "r.jsonl", write=True).close()
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_recording_that_is_deleted_while_it_is_written_is_noticed(tmp_path):
    one = Recording(tmp_path / "r.jsonl", write=True)
    one.put("a", {}, {"answer": {"text": "A"}})
    (tmp_path / "r.jsonl").unlink()
    with pytest.raises(WriteError, match=r"r\.jsonl: is gone"):
        one.put("b", {}, {"answer": {"text": "B"}})
    one.close()


def test_no_recording_to_replay(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such recording"):
        Recording(tmp_path / "r.jsonl", write=False)


def test_a_digest_is_of_the_content():
    assert digest({"a": 1, "b": "é"}) == digest({"b": "é", "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.0})


def test_two_caches_share_a_folder(tmp_path):
    one, two = Cache(tmp_path), Cache(tmp_path)
    one.put("x", {"text": "é"})
    assert two.get("x") == {"text": "é"} and two.get("y") is None
    two.put("x", {"text": "z"})
    assert one.get("x") == {"text": "z"}
    one.close()
    two.close()


@pytest.mark.parametrize("text", ["nonsense, and more of it than a header" * 30, "x" * 5000])
def test_a_cache_that_is_none_is_named_and_set_aside(tmp_path, text):
    (tmp_path / "llm.sqlite").write_text(text)
    with pytest.warns(UserWarning, match=r"llm\.sqlite: is no cache .*llm\.sqlite\.broken"):
        one = Cache(tmp_path)
    one.put("x", {"text": "é"})
    assert one.get("x") == {"text": "é"}
    assert (tmp_path / "llm.sqlite.broken").read_text() == text
    one.close()


def test_a_cache_that_breaks_while_it_is_open_is_set_aside(tmp_path):
    one = Cache(tmp_path)
    for number in range(200):
        one.put(str(number), {"text": "x" * 1000})
    one.close()
    path = tmp_path / "llm.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))  # the header is as it was
    one = Cache(tmp_path)
    with pytest.warns(UserWarning, match=r"llm\.sqlite\.broken"):
        assert [one.get(str(number)) for number in range(200)] == [None] * 200
    one.put("7", {"text": "y"})
    assert one.get("7") == {"text": "y"}
    one.close()


@pytest.mark.parametrize("row", ["{", "[]", '{"text": 1}', '{"text": "a", "more": 1}', "[" * 5000])
def test_an_answer_in_the_cache_that_cannot_be_read_is_asked_for_anew(tmp_path, row):
    one = Cache(tmp_path)
    one._file.execute("INSERT INTO answers VALUES ('x', ?)", (row,))
    assert one.get("x") is None
    one.close()


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name another"):
        Cache(tmp_path / "file")
