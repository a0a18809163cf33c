"""Blip2ImageProcessor and Blip2Processor: whatever picture comes in, LAVIS's numbers come out."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mindblip2.config import CLIP_MEAN, CLIP_STD, load_config
from mindblip2.data.images.augmentation import recipe
from mindblip2.data.images.color_conversion import ImageError
from mindblip2.data.loader import Feed
from mindblip2.data.processor import Blip2ImageProcessor, Blip2Processor
from mindblip2.data.text.tokenizer import BertTokenizer


@pytest.fixture(scope="module")
def processor():
    return Blip2ImageProcessor()


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer()


def test_nothing_heavy_is_imported():
    code = (
        "import sys, mindblip2.data.processor, mindblip2.tools.image_tools; "
        "print([name for name in ('mindspore', 'torch', 'transformers') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_one_picture_is_a_tensor(processor, lavis_images):
    import mindspore as ms

    image = processor(Image.fromarray(lavis_images["china.rgb"]))
    assert isinstance(image, ms.Tensor) and image.shape == (1, 3, 224, 224) and image.dtype == ms.float32
    np.testing.assert_allclose(image.asnumpy()[0], lavis_images["china.eval224"], rtol=0, atol=1e-6)


def test_a_batch_of_every_source(processor, lavis_images, tmp_path):
    from mindspore import Tensor

    rgb = lavis_images["flower.rgb"]
    picture = Image.fromarray(rgb)
    path = tmp_path / "flower.png"
    picture.save(path)
    sources = [
        picture,
        path,
        str(path),
        path.as_uri(),
        path.read_bytes(),
        rgb,
        rgb.transpose(2, 0, 1),
        Tensor(rgb),
        Tensor(rgb.transpose(2, 0, 1)),
        rgb.astype(np.float32),
        rgb.astype(np.float32) / 255,
        Tensor(rgb.transpose(2, 0, 1).astype(np.float32) / 255),
    ]
    batch = processor(sources, return_tensors="np")
    assert batch.shape == (12, 3, 224, 224) and batch.dtype == np.float32
    for image in batch:
        np.testing.assert_allclose(image, lavis_images["flower.eval224"], rtol=0, atol=1e-6)


def test_a_batch_of_every_mode_is_its_single_pictures(processor, noise):
    modes = ("RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr", "HSV")
    pictures = [noise.convert(mode) for mode in modes] + [Image.fromarray(np.full((9, 4), 65535, np.uint16))]
    batch = processor(pictures, return_tensors="np")
    assert batch.shape == (10, 3, 224, 224)
    for image, picture in zip(batch, pictures, strict=True):
        np.testing.assert_array_equal(image, processor(picture, return_tensors="np")[0])
    np.testing.assert_array_equal(batch[0], batch[3])  # alpha changes nothing
    assert np.abs(batch[0] - batch[1]).max() > 1  # negative control: grey is another picture
    # white
    np.testing.assert_allclose(batch[9][:, 0, 0], (1 - np.array(processor.mean)) / processor.std, rtol=1e-5)


def test_palette_is_resized_as_colours(processor, noise):
    """Negative control: resized in its palette, the picture keeps only the palette's colours."""
    palette = noise.quantize(8)
    expected = processor(palette.convert("RGB"), return_tensors="np")
    np.testing.assert_array_equal(processor(palette, return_tensors="np"), expected)
    nearest = processor(palette.resize((224, 224), Image.Resampling.BICUBIC), return_tensors="np")
    assert np.abs(nearest - expected).max() > 0.5


def test_four_dimensional_arrays_are_batches(processor, lavis_images):
    from mindspore import Tensor

    rgb = np.stack([lavis_images["china.rgb"], lavis_images["flower.rgb"]])
    for batch in (rgb, rgb.transpose(0, 3, 1, 2), Tensor(rgb), [rgb], np.float32(rgb)):
        image = processor(batch, return_tensors="np")
        np.testing.assert_allclose(image[1], lavis_images["flower.eval224"], rtol=0, atol=1e-6)
        assert len(image) == 2


def test_three_columns_are_channels():
    """(3, 5, 3) can be read both ways; channels last wins."""
    array = np.random.default_rng(1).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    processor = Blip2ImageProcessor(image_size=8)
    np.testing.assert_array_equal(processor(array, "np"), processor(Image.fromarray(array), "np"))


