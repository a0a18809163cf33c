"""load_image: every way in, every kind of pixel, every way to fail."""

import io
import os
import struct
import subprocess
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mindblip2.data.images.color_conversion import ImageError
from mindblip2.data.images.load import load_image
from mindblip2.tools import image_tools


def pixels(picture):
    assert picture.mode == "RGB"
    return np.asarray(picture)


def png(width, height, colour_type=2, depth=8, rows=b""):
    """A PNG written by hand: PIL can neither save 16-bit RGB nor a wrong size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# ways in


def test_every_source_gives_the_same_pixels(noise, encode, tmp_path):
    data = encode(noise, "PNG")
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    written = io.BytesIO(data)
    written.seek(0, io.SEEK_END)  # as left by picture.save(stream)
    with open(path, "rb") as stream:
        sources = (
            path,
            str(path),
            path.as_uri(),
            data,
            bytearray(data),
            written,
            stream,
            noise,
            np.asarray(noise),
        )
        for source in sources:
            np.testing.assert_array_equal(pixels(load_image(source)), np.asarray(noise))


def test_tensor(noise):
    from mindspore import Tensor

    np.testing.assert_array_equal(pixels(load_image(Tensor(np.asarray(noise)))), np.asarray(noise))


def test_the_result_is_a_copy(noise):
    copy = load_image(noise)
    copy.putpixel((0, 0), (1, 2, 3))
    assert noise.getpixel((0, 0)) != (1, 2, 3)


def test_import_path_of_mindformers():
    assert image_tools.load_image is load_image


# kinds of pixels


@pytest.mark.parametrize(
    "kind, mode",
    [
        ("PNG", "L"),
        ("PNG", "LA"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("WEBP", "RGBA"),
        ("JPEG", "L"),
        ("JPEG", "RGB"),
        ("BMP", "RGB"),
        ("TIFF", "CMYK"),
        ("JPEG", "CMYK"),
        ("TIFF", "LAB"),
        ("GIF", "P"),
    ],
)
def test_equal_to_lavis_convert(noise, encode, kind, mode):
    """LAVIS: Image.open(path).convert("RGB")."""
    picture = noise if mode != "LAB" else Image.new("LAB", (3, 2), (150, 120, 130))
    data = encode(picture.convert(mode) if mode != "LAB" else picture, kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pixels(load_image(data)), expected)


def test_alpha_is_dropped_not_blended(encode):
    clear_red = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert pixels(load_image(encode(clear_red, "PNG")))[0, 0].tolist() == [255, 0, 0]
    white = Image.alpha_composite(Image.new("RGBA", (2, 2), "white"), clear_red)  # negative control
    assert white.getpixel((0, 0))[:3] == (255, 255, 255)


def test_palette_with_transparency_keeps_its_colours_without_a_warning(noise, encode):
    data = encode(noise.quantize(8), "PNG", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = pixels(load_image(data))
    np.testing.assert_array_equal(loaded, np.asarray(noise.quantize(8).convert("RGB")))


def test_cmyk_jpeg_of_adobe_is_not_inverted(encode):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = encode(red, "JPEG", quality=100)
    assert b"Adobe" in data
    loaded = pixels(load_image(data)).astype(int)
    assert np.abs(loaded - [255, 0, 0]).max() <= 2
    assert np.abs(255 - loaded - [255, 0, 0]).max() > 250  # negative control: the inverted picture


@pytest.mark.parametrize("kind, mode", [("PNG", "I;16"), ("TIFF", "I;16"), ("PPM", "I")])
def test_sixteen_bits_are_scaled(encode, kind, mode):
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    data = encode(Image.fromarray(ramp), kind)
    opened = Image.open(io.BytesIO(data))
    assert opened.mode in (mode, "I")  # older PIL opens 16-bit PNG as "I"
    for source in (data, opened, ramp):
        np.testing.assert_array_equal(pixels(load_image(source))[..., 1].ravel(), np.arange(256))
    clipped = np.asarray(opened.convert("RGB"))  # negative control: what LAVIS would see is white
    assert (clipped == 255).mean() > 0.99


def test_sixteen_bit_grey_and_rgb_agree(encode):
    values = np.array([[0, 0x1200, 0x80FF, 0xFFFF]], np.uint16)
    rgb = png(4, 1, depth=16, rows=b"\0" + np.repeat(values[0], 3).astype(">u2").tobytes())
    grey = encode(Image.fromarray(values), "PNG")
    np.testing.assert_array_equal(pixels(load_image(rgb)), pixels(load_image(grey)))
    assert pixels(load_image(rgb))[0, :, 0].tolist() == [0, 0x12, 0x80, 0xFF]


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_of_either_byte_order(order):
    assert pixels(load_image(np.array([[0x1234]], order)))[0, 0].tolist() == [0x12] * 3


@pytest.mark.parametrize("values, levels", [([0, 0.5, 1], [0, 128, 255]), ([0, 7, 255], [0, 7, 255])])
def test_floats(encode, values, levels):
    array = np.array([values], np.float32)
    for source in (
        array,
        array.astype(np.float64),
        Image.fromarray(array),
        encode(Image.fromarray(array), "TIFF"),
    ):
        assert pixels(load_image(source))[0, :, 2].tolist() == levels


@pytest.mark.parametrize("values", [[-0.1, 0.5], [0.5, 2], [0, 300], [0, np.nan], [0, np.inf]])
def test_floats_of_unknown_scale_are_refused(values):
    for source in (np.array([values], np.float32), Image.fromarray(np.array([values], np.float32))):
        with pytest.raises(ImageError, match="expected uint8, uint16, floats in"):
            load_image(source)


# 0 to 255 in a type that could hold more


LEVELS = np.arange(256, dtype=np.int32).reshape(16, 16)


@pytest.mark.parametrize(
    "deep",
    [
        Image.fromarray(LEVELS),
        Image.fromarray(LEVELS.astype(np.uint8)).convert("I"),
        Image.fromarray(LEVELS.astype(np.uint16)),
        LEVELS.astype(np.uint16),
        LEVELS.astype(">u2"),
        Image.fromarray(LEVELS.astype(np.float32)),
        LEVELS.astype(np.float32),
    ],
    ids=["I", "L to I", "I;16", "uint16", "uint16, big end first", "F", "float32"],
)
def test_a9_levels_in_a_wide_type_stay_levels(deep, encode):
    """As LAVIS's convert("RGB") has them; they were black."""
    np.testing.assert_array_equal(pixels(load_image(deep))[..., 0], LEVELS)
    if isinstance(deep, Image.Image):
        np.testing.assert_array_equal(pixels(load_image(deep)), np.asarray(deep.convert("RGB")))


