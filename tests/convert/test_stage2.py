"""Stage 2: LAVIS's files and what LAVIS computed with them; joined with their language model or beside it."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError  # noqa: E402
from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig  # noqa: E402
from mindblip2.convert.convert_weight import main, to_torch  # noqa: E402
from mindblip2.models.blip2_llm import Blip2Llm  # noqa: E402
from tests.convert.stage2 import language_model, llama, opt, printed, queries, save, write_config  # noqa: E402

TINY = Path(__file__).resolve().parents[1] / "reference" / "tiny"
SIZES = {
    "vision_config": {
        "image_size": 112,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 279,
    },
    "qformer_config": {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "encoder_width": 64,
        "query_length": 8,
    },
}
OPT_SECTION = OPTConfig(
    vocab_size=320,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    intermediate_size=160,
    max_position_embeddings=128,
)
LLAMA_SECTION = LlamaConfig(vocab_size=320, hidden_size=64, num_layers=3, num_heads=4, intermediate_size=172)
TEXT_HALF = {
    f"Qformer.bert.encoder.layer.2.{part}": torch.ones(2)
    for part in ("intermediate.dense.weight", "output.dense.bias", "output.LayerNorm.weight")
} | {
    "Qformer.bert.embeddings.word_embeddings.weight": torch.ones(2),
    "Qformer.cls.predictions.bias": torch.ones(2),
}


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)


def of(name):
    return torch.load(TINY / name, weights_only=True)["model"]


@pytest.fixture(scope="module")
def whole():
    """What LAVIS's Blip2OPT holds: ViT, Q-Former without its text half, opt_proj and OPT."""
    return of("blip2opt_tiny.pth")


@pytest.fixture(scope="module")
def vicuna(whole):
    """The same with a Llama behind llm_proj."""
    return {name: value for name, value in whole.items() if not name.startswith("opt_")} | of(
        "llama_tiny.pth"
    )


@pytest.fixture(scope="module")
def bridge(whole):
    """As LAVIS publishes it: what is frozen is not in it."""
    return {
        name: value for name, value in whole.items() if not name.startswith(("visual_encoder.", "opt_model."))
    }


@pytest.fixture
def vit_and_llm(whole, tmp_path):
    """Paths of eva_vit_g.pth, with a block more, and of the folder of OPT."""
    vit = {
        name.removeprefix("visual_encoder."): value
        for name, value in whole.items()
        if name.startswith("visual_encoder.")
    }
    vit |= {
        name.replace("blocks.2.", "blocks.3."): value + 1
        for name, value in vit.items()
        if name.startswith("blocks.2.")
    }
    torch.save(vit, tmp_path / "eva.pth")
    llm = {
        name.removeprefix("opt_model."): value
        for name, value in whole.items()
        if name.startswith("opt_model.")
    }
    folder = save(llm, tmp_path / "opt", parts=2, model_type="opt", num_attention_heads=4)
    return tmp_path / "eva.pth", folder


def arrays(stored):
    return {name: stored[name] for name in stored}


def assert_equal(one, two):
    assert set(one) == set(two)
    assert [name for name in one if not np.array_equal(one[name], two[name])] == []


def logits(stored, config, case, prefix):
    """Of the whole model on the pictures and ids of LAVIS's run, and LAVIS's own; both where there is a
    token."""
    with np.load(TINY / "inputs.npz") as inputs, np.load(TINY / f"stage2_{case}.npz") as run:
        image, ids, mask, expected = (
            inputs["image"],
            *(run[f"{prefix}.{key}"] for key in ("input_ids", "attention_mask", "logits")),
        )
    llm = language_model(stored, config)
    x = ms.ops.cat(
        (queries(stored, Blip2Config(**SIZES), image), llm.embed(ms.Tensor(ids.astype(np.int32)))), 1
    )
    ours = llm.head(llm(x, ms.Tensor(mask.astype(np.float32)))).asnumpy()
    return ours[mask.astype(bool)], expected[mask.astype(bool)]


# ------------------------------------------------------------------------------------------------ LAVIS
@pytest.mark.parametrize("case, section", [("opt", OPT_SECTION), ("llama", LLAMA_SECTION)])
def test_the_logits_are_those_of_lavis(convert, whole, vicuna, case, section):
    state = whole if case == "opt" else vicuna
    stored, text = convert({"model": state})
    for prefix in ("noprompt", "prompt"):
        ours, theirs = logits(stored, section, case, prefix)
        assert np.ptp(theirs) > 5
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    ours, theirs = logits(stored, section.replace(num_heads=8), case, "prompt")
    # the control: heads are in no shape
    assert np.abs(ours - theirs).max() > 1e-2
    assert printed(text) == {
        key: value
        for key, value in section.to_dict().items()
        if value != getattr(type(section)(), key) and key != "num_heads" or key == "type"
    }
    assert [line.split()[:2] for line in text.splitlines()[1:6]] == [
        ["ViT", str(3 * 13 + 4)],
        ["ln_vision", "2"],
        ["Q-Former", str(4 * 16 + 2 * 10 + 3)],
        ["llm_proj", "2"],
        ["LLM", str(3 * 16 + 4 if case == "opt" else 3 * 9 + 3)],
    ]


