"""torch's .pth and .bin files, zip (since torch 1.6) and legacy, read tensor by tensor without unpickling
anything.

A torch file is a pickle that says which tensors there are, and their bytes.  The pickle is interpreted here
by a small machine that makes only containers, numbers, texts and descriptions of tensors: no name in it is
ever imported or called.  Sizes are checked against the file before memory is taken, and what a zip file knows
about its members (size, compression, checksum) against their bytes.
"""

import io
import math
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import torch

from mindblip2.checkpoint.ckpt import CheckpointError
from mindblip2.file_io import regular_file

# of the description of the tensors: a model of 7 billion parameters has 0.1 MB
MAX_PICKLE_BYTES = 64 << 20
MAX_COPIES = 10_000_000  # items of lists that a pickle may have copied
MAX_DIMENSIONS = 16
DEFLATE_MOST = 1100  # bytes that one compressed byte can stand for, at the most
CHUNK_BYTES = 4 << 20
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
# What torch writes for tensors that are no arrays in memory.
OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without data (device meta)",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_wrapper_subclass": "a tensor of another class",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}
PLAIN = {
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("_codecs", "encode"),
    *(
        (module, name)
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "bytearray", "complex")
    ),
}


class Storage(NamedTuple):
    """Bytes of a file that tensors lie in.  ``name``: in messages; ``size`` in bytes; ``member``: of the zip
    file, else None."""

    name: str
    dtype: torch.dtype
    start: int
    size: int
    member: zipfile.ZipInfo | None


class TensorRecord(NamedTuple):
    """Where a tensor lies: ``first`` and ``strides`` in elements of ``dtype``."""

    storage: Storage | str  # in a legacy file its key until all of them are known
    dtype: torch.dtype
    first: int
    shape: tuple
    strides: tuple


class UnsupportedObject:
    """Something in a pickle that is neither a container nor a number, a text or a plain tensor; ``what`` says
    what."""

    def __init__(self, what):
        self.what = what


class UnsafePickle(Exception):
    """A name in a pickle that is not torch's."""


class DamagedFile(Exception):
    """Bytes that torch did not write; the text says what is wrong."""


