import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from caspo_jax.errors import UserError
from caspo_jax.models.weights import parameter_sharding, weights
from caspo_jax.sharding import (
    RULES,
    as_mesh,
    batch_ways,
    constrain,
    make_mesh,
    named_sharding,
    place,
    to_host,
)
from tests.shapes import small_shape


@pytest.fixture
def mesh():
    return AbstractMesh((2, 4), ("fsdp", "tensor"))


def test_no_spec_means_no_mesh():
    assert make_mesh(None) is None
    assert make_mesh("") is None


def test_sizes_and_completion():
    devices = jax.device_count()
    mesh = make_mesh("data:1,fsdp:-1")
    assert dict(mesh.shape) == {"data": 1, "fsdp": devices}
    assert make_mesh(" data:1, fsdp:-1") == mesh
    assert dict(make_mesh(f"tensor:{devices}").shape) == {"tensor": devices}


@pytest.mark.parametrize(
    "spec, word",
    [
        ("model:2", "model"),
        ("data:1,data:1", "repeated"),
        ("data:0", "positive"),
        ("data:two", "two"),
        ("data:--1", "--1"),
        ("data:²", "²"),
        ("data", "positive"),
        ("data:-1,fsdp:-1", "cannot be completed"),
        (f"data:{jax.device_count() + 1},fsdp:-1", "cannot be completed"),
        (f"data:{jax.device_count() + 1}", "devices"),
    ],
)
def test_bad_specs_are_named(spec, word):
    with pytest.raises(UserError) as error:
        make_mesh(spec)
    assert f"mesh={spec!r}" in str(error.value)
    assert word in str(error.value)


def test_a_mesh_of_ones_own():
    devices = jax.device_count()
    assert as_mesh(None) is None
    assert as_mesh("") is None
    mesh = as_mesh(f"fsdp:{devices}")
    assert as_mesh(mesh) is mesh
    explicit = as_mesh(
        jax.make_mesh((devices,), ("fsdp",))
    )  # Explicit by default, and no constraint can be put on it
    assert explicit == mesh
    assert jax.jit(lambda x: constrain(explicit, x, ("embed",)))(np.ones(devices)).shape == (devices,)
    for axes in (("dp", "tp"), ("data", "tp")):
        with pytest.raises(
            UserError, match=f"mesh axis '{axes[axes[0] == 'data']}' is unknown: name axes data"
        ):
            as_mesh(jax.make_mesh((devices, 1), axes))
    with pytest.raises(UserError, match="is not a mesh"):
        as_mesh(("data", 1))


def test_rules_give_partitions(mesh):
    assert set(RULES) >= {"batch", "embed", "vocab", "heads", "kv_heads", "mlp", "layers"}
    assert named_sharding(mesh, ("layers", "embed", "heads")).spec == PartitionSpec(
        None, ("fsdp",), ("tensor",)
    )
    assert named_sharding(mesh, ("batch", None)).spec == PartitionSpec(("fsdp",))
    # 6 columns do not divide over 4 devices: that dimension stays whole, the other is still split
    assert named_sharding(mesh, ("embed", "mlp"), (8, 6)).spec == PartitionSpec(("fsdp",))
    # of several mesh axes, the leading ones that divide the dimension together
    three = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    for rows, axes in ((8, ("data", "fsdp", "tensor")), (4, ("data", "fsdp")), (6, ("data",))):
        assert named_sharding(three, ("rows", None), (rows, 5)).spec == PartitionSpec(axes)
    assert named_sharding(three, ("rows", None), (3, 5)).spec == PartitionSpec()
    # a mesh axis splits one dimension of an array, the first that asks for it
    assert named_sharding(mesh, ("batch", "embed")).spec == PartitionSpec(("fsdp",))
    assert batch_ways(mesh) == 2
    assert batch_ways(None) == 1
    with pytest.raises(KeyError):
        named_sharding(mesh, ("nonsense",))


def test_heads_are_split_between_devices_and_never_inside(mesh):
    config = small_shape(hidden_size=32, intermediate_size=64, num_heads=8, num_kv_heads=2)
    specs = {w.name: parameter_sharding(mesh, w, config).spec for w in weights(config)}
    assert specs["q"] == PartitionSpec(None, ("fsdp",), ("tensor",))
    assert specs["o"] == PartitionSpec(None, ("tensor",), ("fsdp",))
    # 2 KV heads on 4 devices: their 16 columns would divide, but each head would be cut in two
    assert specs["k"] == specs["v"] == PartitionSpec(None, ("fsdp",))
    assert specs["embed"] == PartitionSpec(("tensor",), ("fsdp",))


def test_host_arrays_come_back_from_the_mesh():
    mesh = make_mesh("data:-1")
    batch = {"rows": np.arange(6.0).reshape(6, 1), "count": np.int32(3), "flags": np.array([True, False])}
    placed = place(mesh, batch)
    assert placed["rows"].sharding == named_sharding(mesh, ("batch", "length"))
    for name, array in to_host(placed).items():
        np.testing.assert_array_equal(array, batch[name])
    assert place(None, batch) is batch