def test_a9_a_tiff_of_32_bits_with_levels_is_not_black(encode):
    np.testing.assert_array_equal(pixels(load_image(encode(Image.fromarray(LEVELS), "TIFF")))[..., 0], LEVELS)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_a9_a_dark_file_of_16_bits_stays_dark(encode, kind):
    """Negative control: there the file says how deep it is, and 255 of 65535 is black."""
    data = encode(Image.fromarray(LEVELS.astype(np.uint16)), kind)
    assert pixels(load_image(data)).max() == 0
    assert (
        pixels(load_image(encode(Image.fromarray((LEVELS * 257).astype(np.uint16)), kind)))[..., 0].tolist()
        == LEVELS.tolist()
    )


def test_a9_one_value_above_255_makes_it_16_bits():
    deep = LEVELS.copy()
    deep[0, 0] = 256
    for source in (Image.fromarray(deep), deep.astype(np.uint16)):
        assert pixels(load_image(source)).max() == 1


# transparency


def see_through():
    """Red that fades out, over green."""
    picture = Image.new("RGBA", (256, 2), (255, 0, 0, 255))
    picture.putalpha(Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(2, 0)))
    return picture


@pytest.mark.parametrize(
    "kind", ["RGBA", "LA", "PA", "P with a colour", "L with a level", "RGB with a colour", "array"]
)
def test_a9_transparency_is_dropped_or_put_on_white(encode, kind):
    from transformers.image_transforms import convert_to_rgb

    picture = see_through()
    data = {"RGBA": picture, "LA": picture.convert("LA"), "PA": picture.convert("PA")}.get(kind)
    if kind == "array":
        source = np.asarray(picture)
        expected = convert_to_rgb(picture, return_numpy=True)
    else:
        if data is None:
            plain = Image.fromarray(np.arange(512, dtype=np.uint8).reshape(2, 256)).convert(kind.split()[0])
            source = encode(plain, "PNG", transparency=(7, 7, 7) if plain.mode == "RGB" else 7)
        else:
            source = data
        opened = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(source))
        expected = convert_to_rgb(opened, return_numpy=True)
    white, dropped = pixels(load_image(source, alpha="white")), pixels(load_image(source))
    np.testing.assert_array_equal(white, expected)
    assert (white != dropped).any()  # negative control