@pytest.mark.parametrize("size", [14, 112, 364])
def test_image_size(noise, size):
    assert Blip2ImageProcessor(image_size=size)(noise).shape == (1, 3, size, size)


def test_mean_and_std(noise):
    processor = Blip2ImageProcessor(8, mean=[0, 0, 0], std=[1, 1, 1])
    image = processor(noise, return_tensors="np")
    assert image.min() >= 0 and image.max() <= 1 and (processor.mean, processor.std) == ((0, 0, 0), (1, 1, 1))


# what is normalised already


def test_normalised_pictures_pass_through_when_said(processor, lavis_images):
    from mindspore import Tensor

    batch = np.stack([lavis_images["china.eval224"], lavis_images["flower.eval224"]])
    for source in (batch, Tensor(batch), list(batch), batch.astype(np.float64)):
        np.testing.assert_array_equal(processor(source, return_tensors="np", normalized=True), batch)
    assert processor(batch[0], normalized=True).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("name", ["china", "flower", "astronaut", "chelsea"])
def test_normalised_pictures_are_never_normalised_twice(processor, lavis_images, name):
    with pytest.raises(ImageError, match=r"images\[0\] holds float32 values from -.*normalized=True"):
        processor(lavis_images[f"{name}.eval224"])


def test_a_normalised_white_page_has_no_negative_value_and_is_noticed(processor):
    white = processor(Image.new("RGB", (4, 4), "white"), return_tensors="np")
    assert white.min() > 1
    with pytest.raises(ImageError, match="normalized=True"):
        processor(white)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 112, 112), np.float32),
        np.zeros((224, 224, 3), np.float32),
        np.zeros((3, 224, 224), np.uint8),
        np.full((3, 224, 224), np.nan, np.float32),
        Image.new("RGB", (224, 224)),
    ],
)
def test_what_cannot_be_normalised_already(processor, wrong):
    with pytest.raises(ImageError, match=r"images\[0\] .*expected"):
        processor(wrong, normalized=True)


# ways to fail


def test_an_unusable_picture_in_a_list_is_named(processor, noise, tmp_path):
    with pytest.raises(ImageError, match=r"images\[1\] has shape \(5, 7, 2\); expected"):
        processor([noise, np.zeros((5, 7, 2), np.uint8)])
    with pytest.raises(FileNotFoundError, match="cat.png"):
        processor([noise, tmp_path / "cat.png"])
    with pytest.raises(ImageError, match="from NoneType"):
        processor([noise, None])
    with pytest.raises(ImageError, match="batch"):
        processor([noise, np.zeros((1, 5, 7, 3), np.uint8)])


@pytest.mark.parametrize("empty", [[], (), np.zeros((0, 5, 5, 3), np.uint8)])
def test_empty_batch(processor, empty):
    with pytest.raises(ValueError, match="no pictures"):
        processor(empty)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"image_size": 0}, "image_size = 0"),
        ({"image_size": "224"}, "image_size = '224'"),
        ({"image_size": (224, 364)}, "image_size = (224, 364)"),
        ({"image_size": 10**6}, "image_size = 1000000: expected from 1 to 16384"),
        ({"image_size": True}, "image_size = True"),
        ({"mean": (0.5,)}, "mean = [0.5]: expected 3 values"),
        ({"mean": 0.5}, "mean = 0.5: expected tuple"),
        ({"std": (1, 1, 0)}, "std[2] = 0.0: expected above 0"),
        ({"std": (1, 1, np.nan)}, "std[2] = nan: expected a finite number"),
        ({"alpha": "black"}, "alpha = 'black': expected one of 'drop', 'white'"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ValueError) as error:
        Blip2ImageProcessor(**options)
    assert words in str(error.value)


def test_unknown_return_type(processor, noise):
    with pytest.raises(ValueError, match="return_tensors = 'pt': expected 'ms' or 'np'"):
        processor(noise, return_tensors="pt")


# both together


