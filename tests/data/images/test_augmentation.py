"""LAVIS's names and MindFormers' lists become the same chains; what cannot be made is named."""

import numpy as np
import pytest
import yaml
from PIL import Image

from mindblip2.config import CLIP_MEAN, CLIP_STD
from mindblip2.config.schema import ConfigError
from mindblip2.data.images.augmentation import default, recipe, recipes
from mindblip2.data.images.color_conversion import ImageError
from mindblip2.data.images.random_transforms import RandAugment, RandomHorizontalFlip, RandomResizedCrop
from mindblip2.data.images.transforms import EvalTransform

STAGE_1 = yaml.safe_load("""
- {type: RandomResizedCrop, size: 224, scale: [0.5, 1.0], interpolation: bicubic}
- {type: RandomHorizontalFlip}
- {type: ToTensor}
- {type: Normalize, mean: [0.48145466, 0.4578275, 0.40821073], std: [0.26862954, 0.26130258, 0.27577711], is_hwc: False}
""")
RETRIEVAL = yaml.safe_load(
    "[{type: ToPIL}, {type: Resize, size: [224, 224], interpolation: bicubic}, {type: ToTensor}]"
)


def test_mindformers_list_of_stage_1_is_lavis_recipe():
    assert recipe(STAGE_1, 224) == recipe("blip2_image_train", 224)
    assert recipe("blip2_image_train", 224).steps == (
        RandomResizedCrop(224, (0.5, 1.0), (3 / 4, 4 / 3)),
        RandomHorizontalFlip(0.5),
    )
    assert recipe("blip_image_train", 224).steps[2] == RandAugment(2, 5)
    assert recipe(STAGE_1, 224) != recipe("blip_image_train", 224)  # control


def test_the_evaluation_recipe_is_the_processors(noise):
    for words in (RETRIEVAL, "blip_image_eval"):
        made = recipe(words, 224)(noise, None)
        assert made.dtype == np.float32 and (made == EvalTransform(224, CLIP_MEAN, CLIP_STD)(noise)).all()


def test_resize_and_centre_crop_as_in_mindformers_generation_file(noise):
    steps = [{"type": "Resize", "size": 16, "interpolation": "linear"}, {"type": "CenterCrop", "size": 16}]
    made = recipe(steps, 16, (0,) * 3, (1,) * 3)
    # 30 x 20: the shorter side to 16
    small = np.asarray(noise.resize((24, 16), 2), np.float32) / 255
    assert (made(noise, None) == small[:, 4:20].transpose(2, 0, 1)).all()


def test_the_normalisation_of_the_list_counts(noise):
    plain = recipe([*RETRIEVAL, {"type": "Normalize", "mean": [0, 0, 0], "std": [1, 1, 1]}], 224)(noise, None)
    assert plain.min() >= 0 and plain.max() <= 1


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("blip2_image_trian", "did you mean 'blip2_image_train'"),
        ([{"type": "RandomCrop"}], "no step 'RandomCrop'"),
        (
            [{"type": "RandomResizedCrop", "sise": 224}],
            "has no option 'sise'; it has: size, scale, ratio, interpolation",
        ),
        ([{"type": "RandomResizedCrop", "size": 224, "interpolation": "area"}], "interpolation = 'area'"),
        ([{"type": "RandomResizedCrop"}], "missing 1 required"),
        ([{"type": "Resize", "size": [224, 196]}], "pictures are square"),
        ([{"type": "Resize", "size": 224}], "does not make squares"),
        ([{"type": "RandomResizedCrop", "size": 364}], "image_size = 224"),
        ([{"type": "RandomHorizontalFlip"}], "end them with a crop or a Resize"),
    ],
)
def test_what_cannot_be_made_is_named(words, complaint):
    with pytest.raises(ConfigError) as error:
        recipe(words, 224)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("/data/vg/annotations/vg_caption.json", "blip_image_train"),
        ("visual_genome/all.json", "blip_image_train"),
        ("coco2014/coco/annotations/coco_karpathy_train.json", "blip2_image_train"),
        ("avg/imgvg.json", "blip2_image_train"),
    ],
)
def test_visual_genome_is_known_by_its_name(name, expected):
    assert default(name) == expected


def test_each_set_gets_its_recipe():
    names = ("vg/vg_caption.json", "coco/train.json")
    assert recipes((), names, 8) == (recipe("blip_image_train", 8), recipe("blip2_image_train", 8))
    chosen = ("blip2_image_train", "blip_image_eval")
    assert recipes(chosen, names, 8) == tuple(recipe(name, 8) for name in chosen)
    assert recipes(("blip_image_eval",), names, 8) == (recipe("blip_image_eval", 8),) * 2
    assert recipes(STAGE_1, names, 224) == (recipe(STAGE_1, 224),) * 2
    with pytest.raises(ConfigError, match="3 recipes for 2 sets"):
        recipes(("blip_image_eval",) * 3, names, 8)


@pytest.mark.parametrize(
    "step, words",
    [
        (
            {"type": "RandomHorizontalFlip", "prob": 2},
            "RandomHorizontalFlip prob = 2.0: expected from 0 to 1",
        ),
        (
            {"type": "RandomHorizontalFlip", "prob": "often"},
            "RandomHorizontalFlip prob = 'often': expected a number",
        ),
        (
            {"type": "RandomResizedCrop", "size": 16, "scale": [0, 1]},
            "scale.0. = 0.0: expected above 0, at most 1",
        ),
        (
            {"type": "RandomResizedCrop", "size": 16, "scale": [1, 0.5]},
            "scale = .1.0, 0.5.: expected the smaller number first",
        ),
        (
            {"type": "RandomResizedCrop", "size": 16, "ratio": [float("nan"), 1]},
            "ratio.0. = nan: expected a finite number",
        ),
        ({"type": "RandomResizedCrop", "size": 16, "ratio": [1]}, "ratio = .1.: expected 2 values"),
        ({"type": "RandAugment", "num_ops": -1}, "num_ops = -1: expected at least 0"),
        ({"type": "RandAugment", "magnitude": 11}, "magnitude = 11.0: expected from 0 to 10"),
        ({"type": "Resize", "size": 0}, "Resize size = 0: expected from 1 to 16384"),
        ({"type": "Normalize", "std": [1, 0, 1]}, "Normalize std.1. = 0.0: expected above 0"),
        ({"type": "Normalize", "mean": "grey"}, "Normalize mean = 'grey': expected a number"),
    ],
)
def test_a7_numbers_of_steps_are_in_range(step, words):
    with pytest.raises(ConfigError, match=f"transforms: .*{words}"):
        recipe([step, {"type": "Resize", "size": [16, 16]}], 16)
    recipe(
        [
            {"type": "RandAugment", "num_ops": 0, "magnitude": 10},
            {"type": "RandomHorizontalFlip", "prob": 1},
            {"type": "Resize", "size": [16, 16]},
        ],
        16,
    )  # negative control


def test_b3_a_line_of_one_pixel_is_not_resized_to_gigabytes():
    made = recipe([{"type": "Resize", "size": 224}, {"type": "CenterCrop", "size": 224}], 224)
    with pytest.raises(
        ImageError,
        match="a picture of 1 x 60000, its shorter side resized to 224, would have 224 x 13440000 pixels",
    ):
        made(Image.new("RGB", (1, 60000)), np.random.default_rng(0))
    # negative control
    assert made(Image.new("RGB", (100, 600)), np.random.default_rng(0)).shape == (3, 224, 224)
