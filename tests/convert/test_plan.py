"""Where a parameter comes from: EVA without its last block, BERT as the start of stage 1, positions on
another grid."""

import dataclasses
import resource
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mindspore as ms  # noqa: E402

from mindblip2.config import Blip2Config  # noqa: E402
from mindblip2.convert.infer_config import infer_model_config  # noqa: E402
from mindblip2.convert.name_maps.blip2 import BERT, EVA, HF, LAVIS, source_name  # noqa: E402
from mindblip2.convert.parameter_shapes import stage_1_shapes  # noqa: E402
from mindblip2.convert.tensor_transforms import interpolate_pos_embed  # noqa: E402
from mindblip2.models.blip2_qformer import Blip2Qformer  # noqa: E402
from mindblip2.parity.reference.config import ReferenceConfig  # noqa: E402
from mindblip2.parity.reference.model import ReferenceModel  # noqa: E402

PROCESSORS = Path(__file__).resolve().parents[1] / "reference" / "processors"
QFORMER = "Qformer."


@pytest.fixture(scope="module")
def bert(lavis):
    """As bert-base-uncased's file of old: 119 words, gamma and beta, a pooler, segments and the next-sentence
    head."""
    taken = {
        name.removeprefix(QFORMER): value
        for name, value in lavis.items()
        if name.startswith(QFORMER) and "crossattention" not in name and "_query" not in name
    }
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in taken.items()
    }
    for name in (
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
        "cls.predictions.bias",
        "cls.predictions.decoder.bias",
    ):
        state[name] = state[name][:-1]
    more = {
        "bert.pooler.dense.weight": (24, 24),
        "bert.pooler.dense.bias": (24,),
        "cls.seq_relationship.weight": (2, 24),
        "cls.seq_relationship.bias": (2,),
        "bert.embeddings.token_type_embeddings.weight": (2, 24),
    }
    return state | {name: torch.ones(shape) for name, shape in more.items()}


@pytest.fixture
def start(convert, bert, eva, tmp_path):
    """The start of stage 1 as the command makes it: {name: array}, text."""
    torch.save(eva, tmp_path / "eva.pth")
    return convert(bert, "--vit_path", tmp_path / "eva.pth")


# ------------------------------------------------------------------------------------------------ BERT and EV
def test_stage_1_starts_from_bert_and_eva(start, bert, eva):
    stored, text = start
    rows = text.splitlines()
    assert [row.split() for row in rows[1:5]] == [
        ["heads", "7", "0", "0", "7"],
        ["ViT", "30", "30", "0", "0"],
        ["ln_vision", "2", "0", "0", "2"],
        ["Q-Former", "118", "73", "24", "21"],
    ]
    np.testing.assert_array_equal(stored["vit.blocks.1.attn.qkv.weight"], eva["blocks.1.attn.qkv.weight"])
    np.testing.assert_array_equal(
        stored["qformer.encoder.layers.3.attention.key.weight"],
        bert["bert.encoder.layer.3.attention.self.key.weight"],
    )


def test_the_query_feed_forward_starts_as_the_texts_copy(start, bert):
    stored, text = start
    for ours, theirs in {
        "ffn.up.weight": "intermediate.dense.weight",
        "ffn.down.bias": "output.dense.bias",
        "norm.gamma": "output.LayerNorm.gamma",
        "norm.beta": "output.LayerNorm.beta",
    }.items():
        for i in range(4):
            for half in ("text", "query"):
                np.testing.assert_array_equal(
                    stored[f"qformer.encoder.layers.{i}.{half}_{ours}"],
                    bert[f"bert.encoder.layer.{i}.{theirs}"],
                )
    assert "copied:   24 x query feed-forward starts as the text feed-forward's copy" in text


def test_dec_gets_a_row_of_its_own(start, bert):
    stored, text = start
    words = stored["qformer.embeddings.word.embedding_table"]
    np.testing.assert_array_equal(words[:-1], bert["bert.embeddings.word_embeddings.weight"])
    assert words.shape == (120, 24) and 0.01 < words[-1].std() < 0.03
    np.testing.assert_array_equal(stored["qformer.lm_head.bias"], [*bert["cls.predictions.bias"], 0])
    assert "mapped:    2 x one row added for [DEC]" in text


