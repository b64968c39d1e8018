"""State survives on disk bit for bit, and what cannot be read says which folder and why."""

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from processes import free_port, outputs, start

from tarl_jax.config import CheckpointConfig
from tarl_jax.parallel.mesh import by_rows, make_mesh, replicated
from tarl_jax.rl.update import TrainState
from tarl_jax.runs import checksums
from tarl_jax.runs.checkpoint import CheckpointError, Checkpoints, load_params, save_params

CONFIG = CheckpointConfig(every=1, keep=3)


def make_state(seed: int = 0, width: int = 6) -> TrainState:
    """Parameters and the optimiser state of two updates, numbers of all kinds among them."""
    rng = np.random.default_rng(seed)
    params = {
        "embed": rng.standard_normal((8, width), np.float32),
        "layers": {"wq": rng.standard_normal((2, width, 4), np.float32) * 1e-38},
        "final_norm": np.array([0.0, -0.0, np.inf, np.nan, 3e-45, 1.1], np.float32),
        "half": jnp.array(rng.standard_normal(5), jnp.bfloat16),
    }
    params = jax.device_put(params, replicated(make_mesh()))
    optimizer = optax.adamw(1e-3)
    opt_state = optimizer.init(params)
    _, opt_state = optimizer.update(jax.tree.map(jnp.ones_like, params), opt_state, params)
    return TrainState(params, jax.device_put(opt_state, replicated(make_mesh())))


def assert_same_bits(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape
        assert x.tobytes() == y.tobytes()


def write(checkpoints, step, state, meta=None):
    """Saves, and waits until it is whole."""
    checkpoints.save(step, state, meta or {})
    assert checkpoints.failure(wait=True) is None


def zeros_like(state):
    return jax.tree.map(lambda x: jax.device_put(jnp.zeros_like(x), x.sharding), state)


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path, CONFIG)
    yield checkpoints
    checkpoints.close()


# ---- round trips ----------------------------------------------------------------------------


def test_a_state_comes_back_bit_for_bit_in_another_process_life(tmp_path, checkpoints):
    state = make_state()
    meta = {"step": 4, "config": "grpo", "best": 0.1 + 0.2}
    write(checkpoints, 4, state, meta)
    later = Checkpoints(tmp_path, CONFIG)
    assert later.steps == [4]
    found, found_meta = later.restore(4, zeros_like(state))
    later.close()
    assert_same_bits(found, state)
    assert found_meta == meta
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


def test_a_state_takes_the_sharding_of_its_likeness(tmp_path):
    """A run goes on upon other devices than those it was saved on."""
    mesh = make_mesh()
    save_params(tmp_path / "p", jax.device_put({"w": np.arange(8.0, dtype=np.float32)},
                                               replicated(mesh)))
    like = jax.device_put({"w": np.zeros(8, np.float32)}, by_rows(mesh))
    found = load_params(tmp_path / "p", like)
    assert found["w"].sharding == by_rows(mesh)
    np.testing.assert_array_equal(found["w"], np.arange(8))


def test_parameters_come_back_bit_for_bit(tmp_path):
    params = make_state().params
    folder = tmp_path / "not" / "there" / "yet"
    save_params(folder, params)
    assert_same_bits(load_params(folder, zeros_like(params)), params)
    other = make_state(1).params
    save_params(folder, other)  # replaces
    assert_same_bits(load_params(folder, zeros_like(params)), other)


def test_each_step_has_its_own_state(checkpoints):
    states = {step: make_state(step) for step in (0, 3, 7)}
    for step, state in states.items():
        checkpoints.save(step, state, {"step": step})
    for step, state in states.items():
        found, meta = checkpoints.restore(step, zeros_like(state))
        assert_same_bits(found, state)
        assert meta == {"step": step}


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, dataclasses.replace(CONFIG, keep=2))
    state = make_state()
    for step in range(5):
        write(checkpoints, step, state, {"step": step})
        assert checkpoints.steps == list(range(max(step - 1, 0), step + 1))
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


# ---- in the background ----------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch):
    """Lets nothing that is written come to its end until `go` is set; `there`: it is waiting."""
    go, there = threading.Event(), threading.Event()
    seal = checksums.seal

    def wait(folder):
        there.set()
        assert go.wait(60)
        seal(folder)

    monkeypatch.setattr(checksums, "seal", wait)
    yield go, there
    go.set()


