"""CIFAR-100 from its Python pickles (``cifar-100-python``: meta, train, test), read without running what is
in them.

Unpickling calls whatever the file names; here every name it may use stands for a function of this file that
makes plain data.
"""

import io
import pickle
import struct
from pathlib import Path

import numpy as np

from mindblip2.data.datasets.labelled_images import TEMPLATE, LabelledSet
from mindblip2.file_io import FileError, regular_file

SIDE = 32  # pixels
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
MAX_BYTES = 1 << 29  # of one file: the training part has 155 MB
MAX_LABELS = 100  # and characters of a label
STAGES = {"train": "train", "test": "test", "eval": "test"}


class Cifar100DataLoader(LabelledSet):
    """CIFAR-100 as a :class:`~mindblip2.data.datasets.labelled_images.LabelledSet` of uint8 arrays (32, 32,
    3).

    ``dataset_dir``: the folder cifar-100-python or the one that holds it.  ``stage``: "train" (50,000
    pictures), "test" or "eval" (10,000).  ``fine_label``: the 100 classes, else the 20 coarse ones.  Class
    names have spaces, not underscores ("aquarium fish"): MindFormers left these in the text.

    Raises FileNotFoundError; ValueError for files that are not CIFAR-100's or would run code."""

    def __init__(self, dataset_dir, stage="test", fine_label=True, hypothesis_template=TEMPLATE):
        if stage not in STAGES:
            raise ValueError(f"stage = {stage!r}: expected one of {', '.join(map(repr, STAGES))}")
        kind, folder = "fine" if fine_label else "coarse", _folder(dataset_dir)
        meta, part = folder / "meta", folder / STAGES[stage]
        names = _get(meta, f"{kind}_label_names")[0]
        if (
            not isinstance(names, list)
            or not 0 < len(names) <= MAX_LABELS
            or not all(isinstance(name, str) and 0 < len(name) <= MAX_LABELS for name in names)
        ):
            raise FileError(
                f"{meta.absolute()}: {kind}_label_names is no list of at most {MAX_LABELS} names; get "
                f"{ADDRESS} again"
            )
        data, numbers = _get(part, "data", f"{kind}_labels")
        if (
            not isinstance(data, np.ndarray)
            or data.ndim != 2
            or not len(data)
            or data.shape[1] != 3 * SIDE * SIDE
            or not isinstance(numbers, list)
            or len(numbers) != len(data)
            or not all(isinstance(number, int) and 0 <= number < len(names) for number in numbers)
        ):
            raise FileError(
                f"{part.absolute()} does not hold pictures of {3 * SIDE * SIDE} bytes with one of "
                f"{len(names)} labels each; "
                f"get {ADDRESS} again"
            )
        pictures = list(data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        labels = tuple(name.replace("_", " ") for name in names)
        super().__init__(
            f"CIFAR-100 {STAGES[stage]}, {kind} labels",
            pictures,
            [labels[number] for number in numbers],
            labels,
            hypothesis_template or TEMPLATE,
        )


def read_pickle(path):
    """What a pickle of texts, bytes, numbers, lists, dicts and uint8 arrays holds.  Raises FileError where it
    asks for more, or would take more memory than its size explains."""
    data = regular_file(path, MAX_BYTES, f"get {ADDRESS} again").read_bytes()
    try:
        return _plain(_PlainUnpickler(data).load())
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        TypeError,
        ValueError,
        LookupError,
        OverflowError,
        RecursionError,
        MemoryError,
        struct.error,
    ) as error:
        raise FileError(
            f"{Path(path).absolute()} is not one of CIFAR-100's files: {str(error)[:200]}.  Nothing in it "
            "was run; get "
            f"{ADDRESS} again"
        ) from None


class _Operations(dict):
    def __missing__(self, code):
        raise pickle.UnpicklingError(f"it uses the operation {bytes([code])!r}, which no such file needs")


