"""Which module of ours is which of the twin's, and what the hooks see."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mindspore as ms  # noqa: E402

from mindblip2.parity.activation_hooks import capture, common, twin_paths  # noqa: E402
from mindblip2.parity.candidate.chained import verbs_of  # noqa: E402
from mindblip2.parity.model_triple import tensor  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")


def test_paths_come_from_the_converter_s_table(model, suite):
    paths = twin_paths(model, 2)
    assert paths["vit.blocks.1.mlp.up"] == "visual_encoder.blocks.1.mlp.fc1"
    assert paths["vit.blocks.1.mlp"] == "visual_encoder.blocks.1.mlp"
    assert paths["vit.patch_embed"] == "visual_encoder.patch_embed"
    assert paths["qformer.encoder.layers.2"] == "Qformer.bert.encoder.layer.2"
    assert paths["qformer.memory.key.1"] == "Qformer.bert.encoder.layer.2.crossattention.self.key"
    assert paths["qformer.lm_head"] == "Qformer.cls.predictions"
    modules = dict(suite.nets.truth.named_modules())
    assert set(paths.values()) <= set(modules) and len(set(paths.values())) == len(paths)


def test_what_has_no_twin_is_left_out(model):
    paths = twin_paths(model, 2)
    assert not {
        "vit.blocks.0.attn.qkv",
        "qformer.embedding_norm",
        "qformer.encoder.layers.0.attention",
        "qformer.encoder.layers.0.text_ffn",
        "qformer",
    } & set(paths)


def test_common_module():
    assert common(["a.b.c", "a.b.d.e"]) == "a.b" and common(["a.b.c"]) == "a.b"


@pytest.mark.parametrize(
    "path, verbs",
    [
        ("qformer.encoder.layers.3", "see read match caption"),
        ("qformer.encoder.layers.3.attention.key", "see read match caption"),
        ("qformer.encoder.layers.3.text_ffn.up", "read match caption"),
        ("qformer.encoder.layers.0.cross_norm", "see match"),
        ("vit.blocks.0", ""),
        ("qformer.memory.key.0", ""),
    ],
)
def test_a_forward_pass_runs_a_module_once_per_verb(path, verbs):
    assert " ".join(verbs_of(path)) == verbs


def test_outputs_and_inputs_are_recorded_and_the_hooks_removed(model, lavis):
    image = tensor(lavis.inputs["image"][:1].numpy())
    with (
        capture(model, ["vit.blocks.0", "vit.blocks.1"]) as outputs,
        capture(model, ["vit.blocks.1"], True) as inputs,
    ):
        last = model.vit(image)
    assert np.array_equal(outputs["vit.blocks.0"][0], inputs["vit.blocks.1"][0]) and last.shape == (1, 65, 64)
    model.vit(image)
    assert len(outputs["vit.blocks.0"]) == 1


def test_queries_and_text_of_a_layer_are_one_activation(model, lavis):
    image, ids = (tensor(lavis.inputs[name][:2].numpy()) for name in ("image", "input_ids"))
    with capture(model, ["qformer.encoder.layers.0"]) as seen:
        query, text = model.qformer.match(ids, model.remember(image))
    assert seen["qformer.encoder.layers.0"][0].shape == (2, query.shape[1] + text.shape[1], 48)


def test_names_and_mode_are_checked(model):
    with pytest.raises(ValueError, match="vit.blocks.9"), capture(model, ["vit.blocks.9"]):
        pass
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        with pytest.raises(ValueError, match="PyNative only"), capture(model, ["vit"]):
            pass
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
