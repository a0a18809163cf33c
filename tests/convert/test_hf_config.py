"""config.json and generation_config.json: all that is in no shape is read, contradictions are named, other
models are told by name."""

import json

import mindspore as ms
import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mindblip2.checkpoint.ckpt import CheckpointError  # noqa: E402
from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig  # noqa: E402
from mindblip2.convert.detect import detect  # noqa: E402
from mindblip2.convert.hf_config import read_hf_config  # noqa: E402
from mindblip2.file_io import FileError  # noqa: E402
from mindblip2.models.blip2_qformer import Blip2Qformer  # noqa: E402
from tests.convert.stage2 import SAID, llama, opt, printed, save, sharpened, write_config  # noqa: E402

VISION = {
    "image_size": 28,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-2,
}
QFORMER = {
    "vocab_size": 120,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-5,
}


def blip2(vision=(), qformer=()):
    config = transformers.Blip2Config(
        vision_config={**VISION, "patch_size": 14, **dict(vision)},
        num_query_tokens=4,
        image_text_hidden_size=16,
        qformer_config={
            **QFORMER,
            "encoder_hidden_size": 32,
            "use_qformer_text_input": True,
            **dict(qformer),
        },
    )
    return sharpened(transformers.Blip2ForImageTextRetrieval(config))


def printed_config(text):
    """The model that the notes of the table describe."""
    notes = [line.removeprefix("note:    ") for line in text.splitlines() if line.startswith("note:    ")]
    sections = {}
    for note in notes:
        if note.startswith(("vision_config: ", "qformer_config: ", "ln_vision_eps: ")):
            sections |= yaml.safe_load(note.partition(" (")[0])
    return Blip2Config(**{**sections, "qformer_config": {**sections["qformer_config"]}}, max_txt_len=16)


def itm(model, config, path):
    """Logits of ours, and those of transformers, of two pictures with two texts."""
    random = np.random.default_rng(1)
    image, ids = random.standard_normal((2, 3, 28, 28)).astype(np.float32), random.integers(4, 119, (2, 7))
    with torch.no_grad():
        theirs = model(
            torch.from_numpy(image),
            torch.from_numpy(ids),
            torch.ones(2, 7, dtype=torch.long),
            use_image_text_matching_head=True,
        ).logits_per_image.numpy()
    ours = Blip2Qformer(config).load_checkpoint(path).set_train(False)
    return ours.itm_logits(ms.Tensor(image), ms.Tensor(ids.astype(np.int32))).asnumpy(), theirs


# ------------------------------------------------------------------------------------------------ ViT and Q-F
def test_a2_heads_and_epsilons_are_those_of_config_json(convert, tmp_path):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    model = blip2()
    model.save_pretrained(tmp_path / "theirs")
    stored, text = convert(tmp_path / "theirs")
    config = printed_config(text)
    vision, qformer = config.vision_config, config.qformer_config
    assert (vision.num_attention_heads, vision.layer_norm_eps, vision.image_size) == (4, 1e-2, 28)
    assert (qformer.num_attention_heads, qformer.layer_norm_eps, config.ln_vision_eps) == (4, 1e-5, 1e-2)
    ours, theirs = itm(model, config, stored.path)
    assert np.ptp(theirs) > 0.05
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    for wrong in (
        {"vision_config": {"num_attention_heads": 8}},
        {"qformer_config": {"num_attention_heads": 8}},
        {"ln_vision_eps": 1e-5},
    ):
        # controls
        assert np.abs(itm(model, config.replace(**wrong), stored.path)[0] - theirs).max() > 1e-4, wrong
    eight = config.replace(vision_config={"num_attention_heads": 8}).to_dict()
    eight.pop("text_config")
    error = convert(tmp_path / "theirs", "--config", write_config(tmp_path, None, **eight), expect=1)
    assert (
        "vision_config.num_attention_heads is 8 in --config, expected 4 as in " in error
        and "config.json" in error
    )
    same = {**config.to_dict(), "ln_vision_eps": 1e-5}
    same.pop("text_config")
    text = convert(tmp_path / "theirs", "--config", write_config(tmp_path, None, **same))[1]
    assert "note:    ln_vision_eps is 1e-05 in --config, 0.01 in " in text