class _PlainUnpickler(pickle._Unpickler):
    """The standard library's unpickler in Python: the one in C makes a list as long as the largest memo index
    that is named, 2^32 in a file of ten bytes.  It knows only the operations that such files need, and only
    texts as keys: the hash of a tuple may take years."""

    dispatch = _Operations(
        (code[0], pickle._Unpickler.dispatch[code[0]])
        for code in (
            pickle.PROTO,
            pickle.FRAME,
            pickle.STOP,
            pickle.MARK,
            pickle.POP,
            pickle.NONE,
            pickle.NEWTRUE,
            pickle.NEWFALSE,
            pickle.INT,
            pickle.BININT,
            pickle.BININT1,
            pickle.BININT2,
            pickle.LONG,
            pickle.LONG1,
            pickle.FLOAT,
            pickle.BINFLOAT,
            pickle.STRING,
            pickle.BINSTRING,
            pickle.SHORT_BINSTRING,
            pickle.BINBYTES,
            pickle.SHORT_BINBYTES,
            pickle.BINBYTES8,
            pickle.UNICODE,
            pickle.BINUNICODE,
            pickle.SHORT_BINUNICODE,
            pickle.BINUNICODE8,
            pickle.EMPTY_LIST,
            pickle.LIST,
            pickle.APPEND,
            pickle.APPENDS,
            pickle.EMPTY_TUPLE,
            pickle.TUPLE,
            pickle.TUPLE1,
            pickle.TUPLE2,
            pickle.TUPLE3,
            pickle.EMPTY_DICT,
            pickle.PUT,
            pickle.BINPUT,
            pickle.LONG_BINPUT,
            pickle.MEMOIZE,
            pickle.GET,
            pickle.BINGET,
            pickle.LONG_BINGET,
            pickle.GLOBAL,
            pickle.STACK_GLOBAL,
            pickle.REDUCE,
            pickle.BUILD,
        )
    )

    def __init__(self, data):
        super().__init__(io.BytesIO(data), encoding="latin1")
        # bytes that may be made of texts: each is made once, but a pickle may ask again and again
        self.room = 2 * len(data)

    def _set(self, pairs):
        if not isinstance(self.stack[-1], dict) or not all(
            isinstance(key, (str, bytes)) for key in pairs[::2]
        ):
            raise pickle.UnpicklingError("it has keys that are no texts")
        self.stack[-1].update(zip(pairs[::2], pairs[1::2]))

    def _dict(self):
        pairs = self.pop_mark()
        self.append({})
        self._set(pairs)

    def _set_one(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    dispatch.update(
        {
            pickle.SETITEM[0]: _set_one,
            pickle.SETITEMS[0]: lambda self: self._set(self.pop_mark()),
            pickle.DICT[0]: _dict,
        }
    )

    def find_class(self, module, name):
        known = {
            "numpy._reconstruct": lambda *_: _Array(),
            "numpy.ndarray": None,
            "numpy.dtype": lambda kind, *_: _Kind(kind),
            # made anew each time: a pickle may write to what it gets
            "_codecs.encode": lambda text, _: self._encoded(text),
        }
        # NumPy has moved its modules
        name = f"{'numpy' if module.split('.')[0] == 'numpy' else module}.{name}"
        if name not in known:
            raise pickle.UnpicklingError(f"it asks for {name}, which no such file needs")
        return known[name]

    def _encoded(self, text):
        self.room -= len(text)
        if self.room < 0:
            raise pickle.UnpicklingError("it makes more bytes than it holds")
        return text.encode("latin1")


class _Kind:
    """What a pickle says instead of numpy.dtype."""

    def __init__(self, kind):
        self.kind = kind

    def __setstate__(self, state):  # byte order and the like, which bytes do not have
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
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: getattr(value, "array", value)
        for key, value in content.items()
    }


def _get(path, *keys):
    content = read_pickle(path)
    if not set(keys) <= set(content):
        raise FileError(
            f"{path.absolute()} has {sorted(content)[:6]}, expected {', '.join(keys)}; get {ADDRESS} again"
        )
    return [content[key] for key in keys]


def _folder(dataset_dir):
    for folder in (Path(dataset_dir), Path(dataset_dir) / "cifar-100-python"):
        if (folder / "meta").is_file():
            return folder
    raise FileNotFoundError(
        f"no CIFAR-100 in {Path(dataset_dir).absolute()}: expected the files meta, train and test of "
        f"{ADDRESS}"
    )
