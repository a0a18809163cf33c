"""For drawn sizes, seeds and cursors: an epoch has every sample once, ranks get disjoint shards of it, and a
resumed epoch goes on as the uninterrupted one does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindblip2.data.loader import Feed
from mindblip2.data.processor import Blip2Processor
from mindblip2.data.sampler import sample_order

seeds, epochs = st.integers(0, 2**32 - 1), st.integers(0, 1000)
sizes_of_sets = st.lists(st.integers(1, 40), min_size=1, max_size=4)
repeatable = settings(max_examples=200, deadline=None, derandomize=True, database=None)
# each example of the loader makes whole epochs
repeatable_loader = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def every_sample_once(order, total, batch):
    """Whether ``order`` has every one of ``total`` samples once, but for the rest that makes no batch."""
    return (
        len(order) == total // batch * batch
        and len(np.unique(order)) == len(order)
        and ((0 <= order) & (order < total)).all()
    )


def disjoint_shards(per_rank, whole):
    """Whether no sample is in two ranks' shards and together they are ``whole``."""
    together = [index for shard in per_rank for index in shard]
    return len(set(together)) == len(together) and sorted(together) == sorted(whole)


def used_evenly(order, sizes):
    """Whether no sample of a set comes more than once oftener than another one of it."""
    starts = np.cumsum(sizes) - sizes
    counts = np.bincount(order, minlength=sum(sizes))
    return all(np.ptp(counts[start : start + size]) <= 1 for start, size in zip(starts, sizes))


# ------------------------------------------------------------------------------------------------ order
@given(sizes_of_sets, seeds, epochs, st.integers(1, 12), st.booleans())
@repeatable
def test_every_sample_comes_once_per_epoch(sizes, seed, epoch, batch, shuffle):
    order = sample_order(sizes, seed, epoch, batch, shuffle=shuffle)
    assert every_sample_once(order, sum(sizes), batch)
    assert (order == sample_order(sizes, seed, epoch, batch, shuffle=shuffle)).all()
    assert sorted(sample_order(sizes, seed, epoch, 1, shuffle=shuffle)) == list(range(sum(sizes)))


@given(st.integers(2, 40), seeds, st.data())
@repeatable
def test_control_a_repeated_a_missing_or_a_foreign_sample_is_noticed(total, seed, data):
    order = sample_order((total,), seed, 0, 1)
    place = data.draw(st.integers(1, total - 1))
    repeated, foreign = order.copy(), order.copy()
    repeated[place], foreign[place] = order[place - 1], total
    for wrong in (repeated, foreign, np.delete(order, place)):
        assert not every_sample_once(wrong, total, 1)


@given(sizes_of_sets, seeds, epochs, st.integers(1, 12), st.data())
@repeatable
def test_with_ratios_no_sample_comes_again_before_its_set_is_used_up(sizes, seed, epoch, batch, data):
    ratios = data.draw(st.lists(st.integers(1, 5), min_size=len(sizes), max_size=len(sizes)))
    order = sample_order(sizes, seed, epoch, batch, ratios)
    assert len(order) == sum(sizes) // batch * batch
    sets = np.searchsorted(np.cumsum(sizes), order, "right").reshape(-1, batch)
    assert (sets == sets[:, :1]).all()
    assert used_evenly(order, sizes)
    # control: drawn with replacement, some sample of a set comes again before another comes at all
    drawn = np.random.default_rng(seed).integers(0, 20, 40)
    assert not used_evenly(drawn, [20])


# ------------------------------------------------------------------------------------------------ loader
@pytest.fixture(scope="module")
def loader():
    """loader(total, batch, seed, rank=0, world=1): a training loader whose image_ids are the indices."""
    processor = Blip2Processor.from_pretrained("blip2_digits")
    pixel = np.zeros((1, 1, 3), np.uint8)

    def made(total, batch, seed, **options):
        rows = [{"image": pixel, "caption": "a seven", "image_id": index} for index in range(total)]
        no_image = [lambda picture, rng: np.zeros((3, 1, 1), np.float32)]
        return Feed(rows, processor, batch, seed, transforms=no_image, **options)

    return made


def ids(batches):
    return [batch["image_id"].tolist() for batch in batches]


def flat(batches):
    return [index for batch in batches for index in batch]


@given(st.data(), st.integers(2, 4), st.integers(1, 4), seeds, epochs)
@repeatable_loader
def test_ranks_get_disjoint_shards_of_the_same_epoch(loader, data, world, batch, seed, epoch):
    total = data.draw(st.integers(world * batch, 40))
    whole = ids(loader(total, world * batch, seed).epoch(epoch))
    per_rank = [ids(loader(total, batch, seed, rank=rank, world=world).epoch(epoch)) for rank in range(world)]
    assert disjoint_shards([flat(shard) for shard in per_rank], flat(whole))
    assert [flat(step) for step in zip(*per_rank, strict=True)] == whole
    # control: a rank that reads another's shard
    assert not disjoint_shards([flat(per_rank[0])] * 2 + [flat(one) for one in per_rank[2:]], flat(whole))


@given(st.data(), st.integers(1, 4), seeds, epochs)
@repeatable_loader
def test_a_resumed_epoch_goes_on_as_the_uninterrupted_one(loader, data, batch, seed, epoch):
    total = data.draw(st.integers(2 * batch, 40))
    steps = total // batch
    cursor = data.draw(st.integers(0, steps))
    uninterrupted = ids(loader(total, batch, seed).epoch(epoch))
    assert len(uninterrupted) == steps
    assert uninterrupted[:cursor] + ids(loader(total, batch, seed).epoch(epoch, cursor)) == uninterrupted
    # control: a cursor that is off by one
    wrong = cursor + 1 if cursor < steps else cursor - 1
    assert uninterrupted[:cursor] + ids(loader(total, batch, seed).epoch(epoch, wrong)) != uninterrupted