@pytest.mark.parametrize(
    "section, key, value, complaint",
    [
        (
            "vision_config",
            "hidden_act",
            "relu",
            "vision_config.hidden_act = 'relu'; only 'gelu' is built here",
        ),
        ("qformer_config", "hidden_act", "gelu_new", "qformer_config.hidden_act = 'gelu_new'; only 'gelu'"),
        ("vision_config", "num_attention_heads", 5, "config.json: "),
        ("vision_config", "num_attention_heads", "4", "expected a whole number"),
        ("vision_config", "layer_norm_eps", -1, "expected a number above 0"),
        ("vision_config", "image_size", 56, "says vision_config.image_size"),
        ("vision_config", "qkv_bias", False, "qkv_bias = False"),
        (None, "vision_config", [1], "vision_config = [1], expected a mapping"),
        (
            "qformer_config",
            "cross_attention_frequency",
            1,
            "says qformer_config.cross_attention_freq = 1, but the shapes",
        ),
    ],
)
def test_a2_what_is_not_built_or_does_not_fit_is_named(convert, tmp_path, section, key, value, complaint):
    folder = tmp_path / "theirs"
    blip2().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (config[section] if section else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    error = convert(folder, expect=1)
    assert complaint in error and str(folder) in error and error.count("\n") == 1


def test_a2_a_bert_with_another_activation_is_named(convert, lavis, eva, tmp_path):
    taken = {
        name.removeprefix("Qformer."): value
        for name, value in lavis.items()
        if name.startswith("Qformer.") and "crossattention" not in name and "_query" not in name
    }
    torch.save(eva, tmp_path / "eva.pth")
    folder = save(taken, tmp_path / "bert", model_type="bert", hidden_act="gelu", num_attention_heads=2)
    convert(folder, "--vit_path", tmp_path / "eva.pth")
    error = convert(
        save(taken, folder, model_type="bert", hidden_act="relu"),
        "--vit_path",
        tmp_path / "eva.pth",
        expect=1,
    )
    assert "hidden_act = 'relu'; only 'gelu' is built here" in error


# ------------------------------------------------------------------------------------------------ special tok
def ids_of(path, llm):
    return {key: value for key, value in read_hf_config(path, llm).text().items() if key.endswith("_id")}


def test_a3_ids_are_resolved_as_transformers_does(tmp_path):
    vicuna = {**SAID, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
    folder = save({"a": torch.ones(1)}, tmp_path / "vicuna", **vicuna)
    assert ids_of(folder, LlamaConfig) == {"bos_token_id": 0, "eos_token_id": 1}
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": [2, 9, 2], "pad_token_id": 0})
    )
    assert ids_of(folder, LlamaConfig) == {"bos_token_id": 1, "eos_token_id": (2, 9), "pad_token_id": 0}
    loaded = transformers.GenerationConfig.from_pretrained(folder)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, [2, 9, 2], 0)
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert ids_of(folder, LlamaConfig) == {"bos_token_id": 0, "eos_token_id": 7}


def test_a3_ids_of_opt_are_read_and_said(convert, tmp_path):
    theirs = opt(eos_token_id=2, bos_token_id=2, pad_token_id=1)
    theirs.save_pretrained(tmp_path / "opt")
    text = convert(tmp_path / "opt")[1]
    assert printed(text)["eos_token_id"] == 2
    assert (
        "captions of LAVIS's bridges end with 50118 (a line end), set text_config.eos_token_id to that with "
        "such a bridge" in text
    )
    (tmp_path / "opt" / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    assert printed(convert(tmp_path / "opt")[1])["eos_token_id"] == [2, 9]


@pytest.mark.parametrize("value", ["2", [2, "x"], {"a": 1}, 2.5, True, [[2]]])
def test_a3_ids_that_are_none_are_named(tmp_path, value):
    folder = save({"a": torch.ones(1)}, tmp_path / "x", **{**SAID, "eos_token_id": value})
    with pytest.raises(
        CheckpointError, match=r"config.json: eos_token_id = .*, expected a token id or a list of them"
    ):
        read_hf_config(folder, LlamaConfig)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[1]",
        "",
        "{",
        '{"model_type": NaN}',
        '{"rope_parameters": "x"}',
        '{"rope_scaling": "x"}',
        '{"num_attention_heads": "4"}',
        '{"rope_scaling": {"rope_type": [1]}}',
        '{"num_attention_heads": true}',
        '{"rms_norm_eps": 1e999}',
        '{"hidden_act": ["silu"]}',
        '{"tie_word_embeddings": 3}',
    ],
)
def test_b12_a_config_json_that_is_none_is_one_line(tmp_path, text):
    folder = save({"a": torch.ones(1)}, tmp_path / "x", **SAID)
    assert read_hf_config(folder, LlamaConfig).text()["num_heads"] == 4  # the control
    if text.startswith('{"') and "NaN" not in text and "999" not in text:
        text = json.dumps({**SAID, **json.loads(text)})
    (folder / "config.json").write_text(text)
    with pytest.raises((CheckpointError, FileError)) as caught:
        read_hf_config(folder, LlamaConfig)
    assert str(folder / "config.json") in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ the tempera
def test_a15_the_temperature_that_is_put_in_is_said(convert, lavis, tmp_path):
    blip2().save_pretrained(tmp_path / "theirs")
    stored, text = convert(tmp_path / "theirs")
    assert stored["temp"] == np.float32(0.07)
    assert (
        "note:    temp is in no file of transformers, whose pipeline uses no temperature (1): 0.07" in text
        and "temperature=1" in text
    )
    assert "no temperature" not in convert(lavis)[1]  # LAVIS's files have their own


# ------------------------------------------------------------------------------------------------ other model
ONE = torch.ones(2)
LAYER = "model.layers.0."


