"""CIFAR-100's pickles are read, hostile ones refused before anything runs; folders of pictures by label."""

import copyreg
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from mindblip2.data.datasets.cifar import Cifar100DataLoader, read_pickle
from mindblip2.data.datasets.labelled_images import ImageFolder
from mindblip2.file_io import FileError

FINE, COARSE = ["apple", "aquarium_fish", "pickup_truck"], ["fish", "fruit_and_vegetables", "vehicles_1"]


def old_pickle(content):
    """A pickle of the published files' protocol, with NumPy's old module names."""
    return pickle.dumps(content, 2).replace(b"numpy._core", b"numpy.core")


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    files = {
        "meta": {"fine_label_names": FINE, "coarse_label_names": COARSE},
        "test": {
            "filenames": ["a.png"] * 4,
            "batch_label": "1",
            "fine_labels": [1, 0, 2, 1],
            "coarse_labels": [0, 1, 2, 0],
            "data": pixels,
        },
    }
    (tmp_path / "cifar-100-python").mkdir()
    for name, content in files.items():
        (tmp_path / "cifar-100-python" / name).write_bytes(old_pickle(content))
    return tmp_path, pixels


def test_pictures_labels_and_names(folder):
    path, pixels = folder
    data = Cifar100DataLoader(path)
    assert data.labels == ("apple", "aquarium fish", "pickup truck") and data.template == "a picture of {}"
    assert data.truths == ["aquarium fish", "apple", "pickup truck", "aquarium fish"] and len(data) == 4
    assert data.pictures[2].shape == (32, 32, 3) and data.pictures[2].dtype == np.uint8
    # three planes, row by row
    assert data.pictures[2][5, 7].tolist() == [pixels[2, c * 1024 + 5 * 32 + 7] for c in range(3)]
    assert data[1]["label"] == "apple" and (data[1]["image"] == data.pictures[1]).all()
    coarse = Cifar100DataLoader(
        path / "cifar-100-python", "eval", fine_label=False, hypothesis_template="{}!"
    )
    assert coarse.truths[:2] == ["fish", "fruit and vegetables"] and coarse.template == "{}!"


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_byte_keys_and_newer_protocols_are_read(tmp_path, protocol):
    content = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"fine_labels": [1]}
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol))
    assert read_pickle(tmp_path / "x")["data"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_pickle_of_python_2_is_read(tmp_path):
    """Byte for byte the opcodes of the published files: keys and pixels are Python 2's strings, of bytes
    above 127 too."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x02K\x03\x86"
        b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x06\x00\x7f\x80\xff\x0a\x01tb"
    )
    (tmp_path / "x").write_bytes(b"\x80\x02}q\x01(U\x04data" + array + b"U\x0bfine_labels](K\x13K\x1deu.")
    assert read_pickle(tmp_path / "x")["data"].tolist() == [[0, 127, 128], [255, 10, 1]]
    assert read_pickle(tmp_path / "x")["fine_labels"] == [19, 29]


class Runs:
    """Unpickled by pickle.load, it would make a file."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def hostile(path):
    yield pickle.dumps({"data": Runs(os.mkdir, str(path))}, 2)
    yield pickle.dumps({"data": Runs(eval, f"__import__('os').mkdir({str(path)!r})")}, 4)
    # through NumPy's own names
    yield pickle.dumps({"data": Runs(np.ndarray.tofile, np.zeros(1), str(path))}, 4)
    yield b"\x80\x02cnumpy.core.multiarray\nfromfile\nX\x01\x00\x00\x00/\x85R."
    yield b"\x80\x02cmindblip2.data.cifar\nos\n."
    # a dotted name
    yield b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93."
    yield b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R."  # not bytes
    yield pickle.dumps({"data": np.array([Runs(os.mkdir, str(path))], object)}, 2)


def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path):
    made = tmp_path / "made"
    for content in hostile(made):
        (tmp_path / "test").write_bytes(content)
        with pytest.raises(ValueError, match="Nothing in it was run"):
            read_pickle(tmp_path / "test")
        assert not made.exists(), content
    pickle.loads(next(hostile(made)))  # control: the plain unpickler runs it
    assert made.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros(3)}, 2),
        old_pickle({"data": np.zeros((2, 3), np.int8)}),
        old_pickle({"data": np.asfortranarray(np.zeros((2, 3), np.uint8))}),
        old_pickle({"data": np.zeros((2, 3072), np.uint8)})[:-900],
    ],
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(ValueError, match="train is not one of CIFAR-100's files: .*cifar-100-python.tar.gz"):
        read_pickle(tmp_path / "train")