def test_a_run_goes_on_while_a_checkpoint_is_written(tmp_path, checkpoints, held):
    """What is saved is the state of that moment, although its buffers are given to the next."""
    go, there = held
    state, ended = make_state(), []
    kept = jax.tree.map(lambda x: np.array(x, copy=True), state)
    checkpoints.save(1, state, {}, lambda: ended.append(checkpoints.steps))
    following = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 3, s), donate_argnums=0)
    later = jax.block_until_ready(following(state))
    assert there.wait(60)
    assert checkpoints.has(1) and checkpoints.steps == [] and not ended
    assert checkpoints.failure() is None
    go.set()
    assert checkpoints.failure(wait=True) is None
    assert checkpoints.steps == [1] and ended == [[]]
    found, _ = checkpoints.restore(1, zeros_like(later))
    assert_same_bits(found, kept)


def test_the_next_one_waits_and_is_whole_too(checkpoints, held):
    go, _ = held
    states = {step: make_state(step) for step in (1, 2)}
    checkpoints.save(1, states[1], {})
    threading.Timer(0.2, go.set).start()
    checkpoints.save(2, states[2], {})
    assert 1 in checkpoints.steps
    for step, state in states.items():
        assert_same_bits(checkpoints.restore(step, zeros_like(state))[0], state)


KILLED = """
import sys, threading
import numpy as np
from pathlib import Path
from orbax.checkpoint._src.checkpointers import async_checkpointer
from tarl_jax.config import CheckpointConfig
from tarl_jax.runs import checksums
from tarl_jax.runs.checkpoint import Checkpoints
import jax.numpy as jnp

checkpoints = Checkpoints(Path(sys.argv[1]), CheckpointConfig(every=1, keep=1))
checkpoints.save(1, {"w": jnp.ones(1000)}, {})
assert checkpoints.failure(wait=True) is None


def hang(*_):
    print("writing", flush=True)
    threading.Event().wait()


if sys.argv[2] == "before it has its name":
    async_checkpointer._on_commit_callback = hang
else:
    checksums.seal = hang
checkpoints.save(2, {"w": jnp.zeros(1000)}, {})
threading.Event().wait()
"""


