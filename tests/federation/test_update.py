import numpy as np
import pytest

from privfedtalk_flare.federation.update import UpdateError, UpdateSpec, digest_of

TENSORS = {"b.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.weight": np.full((4,), -1.5, np.float32)}
SPEC = UpdateSpec.of(TENSORS, rank=2, scaling=1.0, frozen_digest="ab")


def test_round_trip_keeps_names_shapes_and_values():
    vector = SPEC.flatten(TENSORS)
    assert vector.shape == (10,) == (SPEC.size,) and vector.dtype == np.float32
    back = SPEC.unflatten(vector)
    assert set(back) == set(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_order_of_the_mapping_does_not_matter():
    reversed_ = dict(reversed(TENSORS.items()))
    np.testing.assert_array_equal(SPEC.flatten(reversed_), SPEC.flatten(TENSORS))
    assert UpdateSpec.of(reversed_, 2, 1.0, "ab").digest == SPEC.digest


@pytest.mark.parametrize("other", [
    UpdateSpec(SPEC.names, SPEC.shapes, 3, 1.0, "ab"),
    UpdateSpec(SPEC.names, SPEC.shapes, 2, 2.0, "ab"),
    UpdateSpec(SPEC.names, SPEC.shapes, 2, 1.0, "cd"),
    UpdateSpec(SPEC.names, ((4,), (3, 2)), 2, 1.0, "ab"),
    UpdateSpec(("a.weight", "c.weight"), SPEC.shapes, 2, 1.0, "ab"),
])
def test_digest_sees_every_field(other):
    assert other.digest != SPEC.digest


def test_json_round_trip():
    assert UpdateSpec.from_json(SPEC.to_json()) == SPEC
    with pytest.raises(UpdateError, match="cannot be read"):
        UpdateSpec.from_json('{"names": []}')


@pytest.mark.parametrize(("change", "message"), [
    ({"b.weight": None}, "lacks 1 of 2 tensors, the first is 'b.weight'"),
    ({"z": np.zeros(1)}, "does not know, the first is 'z'"),
    ({"b.weight": np.zeros((3, 2))}, r"'b.weight' has shape \(3, 2\), the spec says \(2, 3\)"),
    ({"a.weight": np.array([1, np.nan, np.inf, 0])}, "'a.weight' holds 2 values that are not finite"),
])
def test_flatten_names_what_is_wrong(change, message):
    tensors = {k: v for k, v in {**TENSORS, **change}.items() if v is not None}
    with pytest.raises(UpdateError, match=message):
        SPEC.flatten(tensors)


def test_unflatten_refuses_other_lengths_and_nan():
    with pytest.raises(UpdateError, match=r"shape \(9,\), the spec needs \(10,\)"):
        SPEC.unflatten(np.zeros(9))
    with pytest.raises(UpdateError, match="not finite"):
        SPEC.unflatten(np.full(10, np.nan))


def test_spec_refuses_nonsense():
    with pytest.raises(UpdateError, match="named twice"):
        UpdateSpec(("a", "a"), ((1,), (1,)), 1, 1.0, "")
    with pytest.raises(UpdateError, match="the choices are float32"):
        UpdateSpec(("a",), ((1,),), 1, 1.0, "", "float16")


def test_digest_of_tensors_sees_values_names_and_shapes():
    base = digest_of(TENSORS)
    assert base == digest_of(dict(reversed(TENSORS.items())))
    changed = {**TENSORS, "a.weight": TENSORS["a.weight"] + np.float32(1e-6)}
    reshaped = {**TENSORS, "b.weight": TENSORS["b.weight"].reshape(3, 2)}
    assert len({base, digest_of(changed), digest_of(reshaped)}) == 3
