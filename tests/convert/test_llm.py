"""Language models of transformers, converted, give the logits of transformers: model and converter are proved
together."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import mindspore as ms  # noqa: E402

from mindblip2.config import LlamaConfig, OPTConfig  # noqa: E402
from tests.convert.stage2 import (  # noqa: E402
    SAID,
    language_model,
    llama,
    logits,
    opt,
    packed,
    printed,
    printed_text_config,
    prompts,
    save,
    their_logits,
    write_config,
)

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)


def difference(stored, config, model):
    """The largest of the logits, at tokens of left-padded prompts."""
    ids, mask = prompts(config.vocab_size)
    expected = their_logits(model, ids, mask)
    assert np.ptp(expected) > 5  # the model tells words apart
    return np.abs(logits(language_model(stored, config), ids, mask) - expected).max()


def coverage(text):
    return [line.split() for line in text.splitlines()[1:] if line[:3] == "LLM"]


# ------------------------------------------------------------------------------------------------ transformer
@pytest.mark.parametrize(
    "make", [llama, lambda: llama(rope_parameters=LLAMA3), opt], ids=["llama", "llama3", "opt"]
)
def test_the_logits_are_transformers_own(convert, tmp_path, make):
    theirs = make()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("model-*-of-*.safetensors"))) > 2
    stored, text = convert(tmp_path / "theirs")
    assert difference(stored, printed_text_config(text), theirs) < 1e-4
    assert coverage(text) == [["LLM", str(len(stored)), str(len(stored)), "0", "0"]]
    assert set(stored.types.values()) == {"Float32"} and "made" not in text.replace("     made", "")


def test_what_no_shape_tells_would_be_noticed(convert, tmp_path):
    theirs = llama()
    theirs.save_pretrained(tmp_path / "theirs")
    stored, text = convert(tmp_path / "theirs")
    config = printed_text_config(text)
    assert (config.num_heads, config.n_kv_heads, config.rms_norm_eps, config.intermediate_size) == (
        4,
        2,
        1e-5,
        48,
    )
    for change in (
        {"rms_norm_eps": 1e-2},
        {"rope_theta": 100.0},
        {"num_heads": 8, "n_kv_heads": 4},
        {"position_embedding": "alibi"},
    ):
        assert difference(stored, config.replace(**change), theirs) > 1e-2, change


def test_torch_shards_and_single_files_hold_the_same(convert, tmp_path):
    state = llama().half().state_dict()
    wanted, _ = convert(save(state, tmp_path / "one", **SAID))
    wanted = {name: wanted[name] for name in wanted}
    # files of transformers before 4.32
    old = {**state, "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    shards = save(old, tmp_path / "shards", parts=3, **SAID)
    for way in (
        shards,
        shards / "pytorch_model.bin.index.json",
        shards / "pytorch_model-00002-of-00003.bin",
        tmp_path / "one" / "pytorch_model.bin",
    ):
        found, text = convert(way)
        assert set(found.types.values()) == {"Float16"} and set(found) == set(wanted)
        assert [name for name in wanted if not np.array_equal(found[name], wanted[name])] == []
        if way != tmp_path / "one" / "pytorch_model.bin":
            assert (
                "dropped:    1 x buffer: computed here (e.g. model.layers.1.self_attn.rotary_emb.inv_freq)"
                in text
            )


def test_opt_is_read_under_both_of_its_names(convert, tmp_path):
    state = dict(opt().state_dict())
    # opt-2.7b has the prefix and the head, 6.7b neither
    small = {name: state[name] for name in state if name != "lm_head.weight"}
    bare = {name.removeprefix("model."): value for name, value in small.items()}
    wanted, text = convert(save(state, tmp_path / "2.7b"))
    assert "dropped:    1 x tied: the word embedding, kept once (e.g. lm_head.weight)" in text
    wanted = {name: wanted[name] for name in wanted}
    for number, names in enumerate((small, {**bare, "decoder.version": torch.ones(1)})):
        found, text = convert(save(names, tmp_path / str(number)))
        assert (
            set(found) == set(wanted) and [n for n in wanted if not np.array_equal(found[n], wanted[n])] == []
        )
        sizes = {"hidden_size": 32, "num_layers": 3, "intermediate_size": 48, "max_position_embeddings": 60}
        # no config.json says how many heads
        assert printed(text) == {"type": "OPTConfig", "vocab_size": 90, **sizes}
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    assert "lm_head.weight and model.decoder.embed_tokens.weight differ" in convert(
        save(state, tmp_path / "2.7b"), expect=1
    )


def test_opt_350m_is_refused_by_name(convert, tmp_path):
    small = opt(word_embed_proj_dim=16, do_layer_norm_before=False)
    small.save_pretrained(tmp_path / "350m")
    error = convert(tmp_path / "350m", expect=1)
    assert "is OPT-350m" in error and "Take opt-2.7b or opt-6.7b" in error
    opt(do_layer_norm_before=False).save_pretrained(tmp_path / "post")
    assert "config.json says do_layer_norm_before = False; only True is built here" in convert(
        tmp_path / "post", expect=1
    )


def test_a_head_that_is_the_word_embedding_is_copied(convert, tmp_path):
    theirs = llama(tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path / "theirs")
    stored, text = convert(tmp_path / "theirs")
    assert difference(stored, printed_text_config(text), theirs) < 1e-4
    assert (
        "copied:    1 x the head is the word embedding (tie_word_embeddings) (e.g. llm.lm_head.weight)"
        in text
    )
    state = {name: value for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    # nobody says that they are tied
    error = convert(save(state, tmp_path / "untied", **SAID), expect=1)
    assert "missing: llm.lm_head.weight is in no file (expected as lm_head.weight)" in error


# ------------------------------------------------------------------------------------------------ Baichuan
@pytest.mark.parametrize(
    "size, beside", [("7B", {"max_position_embeddings": 4096}), ("13B", {"model_max_length": 4096})]
)
def test_w_pack_is_split_into_query_key_and_value(convert, tmp_path, size, beside):
    theirs = llama(num_key_value_heads=4)
    folder = save(
        packed(theirs.state_dict()), tmp_path / size, model_type="baichuan", num_attention_heads=4, **beside
    )
    stored, text = convert(folder)
    config = printed_text_config(text)
    assert config.position_embedding == {"7B": "rope", "13B": "alibi"}[size] and not config.normalized_head
    assert (
        "mapped:    9 x a third of W_pack: query, key and value below each other (e.g. "
        "llm.layers.0.attention.query." in text
    )
    rotary = config.replace(position_embedding="rope", rms_norm_eps=1e-5)
    # Baichuan-7B is a Llama
    assert difference(stored, rotary, theirs) < 1e-4
    assert (difference(stored, config.replace(rms_norm_eps=1e-5), theirs) < 1e-4) == (size == "7B")


def test_the_vocabulary_tells_baichuan2_and_its_head_stays_as_it_is(convert, tmp_path):
    state = packed(
        llama(
            vocab_size=125696,
            hidden_size=8,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_hidden_layers=1,
            intermediate_size=8,
        )
        .half()
        .state_dict()
    )
    stored, text = convert(save(state, tmp_path / "baichuan2"))
    assert printed(text)["normalized_head"] is True and printed(text)["vocab_size"] == 125696
    np.testing.assert_array_equal(stored["llm.lm_head.weight"], state["lm_head.weight"])
    assert (
        "num_heads is in no shape, and no config.json is beside the file" in text and "num_heads:" not in text
    )


# ------------------------------------------------------------------------------------------------ vocabularie
@pytest.mark.parametrize(
    "rows, kept, said",
    [
        (32001, None, "note:    vocab_size is 32001, as in the file: 1 tokens were added to 32000"),
        (
            32001,
            32000,
            "mapped:    2 x rows 32000 to 32000 left out: added or padded, and vocab_size is 32000",
        ),
        (
            64000,
            32000,
            "shape: llm.word.embedding_table (model.embed_tokens.weight) has (64000, 8), the model (32000, "
            "8)",
        ),
        (
            32000,
            32001,
            "shape: llm.word.embedding_table (model.embed_tokens.weight) has (32000, 8), the model (32001, "
            "8)",
        ),
    ],
)
def test_added_tokens_make_the_vocabulary_of_the_file(convert, tmp_path, rows, kept, said):
    sizes = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
    }
    llama(vocab_size=rows, **sizes).save_pretrained(tmp_path / "theirs")
    ours = LlamaConfig(
        vocab_size=kept or rows,
        hidden_size=8,
        num_heads=2,
        num_layers=1,
        intermediate_size=8,
        rms_norm_eps=1e-5,
    )
    flags = ["--config", write_config(tmp_path, ours)] if kept else []
    if kept and not 0 <= rows - kept < 64:
        assert said in convert(tmp_path / "theirs", *flags, expect=1)
        return
    stored, text = convert(tmp_path / "theirs", *flags)
    assert said in text and stored.shapes["llm.word.embedding_table"] == stored.shapes[
        "llm.lm_head.weight"
    ] == (kept or rows, 8)
    assert kept or printed_text_config(text) == ours


# ------------------------------------------------------------------------------------------------ what is bes
def test_the_number_of_heads_is_in_no_shape(convert, tmp_path):
    theirs = llama(num_key_value_heads=4)
    folder = save(theirs.state_dict(), tmp_path / "theirs")
    stored, text = convert(folder)
    assert (
        "note:    num_heads is in no shape, and no config.json is beside the file: give it in text_config"
        in text
    )
    assert (
        "note:    rms_norm_eps 1e-06, rope_theta 10000 and the special ids are Llama-1's and Vicuna v1.1's: "
        "they are in no shape" in text
    )
    assert printed(text)["hidden_size"] == 32 and not {"num_heads", "n_kv_heads"} & set(printed(text))
    config = LlamaConfig(
        vocab_size=90, hidden_size=32, num_layers=3, num_heads=4, intermediate_size=48, rms_norm_eps=1e-5
    )
    assert difference(stored, config, theirs) < 1e-4


def test_a12_grouped_heads_without_config_json_are_refused_since_they_may_be_a_mistral(convert, tmp_path):
    error = convert(save(llama().state_dict(), tmp_path / "theirs"), expect=1)
    assert (
        "whether it is a Llama-2-70B, a Llama-3 or a Mistral (not built here)" in error
        and "give --config" in error
    )
    ours = LlamaConfig(
        vocab_size=90, hidden_size=32, num_layers=3, num_heads=4, n_kv_heads=2, intermediate_size=48
    )
    assert len(convert(tmp_path / "theirs", "--config", write_config(tmp_path, ours))[0]) == 30
    assert len(convert(save(llama().state_dict(), tmp_path / "theirs", **SAID))[0]) == 30


@pytest.mark.parametrize(
    "beside, complaint",
    [
        (
            {"model_type": "mistral"},
            "says model_type 'mistral': this is Mistral, whose layers have Llama's names",
        ),
        (
            {"model_type": "olmo"},
            "says model_type 'olmo', but the weights beside it look like llama or baichuan",
        ),
        (
            {"model_type": "llama", "hidden_act": "gelu"},
            "says hidden_act = 'gelu'; only 'silu' is built here",
        ),
        (
            {"model_type": "llama", "num_attention_heads": 5},
            "5 heads (of the file beside the weights) do not fit queries of 32",
        ),
        (
            {"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 2.0}},
            "rope_type 'yarn' is not computed here",
        ),
    ],
)
def test_a_configuration_of_another_model_is_named(convert, tmp_path, beside, complaint):
    assert complaint in convert(save(llama().state_dict(), tmp_path / "theirs", **beside), expect=1)


def test_delta_weights_are_said_to_be_none(convert, tmp_path):
    theirs, said = llama(), "note:    the final norm is nearly 0: these look like delta weights"
    assert said not in convert(save(theirs.state_dict(), tmp_path / "whole", **SAID))[1]
    delta = {name: value / 100 for name, value in theirs.state_dict().items()}
    assert said in convert(save(delta, tmp_path / "delta", **SAID))[1]


@pytest.mark.parametrize(
    "ours, complaint",
    [
        (OPTConfig(), "is Llama of transformers, but text_config of --config is OPTConfig"),
        (None, "is Llama of transformers, but text_config of --config is NoneType"),
        (
            LlamaConfig(
                vocab_size=90,
                hidden_size=32,
                num_layers=2,
                num_heads=4,
                n_kv_heads=2,
                intermediate_size=48,
                rms_norm_eps=1e-5,
            ),
            "leftover: model.layers.2.input_layernorm.weight has no place in the model",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(convert, tmp_path, ours, complaint):
    llama().save_pretrained(tmp_path / "theirs")
    assert complaint in convert(tmp_path / "theirs", "--config", write_config(tmp_path, ours), expect=1)


def test_a2_a_configuration_that_contradicts_the_file_is_named(convert, tmp_path):
    llama(num_key_value_heads=4).save_pretrained(tmp_path / "theirs")
    ours = LlamaConfig(
        vocab_size=90, hidden_size=32, num_layers=3, num_heads=4, intermediate_size=48, bos_token_id=7
    )
    error = convert(tmp_path / "theirs", "--config", write_config(tmp_path, ours), expect=1)
    assert (
        "text_config.rms_norm_eps is 1e-06 in --config, expected 1e-05 as in "
        f"{tmp_path / 'theirs' / 'config.json'}" in error
    )
    _, text = convert(
        tmp_path / "theirs", "--config", write_config(tmp_path, ours.replace(rms_norm_eps=1e-5))
    )
    assert "note:    text_config.bos_token_id is 7 in --config, 1 in " in text and text.count("note:") == 1


@pytest.mark.parametrize(
    "lost", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight"]
)
def test_a_tensor_that_is_missing_is_named(convert, tmp_path, lost):
    state = {name: value for name, value in llama().state_dict().items() if name != lost}
    assert lost in convert(save(state, tmp_path / "theirs", **SAID), expect=1)


def test_a_bias_has_no_place(convert, tmp_path):
    state = {**llama().state_dict(), "model.layers.0.self_attn.q_proj.bias": torch.ones(32)}  # Qwen's
    error = convert(save(state, tmp_path / "theirs", **SAID), expect=1)
    assert "leftover: model.layers.0.self_attn.q_proj.bias has no place in the model" in error


def test_a_language_model_goes_with_no_vit_and_no_other(convert, eva, tmp_path):
    llama().save_pretrained(tmp_path / "theirs")
    torch.save(eva, tmp_path / "eva.pth")
    for flags, complaint in (
        (
            ["--vit_path", tmp_path / "eva.pth"],
            "is a language model alone (Llama of transformers): leave out --vit_path",
        ),
        (["--llm_path", tmp_path / "theirs"], "is no file of stage 2 (Llama of transformers)"),
        (
            ["--llm_mindspore_path", tmp_path / "x.ckpt"],
            "--llm_mindspore_path is for the language model of a stage-2",
        ),
        (["--image_size", 56], "--image_size is for files with a ViT"),
    ):
        assert complaint in convert(tmp_path / "theirs", *flags, expect=1)