def test_labels_that_do_not_fit_are_an_error(folder):
    path = folder[0] / "cifar-100-python"
    (path / "meta").write_bytes(old_pickle({"fine_label_names": FINE[:2], "coarse_label_names": COARSE}))
    with pytest.raises(ValueError, match="one of 2 labels each"):
        Cifar100DataLoader(path)
    with pytest.raises(ValueError, match="stage = 'dev'"):
        Cifar100DataLoader(path, "dev")
    with pytest.raises(FileNotFoundError, match="meta, train and test"):
        Cifar100DataLoader(folder[0] / "elsewhere")


def test_extension_codes_go_through_the_same_gate(tmp_path):
    copyreg.add_extension("os", "getcwd", 0x7777)
    try:
        (tmp_path / "x").write_bytes(b"\x80\x02\x83\x77\x77)R.")
        with pytest.raises(ValueError, match="uses the operation b'.x83'"):
            read_pickle(tmp_path / "x")
    finally:
        copyreg.remove_extension("os", "getcwd", 0x7777)


def test_an_image_folder_names_its_labels_after_sub_folders(tmp_path):
    for name in (
        "hot_air_balloon/2.png",
        "hot_air_balloon/1.png",
        "cat/x.JPG",
        "cat/notes.txt",
        "none/notes.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG") if path.suffix != ".txt" else path.write_text("")
    data = ImageFolder(tmp_path)
    assert data.labels == ("cat", "hot air balloon")
    assert data.truths == ["cat", "hot air balloon", "hot air balloon"]
    assert [os.path.basename(path) for path in data.pictures] == ["x.JPG", "1.png", "2.png"]
    with pytest.raises(FileNotFoundError, match="one sub-folder per label"):
        ImageFolder(tmp_path / "cat")


# ------------------------------------------------------------------------------------------------ damage
@pytest.mark.parametrize(
    "content, words",
    [
        # LONG_BINPUT: the index 2^31 of a list
        (b"r\xff\xff\xff\x7f.", "Nothing in it was run"),
        # the same with an object to store: read
        (b"\x80\x02}r\xff\xff\xff\x7f.", None),
        (
            b"\x80\x02}("
            + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60)).replace(b"h\x00", b")q\x00h\x00", 1)
            + b"K\x01u.",
            "keys",
        ),
        # an array of 2^40 bytes
        (b"\x80\x05\x96\x00\x00\x00\x00\xff\x00\x00\x00.", "operation"),
        (
            b"\x80\x02c_codecs\nencode\nq\x00(X\x90\x01\x00\x00"
            + b"a" * 400
            + b"q\x01X\x06\x00\x00\x00latin1tq\x02R0"
            + b"h\x00h\x02R0" * 9
            + b"}.",
            "more bytes",
        ),
    ],
)
def test_b4_a_small_pickle_takes_little_memory(tmp_path, content, words):
    import tracemalloc

    (tmp_path / "x").write_bytes(content)
    tracemalloc.start()
    try:
        if words is None:
            assert read_pickle(tmp_path / "x") == {}
        else:
            with pytest.raises(FileError, match=words) as error:
                read_pickle(tmp_path / "x")
            assert str(tmp_path / "x") in str(error.value)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("test", "fine_labels", None),
        ("test", "fine_labels", 3),
        ("test", "fine_labels", [1, 0, 2, "1"]),
        ("test", "fine_labels", [1, 0, 2, 3]),
        ("test", "data", 5),
        ("test", "data", np.zeros((), np.uint8)),
        ("test", "data", np.zeros((4, 3), np.uint8)),
        ("test", "data", None),
        ("meta", "fine_label_names", [1, 2, 3]),
        ("meta", "fine_label_names", None),
        ("meta", "fine_label_names", "abc"),
        ("meta", "fine_label_names", []),
        ("meta", "fine_label_names", [["a"]]),
    ],
)
def test_b12_values_of_another_type_name_the_file(folder, name, key, value):
    path = folder[0] / "cifar-100-python" / name
    content = pickle.loads(path.read_bytes().replace(b"numpy.core", b"numpy._core"))
    path.write_bytes(old_pickle(content))
    assert len(Cifar100DataLoader(folder[0])) == 4  # the control
    path.write_bytes(old_pickle({**content, key: value}))
    with pytest.raises(FileError, match=f"cifar-100-python/{name}.* get https"):
        Cifar100DataLoader(folder[0])
