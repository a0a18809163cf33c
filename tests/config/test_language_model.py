"""The sections of the language models: which one a file means, sizes that are computed, and what is
refused."""

import pytest

from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig
from mindblip2.config.schema import ConfigError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def text(**section):
    return Blip2Config(text_config=section).text_config


@pytest.mark.parametrize("kind", ["LlamaConfig", "OPTConfig"])
def test_a3_a_language_model_may_have_several_end_tokens(kind, tmp_path):
    config = Blip2Config(
        text_config={"type": kind, "eos_token_id": [2, 9], "image_token_id": 77, "temperature": 0.9}
    )
    own = config.text_config
    assert (own.eos_token_id, own.end_token_ids) == ((2, 9), (2, 9))
    config.save_pretrained(tmp_path)
    assert "eos_token_id:\n      - 2\n      - 9" in (tmp_path / "config.yaml").read_text()
    assert Blip2Config.from_pretrained(tmp_path).text_config == own
    assert text(type=kind, eos_token_id=[9]) == text(type=kind, eos_token_id=9) and text(
        type=kind, eos_token_id=9
    ).end_token_ids == (9,)
    for wrong, complaint in (
        ([], r" = \(\): expected a token id, or several different"),
        ([2, 2], r" = \(2, 2\): expected a token id"),
        ([2, -1], r"\[1\] = -1: expected from 0"),
        ([2, True], r"\[1\] = True: expected int"),
        (-1, " = -1: expected"),
        ("x", " = 'x': expected int or tuple"),
    ):
        with pytest.raises(ConfigError, match=f"eos_token_id{complaint}"):
            text(type=kind, eos_token_id=wrong)


def test_the_type_says_which_section_it_is():
    assert Blip2Config().text_config is None
    assert text() == text(type="LlamaConfig") == LlamaConfig()
    assert text(type="OPTConfig") == OPTConfig() == Blip2Config(text_config=OPTConfig()).text_config
    assert text(type="OPTConfig", hidden_size=4096).max_position_embeddings == 2048
    with pytest.raises(
        ConfigError, match=r"text_config.type = 'T5Config': expected 'LlamaConfig' or 'OPTConfig'"
    ):
        text(type="T5Config")
    with pytest.raises(ConfigError, match="unknown key .*rms_norm_eps"):
        text(type="OPTConfig", rms_norm_eps=1e-5)


@pytest.mark.parametrize(
    "section", [OPTConfig(num_layers=3), LlamaConfig(n_kv_heads=8, rope_scaling=LLAMA3)], ids=["opt", "llama"]
)
def test_a_section_survives_saving_and_copies(section, tmp_path):
    config = Blip2Config(text_config=section)
    config.save_pretrained(tmp_path)
    assert Blip2Config.from_pretrained(tmp_path).text_config == section
    changed = config.replace(text_config={"vocab_size": 99}).text_config
    assert changed == section.replace(vocab_size=99) and type(changed) is type(section)


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ({}, 11008),
        ({"hidden_size": 5120, "num_heads": 40}, 13824),
        ({"hidden_size": 64, "num_heads": 4, "multiple_of": 32}, 192),
        # Llama-2-70B
        ({"hidden_size": 8192, "num_heads": 64, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}, 28672),
        # Llama-3-8B
        ({"multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336),
        ({"intermediate_size": 14336}, 14336),
        ({"intermediate_size": 777}, 777),
    ],
    ids=str,
)
def test_the_width_of_the_feed_forward(sizes, expected):
    """Published sizes come out of MindFormers' two keys."""
    assert LlamaConfig(**sizes).feed_forward_size == expected


def test_heads_of_keys_and_values():
    assert (LlamaConfig().kv_heads, LlamaConfig(n_kv_heads=8).kv_heads, OPTConfig().kv_heads) == (32, 8, 32)


def test_defaults_are_the_published_sizes():
    llama, opt = LlamaConfig(), OPTConfig()
    assert (llama.hidden_size, llama.num_layers, llama.num_heads, llama.vocab_size, llama.rope_theta) == (
        4096,
        32,
        32,
        32000,
        1e4,
    )
    assert (opt.hidden_size, opt.num_layers, opt.num_heads, opt.intermediate_size, opt.vocab_size) == (
        2560,
        32,
        32,
        10240,
        50272,
    )
    assert (opt.bos_token_id, opt.eos_token_id, opt.pad_token_id, opt.layer_norm_eps) == (2, 50118, 1, 1e-5)


def test_how_far_a_language_model_reaches():
    """Rotary positions go on as far as one likes, and MindFormers' two keys say how far; OPT's are a
    table."""
    assert LlamaConfig().positions == 512 == LlamaConfig(seq_length=512, max_decode_length=30).positions
    assert LlamaConfig(seq_length=600).positions == 600 and LlamaConfig(max_decode_length=30).positions == 64
    assert OPTConfig(max_position_embeddings=99).positions == 99
    for key in ("seq_length", "max_decode_length"):  # not accepted where they would have no effect
        with pytest.raises(ConfigError, match=f"unknown key '.*text_config.{key}' .*max_position_embeddings"):
            text(type="OPTConfig", **{key: 99})


@pytest.mark.parametrize(
    "section, complaint",
    [
        ({"num_heads": 33}, "hidden_size = 4096 is not a multiple of num_heads = 33"),
        ({"n_kv_heads": 5}, "n_kv_heads = 5 does not divide num_heads = 32"),
        ({"n_kv_heads": 0}, "kv_heads = 0: expected at least 1"),
        ({"hidden_size": 96, "num_heads": 32}, "heads of 3 channels: rotary positions turn pairs"),
        ({"position_embedding": "learned"}, "expected one of 'rope', 'alibi'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not computed here"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_type None is not computed here"),
        ({"rope_scaling": {"rope_type": "linear"}}, "linear needs a number above 0 for factor"),
        ({"rope_scaling": {**LLAMA3, "factor": "8"}}, "llama3 needs a number above 0 for factor"),
        (
            {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}},
            "high_freq_factor must be above low_freq_factor",
        ),
        ({"type": "OPTConfig", "num_heads": 33}, "is not a multiple of num_heads = 33"),
        (
            {
                "type": "OPTConfig",
                "hidden_size": 1024,
                "word_embed_proj_dim": 512,
                "do_layer_norm_before": False,
            },
            "this is OPT-350m",
        ),
        ({"type": "OPTConfig", "word_embed_proj_dim": 512}, "Take opt-2.7b or opt-6.7b"),
        ({"type": "OPTConfig", "do_layer_norm_before": False}, "this is OPT-350m"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(section, complaint):
    with pytest.raises(ConfigError) as error:
        text(**section)
    assert complaint in str(error.value)


def test_what_can_be_built_is_not_refused():
    assert text(rope_scaling={"type": "linear", "factor": 2}).rope_scaling["factor"] == 2
    assert text(hidden_size=96, num_heads=32, position_embedding="alibi").hidden_size == 96
    assert text(type="OPTConfig", word_embed_proj_dim=2560).word_embed_proj_dim == 2560
