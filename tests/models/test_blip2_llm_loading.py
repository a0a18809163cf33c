"""Where the weights of stage 2 come from: one file, two files, or stage 1; and what is said where they do not
fit."""

import mindspore as ms
import numpy as np
import pytest

pytest.importorskip("torch")

from mindblip2.checkpoint import pretrained  # noqa: E402
from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, write_checkpoint  # noqa: E402
from mindblip2.config import Blip2Config  # noqa: E402
from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration, Blip2Llm  # noqa: E402
from mindblip2.models.blip2_qformer import Blip2Qformer  # noqa: E402

SIZES = {
    "vision_config": {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    "qformer_config": {
        "vocab_size": 30,
        "bos_token_id": 29,
        "sep_token_id": 3,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "query_length": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "encoder_width": 16,
        "head_embed_dim": 8,
        "max_position_embeddings": 16,
    },
    "max_txt_len": 8,
}
TEXT = {"vocab_size": 40, "hidden_size": 24, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.set_seed(4)


@pytest.fixture(scope="module")
def model():
    return Blip2Llm(config())


def config(**text):
    return Blip2Config(**SIZES, text_config={**TEXT, **text})


def write(path, model, *begins):
    """The parameters of a model whose names begin so."""
    write_checkpoint(
        path,
        (
            (name, "Float32", p.asnumpy())
            for name, p in model.parameters_dict().items()
            if name.startswith(begins or "")
        ),
    )
    return path


def same(one, other, *begins):
    other = other.parameters_dict()
    names = [name for name in one.parameters_dict() if name.startswith(begins or "")]
    assert names
    return all(np.array_equal(one.parameters_dict()[name].asnumpy(), other[name].asnumpy()) for name in names)


def test_one_file_serves_training_and_generation(model, tmp_path):
    path = write(tmp_path / "all.ckpt", model)
    other = Blip2ImageToTextGeneration(config())
    assert not same(other, model)
    assert same(other.load_checkpoint(path), model)


def test_the_language_model_may_lie_in_a_file_of_its_own(model, tmp_path, monkeypatch):
    path = write(tmp_path / "bridge.ckpt", model, "vit.", "ln_vision.", "qformer.", "llm_proj.")
    llm = write(tmp_path / "llm.ckpt", model, "llm.")
    assert same(Blip2Llm(config(checkpoint_name_or_path=str(llm))).load_checkpoint(path), model)
    monkeypatch.setenv("MINDBLIP2_CACHE", str(tmp_path))
    # a name, as MindFormers' llama_7b
    assert same(Blip2Llm(config(checkpoint_name_or_path="llm")).load_checkpoint(path), model)
    with pytest.raises(CheckpointError, match="holds no language model: .*--llm_path"):
        Blip2Llm(config()).load_checkpoint(path)
    with pytest.raises(
        FileNotFoundError,
        match="text_config.checkpoint_name_or_path = 'none.ckpt': no checkpoint at .*none.ckpt",
    ):
        Blip2Llm(config(checkpoint_name_or_path="none.ckpt")).load_checkpoint(path)
    less = write(tmp_path / "less.ckpt", model, "llm.layers")
    with pytest.raises(CheckpointError, match="(?s)less.ckpt .*does not fit .* missing: llm.word"):
        Blip2Llm(config(checkpoint_name_or_path=str(less))).load_checkpoint(path)


def test_a_file_that_does_not_fit_says_what_to_do(model, tmp_path):
    path = write(tmp_path / "all.ckpt", model)
    with pytest.raises(CheckpointError, match="language model of width 24, the configuration's has 32"):
        Blip2Llm(config(hidden_size=32)).load_checkpoint(path)
    with pytest.raises(CheckpointError, match="vocabulary has 40 words: set .*vocab_size to that"):
        Blip2Llm(config(vocab_size=41)).load_checkpoint(path)
    with pytest.raises(CheckpointError, match="(?s)missing: .*unexpected: llm.layers.1"):
        write(tmp_path / "half.ckpt", model, "vit.", "ln_vision.", "llm.")
        Blip2Llm(config(num_layers=1)).load_checkpoint(tmp_path / "half.ckpt")
    with pytest.raises(ValueError, match="needs model_config.text_config"):
        Blip2Llm(Blip2Config(**SIZES))


# ------------------------------------------------------------------------------------------------ from stage
def test_training_starts_from_stage_1_and_says_what_was_taken(model, tmp_path):
    first = Blip2Qformer(Blip2Config(**SIZES))
    path, llm = write(tmp_path / "one.ckpt", first), write(tmp_path / "llm.ckpt", model, "llm.")
    with pretrained.no_init():
        second = Blip2Llm(config(checkpoint_name_or_path=str(llm)))
    lines = second.load_start(path)
    taken = {name for name in second.parameters_dict() if not name.startswith(("llm_proj.", "llm."))}
    assert all(
        np.array_equal(second.parameters_dict()[name].asnumpy(), first.parameters_dict()[name].asnumpy())
        for name in taken
    )
    assert same(second, model, "llm.")
    assert 0.005 < second.llm_proj.weight.asnumpy().std() < 0.04 and not second.llm_proj.bias.asnumpy().any()
    unused = len(first.parameters_dict()) - len(taken)
    assert (
        lines[0].startswith(f"started from {path}: vit ")
        and f"left out: temp 1, qformer {unused - 7}, vision_proj 2" in lines[0]
    )
    assert lines[1] == f"from {llm}: llm {2 * 9 + 3}" and lines[2] == "new, with random values: llm_proj 2"


def test_what_is_not_stage_1_is_loaded_strictly(model, tmp_path):
    path = write(tmp_path / "all.ckpt", model)
    other = Blip2Llm(config())
    assert other.load_start(path)[0].startswith(f"started from {path}: vit") and same(other, model)
    first = Blip2Qformer(Blip2Config(**SIZES))
    one = write(tmp_path / "one.ckpt", first)
    assert Blip2Qformer(Blip2Config(**SIZES)).load_start(one) == [
        f"started from {one}: " + pretrained._parts(first.parameters_dict())
    ]
    with_llm = Blip2Llm(config(checkpoint_name_or_path=str(write(tmp_path / "llm.ckpt", model, "llm."))))
    with pytest.raises(
        CheckpointError, match="It is a stage-1 checkpoint: a training of stage 2 starts from it"
    ):
        with_llm.load_checkpoint(one)
    few = {name: Checkpoint(one)[name] for name in Checkpoint(one) if not name.startswith("qformer.memory")}
    write_checkpoint(tmp_path / "few.ckpt", ((name, "Float32", value) for name, value in few.items()))
    with pytest.raises(CheckpointError, match="(?s)missing: qformer.memory"):
        with_llm.load_start(tmp_path / "few.ckpt")


def test_names_of_presets_are_those_of_the_class(capsys):
    assert Blip2ImageToTextGeneration.show_support_list()[:3] == [
        "itt_blip2_digits",
        "itt_blip2_stage2_vit_g_baichuan_7b",
        # the card's, in its order
        "itt_blip2_stage2_vit_g_llama_7b",
    ]
    assert capsys.readouterr().out.startswith(
        "support list of Blip2ImageToTextGeneration is:\n['itt_blip2_digits', "
    )
    assert all(name.startswith("blip2_stage2_") for name in Blip2Llm.show_support_list())


@pytest.mark.parametrize(
    "name, words",
    [
        ("itt_blip2_stage2_vit_g_opt_2_7b", "blip2_pretrained_opt2.7b.pth"),
        ("itt_blip2_stage2_vit_g_vicuna_7b", "blip2_pretrained_vicuna7b.pth"),
    ],
)
def test_missing_weights_name_lavis_s_file_and_the_command(name, words, tmp_path, monkeypatch):
    monkeypatch.setenv("MINDBLIP2_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=f"(?s){words}.*eva_vit_g.pth.*convert_weight.py --torch_path .*--llm_path"
    ):
        Blip2ImageToTextGeneration.from_pretrained(name)
