"""Pictures enter here: a path, URL, bytes, PIL picture, array or tensor becomes an upright 8-bit RGB PIL
picture."""

import contextlib
import io
import os
import re
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from PIL import Image, UnidentifiedImageError

from mindblip2.config.schema import Count, Positive, argument
from mindblip2.data.images.color_conversion import (
    ALPHA,
    ImageError,
    array_of,
    array_to_rgb,
    check_size,
    to_rgb,
)
from mindblip2.data.images.download import fetch
from mindblip2.data.images.file_signatures import HEAD, looks_like
from mindblip2.file_io import FileError, regular_file
from mindblip2.progress import progress

MAX_BYTES = 64 << 20  # of one download: 20 megapixels fit even uncompressed
MAX_SECONDS = 86400  # of one download
SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://|(data):", re.IGNORECASE)  # two letters or more: C:\ is a drive
# What is read. PIL's others are vector formats (EPS starts Ghostscript, WMF), containers, or of no use for
# photos and drawings.
FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PCX",
    "PNG",
    "PPM",
    "PSD",
    "QOI",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
)
ORIENTATION = 0x0112  # EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Several pictures in the file, but the first one is *the* picture: phones add a depth map or preview, PSD its
# layers.
STILL_FORMATS = ("MPO", "PSD")


def load_image(
    source: Any,
    timeout: float = 10.0,
    frame: int | None = None,
    max_bytes: int = MAX_BYTES,
    alpha: str = "drop",
    allow_private: bool | None = None,
) -> Image.Image:
    """The picture behind ``source`` as a new RGB ``PIL.Image``.

    ``source``: path (str, PathLike) of a regular file, ``file://`` or ``http(s)://`` URL, encoded bytes,
    binary stream, PIL picture, or array or tensor (MindSpore, PyTorch, …) of shape (H, W), (H, W, 1 | 3 | 4)
    or (1 | 3 | 4, H, W), of uint8, uint16 or float; their values are explained at
    :func:`mindblip2.data.images.color_conversion.to_levels`.

    ``timeout`` (seconds, for the whole download), ``max_bytes`` and ``allow_private`` are for downloads, see
    :func:`mindblip2.data.images.download.fetch`.  ``frame`` picks one frame, from 0, of an animated picture
    or multi-page TIFF.  ``alpha``: "drop" shows the colours under transparent pixels, as LAVIS; "white" puts
    the picture on a white background, as transformers.

    Equal to LAVIS's ``Image.open(path).convert("RGB")`` but for three things.  The EXIF orientation is
    applied (LAVIS shows phone photos lying).  16-bit grey and floats are scaled to 8 bits (PIL clips them at
    255).  An animated picture is refused unless ``frame`` is given (LAVIS silently takes the first).

    Raises FileNotFoundError, IsADirectoryError or another OSError where the bytes cannot be had (TimeoutError
    for a slow server, PermissionError for an address of a private network), ImageError (a ValueError) where
    they are no usable picture, ValueError for an argument out of range.  Each message names the source.
    """
    timeout, max_bytes = argument(Positive, timeout, "timeout"), argument(Count, max_bytes, "max_bytes")
    if timeout > MAX_SECONDS:
        raise ValueError(f"timeout = {timeout:g}: expected at most {MAX_SECONDS} seconds")
    if alpha not in ALPHA:
        raise ValueError(f"alpha = {alpha!r}: expected one of {', '.join(map(repr, ALPHA))}")
    if isinstance(source, Image.Image):
        with _place_kept(source), _explained("the PIL picture", source.format or "in memory"):
            return _upright_rgb(source, frame, "the PIL picture", alpha)
    array = array_of(source)
    if array is not None:
        return array_to_rgb(array, "the array", alpha)
    with _opened(source, timeout, max_bytes, allow_private) as (picture, name):
        return _upright_rgb(picture, frame, name, alpha)


def check_header(source: str | os.PathLike) -> None:
    """Look at a picture file without decoding it, for what :func:`load_image` would raise of a file that is
    missing, empty, no picture or too large.  An address is not looked at."""
    match = SCHEME.match(os.fspath(source))
    if match and (match[1] or match[2]).lower() in ("http", "https"):
        return
    with _opened(source) as (picture, name):
        check_size(picture.size, name)


def sizes(paths, desc="pictures", quiet=False):
    """(width, height) of every picture, or the OSError or ImageError why it cannot be read; in order.  In
    threads, since PIL decodes outside Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from progress(pool.map(_size, paths), desc, "picture", len(paths), disable=quiet)


def _size(path):
    try:
        return load_image(path).size
    except (OSError, ImageError) as error:
        return error


# from a source to a stream of bytes


@contextlib.contextmanager
def _opened(source, *download):
    """(PIL picture whose header is read, its name for messages) of encoded bytes wherever they are."""
    stream, name = _open(source, *download)
    with stream:
        head = stream.read(HEAD)
        if not head:
            raise ImageError(
                f"{name} is empty (0 bytes): the download or copy that made it failed; get it again"
            )
        stream.seek(0)
        with _explained(name, looks_like(head)):
            yield Image.open(stream, formats=_formats()), name


def _formats():
    """Those of FORMATS that this installation of PIL can read."""
    if not all(name in Image.OPEN for name in FORMATS):
        Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _open(source, *download):
    """Binary stream of the encoded picture, and the name that messages call it by."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), f"the picture in {len(source)} bytes"
    if isinstance(source, os.PathLike):
        return _open_file(os.fspath(source))
    if isinstance(source, str):
        return _open_address(source, *download)
    if hasattr(source, "read"):
        return _copy_stream(source)
    raise ImageError(
        f"cannot load a picture from {type(source).__name__} {repr(source)[:80]}; expected a path, URL, "
        "bytes, binary stream, PIL picture, array or tensor"
    )


