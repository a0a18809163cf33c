"""Rows made ahead: the same items, the same errors."""

import threading
import time

import numpy as np
import pytest

from mindblip2.data.prefetch import ahead, from_workers, stacked


class Rows:
    def __init__(self, count, broken=None):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i == self.broken:
            raise KeyError(f"row {i} is lost")
        return np.full((2, 2), i, np.float32), np.int32(i)


def test_ahead_gives_the_same_items_and_raises_what_was_raised():
    assert list(ahead(iter(range(9)), depth=2)) == list(range(9))

    def broken():
        yield 1
        raise KeyError("in the thread")

    made = ahead(broken())
    assert next(made) == 1
    with pytest.raises(KeyError, match="in the thread"):
        next(made)


def test_a_dropped_iterator_ends_its_thread():
    before = set(threading.enumerate())  # some of other tests may end meanwhile
    made = ahead(iter(range(10**9)), depth=2)
    assert next(made) == 0
    own = set(threading.enumerate()) - before
    assert len(own) == 1
    made.close()
    end = time.time() + 5
    while own & set(threading.enumerate()) and time.time() < end:
        time.sleep(0.01)
    assert not own & set(threading.enumerate())


def test_workers_stack_the_same_columns():
    here, there = list(stacked(Rows(7), 3, ("a", "b"))), list(from_workers(Rows(7), 3, ("a", "b"), 2, True))
    assert (
        len(here) == len(there) == 2
        and here[1]["b"].tolist() == [3, 4, 5]
        and here[0]["a"].shape == (3, 2, 2)
    )
    assert all(
        np.array_equal(x[key], y[key]) and x[key].dtype == y[key].dtype
        for x, y in zip(here, there)
        for key in "ab"
    )


def test_an_error_of_a_worker_comes_back_with_its_words():
    with pytest.raises(KeyError, match="row 4 is lost"):
        list(from_workers(Rows(7, 4), 3, ("a", "b"), 2, True, (KeyError,)))
    with pytest.raises(ValueError, match="row 4 is lost"):
        list(from_workers(Rows(7, 4), 3, ("a", "b"), 2, True))