class TorchFile:
    """``content``: what the file holds, with a :class:`Record` in place of each tensor; ``tensor(record)``
    reads one.

    Raises :class:`CheckpointError`, that names the file, for one that is damaged, no torch file, or holds
    more than tensors."""

    def __init__(self, path):
        self.path = regular_file(Path(path))
        self._file, self._checked, self._bytes = open(self.path, "rb"), set(), self.path.stat().st_size
        try:
            self._zip = zipfile.ZipFile(self._file) if self._file.read(2) == b"PK" else None
            self.content = self._read_zip() if self._zip else self._read_legacy()
        except UnsafePickle as error:
            raise CheckpointError(
                f"REFUSED: {path} holds more than tensors (GLOBAL {error}), which could run code; nothing of "
                "it was run.  If you "
                "trust where it comes from, load it with LAVIS, save model.state_dict() and convert that"
            ) from None
        except (
            DamagedFile,
            zipfile.BadZipFile,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            EOFError,
            NotImplementedError,
            struct.error,
            RecursionError,
            MemoryError,
            zlib.error,
        ) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{path} is truncated, damaged or no torch file ({self._bytes:,} bytes): "
                f"{_first_line(error)}.  "
                "Get it again and compare the size"
            ) from None

    def tensor(self, record):
        """The tensor of a record, in memory of its own."""
        size, storage = record.dtype.itemsize, record.storage
        count = (
            0
            if 0 in record.shape
            else 1 + sum((n - 1) * stride for n, stride in zip(record.shape, record.strides))
        )
        data = self._bytes_of(storage, record.first * size, count * size)
        return (
            data.view(record.dtype).as_strided(record.shape, record.strides)
            if count
            else torch.empty(record.shape, dtype=record.dtype)
        )

    def _bytes_of(self, storage, first, count):
        """``count`` bytes of a storage, whose checksum is verified when it is read for the first time."""
        member = storage.member
        if member is not None and member.compress_type != zipfile.ZIP_STORED:
            return self._decompressed(storage)[first : first + count].clone()
        whole, data = count == storage.size, torch.empty(count, dtype=torch.uint8)
        if member is not None and storage.name not in self._checked and not whole:
            self._check(storage)
        self._read_into(data, storage.start + first)
        if member is not None and storage.name not in self._checked:
            self._compare(storage, zlib.crc32(data.numpy()))
        return data

    def _check(self, storage):
        crc, left = 0, storage.size
        self._file.seek(storage.start)
        while left:
            data = self._file.read(min(left, CHUNK_BYTES))
            if not data:
                raise CheckpointError(f"{self.path} became shorter while it was read")
            crc, left = zlib.crc32(data, crc), left - len(data)
        self._compare(storage, crc)

    def _compare(self, storage, crc):
        if crc != storage.member.CRC:
            raise CheckpointError(
                f"{self.path} is damaged: the checksum of {storage.name} is {crc:08x}, "
                f"{storage.member.CRC:08x} "
                "expected.  Get it again"
            )
        self._checked.add(storage.name)

    def _read_into(self, data, start):
        self._file.seek(start)
        if self._file.readinto(data.numpy()) != len(data):
            raise CheckpointError(f"{self.path} became shorter while it was read")

    def _decompressed(self, storage):
        data = torch.empty(storage.size, dtype=torch.uint8)
        view, at = memoryview(data.numpy()), 0
        try:
            with self._zip.open(storage.member) as file:
                while at < len(view) and (got := file.readinto(view[at : at + CHUNK_BYTES])):
                    at += got
                if at != len(view) or file.read(1):
                    raise zipfile.BadZipFile(f"{at:,} bytes came out, {len(view):,} expected")
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.path} is damaged: {storage.name} cannot be decompressed ({error}).  Get it again"
            ) from None
        return data

    # -------------------------------------------------------------------------------------------- zip
    def _read_zip(self):
        starts = self._members()
        found = [name for name in starts if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(found) != 1:
            raise CheckpointError(
                f"{self.path} is a zip file, but no torch file (it holds {len(found)} data.pkl, expected 1): "
                "unpack "
                "it, and give the weights that are in it"
            )
        root = found[0].removesuffix("data.pkl")
        if root + "constants.pkl" in starts:
            raise CheckpointError(
                f"{self.path} is a TorchScript program, not a state dict: load it with torch.jit.load, save "
                "its "
                "state_dict() and convert that"
            )
        order = self._member(root + "byteorder", starts, 16) if root + "byteorder" in starts else b"little"
        if order != b"little":
            raise DamagedFile(f"its numbers are in the byte order {order!r}, only b'little' is read")

        def storage(dtype, key, numel):
            name, size = f"{root}data/{key}", numel * dtype.itemsize
            member = self._zip.NameToInfo.get(name)
            if member is None:
                raise DamagedFile(f"it names the tensor data {name}, which is not in it")
            if member.file_size != size:
                raise DamagedFile(f"{name} has {member.file_size:,} bytes, {size:,} expected")
            return Storage(name, dtype, starts[name], size, member)

        return interpret_pickle(
            io.BytesIO(self._member(root + "data.pkl", starts, MAX_PICKLE_BYTES)),
            lambda *about: storage(*about[:3]),
        )

    def _members(self):
        """Name → where the bytes of a member begin, of all members, which must lie one after the other as the
        directory says."""
        starts, end, directory = {}, 0, self._zip.start_dir
        members = sorted(self._zip.infolist(), key=lambda member: member.header_offset)
        for member, following in zip(members, [*(one.header_offset for one in members[1:]), directory]):
            name = member.filename
            if name in starts:
                raise DamagedFile(f"it holds two members {name}")
            if member.flag_bits & 1:
                raise DamagedFile(f"{name} is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DamagedFile(
                    f"{name} is compressed by method {member.compress_type}, only 0 (none) and 8 (deflate) "
                    "are read"
                )
            stored = member.compress_type == zipfile.ZIP_STORED
            if (
                stored
                and member.file_size != member.compress_size
                or member.file_size > DEFLATE_MOST * member.compress_size
            ):
                raise DamagedFile(
                    f"{name} has {member.compress_size:,} bytes that stand for {member.file_size:,}"
                )
            if not 0 <= member.header_offset < directory:
                raise DamagedFile(
                    f"the directory of the zip file says that {name} begins at byte {member.header_offset:,}"
                )
            starts[name] = self._local_header(member)
            if member.header_offset < end or starts[name] + member.compress_size > following:
                raise DamagedFile(f"{name} overlaps what stands beside it in the file")
            end = starts[name] + member.compress_size
        return starts

    def _local_header(self, member):
        """Where the bytes of a member begin; its own header must agree with the directory."""
        self._file.seek(member.header_offset)
        header = self._file.read(30)
        mark, _, flags, method, _, crc, packed, size, name_size, extra_size = struct.unpack(
            "<4sHHHIIIIHH", header
        )
        name = self._file.read(name_size).decode("utf-8" if flags & 0x800 else "cp437")
        if mark != b"PK\x03\x04" or name != member.orig_filename or method != member.compress_type:
            raise DamagedFile(f"the header of {member.filename} disagrees with the directory of the zip file")
        expected = (member.CRC, member.compress_size, member.file_size)
        # Behind a flag or for more than 4 GB the numbers stand elsewhere.
        if any(got not in (value, 0xFFFFFFFF) for got, value in zip((crc, packed, size), expected)) and not (
            flags & 8 and crc == packed == size == 0
        ):
            raise DamagedFile(
                f"the header of {member.filename} says {size:,} bytes, the directory of the zip file "
                f"{member.file_size:,}, or "
                "another checksum"
            )
        return member.header_offset + 30 + name_size + extra_size

    def _member(self, name, starts, most):
        member = self._zip.NameToInfo[name]
        if member.file_size > most:
            raise DamagedFile(f"{name} has {member.file_size:,} bytes, expected at most {most:,}")
        return (
            self._bytes_of(
                Storage(name, torch.uint8, starts[name], member.file_size, member), 0, member.file_size
            )
            .numpy()
            .tobytes()
        )

    # -------------------------------------------------------------------------------------------- legacy
    def _read_legacy(self):
        self._file.seek(0)
        head = io.BytesIO(self._file.read(MAX_PICKLE_BYTES))
        if interpret_pickle(head) != LEGACY_MAGIC:
            raise DamagedFile("it is a pickle, but not one of torch")
        protocol, system = interpret_pickle(head), interpret_pickle(head)
        if (
            protocol != LEGACY_PROTOCOL
            or not isinstance(system, dict)
            or not system.get("little_endian", True)
        ):
            raise DamagedFile(
                f"torch's protocol {protocol!r} or the byte order of {system!r:.100} is not read"
            )
        wanted = {}  # key → (dtype, number of elements)

        def storage(dtype, key, numel, view=None):
            if wanted.setdefault(key, (dtype, numel)) != (dtype, numel):
                raise DamagedFile(f"the tensor data {key} have two sizes or types")
            if view is None:
                return key, dtype, 0
            _, first, count = view
            if not _is_count(first) or not _is_count(count) or first + count > numel:
                raise DamagedFile(f"a part of the tensor data {key} lies outside of them")
            return key, dtype, first

        content = interpret_pickle(head, storage)
        keys, at, found = interpret_pickle(head), head.tell(), {}
        if not isinstance(keys, list) or {*keys} != {*wanted} or len(keys) != len(wanted):
            raise DamagedFile("the list of tensor data does not fit the tensors")
        for key in keys:
            self._file.seek(at)
            dtype, numel = wanted[key]
            (got,) = struct.unpack("<q", self._file.read(8))
            size = numel * dtype.itemsize
            if got != numel:
                raise DamagedFile(f"the tensor data {key} have {got:,} numbers, {numel:,} expected")
            if at + 8 + size > self._bytes:
                raise DamagedFile(f"{self._bytes:,} bytes are there, at least {at + 8 + size:,} are needed")
            found[key] = Storage(key, dtype, at + 8, size, None)
            at += 8 + size
        if at != self._bytes:
            raise DamagedFile(f"{self._bytes - at:,} bytes stand behind the last tensor")
        return _resolved(content, found)


def _resolved(content, storages):
    """``content`` with storages in place of their keys: of the dicts on the way to a state dict, which hold
    all that is read."""
    todo, seen = [content], set()
    while todo:
        one = todo.pop()
        if isinstance(one, dict) and id(one) not in seen:
            seen.add(id(one))
            for key, value in one.items():
                if isinstance(value, TensorRecord):
                    one[key] = value._replace(storage=storages[value.storage])
                    _check_record(one[key])
                else:
                    todo.append(value)
    return content


# ------------------------------------------------------------------------------------------------ the pickle
class _Global(NamedTuple):
    module: str
    name: str


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
}
_EMPTY = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: UnsupportedObject("a set"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def interpret_pickle(file, storage=None):
    """What a pickle describes; ``file`` stands behind it then.  ``storage(dtype, key, numel, …)`` is told of
    tensor data."""
    stack, memo, budget = [], {}, [MAX_COPIES]

    def since_mark():
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise DamagedFile("a pickle whose mark is missing")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    for code, value, _ in pickletools.genops(file):
        op = code.name
        if op in _VALUES:
            stack.append(value)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in _EMPTY:
            stack.append(_EMPTY[op]())
        elif op in _TUPLES:
            items = stack[-_TUPLES[op] :]
            if len(items) < _TUPLES[op]:
                raise DamagedFile("a pickle that takes more than it holds")
            del stack[-_TUPLES[op] :]
            stack.append(tuple(items))
        elif op == "MARK":
            stack.append(_MARK)
        elif op == "TUPLE":
            stack.append(tuple(since_mark()))
        elif op in ("LIST", "FROZENSET"):
            items = since_mark()
            stack.append(items if op == "LIST" else UnsupportedObject("a set"))
        elif op == "DICT":
            items, made = since_mark(), {}
            _set_items(made, items)
            stack.append(made)
        elif op == "APPEND":
            item = stack.pop()
            _list(stack[-1]).append(item)
        elif op in ("APPENDS", "ADDITEMS"):
            items = since_mark()
            if not isinstance(stack[-1], UnsupportedObject):
                _list(stack[-1]).extend(items)
        elif op == "SETITEM":
            items = stack[-2:]
            del stack[-2:]
            _set_items(stack[-1], items)
        elif op == "SETITEMS":
            items = since_mark()
            _set_items(stack[-1], items)
        elif op in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(value)])
        elif op in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(value)] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("GLOBAL", "INST"):
            module, _, name = value.partition(" ")
            stack.append(_known(module, name))
            if op == "INST":
                raise UnsafePickle(value.replace(" ", "."))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_known(module, name))
        elif op in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_made(function, arguments, budget))
        elif op == "BUILD":  # attributes: of an OrderedDict of torch, _metadata
            stack.pop()
        elif op == "BINPERSID":
            stack.append(_storage(stack.pop(), storage))
        elif op == "POP":
            stack.pop()
        elif op == "POP_MARK":
            since_mark()
        elif op == "DUP":
            stack.append(stack[-1])
        elif op == "STOP":
            result = stack.pop()
            if stack or result is _MARK:
                raise DamagedFile("a pickle that leaves something over")
            return result
        elif op not in ("PROTO", "FRAME"):
            raise (
                UnsafePickle(op)
                if op.startswith(("EXT", "OBJ", "NEWOBJ"))
                else DamagedFile(f"a pickle with the code {op}")
            )
    raise DamagedFile("a pickle without an end")


