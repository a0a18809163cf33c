"""A MindFormers .ckpt gives the same model as the LAVIS file that it came from."""

import mindspore as ms
import numpy as np
import pytest

torch = pytest.importorskip("torch")


def as_mindformers(name, value):
    """(name, array) pairs of one LAVIS tensor, as the script of MindFormers r1.0 intends them."""
    if name.endswith("attn.qkv.weight"):
        return [
            (name.replace("attn.qkv", f"attention.dense{i + 1}"), part)
            for i, part in enumerate(np.split(value, 3))
        ]
    if name.endswith("attn.q_bias"):
        return [
            (name.replace("attn.q_bias", "attention.dense1.bias"), value),
            (name.replace("attn.q_bias", "attention.dense2.bias"), np.zeros_like(value)),
        ]
    for theirs, ours in (
        ("cls_token", "cls_tokens"),
        ("attn.proj.", "attention.projection."),
        ("attn.v_bias", "attention.dense3.bias"),
        ("mlp.fc1.", "output.mapping."),
        ("mlp.fc2.", "output.projection."),
    ):
        name = name.replace(theirs, ours)
    if name.endswith(("mapping.weight", "projection.weight")):
        value = value.T
    for norm, ours in (
        ("blocks.0.norm", "blocks.0.layernorm"),
        ("blocks.1.norm", "blocks.1.layernorm"),
        ("LayerNorm", "layernorm"),
    ):
        name = name.replace(norm, ours)
    parts = name.split(".")
    if any(part.startswith(("layernorm", "ln_vision")) for part in parts):
        parts[-1] = {"weight": "gamma", "bias": "beta"}[parts[-1]]
    if parts[-2:-1] and parts[-2].endswith("_embeddings"):
        parts[-1] = "embedding_table"
    return [(".".join(parts).replace("Qformer.", "qformer.").replace(".self.", ".self_att."), value)]


@pytest.fixture
def mindformers(lavis, tmp_path):
    """mindformers(swapped, drop, dtype) → path of a .ckpt with what a training adds."""

    def write(
        swapped=False, without="\0", dtype=ms.float32, rename=lambda name: name, file="mindformers.ckpt"
    ):
        pairs = [
            pair
            for name, value in lavis.items()
            if "position_ids" not in name
            for pair in as_mindformers(name, value.numpy())
        ]
        if swapped:
            other = {
                ".output.mapping.weight": ".output.projection.weight",
                ".output.projection.weight": ".output.mapping.weight",
            }
            ends = [(name, next((end for end in other if name.endswith(end)), "")) for name, _ in pairs]
            pairs = [
                (name.removesuffix(end) + other.get(end, ""), value)
                for (name, end), (_, value) in zip(ends, pairs)
            ]
        pairs += [
            ("adam_m.itm_head.weight", np.zeros((2, 24), np.float32)),
            ("global_step", np.array([3], np.int32)),
        ]
        ms.save_checkpoint(
            [
                {
                    "name": rename(name),
                    "data": ms.Tensor(value).astype(dtype if value.dtype == np.float32 else ms.int32),
                }
                for name, value in pairs
                if without not in name and rename(name)
            ],
            str(tmp_path / file),
        )
        return tmp_path / file

    return write


@pytest.mark.parametrize("swapped", [False, True], ids=["as meant", "as r1.0 wrote it"])
def test_it_gives_the_model_of_the_lavis_file(convert, lavis, mindformers, swapped):
    expected = dict(convert(lavis)[0])
    found, text = convert(mindformers(swapped))
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert "ViT                   30       30        0        0" in text


def test_the_comparison_notices_a_matrix_the_wrong_way_round(convert, lavis, mindformers, monkeypatch):
    from mindblip2.convert.readers.mindspore_ckpt import MindFormersStateDict

    right = MindFormersStateDict._lavis
    expected = convert(lavis)[0]["vit.blocks.0.attn.proj.weight"]
    monkeypatch.setattr(
        MindFormersStateDict,
        "_lavis",
        lambda self, name: (
            right(self, name)[0],
            "attn.proj" not in right(self, name)[0] and right(self, name)[1],
        ),
    )
    assert not np.array_equal(convert(mindformers())[0]["vit.blocks.0.attn.proj.weight"], expected)


def test_the_vit_may_lie_in_a_file_of_its_own(convert, lavis_without_vit, eva, mindformers, tmp_path):
    torch.save({name: value for name, value in eva.items() if "blocks.2." not in name}, tmp_path / "eva.pth")
    expected = dict(convert(lavis_without_vit, "--vit_path", tmp_path / "eva.pth")[0])
    vit = mindformers(
        rename=lambda name: name[15:] if name.startswith("visual_encoder.") else "", file="vit.ckpt"
    )
    found, text = convert(mindformers(without="visual_encoder."), "--vit_path", vit)
    assert list(found) == list(expected) and "block 1: unused" in text
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_bfloat16_stays_bfloat16(convert, lavis, mindformers):
    found, _ = convert(mindformers(dtype=ms.bfloat16))
    assert found.types["vit.blocks.1.attn.qkv.weight"] == "BFloat16"
    np.testing.assert_array_equal(
        found.float32("vit.blocks.1.attn.qkv.weight"),
        lavis["visual_encoder.blocks.1.attn.qkv.weight"].bfloat16().float(),
    )


@pytest.mark.parametrize(
    "without, complaint",
    [
        ("blocks.1.attention.dense2.weight", "shape: vit.blocks.1.attn.qkv.weight"),
        ("itm_head.bias", "missing: itm_head.bias"),
    ],
)
def test_a_part_that_is_not_there_is_named(convert, mindformers, without, complaint):
    assert complaint in convert(mindformers(without=without), expect=1)