def test_what_neither_file_holds_is_made_reproducibly(start, convert, bert, tmp_path):
    stored, text = start
    assert stored["temp"] == np.float32(0.07) and stored["ln_vision.gamma"].tolist() == [1] * 32
    assert not stored["ln_vision.beta"].any() and not stored["itm_head.bias"].any()
    made = [
        "qformer.query_tokens",
        "qformer.memory.key.0.weight",
        "qformer.memory.key.1.weight",
        "vision_proj.weight",
        "qformer.encoder.layers.2.cross_attention.query.weight",
        "itm_head.weight",
        "text_proj.weight",
    ]
    values = [stored[name].ravel() for name in made]
    assert all(0.012 < value.std() < 0.028 and abs(value.mean()) < 0.01 for value in values)
    for i, one in enumerate(values):
        assert not any(np.array_equal(one[:48], two[:48]) for two in values[i + 1 :])
    again, _ = convert(bert, "--vit_path", tmp_path / "eva.pth")
    for name in made:
        np.testing.assert_array_equal(again[name], stored[name])
    assert "made:    1 x start value 0.07 (e.g. temp)" in text


def test_what_has_no_place_is_dropped_with_its_reason(start):
    _, text = start
    for line in (
        "dropped:    4 x next-sentence head: the Q-Former has none",
        "dropped:    1 x the Q-Former has no segments (e.g. bert.embeddings.token_type_embeddings.weight)",
        "dropped:    1 x buffer 0, 1, 2, …: computed here",
        "dropped:   13 x block 2: unused",
        "dropped:    3 x final norm: BLIP-2 has none",
        "dropped:    2 x classifier of the image tower",
    ):
        assert line in text


def test_a_hole_in_bert_is_not_filled_with_random_numbers(convert, bert, eva, tmp_path):
    torch.save(eva, tmp_path / "eva.pth")
    lost = "bert.encoder.layer.2.attention.self.query.weight"
    error = convert(
        {n: v for n, v in bert.items() if n != lost}, "--vit_path", tmp_path / "eva.pth", expect=1
    )
    assert (
        f"missing: qformer.encoder.layers.2.attention.query.weight is in no file (expected as {lost})"
        in error
    )


def test_bert_alone_asks_for_the_vit(convert, bert):
    assert "the start of stage 1 needs the ViT too, add --vit_path eva_vit_g.pth" in convert(bert, expect=1)


def test_the_file_that_transformers_saves_today_is_read_too(convert, eva, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.save(eva, tmp_path / "eva.pth")
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=119,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=40,
            max_position_embeddings=16,
        )
    )
    model.save_pretrained(tmp_path / "bert")
    stored, _ = convert(tmp_path / "bert", "--vit_path", tmp_path / "eva.pth")
    np.testing.assert_array_equal(
        stored["qformer.lm_head.norm.gamma"], model.cls.predictions.transform.LayerNorm.weight.detach()
    )
    np.testing.assert_array_equal(stored["qformer.lm_head.bias"][:-1], model.cls.predictions.bias.detach())


@pytest.mark.parametrize("blocks, used", [(40, 39), (39, 39), (3, 2)])
def test_of_evas_blocks_all_but_the_last_are_used_and_of_lavis_own_39_all(
    lavis_without_vit, eva, blocks, used
):
    one = {name: value for name, value in eva.items() if name.startswith("blocks.0.")}
    vit = {name: value for name, value in eva.items() if not name.startswith("blocks.")}
    for i in range(blocks):
        vit |= {name.replace("blocks.0.", f"blocks.{i}."): value for name, value in one.items()}
    assert infer_model_config(lavis_without_vit, vit, LAVIS).vision_config.num_hidden_layers == used


# ------------------------------------------------------------------------------------------------ positions
@pytest.mark.parametrize("case", ["4_to_8", "16_to_26", "16_to_35", "16_to_16"])
def test_position_embeddings_are_interpolated_as_lavis_does(case):
    with np.load(PROCESSORS / "pos_embed.npz") as arrays:
        before, after = arrays[f"from_{case}.in"], arrays[f"from_{case}.out"]
    np.testing.assert_allclose(
        interpolate_pos_embed(torch.from_numpy(before), after.shape[1]), after, atol=1e-6
    )
    np.testing.assert_array_equal(
        interpolate_pos_embed(torch.from_numpy(before), after.shape[1])[:, 0], before[:, 0]
    )


