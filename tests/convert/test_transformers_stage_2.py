"""transformers' BLIP-2 with its language model, from its own shards in one go: the logits are those that
transformers computes."""

import copy
import json

import mindspore as ms
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mindblip2.config import Blip2Config, OPTConfig  # noqa: E402
from mindblip2.convert.convert_weight import to_torch  # noqa: E402
from mindblip2.parity.compare import noise_ratio  # noqa: E402
from tests.convert.stage2 import (  # noqa: E402
    LLAMA,
    OPT_SIZES,
    language_model,
    printed_text_config,
    queries,
    sharpened,
    write_config,
)

SIZES = {
    "vision_config": {
        "image_size": 56,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    },
    "qformer_config": {
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "encoder_width": 32,
        "query_length": 4,
    },
}
OURS = Blip2Config(**SIZES, ln_vision_eps=1e-6)  # transformers' eps on the same weights; LAVIS has 1e-5
# An eps that another norm has. LAVIS's own in ln_vision would be 3.8 times the noise at this size: not told
# from rounding.
WRONG = (
    {"ln_vision_eps": 1e-4},
    {"vision_config": {"layer_norm_eps": 1e-5}},
    {"qformer_config": {"layer_norm_eps": 1e-5}},
)
IMAGE_TOKEN = 50265
OPT = {"model_type": "opt", **OPT_SIZES, "vocab_size": 50304, "hidden_size": 16, "word_embed_proj_dim": 16}
SECTION = OPTConfig(
    hidden_size=16,
    num_layers=3,
    num_heads=4,
    intermediate_size=48,
    max_position_embeddings=60,
    eos_token_id=2,
    image_token_id=IMAGE_TOKEN,
)
QUERIES = 4


def blip2(text_config, **more):
    qformer = {
        key: value
        for key, value in SIZES["qformer_config"].items()
        if key not in ("encoder_width", "query_length")
    }
    config = transformers.Blip2Config(
        vision_config={**SIZES["vision_config"], "patch_size": 14},
        text_config=text_config,
        num_query_tokens=QUERIES,
        qformer_config={**qformer, "encoder_hidden_size": 32, "cross_attention_frequency": 2, **more},
        image_token_index=IMAGE_TOKEN,
    )
    return sharpened(transformers.Blip2ForConditionalGeneration(config))


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope="module")
def theirs():
    return blip2(OPT)


def compared(stored, text_config, model, config=OURS):
    """Logits of the words behind the queries: ours, theirs, and theirs in float64."""
    random = np.random.default_rng(0)
    image, ids = random.standard_normal((2, 3, 56, 56)).astype(np.float32), random.integers(3, 80, (2, 6))
    places = np.full((2, QUERIES), IMAGE_TOKEN)
    with torch.no_grad():
        theirs = [
            net(
                pixel_values=torch.from_numpy(image).to(net.dtype),
                input_ids=torch.from_numpy(np.concatenate((places, ids), 1)),
                attention_mask=torch.ones(2, QUERIES + 6, dtype=torch.long),
            ).logits.numpy()[:, QUERIES:]
            for net in (model, copy.deepcopy(model).double())
        ]
    llm = language_model(stored, text_config)
    x = ms.ops.cat((queries(stored, config, image), llm.embed(ms.Tensor(ids.astype(np.int32)))), 1)
    ours = llm.head(llm(x, ms.ops.ones((2, QUERIES + 6), ms.float32))).asnumpy()
    return (ours[:, QUERIES:], *(logits[..., : ours.shape[-1]] for logits in theirs))


def test_the_logits_are_transformers_own(convert, theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="300KB")
    assert len(list((tmp_path / "theirs").glob("model-*-of-*.safetensors"))) > 1
    stored, text = convert(tmp_path / "theirs")
    section = printed_text_config(text)
    assert section == SECTION
    assert noise_ratio(*compared(stored, section, theirs)) <= 4
    for wrong in WRONG:  # controls
        assert noise_ratio(*compared(stored, section, theirs, OURS.replace(**wrong))) > 10, wrong
    lines = text.splitlines()
    assert (
        "mapped:    4 x q and v parts of the fused bias; the k part has no effect: the softmax ignores it"
        in text
    )
    assert (
        "mapped:    1 x rows 50272 to 50303 left out: added or padded, and vocab_size is 50272 (e.g. "
        "llm.word." in text
    )
    assert any(
        line.startswith("note:    the image token of transformers, 50265, is text_config.image_token_id")
        for line in lines
    )
    assert "note:    vocab_size stays 50272: the 32 rows behind it are padding" in lines
    assert "made" not in text.replace("     made", "")


def test_the_padding_of_the_vocabulary_is_kept_where_the_configuration_has_it(convert, theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    section = SECTION.replace(vocab_size=50304)
    stored, text = convert(tmp_path / "theirs", "--config", write_config(tmp_path, section, **SIZES))
    words = theirs.language_model.model.decoder.embed_tokens.weight.detach()
    np.testing.assert_array_equal(stored["llm.word.embedding_table"], words)
    assert "rows 5" not in text


def test_a_llama_behind_the_projection_is_read_too(convert, tmp_path):
    model = blip2({"model_type": "llama", **LLAMA, "vocab_size": 50300})
    model.save_pretrained(tmp_path / "theirs")
    stored, text = convert(tmp_path / "theirs")
    assert noise_ratio(*compared(stored, printed_text_config(text), model)) <= 4
    assert "the 32" not in text and stored.shapes["llm.word.embedding_table"] == (50300, 32)


def test_a14_instructblip_is_refused_by_its_name(convert, tmp_path):
    model = blip2({"model_type": "opt", **OPT_SIZES}, use_qformer_text_input=True)
    model.save_pretrained(tmp_path / "theirs")
    assert "is InstructBLIP: a bridge whose Q-Former reads the instruction" in convert(
        tmp_path / "theirs", expect=1
    )
    blip2({"model_type": "opt", **OPT_SIZES}).save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs")  # the control
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, "model_type": "instructblip"}))
    assert "says model_type 'instructblip': this is InstructBLIP" in convert(tmp_path / "theirs", expect=1)


def test_what_comes_back_has_lavis_names_and_the_same_bits(convert, theirs, tmp_path):
    theirs.half().save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs")
    back, state = to_torch(tmp_path / "out.ckpt", tmp_path / "back.pth"), theirs.state_dict()
    for lavis, name in {
        "opt_proj.weight": "language_projection.weight",
        "ln_vision.bias": "vision_model.post_layernorm.bias",
        "visual_encoder.blocks.1.attn.qkv.weight": "vision_model.encoder.layers.1.self_attn.qkv.weight",
        "opt_model.model.decoder.layers.2.fc1.weight": "language_model.model.decoder.layers.2.fc1.weight",
        "Qformer.bert.encoder.layer.2.crossattention.self.key.weight": (
            "qformer.encoder.layer.2.crossattention.attention.key.weight"
        ),
    }.items():
        assert back[lavis].dtype == torch.float16 and torch.equal(back[lavis], state[name]), lavis
    fused = state["vision_model.encoder.layers.1.self_attn.qkv.bias"]
    assert torch.equal(back["visual_encoder.blocks.1.attn.q_bias"], fused[:32])
    assert torch.equal(back["visual_encoder.blocks.1.attn.v_bias"], fused[64:])
    theirs.float()


def test_flan_t5_is_refused_by_name(convert, theirs):
    names = "language_projection.weight", "language_model.encoder.block.0.layer.0.SelfAttention.q.weight"
    state = dict.fromkeys(names, torch.ones(2))
    assert "leads into FlanT5, which is not built here" in convert(state, expect=1)
