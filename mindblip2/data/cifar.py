"""CIFAR-100 from its Python pickles (``cifar-100-python``: meta, train, test), read without running what is in them.

Unpickling calls whatever the file names; here every name it may use stands for a function of this file that makes plain data.
"""
import os
import pickle
from pathlib import Path

import numpy as np

from mindblip2.data.labelled import TEMPLATE, LabelledSet

SIDE = 32                                   # pixels
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
STAGES = {"train": "train", "test": "test", "eval": "test"}


class Cifar100DataLoader(LabelledSet):
    """CIFAR-100 as a :class:`~mindblip2.data.labelled.LabelledSet` of uint8 arrays (32, 32, 3).

    ``dataset_dir``: the folder cifar-100-python or the one that holds it.  ``stage``: "train" (50,000 pictures), "test" or "eval"
    (10,000).  ``fine_label``: the 100 classes, else the 20 coarse ones.  Class names have spaces, not underscores ("aquarium
    fish"): MindFormers left these in the text.

    Raises FileNotFoundError; ValueError for files that are not CIFAR-100's or would run code."""

    def __init__(self, dataset_dir, stage="test", fine_label=True, hypothesis_template=TEMPLATE):
        if stage not in STAGES:
            raise ValueError(f"stage = {stage!r}: expected one of {', '.join(map(repr, STAGES))}")
        kind, folder = "fine" if fine_label else "coarse", _folder(dataset_dir)
        names = _get(folder / "meta", f"{kind}_label_names")[0]
        data, numbers = _get(folder / STAGES[stage], "data", f"{kind}_labels")
        if (not isinstance(data, np.ndarray) or data[:1].size != 3 * SIDE * SIDE or len(numbers) != len(data)
                or not all(isinstance(number, int) and 0 <= number < len(names) for number in numbers)):
            raise ValueError(f"{(folder / STAGES[stage]).absolute()} does not hold pictures of {3 * SIDE * SIDE} bytes with one of "
                             f"{len(names)} labels each; get {ADDRESS} again")
        pictures = list(data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        labels = tuple(name.replace("_", " ") for name in names)
        super().__init__(f"CIFAR-100 {STAGES[stage]}, {kind} labels", pictures, [labels[number] for number in numbers], labels,
                         hypothesis_template or TEMPLATE)


def read_pickle(path):
    """What a pickle of texts, bytes, numbers, lists, dicts and uint8 arrays holds.  Raises ValueError where it asks for more."""
    try:
        with open(path, "rb") as file:
            return _plain(_PlainUnpickler(file, encoding="latin1").load())
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, LookupError, OverflowError,
            MemoryError) as error:
        raise ValueError(f"{os.path.abspath(path)} is not one of CIFAR-100's files: {error}.  Nothing in it was run; get {ADDRESS} "
                         "again") from None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        known = {"numpy._reconstruct": lambda *_: _Array(), "numpy.ndarray": None, "numpy.dtype": lambda kind, *_: _Kind(kind),
                 "_codecs.encode": lambda text, _: text.encode("latin1")}   # made anew each time: a pickle may write to what it gets
        name = f"{'numpy' if module.split('.')[0] == 'numpy' else module}.{name}"   # NumPy has moved its modules
        if name not in known:
            raise pickle.UnpicklingError(f"it asks for {name}, which no such file needs")
        return known[name]


class _Kind:
    """What a pickle says instead of numpy.dtype."""

    def __init__(self, kind):
        self.kind = kind

    def __setstate__(self, state):          # byte order and the like, which bytes do not have
        pass


class _Array:
    """What a pickle fills instead of a numpy.ndarray."""

    def __setstate__(self, state):
        _, shape, kind, by_columns, data = state
        if not isinstance(kind, _Kind) or kind.kind != "u1" or by_columns:
            raise pickle.UnpicklingError("it holds an array that is not one of bytes in rows")
        data = data.encode("latin1") if isinstance(data, str) else data
        self.array = np.frombuffer(data, np.uint8).reshape(shape)


def _plain(content):
    """The arrays themselves; keys as text."""
    if not isinstance(content, dict):
        raise pickle.UnpicklingError(f"it holds a {type(content).__name__}, expected a dict")
    return {key.decode() if isinstance(key, bytes) else key: getattr(value, "array", value) for key, value in content.items()}


def _get(path, *keys):
    content = read_pickle(path)
    if not set(keys) <= set(content):
        raise ValueError(f"{path.absolute()} has {sorted(content)}, expected {', '.join(keys)}; get {ADDRESS} again")
    return [content[key] for key in keys]


def _folder(dataset_dir):
    for folder in (Path(dataset_dir), Path(dataset_dir) / "cifar-100-python"):
        if (folder / "meta").is_file():
            return folder
    raise FileNotFoundError(f"no CIFAR-100 in {Path(dataset_dir).absolute()}: expected the files meta, train and test of {ADDRESS}")
