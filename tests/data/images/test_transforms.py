"""Pixels equal those of torchvision in LAVIS's BlipImageEvalProcessor."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from mindblip2.data.images.transforms import CLIP_MEAN, CLIP_STD, EvalTransform, normalize, resize, to_chw

NAMES = ("china", "flower", "astronaut", "chelsea", "chelsea_crop", "china_strip", "astronaut_gray")


def picture(lavis_images, name):
    return Image.fromarray(lavis_images[f"{name}.rgb"])


@pytest.mark.parametrize("name", NAMES)
def test_reference_pixels_are_whole(lavis_images, lavis_images_json, name):
    assert (
        hashlib.sha256(lavis_images[f"{name}.rgb"].tobytes()).hexdigest()
        == lavis_images_json[name]["sha256_rgb"]
    )
    assert (list(CLIP_MEAN), list(CLIP_STD)) == (lavis_images_json["mean"], lavis_images_json["std"])


@pytest.mark.parametrize("name", ("china", "flower"))
def test_resize_is_bit_equal(lavis_images, name):
    expected = lavis_images[f"{name}.resized224_uint8"]
    np.testing.assert_array_equal(np.asarray(resize(picture(lavis_images, name), 224)), expected)


@pytest.mark.parametrize("resample", ("NEAREST", "BILINEAR", "LANCZOS", "HAMMING"))
def test_another_filter_is_not_equal(lavis_images, resample):
    """Negative control."""
    other = np.asarray(resize(picture(lavis_images, "china"), 224, Image.Resampling[resample]), int)
    assert np.abs(other - lavis_images["china.resized224_uint8"]).max() > 10


def test_bicubic_without_antialiasing_is_not_equal(lavis_images):
    """Negative control: MindFormers' resize of arrays samples 4 x 4 pixels however large the reduction."""
    from mindspore.dataset import vision

    other = vision.Resize((224, 224), vision.Inter.BICUBIC)(lavis_images["china.rgb"])
    assert np.abs(other.astype(int) - lavis_images["china.resized224_uint8"]).max() > 50


def test_no_crop_is_made(lavis_images):
    """Negative control: the shorter side to 224 and a centre crop give another picture."""
    china = picture(lavis_images, "china")
    width = round(224 * china.width / china.height)
    left = (width - 224) // 2
    cropped = np.asarray(
        china.resize((width, 224), Image.Resampling.BICUBIC).crop((left, 0, left + 224, 224)), int
    )
    assert np.abs(cropped - lavis_images["china.resized224_uint8"]).max() > 100


@pytest.mark.parametrize("name", NAMES)
def test_eval_transform(lavis_images, name):
    image_CHW = EvalTransform(224)(picture(lavis_images, name))
    assert image_CHW.shape == (3, 224, 224) and image_CHW.dtype == np.float32 and image_CHW.flags.c_contiguous
    np.testing.assert_allclose(image_CHW, lavis_images[f"{name}.eval224"], rtol=0, atol=1e-6)


def test_eval_transform_at_364(lavis_images):
    image_CHW = EvalTransform(364)(picture(lavis_images, "flower"))
    np.testing.assert_allclose(image_CHW[:, ::16], lavis_images["flower.eval364_rows"], rtol=0, atol=1e-6)


def test_other_mean_is_not_equal(lavis_images):
    """Negative control: ImageNet's mean and std."""
    other = EvalTransform(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(picture(lavis_images, "china"))
    assert np.abs(other - lavis_images["china.eval224"]).max() > 0.1


def test_normalise_of_known_levels():
    levels = to_chw(Image.new("RGB", (1, 1), (0, 51, 255)))
    np.testing.assert_array_equal(levels.ravel(), np.float32([0, 0.2, 1]))
    expected = [(0 - 0.48145466) / 0.26862954, (0.2 - 0.4578275) / 0.26130258, (1 - 0.40821073) / 0.27577711]
    np.testing.assert_allclose(normalize(levels).ravel(), expected, rtol=1e-6)
    np.testing.assert_array_equal(normalize(np.stack([levels] * 2))[1], normalize(levels))


@pytest.mark.parametrize("mode", ["P", "RGBA", "L"])
def test_other_modes_are_refused(mode):
    with pytest.raises(ValueError, match=f"RGB picture, got mode {mode}: .*load_image"):
        resize(Image.new(mode, (4, 4)), 2)