def test_half_precision_positions_are_interpolated_in_float32():
    before = torch.randn(1, 17, 8).half()
    assert torch.equal(interpolate_pos_embed(before, 65), interpolate_pos_embed(before.float(), 65))


# ------------------------------------------------------------------------------------------------ the dimensi
@pytest.mark.parametrize("freq", [1, 2, 3, 4])
def test_dimensions_are_read_off_the_shapes(small, freq):
    with torch.device("meta"):
        state = ReferenceModel(dataclasses.replace(small, cross_attention_freq=freq)).state_dict()
    config = infer_model_config(state, None, LAVIS)
    vision, qformer = config.vision_config, config.qformer_config
    assert (vision.image_size, vision.patch_size, vision.hidden_size, vision.num_hidden_layers) == (
        56,
        14,
        32,
        2,
    )
    assert (qformer.vocab_size, qformer.bos_token_id, qformer.num_hidden_layers, qformer.query_length) == (
        120,
        119,
        4,
        4,
    )
    assert (qformer.cross_attention_freq, qformer.head_embed_dim, qformer.intermediate_size) == (freq, 16, 40)
    assert infer_model_config(state, None, LAVIS, 98).vision_config.image_size == 98


# ------------------------------------------------------------------------------------------------ the publish
def test_every_name_and_shape_of_the_published_model_has_its_counterpart():
    with torch.device("meta"):
        theirs = {
            name: tuple(value.shape) for name, value in ReferenceModel(ReferenceConfig()).state_dict().items()
        }
    ours = stage_1_shapes(Blip2Config())
    names = {source_name(LAVIS, name): shape for name, shape in ours.items()}
    names["visual_encoder.patch_embed.proj.weight"] = (1408, 3, 14, 14)
    tied = {"Qformer.cls.predictions.decoder.weight", "Qformer.cls.predictions.decoder.bias"}
    assert len(theirs) == 857 and len(ours) == 854
    assert {
        n: s for n, s in theirs.items() if n not in tied | {"Qformer.bert.embeddings.position_ids"}
    } == names
    assert sum(name.startswith("visual_encoder.") for name in theirs) == 511
    assert sum(name.startswith("Qformer.") for name in theirs) == 336
    assert (
        infer_model_config({n: torch.empty(s, device="meta") for n, s in theirs.items()}, None, LAVIS)
        == Blip2Config()
    )


@pytest.mark.parametrize("source", [LAVIS, EVA, BERT, HF], ids=lambda source: source.title)
def test_no_two_parameters_have_one_foreign_name(source):
    fused = source is HF and "attn.v_bias"  # is in one tensor with q_bias
    ours = [
        name
        for name in stage_1_shapes(Blip2Config())
        if source_name(source, name) and not (fused and name.endswith(fused))
    ]
    assert len({source_name(source, name) for name in ours}) == len(ours) > 100


def test_planning_allocates_no_weights():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stage_1_shapes(Blip2Config())
    # KB; the weights are 4,700,000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_a_model_loads_the_start_of_stage_1(start, tmp_path):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    config = Blip2Config(
        vision_config={
            "image_size": 56,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
        },
        qformer_config={
            "vocab_size": 120,
            "bos_token_id": 119,
            "hidden_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 40,
            "max_position_embeddings": 16,
            "encoder_width": 32,
        },
        max_txt_len=16,
    )
    model = Blip2Qformer(config).load_checkpoint(tmp_path / "out.ckpt").set_train(False)
    image = ms.Tensor(np.random.default_rng(0).standard_normal((3, 3, 56, 56)), ms.float32)
    ids = ms.Tensor(np.random.default_rng(0).integers(4, 100, (3, 7)), ms.int32)
    losses = [float(x) for x in model(image, ids, return_tuple=True)]
    assert np.isfinite(losses).all() and losses[0] == pytest.approx(sum(losses[1:]), rel=1e-5)