def _list(value):
    if type(value) is not list:
        raise DamagedFile(f"a pickle that appends to a {type(value).__name__}")
    return value


def _set_items(target, items):
    if type(target) is not dict or len(items) % 2 or any(item is _MARK for item in items):
        raise DamagedFile("a pickle that sets items wrongly")
    for key, value in zip(items[::2], items[1::2]):
        # A tuple of tuples of tuples can take for ever to hash; nothing that is read here has such a name.
        key = (
            key
            if isinstance(key, str | int | float | bytes | type(None))
            else UnsupportedObject(f"a {type(key).__name__}")
        )
        if key in target:
            raise DamagedFile(f"a pickle that holds {key!r:.80} twice")
        target[key] = value


def _known(module, name):
    """A name in a pickle, if it is one that torch writes for tensors and containers."""
    found = _Global(module, name)
    known = (
        module == "collections"
        and name == "OrderedDict"
        or module in ("torch", "torch.storage")
        and name in STORAGES
        or module == "torch"
        and name in DTYPES
        or found in PLAIN
        or module == "torch._utils"
        and (name in REBUILD or name in OTHER_TENSORS)
    )
    if not known:
        raise UnsafePickle(
            f"{module}.{name}"
            if isinstance(module, str) and isinstance(name, str)
            else "with a name that is no text"
        )
    return found