def test_a9_a_picture_without_transparency_is_the_same_either_way(noise):
    np.testing.assert_array_equal(pixels(load_image(noise, alpha="white")), np.asarray(noise))


# tensors of other libraries


@pytest.mark.parametrize("shape", [(20, 30, 3), (3, 20, 30), (20, 30), (1, 20, 30), (4, 20, 30)])
@pytest.mark.parametrize("kind", ["uint8", "float32", "bfloat16", "gradient"])
def test_b13_tensors_of_pytorch(shape, kind):
    import torch

    levels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))
    tensor = {
        "uint8": lambda: levels,
        "float32": lambda: levels / 255,
        "bfloat16": lambda: levels.to(torch.bfloat16),
        "gradient": lambda: (levels / 255).requires_grad_(),
    }[kind]()
    np.testing.assert_array_equal(pixels(load_image(tensor)), pixels(load_image(levels.numpy())))


@pytest.mark.parametrize("shape", [(20, 30, 3), (3, 20, 30)])
def test_b13_tensors_of_mindspore(shape):
    from mindspore import Tensor

    levels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(pixels(load_image(Tensor(levels))), pixels(load_image(levels)))


def test_b13_what_gives_an_array_is_taken(noise):
    class Theirs:
        def __array__(self, dtype=None, copy=None):
            return np.asarray(noise)

    np.testing.assert_array_equal(pixels(load_image(Theirs())), np.asarray(noise))


def test_b13_a_tensor_without_values_is_named():
    import torch

    with pytest.raises(ImageError, match="the torch.Tensor gives no values .*NumPy array"):
        load_image(torch.empty((3, 4, 4), device="meta"))


def test_channels_come_first_or_last():
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels(load_image(array.transpose(2, 0, 1))), array)
    assert pixels(load_image(np.zeros((3, 7, 3), np.uint8))).shape == (3, 7, 3)  # either may be: last


def test_one_bit():
    ticks = np.array([[True, False]])
    assert pixels(load_image(ticks))[0, :, 0].tolist() == [255, 0]
    assert pixels(load_image(Image.fromarray(ticks)))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_array_channels(channels):
    array = np.full((5, 7, channels), 9, np.uint8)
    assert pixels(load_image(array)).shape == (5, 7, 3)


@pytest.mark.parametrize(
    "shape, words",
    [
        ((5,), "expected"),
        ((5, 7, 2), "expected"),
        ((2, 5, 7), "expected"),
        ((2, 5, 7, 3), "batch"),
        ((0, 7), "no pixels"),
        ((5, 0, 3), "no pixels"),
    ],
)
def test_wrong_array_shapes(shape, words):
    with pytest.raises(ImageError, match=words) as error:
        load_image(np.zeros(shape, np.uint8))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8, np.complex64, "<U1", object])
def test_wrong_array_types(dtype):
    with pytest.raises(ImageError, match="astype"):
        load_image(np.zeros((4, 4)).astype(dtype))


def test_32_bit_integers_beyond_16_bits_are_refused():
    with pytest.raises(ImageError, match="int32 values from 0 to 70000"):
        load_image(Image.fromarray(np.array([[0, 70000]], np.int32)))


# orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(noise, encode, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise, kind, exif=exif)
    opened = Image.open(io.BytesIO(data))
    expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    loaded = load_image(data)
    np.testing.assert_array_equal(pixels(loaded), expected)
    np.testing.assert_array_equal(pixels(load_image(loaded)), expected)  # it is not turned twice
    np.testing.assert_array_equal(pixels(load_image(Image.open(io.BytesIO(data)))), expected)
    assert loaded.size == ((20, 30) if orientation >= 5 else (30, 20))


def test_orientation_matters(noise, encode):
    """Negative control: the picture as stored, which LAVIS shows, is another one."""
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encode(noise, "PNG", exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pixels(load_image(data)), stored[::-1, ::-1])
    assert (pixels(load_image(data)) != stored).mean() > 0.9


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture(noise, encode):
    for exif in (
        b"Exif\0\0garbage!!",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12",
    ):
        assert load_image(encode(noise, "JPEG", exif=exif)).size == (30, 20)


