"""The mesh and the table from logical axes to mesh axes."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tarl_jax.config import ConfigError, MeshConfig, ModelConfig
from tarl_jax.models import decoder
from tarl_jax.parallel import mesh as meshes
from tarl_jax.parallel.mesh import (
    _sets,
    check_fits,
    make_mesh,
    rollout_mesh,
    row_shards,
    sharding,
    spec,
)


def test_the_table_gives_each_parameter_its_place():
    assert spec("layers", "embed", "heads", "head_dim") == P(None, "fsdp", "tensor", None)
    assert spec("rows", "tokens") == P(("data", "fsdp"), "tensor")
    assert spec("vocab", None) == P("tensor", None)


def test_an_axis_that_is_not_in_the_table_is_an_error():
    with pytest.raises(ValueError, match=r"unknown logical axis 'head'.*known: rows, .*heads"):
        spec("embed", "head")


@pytest.mark.parametrize("axes", [("vocab", "mlp"), ("rows", "embed"), ("heads", "kv_heads")])
def test_one_mesh_axis_cannot_split_two(axes):
    with pytest.raises(ValueError, match=f"would split both '{axes[0]}' and '{axes[1]}'"):
        spec(*axes)


def test_a_collision_made_by_a_changed_table_is_seen(monkeypatch):
    monkeypatch.setitem(meshes.RULES, "mlp", "fsdp")
    with pytest.raises(ValueError, match="'fsdp' would split both 'embed' and 'mlp'"):
        spec(*decoder.LAYER_AXES["w_up"])


def test_minus_one_takes_what_is_left():
    devices = jax.devices()
    assert make_mesh(MeshConfig(data=1, fsdp=-1)).shape["fsdp"] == len(devices)
    alone = make_mesh(devices=devices[:1])
    assert dict(alone.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert rollout_mesh(MeshConfig(rollout_tensor=2)).shape["tensor"] == 2
    assert row_shards(make_mesh(MeshConfig(data=1, fsdp=1, tensor=-1))) == 1


def test_rollouts_may_have_devices_of_their_own():
    first, last = jax.devices()
    config = MeshConfig(rollout_devices=1)
    assert list(make_mesh(config).devices.flat) == [first]
    assert list(rollout_mesh(config).devices.flat) == [last]
    assert set(make_mesh().devices.flat) == set(rollout_mesh(MeshConfig()).devices.flat)


def test_each_process_gives_its_last_devices():
    """Eight devices of two processes, in any order."""
    devices = [SimpleNamespace(process_index=n % 2, id=n) for n in range(8)]
    config = MeshConfig(data=1, fsdp=-1, rollout_devices=2, rollout_tensor=2)
    learning, playing = _sets(config, devices)
    assert [d.id for d in playing] == [6, 7] and [d.id for d in learning] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ConfigError, match=r"rollout_devices = 3: .* 8 devices of 2 processes, wh"):
        _sets(dataclasses.replace(config, rollout_devices=3), devices)


def test_devices_of_rollouts_that_cannot_be_are_errors():
    config = MeshConfig(rollout_devices=2)
    for make in (make_mesh, rollout_mesh):
        with pytest.raises(ConfigError, match=r"config.mesh.rollout_devices = 2: this run has 2 d"):
            make(config)
        with pytest.raises(ConfigError, match=r"= 2: this run has 1 device, .*rollout_devices=0"):
            make(config, jax.devices()[:1])
    with pytest.raises(ConfigError, match=r"= 2: does not divide the 1 device that rollouts have"):
        rollout_mesh(MeshConfig(rollout_devices=1, rollout_tensor=2))
    with pytest.raises(ConfigError, match=r"1 devices, which mesh.rollout_devices = 1 leaves to"):
        make_mesh(MeshConfig(data=2, rollout_devices=1))


@pytest.mark.parametrize("config", [MeshConfig(3, 1, 1), MeshConfig(-1, 3, 1)])
def test_a_mesh_of_another_size_than_the_devices_is_an_error(config):
    with pytest.raises(ConfigError, match=r"config\.mesh: data .* does not make 2 devices"):
        make_mesh(config)


@pytest.mark.parametrize(
    "model, vocab, name",
    [
        (ModelConfig(num_kv_heads=1), 128, "model.num_kv_heads = 1"),
        (ModelConfig(num_kv_heads=2), 127, "the vocabulary = 127"),
    ],
)
def test_a_mesh_that_cannot_split_the_model_is_an_error(model, vocab, name):
    with pytest.raises(ConfigError, match=rf"config\.mesh\.tensor = 2: does not divide {name}"):
        check_fits(make_mesh(MeshConfig(data=1, tensor=2)), model, vocab)


def test_what_rollouts_cannot_be_split_by_is_named():
    """Both fields that a published size sets for more devices than there are."""
    with pytest.raises(ConfigError, match=r"config.mesh.rollout_tensor = 8: .* 2 devices .*=1\)"):
        rollout_mesh(MeshConfig(rollout_tensor=8))
    with pytest.raises(ConfigError, match=r"rollout_tensor = 8: .* 1 device of"):
        rollout_mesh(MeshConfig(rollout_tensor=8), jax.devices()[:1])
    mesh = rollout_mesh(MeshConfig(rollout_tensor=2))
    with pytest.raises(ConfigError, match=r"mesh.rollout_tensor = 2: does not divide model.num_kv"):
        check_fits(mesh, ModelConfig(num_kv_heads=1), 128, "rollout_tensor")


@pytest.mark.parametrize("lora", [0, 4])
def test_every_parameter_has_axes_of_its_rank(lora):
    config = ModelConfig(qkv_bias=True, tie_embeddings=False)
    shapes = jax.eval_shape(lambda: decoder.init_params(config, 50, jax.random.key(0)))
    for tree in (shapes, jax.eval_shape(decoder.unstack, shapes)):
        axes = decoder.logical_axes(tree)
        ranks = jax.tree.map(lambda x, a: len(x.shape) == len(a), tree, axes)
        assert all(jax.tree.leaves(ranks))
    where = sharding(make_mesh(MeshConfig(data=1, fsdp=2)), "layers", "embed", "mlp")
    assert where.shard_shape((3, 128, 384)) == (3, 64, 384)


def test_bytes_on_a_device_are_those_of_its_part():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2))
    array = jax.device_put(np.zeros((4, 6), np.float32), sharding(mesh, "embed", None))
    assert meshes.bytes_on_device({"w": array, "b": array}) == 2 * 2 * 6 * 4