def _open_address(source, timeout=None, max_bytes=None, allow_private=None):
    match = SCHEME.match(source)
    scheme = (match[1] or match[2]).lower() if match else None
    if scheme is None:
        return _open_file(source)
    if scheme in ("http", "https"):
        return io.BytesIO(fetch(source, timeout, max_bytes, allow_private)), source
    if scheme == "file":
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            raise ImageError(
                f"{source[:200]}: a file address names no host, got {parts.netloc!r}; expected "
                "file:///folder/picture.jpg"
            )
        return _open_file(url2pathname(parts.path))
    raise ImageError(
        f"{source[:200]}: load_image reads http://, https:// and file:// addresses, not {scheme}:; "
        "download the file and pass its path"
    )


def _open_file(path):
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder; expected one picture: pass the path of a file in it")
    try:
        return open(regular_file(path), "rb"), path
    except FileError as error:  # a pipe or device, a zero byte
        raise ImageError(f"{error}; pass the path of a picture, or encoded pictures as bytes") from None
    except (FileNotFoundError, NotADirectoryError):
        folder = os.path.dirname(os.path.abspath(path))
        missing = (
            "the folder exists, the file does not"
            if os.path.isdir(folder)
            else f"there is no folder {folder}"
        )
        raise FileNotFoundError(
            f"no picture at {path!r} (absolute: {os.path.abspath(path)}): {missing}"
        ) from None
    except PermissionError:
        raise PermissionError(
            f"{path} may not be read by this user: change its permissions (chmod a+r)"
        ) from None
    # a name too long, or with a zero byte: encoded data passed as a str
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{path[:80]!r}… is no usable path ({error}); pass encoded pictures as bytes"
        ) from None


def _copy_stream(source):
    """A copy of a caller's stream, rewound first as PIL does, so that a stream just written to needs no
    ``seek(0)``."""
    name = str(getattr(source, "name", f"the {type(source).__name__}"))
    if hasattr(source, "seekable") and source.seekable():
        source.seek(0)
    data = source.read()
    if not isinstance(data, bytes):
        raise ImageError(
            f"{name} gives {type(data).__name__}, not bytes: open it in binary mode, open(path, 'rb')"
        )
    return io.BytesIO(data), name


# from a picture as PIL opened it to upright RGB


def _upright_rgb(picture, frame, name, alpha):
    _choose_frame(picture, frame, name)
    check_size(picture.size, name)
    # loads it; only then the orientation, because PIL turns TIFF itself while loading
    rgb = to_rgb(picture, name, alpha)
    turn = TURNS.get(_orientation(picture))
    rgb = rgb if turn is None else rgb.transpose(turn)
    # else the EXIF orientation would be applied again by whoever opens the result
    rgb.info = {}
    return rgb


def _choose_frame(picture, frame, name):
    """Go to the frame.  Frames are not counted: in a hostile TIFF that takes hours."""
    if frame is None:
        if getattr(picture, "is_animated", False) and picture.format not in STILL_FORMATS:
            raise ImageError(
                f"{name} is a {picture.format} with several frames; expected one picture: pass load_image(…, "
                "frame=0) for "
                "the first"
            )
        return
    if isinstance(frame, bool) or not isinstance(frame, Integral) or frame < 0:
        raise ImageError(f"frame = {frame!r}: expected a whole number, 0 for the first frame of {name}")
    try:
        picture.seek(frame)
    except EOFError:
        raise ImageError(f"{name} has no frame {frame}: it has fewer, counted from 0") from None


def _orientation(picture):
    try:
        return picture.getexif().get(ORIENTATION)
    # PIL raises many types on damaged EXIF; the pixels are sound and need not be lost for it
    except Exception:
        return None


@contextlib.contextmanager
def _place_kept(picture):
    """Leave the caller's own picture at the frame where it stood."""
    place = picture.tell()
    try:
        yield
    finally:
        if picture.tell() != place:
            picture.seek(place)


@contextlib.contextmanager
def _explained(name, kind):
    """PIL's complaints as ImageError with the name and kind of the data, and the next step."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{name} ({kind}) needs more memory than there is; scale it down") from None
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} would unpack to too many pixels: {error}  If you trust it, raise "
            "PIL.Image.MAX_IMAGE_PIXELS; else scale it down"
        ) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} cannot be read as a picture: it starts like {kind}; expected a whole JPEG, PNG, WebP "
            "or another format that PIL reads"
        ) from None
    # PIL's readers raise OSError, SyntaxError, struct.error, zlib.error … on damage
    except Exception as error:
        raise ImageError(
            f"{name} ({kind}) is truncated or damaged: {' '.join(str(error).split())}; get the file again"
        ) from error
