"""The order of an epoch: a pure function of (seed, epoch); ratios are kept; whole batches only."""

import numpy as np

from mindblip2.data.sampler import sample_order


def test_every_sample_comes_once_but_for_the_rest():
    made = sample_order((7, 4), 1, 0, 3)
    assert len(made) == 9 and len(set(made)) == 9 and set(made) <= set(range(11))
    assert sample_order((7, 4), 1, 0, 3, shuffle=False).tolist() == list(range(9))


def test_seed_and_epoch_decide():
    again, other_epoch, other_seed = (sample_order((50,), *key, 5) for key in ((1, 2), (1, 3), (2, 2)))
    assert (again == sample_order((50,), 1, 2, 5)).all()
    assert (again != other_epoch).any() and (again != other_seed).any()


def test_a_batch_of_ratio_sampling_comes_from_one_set_and_ratios_are_kept():
    sizes, batch = (3000, 1000, 2000), 4
    made = sample_order(sizes, 5, 1, batch, (1, 3, 0)).reshape(-1, batch)
    sets = np.searchsorted(np.cumsum(sizes), made, "right")
    assert len(made) == 1500 and (sets == sets[:, :1]).all() and (sets != 2).all()
    assert abs((sets == 1).mean() - 0.75) < 0.04  # standard deviation 0.011
    first = made[sets[:, 0] == 0].ravel()
    assert len(set(first)) == len(first)  # 375 batches of 3000: none twice
    second = np.bincount(made[sets[:, 0] == 1].ravel() - 3000, minlength=1000)
    assert second.max() - second.min() <= 1  # 4.5 rounds: used up before it starts again
    plain = np.searchsorted(np.cumsum(sizes), sample_order(sizes, 5, 1, batch), "right")
    assert abs((plain == 1).mean() - 1 / 6) < 0.01  # control: without ratios the sizes decide
    assert (made.ravel() == sample_order(sizes, 5, 1, batch, (1, 3, 0))).all()
    assert (made.ravel() != sample_order(sizes, 5, 2, batch, (1, 3, 0))).any()


def test_ratios_without_shuffle_read_each_set_in_order():
    made = sample_order((4, 4), 5, 0, 2, (1, 1), shuffle=False)
    for low in (0, 4):
        of_set = [i - low for i in made if low <= i < low + 4]
        assert of_set == [i % 4 for i in range(len(of_set))]
