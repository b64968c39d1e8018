"""Copies of run directories: in buckets of both kinds and in a folder, killed and contended for."""

import dataclasses
import json
import shutil

import pytest
from buckets import KINDS, bucket

import tarl_jax.view.__main__ as view
from tarl_jax import evaluate
from tarl_jax.config import ConfigError, TarlError
from tarl_jax.parallel.lock import LockedError, Owner
from tarl_jax.parallel.store import BucketError, Store
from tarl_jax.runs import checksums, copies
from tarl_jax.runs.copies import Copy, fetched

# Emulators leave sockets to the end of the process.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning",
                                        "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", params=[*KINDS, "folder"])
def place(request, tmp_path_factory):
    """An address, or a folder, under which there is nothing yet."""
    if request.param == "folder":
        yield str(tmp_path_factory.mktemp("copies"))
        return
    with bucket(request.param) as (address, env), pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        yield address


@pytest.fixture
def address(place, request):
    return f"{place}/{request.node.originalname}/run"


def save(run, step, text="weights"):
    folder = run / "checkpoints" / str(step)
    (folder / "state" / "d").mkdir(parents=True)
    (folder / "state" / "d" / "data").write_text(f"{text} {step}")
    checksums.seal(folder)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "kind": "train"}) + "\n")


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "run.lock").write_text("mine")
    save(path, 1)
    return path


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name not in ("copy.json", "run.lock")}


def test_what_is_copied_comes_back_whole(run, address, tmp_path):
    (run / "checkpoints" / "2" / "state").mkdir(parents=True)  # one that is being written
    (run / "checkpoints" / "2" / "state" / "data").write_text("half")
    (run / ".metrics.jsonl.x.tmp").write_text("half")
    with Copy(run, address, print) as copy:
        copy.begin()
        copy.wait()
        shutil.rmtree(run / "checkpoints" / "2")
        (run / ".metrics.jsonl.x.tmp").unlink()
        save(run, 3)
        shutil.rmtree(run / "checkpoints" / "1")
    there = fetched(address, str(tmp_path / "cache"))
    assert contents(there) == contents(run) and "checkpoints/3/checksums.json" in contents(there)
    assert not checksums.damaged(there / "checkpoints" / "3")
    left = Store(address)
    assert left.read("checkpoints/1/checksums.json") is None and not left.names("in_use")
    assert left.read("run.lock") is None


def test_the_machine_that_copied_last_keeps_what_it_has(run, address, tmp_path):
    with Copy(run, address, print):
        pass
    first, second = (fetched(address, str(tmp_path / name)) for name in ("one", "two"))
    save(first, 2)
    with Copy(first, address, print):
        pass
    save(first, 3)  # and killed before it was copied
    assert "checkpoints/3/checksums.json" in contents(fetched(address, str(tmp_path / "one")))
    save(second, 2, "older")
    with pytest.raises(ConfigError, match="newer one"):
        Copy(second, address, print)
    again = fetched(address, str(tmp_path / "two"))
    assert (again / "checkpoints/2/state/d/data").read_text() == "weights 2"
    assert sorted(p.name for p in (again / "checkpoints").iterdir()) == ["1", "2"]


def test_another_run_is_not_written_over(run, address, tmp_path):
    with Copy(run, address, print):
        pass
    other = tmp_path / "other"
    other.mkdir()
    save(other, 9)
    with pytest.raises(ConfigError, match="copy of another run"):
        Copy(other, address, print)


def test_a_run_is_not_copied_onto_itself(run):
    with pytest.raises(ConfigError, match="is the run directory itself"):
        Copy(run, str(run), print)


def test_one_process_copies_at_a_time(run, address, monkeypatch):
    monkeypatch.setattr(copies, "BEAT", 0.2)
    store = Store(address)
    with Copy(run, address, print), pytest.raises(LockedError, match="is in use by process"):
        Copy(run, address, print)
    # One of this machine that has ended, and one of elsewhere that is silent.
    gone = dataclasses.replace(Owner.me(), process=2**22 - 1, token="a")
    store.write("in_use/gone", json.dumps(dataclasses.asdict(gone)).encode())
    far = dataclasses.replace(Owner.me(), host="elsewhere", token="b")
    store.write("in_use/far", json.dumps(dataclasses.asdict(far)).encode())
    monkeypatch.setattr(copies, "SILENCE", 0.5)
    with Copy(run, address, print):
        assert len(store.names("in_use")) == 1


def test_who_was_taken_for_gone_writes_no_more(run, address):
    store = Store(address)
    with pytest.raises(LockedError, match="another process copies there now"), \
            Copy(run, address, print):
        (claim,) = store.names("in_use")
        store.remove(f"in_use/{claim}")
    assert store.read("copy.json") is None


def test_a_failure_is_said_and_tried_again(run, address, monkeypatch):
    said, whole = [], Store.put

    def fail(self, file, name):
        raise BucketError(f"{self.address}: no network")

    with Copy(run, address, said.append) as copy:
        monkeypatch.setattr(Store, "put", fail)
        copy.begin()
        copy.wait()
        assert "no network; tried again" in said[0]
        monkeypatch.setattr(Store, "put", whole)
        copy.begin()
        copy.wait()
        assert len(said) == 1 and Store(address).read("config.json") == b"{}"
    (run / "config.json").write_text('{"a": 1}')
    monkeypatch.setattr(Store, "put", fail)
    with pytest.raises(TarlError, match=f"no network. The copy is behind; all is in {run}"), \
            Copy(run, address, said.append):
        pass


def test_a_run_that_did_not_begin_leaves_nothing(tmp_path, address):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError), Copy(tmp_path / "run", address, print):
        raise ValueError
    assert not Store(address).names("in_use") and Store(address).read("copy.json") is None


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_bucket_that_is_not_there_is_one_line(place, run):
    with pytest.raises(BucketError, match="Check that the bucket is there") as caught:
        Copy(run, f"{place}-none/run", print)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_commands_take_the_address(place, run, address, tmp_path, monkeypatch, capsys):
    with Copy(run, address, print):
        pass
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert view.main([address, "--dry_run"]) == 0
    assert "run: 1 lines of metrics" in capsys.readouterr().out
    for more, says in ((["--print_config"], f'"log.copy_to": "{address}"'),
                       (["--config.mesh.processes=2"], "--config.log.copy_to=")):
        monkeypatch.setattr("sys.argv", ["evaluate", address, *more])
        with pytest.raises(SystemExit):
            evaluate.main()
        assert says in "".join(capsys.readouterr())


def test_names_from_elsewhere_stay_in_the_folder(address, tmp_path):
    store = Store(address)
    files = {name: [1, 1] for name in ("../evil", "a/../../evil", "/evil", "good")}
    store.write("good", b"x")
    store.write("copy.json", json.dumps({"writer": "w", "push": "p", "files": files}).encode())
    folder = fetched(address, str(tmp_path / "deep" / "cache"))
    assert contents(folder) == {"good": b"x"}
    store.write("copy.json", b"[]")
    with pytest.raises(BucketError, match="no list of a run"):
        fetched(address, str(tmp_path / "new"))
