"""A second opinion: weights of transformers' BLIP-2, converted, give what transformers computes."""

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import mindspore as ms  # noqa: E402

from mindblip2.config import Blip2Config  # noqa: E402
from mindblip2.convert.detect import QFORMER_TEXT_NAMES  # noqa: E402
from mindblip2.models.blip2_qformer import Blip2Qformer  # noqa: E402

SIZES = {
    "vision_config": {
        "image_size": 56,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    },
    "qformer_config": {
        "vocab_size": 120,
        "bos_token_id": 119,
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": 40,
        "encoder_width": 32,
        "query_length": 4,
        "head_embed_dim": 16,
    },
}
OURS = Blip2Config(**SIZES, ln_vision_eps=1e-6)  # transformers' eps on the same weights; LAVIS has 1e-5


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope="module")
def theirs():
    """A random model with biases, norms and the k part of the qkv bias away from 0 and 1."""
    qformer = {
        k: v
        for k, v in SIZES["qformer_config"].items()
        if k not in ("bos_token_id", "encoder_width", "query_length", "head_embed_dim")
    }
    config = transformers.Blip2Config(
        vision_config={**SIZES["vision_config"], "patch_size": 14},
        qformer_config={
            **qformer,
            "encoder_hidden_size": 32,
            "cross_attention_frequency": 2,
            "use_qformer_text_input": True,
        },
        num_query_tokens=4,
        image_text_hidden_size=16,
    )
    torch.manual_seed(0)
    model = transformers.Blip2ForImageTextRetrieval(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            # otherwise attention is a mean
            sharp = 4 if name.endswith(("query.weight", "key.weight")) else 1.2
            scale = sharp / value[0].numel() ** 0.5 if value.ndim > 1 else 0.2
            value.copy_(
                torch.randn(value.shape) * scale
                + (value.ndim == 1 and "norm" in name.lower() and "weight" in name)
            )
    return model


@pytest.fixture(scope="module")
def pictures_and_texts():
    random = np.random.default_rng(1)
    ids = random.integers(4, 119, (3, 7))
    ids[0, 5:] = 0
    ids[2, 3:] = 0
    return random.standard_normal((3, 3, 56, 56)).astype(np.float32), ids


@pytest.fixture(scope="module")
def expected(theirs, pictures_and_texts):
    image, ids = map(torch.from_numpy, pictures_and_texts)
    mask = (ids != 0).long()
    with torch.no_grad():
        itm = theirs(image, ids, mask, use_image_text_matching_head=True).logits_per_image
        itc = theirs(image, ids, mask, use_image_text_matching_head=False).logits_per_image
    return itm.numpy(), itc.numpy()


def loaded(path, config=OURS):
    return Blip2Qformer(config).load_checkpoint(path).set_train(False)


@pytest.fixture(scope="module")
def tensors(pictures_and_texts):
    return ms.Tensor(pictures_and_texts[0]), ms.Tensor(pictures_and_texts[1].astype(np.int32))


def test_the_outputs_are_transformers_own(convert, theirs, tensors, expected, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    _, text = convert(tmp_path / "theirs")
    model = loaded(tmp_path / "out.ckpt")
    # the model tells pictures and texts apart
    assert np.ptp(expected[0]) > 0.05 and np.ptp(expected[1]) > 0.05
    np.testing.assert_allclose(model.itm_logits(*tensors).asnumpy(), expected[0], atol=1e-5)
    np.testing.assert_allclose(model.itc_similarity(*tensors).asnumpy(), expected[1], atol=1e-5)
    assert (
        "mapped:    4 x q and v parts of the fused bias; the k part has no effect: the softmax ignores it"
        in text
    )
    assert "made:    1 x not in the file: start value 0.07 (e.g. temp)" in text
    assert (
        "made:    5 x not in the file: captions of stage 1 need a trained head, so generate() is untrained"
        in text
    )


@pytest.mark.parametrize(
    "change", [{"ln_vision_eps": 0.01}, {"vision_config": {"num_attention_heads": 4}}], ids=["eps", "heads"]
)
def test_what_no_shape_tells_would_be_noticed(convert, theirs, tensors, expected, tmp_path, change):
    theirs.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs")
    itm = loaded(tmp_path / "out.ckpt", OURS.replace(**change)).itm_logits(*tensors).asnumpy()
    assert np.abs(itm - expected[0]).max() > 1e-4


@pytest.mark.parametrize("size", ["20KB", "1GB"])
def test_shards_are_read_as_one(convert, theirs, tmp_path, size):
    theirs.save_pretrained(tmp_path / "whole", max_shard_size="1GB")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > (1 if size == "20KB" else 0)
    whole, _ = convert(tmp_path / "whole" / "model.safetensors")
    whole = {name: whole[name] for name in whole}
    parts, _ = convert(tmp_path / "theirs")
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])


@pytest.mark.parametrize(
    "dtype, kind, most", [(torch.float16, "Float16", 0.03), (torch.bfloat16, "BFloat16", 0.2)]
)
def test_half_precision_sources_are_widened_when_loaded(
    convert, theirs, tensors, expected, tmp_path, dtype, kind, most
):
    stored, _ = convert({name: value.to(dtype) for name, value in theirs.state_dict().items()})
    assert stored.types["itm_head.weight"] == kind
    itm = loaded(tmp_path / "out.ckpt").itm_logits(*tensors).asnumpy()
    assert 1e-5 < np.abs(itm - expected[0]).max() < most


def test_the_vit_of_another_file_is_not_mixed_in(convert, theirs, eva, tmp_path):
    torch.save(eva, tmp_path / "eva.pth")
    theirs.save_pretrained(tmp_path / "theirs")
    assert "holds a ViT of its own" in convert(
        tmp_path / "theirs", "--vit_path", tmp_path / "eva.pth", expect=1
    )


def test_half_a_stage_2_of_theirs_is_refused(convert, theirs):
    state = {
        name: value for name, value in theirs.state_dict().items() if not re.match(QFORMER_TEXT_NAMES, name)
    }
    state |= {"language_projection.weight": torch.ones(8, 24)}
    assert "llm_proj.bias is in no file" in convert(state, expect=1)