@pytest.mark.parametrize(
    "names, complaint",
    [
        (
            [
                "text_encoder.encoder.layer.0.attention.self.query.weight",
                "visual_encoder.blocks.0.attn.qkv.weight",
            ],
            "is BLIP-1",
        ),
        (
            [
                "text_decoder.bert.encoder.layer.0.output.dense.weight",
                "vision_model.encoder.layers.0.mlp.fc1.weight",
            ],
            "is BLIP-1",
        ),
        (
            [LAYER + "mlp.gate_proj.weight", LAYER + "mlp.gate_proj.SCB"],
            "is quantised to int8 by bitsandbytes",
        ),
        (
            [LAYER + "mlp.gate_proj.weight", LAYER + "mlp.gate_proj.weight.quant_state.bitsandbytes__nf4"],
            "is quantised to 4 bits",
        ),
        ([LAYER + "mlp.gate_proj.qweight"], "GPTQ or AWQ"),
        (["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"], "is a PEFT adapter"),
        (
            ["layers.0.mlp.gate_proj.weight", "embed_tokens.weight", "norm.weight"],
            "is a bare LlamaModel, without its head",
        ),
        (["model.layers.0.mlp.fc1.weight", "model.layers.0.self_attn.dense.weight"], "is Phi"),
        (["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"], "is GPT-NeoX"),
        (["transformer.h.0.attn.c_attn.weight"], "is GPT-2"),
        (
            ["language_projection.weight", "language_model.encoder.block.0.layer.0.SelfAttention.q.weight"],
            "leads into FlanT5",
        ),
        (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "is a T5"),
        (["Qformer.bert.embeddings.word_embeddings.weight", "t5_proj.weight"], "FlanT5"),
        (["something.else"], "is none of the files that can be converted"),
    ],
)
def test_c4_another_model_is_named_by_its_names(names, complaint):
    with pytest.raises(CheckpointError, match=complaint) as caught:
        detect(dict.fromkeys(names, ONE), "x.pth")
    assert "x.pth" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "said, complaint",
    [
        ({"model_type": "mistral"}, "model_type 'mistral': this is Mistral"),
        ({"model_type": "blip"}, "this is BLIP-1"),
        ({"model_type": "phi3"}, "this is Phi-3"),
        ({"model_type": "gpt_neox"}, "this is GPT-NeoX"),
        (
            {**SAID, "quantization_config": {"quant_method": "bitsandbytes"}},
            "quant_method = 'bitsandbytes': quantised weights are not read here",
        ),
        ({"model_type": "blip-2", "text_config": {"model_type": "t5"}}, "this is T5"),
    ],
)
def test_c4_another_model_is_named_by_its_config_json(convert, tmp_path, said, complaint):
    folder = save(llama().state_dict(), tmp_path / "theirs", **said)
    error = convert(folder, expect=1)
    assert complaint in error and str(folder / "config.json") in error


def test_c4_a_peft_adapter_is_named_with_its_base(convert, tmp_path):
    folder = save(
        {"base_model.model.x.lora_A.weight": ONE},
        tmp_path / "adapter",
        "adapter_config.json",
        file="adapter_model.bin",
        base_model_name_or_path="lmsys/vicuna-7b",
    )
    assert "this folder is a PEFT adapter (LoRA) for 'lmsys/vicuna-7b', not a model" in convert(
        folder, expect=1
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "module.model.", "model."])
def test_c4_a_prefix_that_a_wrapper_put_before_all_names_is_left_out_and_said(convert, lavis, prefix):
    wanted = convert(lavis)[0]
    wanted = {name: wanted[name] for name in wanted}
    found, text = convert({prefix + name: value for name, value in lavis.items()})
    assert [name for name in wanted if not np.array_equal(found[name], wanted[name])] == []
    assert "note:    all names begin with " in text
    mixed = {(prefix if name != "temp" else "") + name: value for name, value in lavis.items()}
    assert "is none of the files" in convert(mixed, expect=1)  # the control: not all of them


def test_c4_a_variant_is_found_where_it_is_alone(convert, tmp_path):
    state = llama().half().state_dict()
    folder = save(state, tmp_path / "theirs", file="pytorch_model.fp16.bin", **SAID)
    assert len(convert(folder)[0]) == 30
    save(state, folder, file="pytorch_model.bf16.bin", **SAID)
    error = convert(folder, expect=1)
    assert (
        "but variants of it: give one of pytorch_model.bf16.bin, pytorch_model.fp16.bin as the path" in error
    )
    assert len(convert(folder / "pytorch_model.fp16.bin")[0]) == 30


def test_a14_instructblip_of_transformers_is_refused_by_its_names():
    names = [
        "qformer.embeddings.word_embeddings.weight",
        "qformer.encoder.layer.0.intermediate.dense.weight",
        "language_projection.weight",
    ]
    with pytest.raises(CheckpointError, match="x.pth is InstructBLIP"):
        detect(dict.fromkeys(names, ONE), "x.pth")
    assert detect(dict.fromkeys(names[2:], ONE), "x.pth").title == "transformers BLIP-2"  # the control
    assert OPTConfig().eos_token_id == 50118
