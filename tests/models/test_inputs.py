"""What the public calls of stage 1 take: Tensors, arrays of NumPy and torch, pictures and texts; and what
they say about the rest."""

import mindspore as ms
import numpy as np
import pytest

from mindblip2 import Blip2Classifier, Blip2Processor, Blip2Qformer
from mindblip2.models import inputs

TEXTS = ["a red seven", "a green one"]


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope="module")
def model():
    return Blip2Qformer.from_pretrained("blip2_digits")


@pytest.fixture(scope="module")
def given():
    """(pictures as bytes, image, ids): what the processor makes of two pictures and texts."""
    processor = Blip2Processor.from_pretrained("blip2_digits")
    pixels = list(np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8))
    made = processor(pixels, TEXTS)
    return pixels, made["image"], made["input_ids"]


def forms(given):
    """The same pictures and texts as a user may have them."""
    torch = pytest.importorskip("torch")
    pixels, image, ids = given
    array, rows = image.asnumpy(), ids.asnumpy()
    return [
        (array, rows),
        (array.astype(np.float64), rows.astype(np.int64)),
        (torch.from_numpy(array), torch.from_numpy(rows).long()),
        (image, rows.tolist()),
        (array, TEXTS),
        (pixels, TEXTS),
    ]


def call(name, model, image, ids):
    if name == "call":
        zeros = np.array([1, 0], np.int32)
        return [
            float(one)
            for one in model(
                image, ids, image_id=np.array([3, 8]), negatives=(zeros, zeros), return_tuple=True
            )
        ]
    if name == "extract_features":
        made = [
            model.extract_features({"image": image, key: ids}, mode)
            for mode in ("image", "text", "multimodal")
            for key in ("text_input", "input_ids")
        ]
        return [array.asnumpy() for features in made for array in features if array is not None]
    return [getattr(model, name)(image, ids).asnumpy()]


@pytest.mark.parametrize("name", ["call", "extract_features", "itm_logits", "itc_similarity"])
def test_b13_the_same_input_in_another_form_gives_the_same(model, given, name):
    wanted = call(name, model, *given[1:])
    for image, ids in forms(given):
        for found, right in zip(call(name, model, image, ids), wanted, strict=True):
            np.testing.assert_array_equal(found, right)
    other = call(name, model, given[1], ["a blue two", TEXTS[1]])  # control
    assert any(not np.array_equal(found, right) for found, right in zip(other, wanted))


def test_b13_captions_of_arrays_and_samples(model, given):
    how = {"num_beams": 2, "max_new_tokens": 4, "min_new_tokens": 1}
    wanted = model.generate(given[1], **how).tolist()
    for image in (given[1].asnumpy(), given[0], {"image": given[1]}, {"image": given[1].asnumpy()}):
        assert model.generate(image, **how).tolist() == wanted
    assert model.generate(given[1][::-1], **how).tolist() == wanted[::-1]


def test_b13_a_classifier_takes_label_texts(given):
    model = Blip2Classifier.from_pretrained("blip2_digits")
    image, ids = given[1:]
    wanted = model(image, ids).asnumpy()
    for form in ((image.asnumpy(), ids.asnumpy()), (given[0], TEXTS)):
        np.testing.assert_array_equal(model(*form).asnumpy(), wanted)
        np.testing.assert_array_equal(
            model.match_probabilities(*form).asnumpy(), model.match_probabilities(image, ids).asnumpy()
        )
    np.testing.assert_array_equal(model(image, label_ids=TEXTS).asnumpy(), wanted)
    assert not np.array_equal(model(image, TEXTS[::-1]).asnumpy(), wanted)


@pytest.mark.parametrize(
    "ask, complaint",
    [
        (
            lambda model, image, ids: model.generate(image, "a photo of"),
            "use_cache = 'a photo of': .*stage 1 writes captions without a prompt",
        ),
        (
            lambda model, image, ids: model.generate({"image": image, "prompt": "a"}),
            "samples has the keys 'image', 'prompt': expected 'image'$",
        ),
        (lambda model, image, ids: model.generate({}), "samples has the keys none: expected 'image'"),
        (
            lambda model, image, ids: model.itm_logits(image.asnumpy()[0], ids),
            r"image is float32 \(3, .*: expected float32 \(B, 3, S, S\)",
        ),
        (
            lambda model, image, ids: model.itm_logits(image, ids.asnumpy()[0]),
            r"input_ids is int32 \(\d+,\): expected token ids \(B, T\) int32",
        ),
        (
            lambda model, image, ids: model.itc_similarity(image, [[1, 2], [3]]),
            "input_ids is a list: expected token ids",
        ),
        (
            lambda model, image, ids: model.itc_similarity(image, np.ones((2, 3), np.float32)),
            "input_ids is float32 .*: expected token ids",
        ),
        (
            lambda model, image, ids: model.itm_logits(image, {"input_ids": ids}),
            "input_ids is a dict: expected token ids",
        ),
        (
            lambda model, image, ids: model.itm_logits({"image": image}, ids),
            "image is a dict: expected float32",
        ),
        (lambda model, image, ids: model.itm_logits(image, None), "input_ids is None: expected token ids"),
        (lambda model, image, ids: model.extract_features(image), "samples is a .*Tensor: expected a dict"),
        (
            lambda model, image, ids: model.extract_features({"image": image}),
            r"needs samples\['text_input'\], got \['image'\]",
        ),
        (
            lambda model, image, ids: model.itm_logits(image, TEXTS[:1]),
            "2 images and 1 texts: one text belongs to each image",
        ),
    ],
)
def test_b13_what_stage_1_cannot_take_is_one_line(model, given, ask, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        ask(model, *given[1:])
    assert "\n" not in str(error.value)


def test_b13_texts_without_a_known_tokenizer_are_an_error(model, given):
    config = model.config
    bare = Blip2Qformer(type(config)(**{**config.to_dict(), "checkpoint_name_or_path": ""})).set_train(False)
    with pytest.raises(
        ValueError,
        match="texts were given, but this model's configuration was made in Python, .* token ids .B, T. int32",
    ):
        bare.itm_logits(given[1], TEXTS)
    assert bare.itm_logits(*(one.asnumpy() for one in given[1:])).shape == (2, 2)  # control


def test_b13_arrays_keep_their_values_and_tensors_are_not_copied():
    torch = pytest.importorskip("torch")
    tensor = ms.Tensor(np.ones(2, np.float16))
    assert inputs.tensor(tensor) is tensor and inputs.tensor(None) is None and inputs.tensor(True) is True
    brain = inputs.tensor(torch.tensor([1.5, -2], dtype=torch.bfloat16, requires_grad=True))
    assert brain.dtype == ms.float32 and brain.asnumpy().tolist() == [1.5, -2]
    pair = inputs.tensor((np.array([1, 2]), [3]))
    assert pair[0].dtype == ms.int32 and pair[1] == [3]