# several frames


@pytest.fixture(scope="module")
def frames():
    return [Image.new("RGB", (8, 8), (level,) * 3) for level in (10, 100, 200)]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_is_refused_and_frame_picks(frames, encode, kind):
    exact = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **exact)
    opened = Image.open(io.BytesIO(data))
    opened.seek(1)
    for source in (data, opened):
        with pytest.raises(ImageError, match="with several frames; .*frame=0"):
            load_image(source)
        assert [pixels(load_image(source, frame=i))[4, 4, 0] for i in range(3)] == [10, 100, 200]
        for wrong, words in (
            (3, "has no frame 3: it has fewer"),
            (-1, "frame = -1: expected"),
            ("0", "frame = '0': expected"),
            (True, "frame = True: expected"),
        ):
            with pytest.raises(ImageError, match=words):
                load_image(source, frame=wrong)
    assert opened.tell() == 1  # a caller's picture stays where it stood


def test_one_frame_is_no_animation(frames, encode):
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encode(frames[1], kind)
        np.testing.assert_array_equal(pixels(load_image(data)), pixels(load_image(data, frame=0)))


def test_phone_photo_with_a_second_picture_inside_is_one_picture(frames, encode):
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert pixels(load_image(data))[4, 4, 0] == 10


# ways to fail


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="the folder exists, the file does not") as error:
        load_image(tmp_path / "cat.png")
    assert str(tmp_path / "cat.png") in str(error.value)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_image(str(tmp_path / "none" / "cat.png"))
    with pytest.raises(FileNotFoundError, match="cat.png"):
        load_image((tmp_path / "cat.png").as_uri())