@pytest.mark.parametrize("when", ["before it has its name", "before it is sealed"])
def test_a_kill_while_one_is_written_leaves_a_whole_one(tmp_path, when):
    command = [sys.executable, "-c", KILLED, str(tmp_path), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.kill()
    later = Checkpoints(tmp_path, CONFIG)
    newest = 1 if when == "before it has its name" else 2
    assert later.steps == [newest]
    found, _ = later.restore(newest, {"w": jnp.zeros(1000)})
    assert float(found["w"].sum()) == (1000 if newest == 1 else 0)
    write(later, 3, found)  # and what was half written goes
    later.close()
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_two_processes_write_while_they_go_on(tmp_path):
    """What they say to each other meanwhile passes through the devices, beside the writers."""
    port, script = free_port(), Path(__file__).parents[1] / "two_writers.py"
    said = outputs([start([script, str(port), str(rank), str(tmp_path)], 1) for rank in range(2)])
    assert [text.split()[0] for text in said] == ["whole", "whole"]


# ---- what cannot be read --------------------------------------------------------------------


def test_a_missing_step_lists_those_that_exist(checkpoints):
    state = make_state()
    for step in (2, 5):
        checkpoints.save(step, state, {})
    with pytest.raises(CheckpointError, match=r"step 4.*\[2, 5\]"):
        checkpoints.restore(4, state)


def test_other_shapes_name_the_folder(tmp_path, checkpoints):
    state = make_state()
    checkpoints.save(1, state, {})
    wider = state.replace(params={**state.params, "embed": jnp.zeros((8, 7))})
    with pytest.raises(CheckpointError, match="checkpoints/1"):
        checkpoints.restore(1, wider)
    more = state.replace(params={**state.params, "head": jnp.zeros(3)})
    with pytest.raises(CheckpointError, match="checkpoints/1"):
        checkpoints.restore(1, more)


def test_foreign_parameters_name_the_folder(tmp_path):
    save_params(tmp_path / "warm", {"w": jnp.zeros(4)})
    for like in ({"w": jnp.zeros(5)}, {"v": jnp.zeros(4)}):
        with pytest.raises(CheckpointError, match=str(tmp_path / "warm")):
            load_params(tmp_path / "warm", like)
    with pytest.raises(CheckpointError, match="nowhere"):
        load_params(tmp_path / "nowhere", {"w": jnp.zeros(4)})


@pytest.mark.parametrize("damage", ["truncate", "overwrite", "remove"])
def test_a_damaged_checkpoint_names_its_folder_and_spares_the_others(
    tmp_path, checkpoints, damage
):
    states = {step: make_state(step, width=64) for step in (1, 2)}
    for step, state in states.items():
        write(checkpoints, step, state)
    for file in [p for p in (tmp_path / "checkpoints/2/state").rglob("*") if p.is_file()]:
        size = file.stat().st_size
        if damage == "remove":
            file.unlink()
        else:
            content = file.read_bytes()[: size // 2] if damage == "truncate" else bytes(size)
            file.write_bytes(content)
    later = Checkpoints(tmp_path, CONFIG)
    with pytest.raises(CheckpointError, match="checkpoints/2") as raised:
        later.restore(2, zeros_like(states[2]))
    assert "Remove that folder" in str(raised.value) and "\n" not in str(raised.value)
    found, _ = later.restore(1, zeros_like(states[1]))
    later.close()
    assert_same_bits(found, states[1])


def flip_a_byte(file, place=0.5):
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    file.write_bytes(content)


def test_one_byte_that_has_flipped_is_noticed_and_the_last_good_step_named(tmp_path, checkpoints):
    """In each file by itself, the record of the checksums included."""
    states = {step: make_state(step, width=64) for step in (1, 2, 3)}
    for step, state in states.items():
        write(checkpoints, step, state, {"step": step})
    folder = tmp_path / "checkpoints/3"
    flip_a_byte(max((tmp_path / "checkpoints/2").rglob("d/*"), key=lambda f: f.stat().st_size))
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) > 4
    for file in files:
        whole = file.read_bytes()
        flip_a_byte(file)
        with pytest.raises(CheckpointError, match="from step 1, the last good") as raised:
            checkpoints.restore(3, states[3])
        named = file.name if file.name == "checksums.json" else str(file.relative_to(folder))
        assert named in str(raised.value) or file.name == "checksums.json", file
        file.write_bytes(whole)
    found, _ = checkpoints.restore(3, states[3])
    assert_same_bits(found, states[3])


def test_parameters_with_a_flipped_byte_are_refused(tmp_path):
    params = make_state(0, width=64).params
    save_params(tmp_path / "warm", params)
    flip_a_byte(max((tmp_path / "warm").rglob("d/*"), key=lambda f: f.stat().st_size))
    with pytest.raises(CheckpointError, match=r"warm: is damaged.*remove that folder"):
        load_params(tmp_path / "warm", params)


# ---- what cannot be written -----------------------------------------------------------------

FULL_DISK = """
import resource, sys
import numpy as np
from pathlib import Path
from tarl_jax.runs.checkpoint import CheckpointError, Checkpoints
from tarl_jax.config import CheckpointConfig
import jax.numpy as jnp

noise = np.random.default_rng(0)
checkpoints = Checkpoints(Path(sys.argv[1]), CheckpointConfig(every=1, keep=3))
checkpoints.save(1, {"w": jnp.array(noise.standard_normal(100))}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
checkpoints.save(2, {"w": jnp.array(noise.standard_normal(100_000))}, {})
error = checkpoints.failure(wait=True)
assert isinstance(error, CheckpointError)
print("reported:", error)
try:
    checkpoints.save(3, {"w": jnp.zeros(100)}, {})
except CheckpointError as again:
    assert again is error
checkpoints.close()
"""


def test_a_write_that_fails_is_reported_and_spares_the_others(tmp_path):
    """A limit on file sizes stands in for a full disk: writes fail in the middle of a file."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (report,) = [x for x in done.stdout.splitlines() if x.startswith("reported:")]
    assert str(tmp_path / "checkpoints" / "2") in report and "[1]" in report
    later = Checkpoints(tmp_path, CONFIG)
    assert later.steps == [1]
    found, _ = later.restore(1, {"w": jnp.zeros(100)})
    later.close()
    assert np.abs(found["w"]).max() > 0

    def half_written():
        return [p.name for p in (tmp_path / "checkpoints").iterdir() if "tmp" in p.name]

    assert half_written()  # reading leaves it: another process may be writing it
    writer = Checkpoints(tmp_path, CONFIG)
    write(writer, 2, {"w": jnp.ones(100)})
    writer.close()
    assert not half_written() and writer.steps == [1, 2]