def _made(function, arguments, budget):
    """What torch's function would return, described."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise UnsafePickle("a call of what is no function of torch")
    if function.name == "OrderedDict":
        made = {}
        for pairs in arguments[:1]:
            budget[0] -= len(_list(pairs))
            if budget[0] < 0:
                raise DamagedFile("a pickle that copies its lists too often")
            for key, value in pairs:
                _set_items(made, [key, value])
        return made
    if function.name in REBUILD:
        return REBUILD[function.name](arguments)
    return UnsupportedObject(OTHER_TENSORS.get(function.name, f"a {function.name}"))


def _storage(about, storage):
    if storage is None or not isinstance(about, tuple) or len(about) not in (5, 6) or about[0] != "storage":
        raise DamagedFile("tensor data that are described in another way than torch's")
    _, kind, key, _, numel, *view = about
    if (
        not isinstance(kind, _Global)
        or kind.name not in STORAGES
        or not isinstance(key, str | int)
        or not _is_count(numel)
    ):
        raise DamagedFile("tensor data of an unknown type or size")
    return storage(STORAGES[kind.name], str(key), numel, *view)


def _tensor(arguments):
    storage, first, shape, strides = arguments[:4]
    # _rebuild_tensor_v3
    dtype = DTYPES[arguments[6].name] if len(arguments) > 6 and isinstance(arguments[6], _Global) else None
    sizes = (first, *shape, *strides)
    if (
        not all(_is_count(number) for number in sizes)
        or len(shape) != len(strides)
        or len(shape) > MAX_DIMENSIONS
    ):
        raise DamagedFile(f"a tensor of shape {shape!r:.80}, strides {strides!r:.80}")
    if isinstance(storage, Storage):
        record = TensorRecord(storage, dtype or storage.dtype, first, tuple(shape), tuple(strides))
        _check_record(record)
        return record
    if not isinstance(storage, tuple) or len(storage) != 3:
        raise DamagedFile("a tensor without data")
    key, own, offset = storage
    return TensorRecord(key, dtype or own, offset + first, tuple(shape), tuple(strides))


def _check_record(record):
    """A tensor lies within its storage, and does not repeat it: a weight of a stride 0 would be one number
    many times."""
    count, held = math.prod(record.shape), record.storage.size // record.dtype.itemsize
    last = record.first + sum((n - 1) * stride for n, stride in zip(record.shape, record.strides))
    if count > held or count and last >= held:
        raise DamagedFile(
            f"a tensor of shape {record.shape} with strides {record.strides} and first element "
            f"{record.first} lies in only "
            f"{held:,} numbers ({record.storage.name}): it is expanded, or cut"
        )


def _parameter(arguments):
    if not isinstance(arguments[0], TensorRecord | UnsupportedObject):
        raise DamagedFile("a parameter that is no tensor")
    return arguments[0]


REBUILD = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _tensor,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
}


def _is_count(number):
    return type(number) is int and 0 <= number < 2**62


def _first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