def test_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; expected one picture") as error:
        load_image(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_text_that_can_be_no_path(name):
    with pytest.raises(ImageError, match="(is no usable path|is no file name).*encoded pictures as bytes"):
        load_image(name)


def test_file_below_a_file(noise, tmp_path):
    noise.save(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_image(tmp_path / "a.png" / "b.png")


def test_empty_file(tmp_path):
    (tmp_path / "empty.jpg").touch()
    for source in (tmp_path / "empty.jpg", b"", io.BytesIO()):
        with pytest.raises(ImageError, match=r"is empty \(0 bytes\)"):
            load_image(source)
    with pytest.raises(ImageError, match="empty.jpg"):
        load_image(tmp_path / "empty.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_truncated_picture(noise, encode, tmp_path, kind, part):
    data = encode(noise, kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data[: max(12, int(len(data) * part))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL also warns of TIFF
        with pytest.raises(ImageError, match=f"cut.*{'WebP' if kind == 'WEBP' else kind}"):
            load_image(path)
    path.write_bytes(data)  # negative control: the whole file loads
    assert load_image(path).size == (30, 20)


def test_corrupt_picture(noise, encode):
    data = bytearray(encode(noise, "PNG"))
    data[60:90] = bytes(30)
    with pytest.raises(ImageError, match="PNG picture.*truncated or damaged"):
        load_image(bytes(data))


@pytest.mark.parametrize(
    "content, words",
    [
        (b"\n<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"<HTML>", "an HTML page"),
        (b'{"error": 1}', "JSON"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04rest", "a ZIP archive"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\x93NUMPY\x01", "np.load"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC photo; save it as JPEG"),
        (b"\0\0\0\x18ftypisom", "MP4"),
        (b"\0\0\0\x18ftypavif", "AVIF"),
        (b"RIFF\0\0\0\0WAVEfmt ", "WAVE"),
        (b"<svg xmlns=", "SVG"),
        (b"<?xml ", "XML"),
        (b"image,caption\n1.jpg,a cat", "text beginning 'image,caption"),
        ("猫".encode() * 30, "text beginning '猫"),
        (b"\x01\x02\xff\xfe", "binary data beginning 01 02 ff fe"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\x1a\x45\xdf\xa3", "WebM"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, content, words):
    path = tmp_path / "cat.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        load_image(path)
    assert words in str(error.value) and "cat.jpg" in str(error.value)


def test_decompression_bomb(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(100_000, 100_000))
    with pytest.raises(ImageError, match=r"bomb.png would unpack.*10000000000 pixels.*MAX_IMAGE_PIXELS"):
        load_image(path)


def test_picture_without_pixels():
    for picture in (Image.new("RGB", (0, 5)), Image.new("L", (5, 0)), Image.new("I;16", (0, 0))):
        with pytest.raises(ImageError, match="no pixels: its size is"):
            load_image(picture)
    with pytest.raises(ImageError, match="PNG"):
        load_image(png(0, 5))


@pytest.mark.parametrize("wrong", [None, 3, ["a.png"], {"path": "a.png"}])
def test_wrong_type(wrong):
    with pytest.raises(ImageError, match=f"from {type(wrong).__name__} .*expected a path, URL"):
        load_image(wrong)


def test_text_stream(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with open(tmp_path / "a.txt") as stream, pytest.raises(ImageError, match="binary mode"):
        load_image(stream)


@pytest.mark.parametrize("address", ["ftp://host/a.png", "s3://bucket/a.png", "data:image/png;base64,AAAA"])
def test_other_schemes(address):
    with pytest.raises(ImageError, match="http://, https:// and file://"):
        load_image(address)


def test_pil_picture_of_a_damaged_file(noise, encode):
    opened = Image.open(io.BytesIO(encode(noise, "PNG")[:900]))
    with pytest.raises(ImageError, match="the PIL picture .*truncated"):
        load_image(opened)


def test_unreadable_file(noise, tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "locked.png"
    noise.save(path)
    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(PermissionError, match="locked.png may not be read"):
        load_image(Path(path))


# what is not read


def test_b3_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ImageError, match="(pipe.png|zero) is a pipe or device, expected a file"):
            load_image(path)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
WMF = (
    b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 10, 10, 72) + b"\0" * 6 + b"\x01\0\x09\0" + b"\0" * 40
)


@pytest.mark.parametrize("data", [EPS, WMF], ids=["EPS", "WMF"])
def test_b3_formats_that_start_other_programs_are_not_opened(data, monkeypatch):
    Image.init()
    assert Image.open(io.BytesIO(data)).format in ("EPS", "WMF")  # negative control: PIL would
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(
        ImageError, match="cannot be read as a picture: it starts like an? (EPS|WMF).*save it as PNG"
    ):
        load_image(data)


def test_b3_every_format_of_the_list_is_opened(noise, encode):
    for kind in (
        "PNG",
        "JPEG",
        "GIF",
        "WEBP",
        "TIFF",
        "BMP",
        "PPM",
        "ICO",
        "TGA",
        "JPEG2000",
        "AVIF",
        "PCX",
        "SGI",
        "QOI",
        "DIB",
    ):
        if kind in Image.SAVE:
            assert load_image(encode(noise, kind)).size[0] > 0, kind


@pytest.mark.parametrize(
    "address, words",
    [("file://server/a.png", "names no host, got 'server'"), ("file://a.png", "got 'a.png'")],
)
def test_a_file_address_with_a_host_is_refused(address, words):
    with pytest.raises(ImageError, match=words):
        load_image(address)


def test_b3_a_frame_of_too_many_pixels_is_refused_before_it_is_decoded(frames, encode, monkeypatch):
    data = encode(
        frames[0].resize((30, 30)), "TIFF", save_all=True, append_images=[frames[1].resize((300, 300))]
    )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20000)
    assert load_image(data, frame=0).size == (30, 30)
    with pytest.raises(ImageError, match="too many pixels|300 x 300 pixels, expected at most 40,000"):
        load_image(data, frame=1)


def test_b3_a_tiff_of_many_pages_is_refused_in_no_time():
    """Its pages are not counted: PIL looks for each among all that came before."""
    tags = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}  # one grey pixel
    entry = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    page, count = 2 + len(entry) + 4, 60_000
    data = (
        b"II*\0"
        + struct.pack("<I", 8)
        + b"".join(
            struct.pack("<H", len(tags))
            + entry
            + struct.pack("<I", 8 + (i + 1) * page if i + 1 < count else 0)
            for i in range(count)
        )
    )
    start = time.monotonic()
    with pytest.raises(ImageError, match="several frames"):
        load_image(data)
    assert time.monotonic() - start < 2


def test_b12_a_message_about_damage_is_one_line():
    for data in (b"RIFF\0\0\0\0\n\r\0\1fmt ", b"\n\n\n\n<html>"):
        with pytest.raises(ImageError) as error:
            load_image(data)
        assert str(error.value).isprintable()