def test_files_as_published_make_the_same_model(convert, whole, bridge, vit_and_llm):
    wanted = arrays(convert(whole)[0])
    joined, text = convert({"model": bridge}, "--vit_path", vit_and_llm[0], "--llm_path", vit_and_llm[1])
    assert_equal(arrays(joined), wanted)
    assert (
        "dropped:   13 x block 3: unused" in text
        and "dropped:    1 x tied: the word embedding, kept once" in text
    )
    assert (
        printed(text)["num_heads"] == 4 and "note:    vision_config: {image_size: 112}" in text.splitlines()
    )


def test_the_language_model_may_stay_in_a_file_of_its_own(convert, whole, bridge, vit_and_llm, tmp_path):
    wanted = arrays(convert(whole)[0])
    alone = arrays(convert(vit_and_llm[1])[0])
    (tmp_path / "out.ckpt").rename(tmp_path / "llm.ckpt")
    rest, text = convert(bridge, "--vit_path", vit_and_llm[0])  # once as two conversions
    assert_equal({**arrays(rest), **alone}, wanted)
    assert not set(rest) & set(alone)
    assert (
        "note:    the language model, 64 wide, is not in these files: join it with --llm_path, or convert it "
        "to a .ckpt" in text
    )
    both = [whole], [bridge, "--vit_path", vit_and_llm[0], "--llm_path", vit_and_llm[1]]
    # once as one that writes two files
    for state, *flags in both:
        rest, text = convert(state, *flags, "--llm_mindspore_path", tmp_path / "own.ckpt")
        assert_equal({**arrays(rest), **arrays(Checkpoint(tmp_path / "own.ckpt"))}, wanted)
        assert not any(name.startswith("llm.") for name in rest) and text.count("written:") == 2
    again, _ = convert(bridge, "--vit_path", vit_and_llm[0], "--llm_path", tmp_path / "llm.ckpt")
    # and a .ckpt of ours is joined too
    assert_equal(arrays(again), wanted)


def test_the_model_loads_them_strictly_both_ways(convert, whole, tmp_path):
    convert(whole)
    joined = Blip2Llm(Blip2Config(**SIZES, text_config=OPT_SECTION)).load_checkpoint(tmp_path / "out.ckpt")
    rest, _ = convert(whole, "--llm_mindspore_path", tmp_path / "own.ckpt")
    with pytest.raises(CheckpointError, match="holds no language model"):
        Blip2Llm(joined.config).load_checkpoint(rest.path)
    section = {**OPT_SECTION.to_dict(), "checkpoint_name_or_path": str(tmp_path / "own.ckpt")}
    apart = Blip2Llm(Blip2Config(**SIZES, text_config=section)).load_checkpoint(rest.path)
    assert_equal(
        *({name: p.asnumpy() for name, p in model.parameters_dict().items()} for model in (joined, apart))
    )


def test_a14_instructblip_is_refused_by_its_name(convert, vicuna):
    convert(vicuna)  # the control
    for half in TEXT_HALF:
        if "output" not in half and "position" not in half and "cls" not in half:
            error = convert({**vicuna, half: TEXT_HALF[half]}, expect=1)
            assert "is InstructBLIP: a bridge whose Q-Former reads the instruction" in error, half
    assert "is InstructBLIP" in convert(vicuna | TEXT_HALF, expect=1)


def test_pictures_of_another_size_are_read_off_and_may_be_asked_for(convert, whole):
    # as caption_coco_opt2.7b.pth, at 364 pixels
    large = {**whole, "visual_encoder.pos_embed": torch.randn(1, 26 * 26 + 1, 64)}
    stored, text = convert(large)
    assert (
        stored.shapes["vit.pos_embed"] == (1, 677, 64)
        and "note:    vision_config: {image_size: 364}" in text.splitlines()
    )
    stored, text = convert(large, "--image_size", 112)
    assert stored.shapes["vit.pos_embed"] == (1, 65, 64) and "interpolated from 677 to 65 tokens" in text


def test_a_configuration_decides_where_it_is_given(convert, bridge, vit_and_llm, tmp_path):
    flags = ["--vit_path", vit_and_llm[0], "--llm_path", vit_and_llm[1], "--config"]

    def section(rows):
        return write_config(tmp_path, OPT_SECTION.replace(vocab_size=rows), **SIZES)

    stored, text = convert(bridge, *flags, section(300))
    assert stored.shapes["llm.word.embedding_table"] == (300, 64)
    assert (
        "mapped:    1 x rows 300 to 319 left out: added or padded, and vocab_size is 300" in text
        and "note:" not in text
    )
    assert "shape: llm.word.embedding_table" in convert(bridge, *flags, section(200), expect=1)
    error = convert(bridge, *flags[:2], "--config", write_config(tmp_path, OPTConfig(), **SIZES), expect=1)
    assert (
        "leads into a language model 64 wide" in error
        and "but the language model is 2560 wide (OPT-2.7b)" in error
    )