def test_both_together(tokenizer, noise):
    import mindspore as ms

    processor = Blip2Processor(Blip2ImageProcessor(image_size=112), tokenizer)
    inputs = processor(images=[noise, noise], text=["a cat", "a red cat"])
    text = ((2, 32), ms.int32)
    assert {key: (value.shape, value.dtype) for key, value in inputs.items()} == {
        "image": ((2, 3, 112, 112), ms.float32),
        "input_ids": text,
        "attention_mask": text,
    }
    assert inputs["input_ids"].asnumpy()[0, :5].tolist() == [101, 1037, 4937, 102, 0]
    assert processor.image_processor.image_size == 112 and processor.tokenizer is tokenizer


def test_one_of_both(tokenizer, noise):
    processor = Blip2Processor(tokenizer=tokenizer)
    assert set(processor(noise)) == {"image"} and set(processor(text="a cat")) == {
        "input_ids",
        "attention_mask",
    }
    assert processor(noise, return_tensors="np")["image"].shape == (1, 3, 224, 224)
    with pytest.raises(ValueError, match="nothing to process"):
        processor()


def test_length_of_text(tokenizer):
    """The call's length wins over the processor's, that over the tokenizer's."""

    def length(processor, **options):
        return processor(text="a cat", return_tensors="np", **options)["input_ids"].shape[1]

    assert length(Blip2Processor(tokenizer=tokenizer)) == 32
    assert length(Blip2Processor(tokenizer=BertTokenizer(max_length=20))) == 20
    assert length(Blip2Processor(tokenizer=tokenizer, max_length=12)) == 12
    assert length(Blip2Processor(tokenizer=tokenizer, max_length=12), max_length=7) == 7
    assert length(Blip2Processor(tokenizer=tokenizer, padding="longest")) == 4


def test_defaults():
    processor = Blip2Processor()
    assert processor.image_processor.image_size == 224 and len(processor.tokenizer) == 30523
    assert "image_size=224" in repr(processor) and "len=30523" in repr(processor)


# ------------------------------------------------------------------------------------------------ tensors and
def test_b13_tensors_of_pytorch_alone_in_lists_and_as_batches(processor):
    import torch

    levels = np.random.default_rng(2).integers(0, 256, (2, 3, 20, 30), dtype=np.uint8)
    batch = torch.from_numpy(levels)
    expected = processor(levels, return_tensors="np")
    for images in (batch, list(batch), batch.permute(0, 2, 3, 1), [batch[0], levels[1]]):
        np.testing.assert_array_equal(processor(images, return_tensors="np"), expected)
    assert (processor(batch.flip(3), return_tensors="np") != expected).any()  # negative control
    normalised = torch.from_numpy(expected)
    np.testing.assert_array_equal(processor(normalised, return_tensors="np", normalized=True), expected)


def test_a9_alpha_acts_wherever_pictures_enter(tmp_path):
    """The processor, its configuration, what it saves, and the augmentation of training."""
    picture = Image.new("RGBA", (30, 30), (255, 0, 0, 0))
    picture.save(tmp_path / "clear.png")
    config = load_config("blip2_digits", {"processor.image_processor.alpha": "white"}).processor
    white, red = (
        Blip2Processor.from_config(config),
        Blip2Processor.from_config(load_config("blip2_digits").processor),
    )
    white.save_pretrained(tmp_path)
    saved = Blip2Processor.from_pretrained(tmp_path)
    size = white.image_processor.image_size
    for source in (picture, tmp_path / "clear.png", np.asarray(picture)):
        for processor in (white, saved, Blip2Processor(Blip2ImageProcessor(size, alpha="white"))):
            np.testing.assert_allclose(
                processor.image_processor(source, return_tensors="np")[0, 1],
                (1 - CLIP_MEAN[1]) / CLIP_STD[1],
                1e-5,
            )
        np.testing.assert_allclose(
            red.image_processor(source, return_tensors="np")[0, 1], -CLIP_MEAN[1] / CLIP_STD[1], 1e-5
        )
        for processor, level in ((white, 1), (red, 0)):
            feed = Feed(
                [{"image": source, "caption": "a red page"}],
                processor,
                1,
                0,
                transforms=[recipe("blip2_image_train", size)],
            )
            image = next(feed.epoch(0))["image"]
            np.testing.assert_allclose(image[0, 1], (level - CLIP_MEAN[1]) / CLIP_STD[1], 1e-5)
