"""Properties of sharding and merging for any shape, axis, number of fused parts and of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindblip2.distributed.sharding import Split

SMALL = settings(max_examples=150, deadline=None)


@st.composite
def weights(draw, parts=(1, 2, 3), ranks=(1, 5), even=False):
    """(array whose elements all differ and are not 0, shard specification, number of ranks).

    The sharded axis is a multiple of the number of fused parts long; ``even``: of the number of ranks too."""
    parts, ranks = draw(st.sampled_from(parts)), draw(st.integers(*ranks))
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis] = parts * (ranks * draw(st.integers(1, 3)) if even else draw(st.integers(1, 9)))
    dtype = draw(st.sampled_from([np.float32, np.float16]))
    array = np.arange(1, np.prod(shape) + 1).astype(dtype).reshape(shape)
    return array, Split(axis, shape[axis], parts), ranks


def shards_of(array, spec, ranks):
    return [spec.cut(array, ranks, rank) for rank in range(ranks)]


@SMALL
@given(weights())
def test_merging_is_the_inverse_of_sharding(weight):
    array, spec, ranks = weight
    shards = shards_of(array, spec, ranks)
    merged = spec.join(shards)
    assert merged.dtype == array.dtype
    np.testing.assert_array_equal(merged, array)
    assert {shard.shape for shard in shards} == {spec.shape(array.shape, ranks)}


@SMALL
@given(weights())
def test_every_element_is_in_exactly_one_shard_and_the_rest_is_padding(weight):
    array, spec, ranks = weight
    values = np.concatenate([shard.ravel() for shard in shards_of(array, spec, ranks)])
    np.testing.assert_array_equal(np.sort(values[values != 0]), np.sort(array.ravel()))


@SMALL
@given(weights())
def test_every_rank_has_the_same_slice_of_each_fused_part(weight):
    """A fused weight is sharded part by part: the shard is that of q, then that of k, then that of v."""
    array, spec, ranks = weight
    single = Split(spec.axis, spec.size // spec.parts)
    parts = np.split(array, spec.parts, spec.axis)
    for rank in range(ranks):
        expected = np.concatenate([single.cut(part, ranks, rank) for part in parts], spec.axis)
        np.testing.assert_array_equal(spec.cut(array, ranks, rank), expected)


# ------------------------------------------------------------------------------------------------ negative
@SMALL
@given(weights(ranks=(2, 5)))
def test_shards_in_another_order_give_another_array(weight):
    array, spec, ranks = weight
    shards = shards_of(array, spec, ranks)
    assert not np.array_equal(spec.join(shards[::-1]), array)


@SMALL
@given(weights(parts=(2, 3), ranks=(2, 5), even=True))
def test_a_fused_weight_that_is_sharded_as_one_part_is_merged_into_another_array(weight):
    array, spec, ranks = weight
    shards = shards_of(array, Split(spec.axis, spec.size), ranks)
    assert not np.array_equal(spec.join(shards), array)


def test_the_property_fails_for_a_wrong_shard():
    """The first property would notice a single element that differs."""
    array, spec = np.arange(1, 13, dtype=np.float32).reshape(6, 2), Split(0, 6, 3)
    shards = [shard.copy() for shard in shards_of(array, spec, 2)]
    np.testing.assert_array_equal(spec.join(shards), array)
    shards[1][0, 0] += 1
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(spec.join(shards), array)
