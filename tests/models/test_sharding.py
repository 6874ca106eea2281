import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from caspo_jax.errors import UserError
from caspo_jax.sharding import RULES, make_mesh, named_sharding


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
    assert dict(make_mesh(f"tensor:{devices}").shape) == {"tensor": devices}


@pytest.mark.parametrize(
    "spec, word",
    [
        ("model:2", "model"),
        ("data:1,data:1", "repeated"),
        ("data:0", "positive"),
        ("data:two", "two"),
        ("data", "positive"),
        ("data:-1,fsdp:-1", "cannot be completed"),
        (f"data:{jax.device_count() + 1}", "devices"),
    ],
)
def test_bad_specs_are_named(spec, word):
    with pytest.raises(UserError) as error:
        make_mesh(spec)
    assert f"--mesh={spec}" in str(error.value)
    assert word in str(error.value)


def test_rules_give_partitions(mesh):
    assert set(RULES) >= {"batch", "embed", "vocab", "heads", "kv_heads", "mlp", "layers"}
    assert named_sharding(mesh, ("layers", "embed", "heads")).spec == PartitionSpec(
        None, ("fsdp",), ("tensor",)
    )
    assert named_sharding(mesh, ("batch", None)).spec == PartitionSpec(("fsdp",), None)
    # 6 columns do not divide over 4 devices: that dimension stays whole, the other is still split
    assert named_sharding(mesh, ("embed", "mlp"), (8, 6)).spec == PartitionSpec(("fsdp",), None)
    with pytest.raises(KeyError):
        named_sharding(mesh, ("nonsense",))
