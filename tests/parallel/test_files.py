"""Files are whole or not there: on a disk that is full, under a kill, and with other writers.

The full disk is a real one, a small file system in memory, where this may be mounted; else a limit
on the size of files.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tarl_jax.parallel import files
from tarl_jax.parallel.files import LineFile, WriteError, new_folder, replace, replacing


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting needs the rights of an administrator")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    replace(path, "one \u2028 é")
    replace(path, b"two")
    assert path.read_bytes() == b"two" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_bytes() == b"two" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_one_message_and_leaves_the_old_file(small_disk):
    path = small_disk / "a.txt"
    replace(path, "old")
    with pytest.raises(WriteError, match=r"a\.txt: could not be written \(No space left"):
        replace(path, "new" * 100_000)
    assert path.read_text() == "old" and [p.name for p in small_disk.iterdir()] == ["a.txt"]


def test_lines_on_a_full_disk_are_whole(small_disk):
    lines = LineFile(small_disk / "a.jsonl")
    written = 0
    with pytest.raises(WriteError, match=r"a\.jsonl: could not be written \(No space left"):
        for _ in range(1000):
            lines.add("x" * 999)
            written += 1
    assert written > 10
    assert (small_disk / "a.jsonl").read_text() == ("x" * 999 + "\n") * written
    with pytest.raises(WriteError):
        lines.add("y" * 9999)
    lines.close()
    lines.close()


@pytest.mark.parametrize("accident", ["deleted", "replaced", "cut", "added to"])
def test_a_file_that_is_another_than_was_opened_is_noticed(tmp_path, accident):
    path = tmp_path / "a.jsonl"
    lines = LineFile(path)
    lines.add("one")
    match accident:
        case "deleted":
            path.unlink()
        case "replaced":
            replace(path, "one\n")
        case "cut":
            os.truncate(path, 2)
        case "added to":
            with path.open("a") as other:
                other.write("two\n")
    with pytest.raises(WriteError, match="is gone" if accident == "deleted" else "somebody else"):
        lines.add("three")
    lines.close()


def test_writers_of_one_file_leave_one_of_theirs(tmp_path):
    path = tmp_path / "a"
    contents = [bytes([n]) * 100_000 for n in range(8)]
    threads = [threading.Thread(target=replace, args=(path, c)) for c in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents and len(list(tmp_path.iterdir())) == 1


KILLED = """
import sys
from pathlib import Path
from tarl_jax.parallel.files import replace
n = 0
while True:
    n += 1
    replace(Path(sys.argv[1]), f"{n} " * 20_000)
    if n == 3:
        print("going", flush=True)
"""


def test_a_kill_leaves_a_whole_file_and_what_it_left_is_swept(tmp_path):
    path = tmp_path / "a"
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE)
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        words = path.read_text().split()
        assert len(words) == 20_000 and len(set(words)) == 1
    (tmp_path / ".b.host-1-aa.tmp").write_text("half")
    files.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_folders_made_at_once_are_each_ones_own(tmp_path):
    made = []
    threads = [threading.Thread(target=lambda: made.append(new_folder(tmp_path / "runs" / "x")))
               for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {p.name for p in made} == {"x", *(f"x-{n}" for n in range(2, 10))}
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file/x"):
        new_folder(Path(tmp_path / "file" / "x"))