# ------------------------------------------------------------------------------------------------ what does n
def test_a_bridge_fits_only_its_own_language_model(convert, bridge, vicuna, vit_and_llm, tmp_path):
    flags = ["--vit_path", vit_and_llm[0], "--llm_path"]
    opt().save_pretrained(tmp_path / "narrow")
    error = convert(bridge, *flags, tmp_path / "narrow", expect=1)
    assert "leads into a language model 64 wide (no published size)" in error and "narrow is 32 wide" in error
    llama(hidden_size=64).save_pretrained(tmp_path / "llama")
    error = convert(bridge, *flags, tmp_path / "llama", expect=1)
    assert (
        "is a bridge into OPT (opt_proj), but" in error
        and "llama is Llama: a bridge fits only the model" in error
    )
    into_llama = {
        name: value
        for name, value in vicuna.items()
        if not name.startswith(("visual_encoder.", "llm_model."))
    }
    assert "is a bridge into Llama (llm_proj)" in convert(into_llama, *flags, vit_and_llm[1], expect=1)
    wide = {**bridge, "opt_proj.weight": torch.ones(4096, 48), "opt_proj.bias": torch.ones(4096)}
    assert "leads into a language model 4096 wide (OPT-6.7b)" in convert(
        wide, *flags, vit_and_llm[1], expect=1
    )


def test_files_in_the_wrong_place_are_named(convert, whole, bridge, lavis_without_vit, vit_and_llm, tmp_path):
    vit, llm = ["--vit_path", vit_and_llm[0]], ["--llm_path", vit_and_llm[1]]
    torch.save(bridge, tmp_path / "bridge.pth")
    for state, flags, complaint in (
        (
            bridge,
            llm,
            "the file holds no ViT (LAVIS does not save what is frozen): add --vit_path eva_vit_g.pth",
        ),
        (whole, vit, "holds a ViT of its own"),
        (whole, llm, "holds a language model of its own: leave out --llm_path"),
        (lavis_without_vit, [*vit, *llm], "is no file of stage 2 (LAVIS stage 1): --llm_path goes with one"),
        (
            bridge,
            [*vit, "--llm_path", tmp_path / "bridge.pth"],
            "bridge.pth is no language model (LAVIS stage 2 (opt_proj))",
        ),
        (bridge, [*vit, "--llm_path", tmp_path / "none"], "no file"),
        (
            bridge,
            [*vit, "--llm_mindspore_path", tmp_path / "x.ckpt"],
            "there is none here: give --llm_path, or leave it out",
        ),
        ({**bridge, "t5_proj.weight": torch.ones(2)}, vit, "leads into FlanT5, which is not built here"),
    ):
        assert complaint in convert(state, *flags, expect=1)


@pytest.mark.parametrize(
    "lost",
    [
        "opt_proj.bias",
        "opt_model.model.decoder.layers.1.fc2.bias",
        "query_tokens",
        "Qformer.bert.encoder.layer.3.output_query.dense.bias",
    ],
)
def test_a_tensor_that_is_missing_is_named(convert, whole, lost):
    assert lost in convert({name: value for name, value in whole.items() if name != lost}, expect=1)


# ------------------------------------------------------------------------------------------------ back to tor
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", ["opt", "llama"])
def test_there_and_back_no_bit_is_lost(convert, whole, vicuna, tmp_path, case, kind):
    state = {
        name: value.to(getattr(torch, kind)) if value.is_floating_point() else value
        for name, value in (whole if case == "opt" else vicuna).items()
        if "inv_freq" not in name
    }
    convert({"model": state})
    back = to_torch(tmp_path / "out.ckpt", tmp_path / "back.pth")
    assert back.keys() == state.keys()
    assert [n for n in state if back[n].dtype != state[n].dtype or not torch.equal(back[n], state[n])] == []


def test_a_bridge_alone_goes_back_under_the_name_that_is_asked_for(
    convert, bridge, vit_and_llm, tmp_path, capsys
):
    convert(bridge, "--vit_path", vit_and_llm[0])
    flags = [
        "--to_torch",
        "--mindspore_path",
        str(tmp_path / "out.ckpt"),
        "--torch_path",
        str(tmp_path / "back.pth"),
    ]
    assert (
        main(flags) == 1
        and "add --names opt_proj or --names llm_proj, as LAVIS calls it" in capsys.readouterr().err
    )
    assert not (tmp_path / "back.pth").exists()
    assert main([*flags, "--names", "opt_proj"]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert {name for name in back if not name.startswith("visual_encoder.")} == set(bridge)
    assert all(torch.equal(back[name], bridge[name]) for name in bridge)


@pytest.mark.parametrize(
    "flags",
    [
        ["--names", "meta"],
        ["--to_torch", "--config", "x.yaml"],
        ["--to_torch", "--llm_path", "x"],
        ["--to_torch", "--llm_mindspore_path", "x.ckpt"],
        ["--to_torch", "--names", "hf"],
    ],
)
def test_flags_that_make_no_sense_are_refused_with_code_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--torch_path", "x.pth", "--mindspore_path", "y.ckpt", *flags])
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err
