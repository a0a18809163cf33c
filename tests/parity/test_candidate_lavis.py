"""Our cells, filled by the real converter, give what LAVIS 1.0.2 computed: model and converter are proved
together.

In PyNative; tests/parity/test_candidate_graph.py has graph mode. That the comparison can fail is shown for
the same arrays in test_twin_controls.py, and for our side in test_defects.py.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mindblip2.parity.candidate import lavis_arrays  # noqa: E402
from mindblip2.parity.candidate.lavis_arrays import LOSSES, NO_TWIN  # noqa: E402
from mindblip2.parity.reference import losses as reference_losses  # noqa: E402
from mindblip2.parity.reference.lavis_arrays import beyond, distance  # noqa: E402
from tests.parity.conftest import FILES, load_model, tiny_config  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture(scope="module")
def seen(model, lavis):
    return lavis_arrays.observe(model, lavis)


@pytest.fixture(scope="module")
def gradients(model, lavis):
    return lavis_arrays.gradients(model, lavis)


def test_every_array_of_lavis_is_reproduced(lavis, seen):
    elsewhere = {name for name in lavis.outputs if name.startswith(("generate.", *NO_TWIN))}
    assert set(seen) == set(lavis.outputs) - elsewhere - {"itc_targets", "itm_labels", "lm_columns"}
    assert beyond(seen, lavis.outputs) == set()


def test_losses_with_and_without_image_ids(lavis, seen):
    """Spelled out, because it is what a user reads first: 1e-5, and other losses for other ids."""
    for prefix in ("", "derived.image_id."):
        for name in LOSSES:
            assert abs(seen[prefix + name] - lavis.outputs[prefix + name]) < 1e-5, prefix + name
    assert abs(seen["loss_itc"] - seen["derived.image_id.loss_itc"]) > 0.01


def test_a_float16_vit_converts_and_gives_what_lavis_gives_on_a_cpu(ckpts, lavis):
    rounded = lavis.arrays("outputs_fp16vit.npz")
    seen = lavis_arrays.observe(load_model(ckpts[FILES[1]], tiny_config()), lavis)
    seen = {name: value for name, value in seen.items() if name in rounded}
    assert set(seen) == {name for name in rounded if not name.startswith(NO_TWIN)}
    assert beyond(seen, rounded) == set()
    # the rounding shows
    assert {"vit.out", "ln_vision", "sim_i2t", "loss_itc"} <= beyond(seen, lavis.outputs)


def test_gradients_of_every_trainable_parameter(lavis, gradients):
    assert set(gradients) == {
        name for name in lavis.grads if not name.startswith(("names", "word_rows", "gradnone."))
    }
    assert beyond(gradients, lavis.grads) == set()


def test_a_loss_that_does_not_reach_a_parameter_leaves_it_alone(lavis, gradients):
    for name in LOSSES[1:]:
        unreached = lavis.grads["gradnone." + name]
        assert not gradients["gradnorm." + name][unreached].any()
        assert unreached.any() and not unreached.all()


def test_gradients_when_gathered_features_learn(ckpts, lavis, gradients):
    other = lavis.arrays("grads_gather_with_grad.npz")
    seen = lavis_arrays.gradients(
        load_model(ckpts[FILES[0]], tiny_config(gather_with_grad=True)), lavis, ("loss", "loss_itc")
    )
    assert beyond(seen, other) == set()
    assert distance(seen["loss"], gradients["loss"]) == 0  # only gradients tell the two gathers apart
    wrong = beyond(seen, lavis.grads)
    assert {
        "grad.vision_proj.weight",
        "grad.text_proj.weight",
        "grad.query_tokens",
        "gradnorm.loss_itc",
    } <= wrong
    assert not {"grad.temp", "loss"} & wrong


@pytest.mark.parametrize("beams", [1, 3])
def test_captions(model, lavis, beams):
    image = lavis_arrays.tensor(lavis.inputs["image"].numpy())
    assert (
        model.generate(image, num_beams=beams).tolist() == lavis.outputs[f"generate.beam{beams}.ids"].tolist()
    )


def test_captions_without_a_cache(model, lavis):
    image = lavis_arrays.tensor(lavis.inputs["image"].numpy())
    assert (
        model.generate(image, num_beams=1, use_cache=False).tolist()
        == lavis.outputs["generate.beam1.ids"].tolist()
    )


def test_negatives_are_drawn_with_lavis_s_weights(lavis):
    """Frequencies of 20,000 draws; the largest deviation of such a share is about 0.01."""
    from mindspore import ops

    from mindblip2.models import losses

    sim = lavis_arrays.tensor(lavis.outputs["sim_t2i"])
    image_id = lavis_arrays.tensor(lavis.inputs["image_id"].numpy())
    noise = lavis_arrays.tensor(np.random.default_rng(0).random((20_000, 4)))
    weights = reference_losses.negative_weights(
        torch.from_numpy(lavis.outputs["sim_t2i"]), lavis.inputs["image_id"]
    )
    same = losses.same_picture(4, 4, image_id)
    for row in range(4):
        many = (ops.tile(x[row : row + 1], (20_000, 1)) for x in (sim, same))
        drawn = losses.hard_negatives(*many, noise).asnumpy()
        assert np.abs(np.bincount(drawn, minlength=4) / 20_000 - weights[row].numpy()).max() < 0.015


# ------------------------------------------------------------------------------------------------ batches and
@pytest.fixture(scope="module")
def together(model, lavis):
    image, ids = (lavis_arrays.tensor(lavis.inputs[name].numpy()) for name in ("image", "input_ids"))
    return public_outputs(model, image, ids)


def public_outputs(model, image, ids):
    found = {"vit": model.embed_image(image), "itm_logits": model.itm_logits(image, ids)}
    for mode in ("image", "text", "multimodal"):
        found |= model.extract_features({"image": image, "text_input": ids}, mode)._asdict()
    found = {name: value.asnumpy() for name, value in found.items() if value is not None}
    return found | {"generate": model.generate(image, num_beams=3)}


def test_a_batch_of_four_is_four_batches_of_one(model, lavis, together):
    for n in range(4):
        image, ids = (
            lavis_arrays.tensor(lavis.inputs[name][n : n + 1].numpy()) for name in ("image", "input_ids")
        )
        alone = public_outputs(model, image, ids)
        assert alone["generate"][0].tolist() == together["generate"][n][: alone["generate"].shape[1]].tolist()
        # a caption's end is padded to the longest
        assert not together["generate"][n][alone["generate"].shape[1] :].any()
        for name in set(alone) - {"generate"}:
            assert distance(alone[name][0], together[name][n]) < 1e-5, name


def test_losses_of_a_batch_of_one(model, lavis):
    """LAVIS stops at a batch of one; the twin does not. One class has no contrast, and the only "negative" is
    the pair."""
    twin = lavis.twin()
    image, ids = lavis.inputs["image"][:1], lavis.inputs["input_ids"][:1]
    theirs = [x.item() for x in twin(image.double(), ids)[:4]]
    ours = [
        float(x.asnumpy())
        for x in model(*(lavis_arrays.tensor(x.numpy()) for x in (image, ids)), return_tuple=True)
    ]
    assert np.abs(np.subtract(ours, theirs)).max() < 1e-5 and ours[1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [56, 168])
def test_other_image_sizes(tmp_path, lavis, size):
    """The converter interpolates the position embeddings as LAVIS does; 112 pixels become 56 and 168."""
    from mindblip2.convert.convert_weight import to_mindspore
    from mindblip2.parity.compare import compare
    from mindblip2.parity.reference.model import load, read_state_dict
    from mindblip2.parity.weights import resized
    from tests.parity.conftest import TINY

    to_mindspore(TINY / FILES[0], tmp_path / "other.ckpt", config=tiny_config(), image_size=size)
    config = tiny_config().replace(vision_config={"image_size": size})
    image = torch.nn.functional.interpolate(
        lavis.inputs["image"], size=(size, size), mode="bicubic", antialias=True
    )
    state = read_state_dict(TINY / FILES[0])
    state["visual_encoder.pos_embed"] = resized(
        state["visual_encoder.pos_embed"], config.vision_config.num_tokens
    )
    twins = [load(state, vit_heads=4, heads=4, dtype=dtype) for dtype in (torch.float64, torch.float32)]
    model = load_model(tmp_path / "other.ckpt", config)
    ours = model.extract_features(
        {"image": lavis_arrays.tensor(image.numpy())}, "image"
    ).image_embeds.asnumpy()
    with torch.no_grad():
        truth, torch32 = (twin.see(twin.embed_image(image.to(twin.temp.dtype)))[0].numpy() for twin in twins)
    assert compare("see", ours, torch32, truth).verdict == "pass"
