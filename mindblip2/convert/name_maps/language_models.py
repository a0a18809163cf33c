"""The tables of stage 2: language models, alone or below a prefix, and the bridges into them."""

import dataclasses

from mindblip2.config import LlamaConfig, OPTConfig
from mindblip2.convert.name_maps.blip2 import (
    HF_PARAMETERS,
    HF_SHARED_MODULES,
    LAVIS_SHARED_MODULES,
    POSITION_IDS,
    NameMap,
    add_prefixes,
)

PREFIXES = ("", "opt_model.", "llm_model.", "language_model.")  # alone, in LAVIS's files, in transformers'

_ATTENTION = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
}
_LLAMA_LAYER = {
    "norm1": "input_layernorm",
    **_ATTENTION,
    "norm2": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
_PACKED = {f"attention.{part}": "self_attn.W_pack" for part in ("query", "key", "value")}  # see fit.part
_OPT_LAYER = {
    **_ATTENTION,
    "attention.output": "self_attn.out_proj",
    "norm1": "self_attn_layer_norm",
    "norm2": "final_layer_norm",
    "ffn.up": "fc1",
    "ffn.down": "fc2",
}
_META_LAYER = {
    "norm1": "attention_norm",
    "attention.query": "attention.wq",
    "attention.key": "attention.wk",
    "attention.value": "attention.wv",
    "attention.output": "attention.wo",
    "norm2": "ffn_norm",
    "ffn.gate": "feed_forward.w1",
    "ffn.up": "feed_forward.w3",
    "ffn.down": "feed_forward.w2",
}
_LAYERS = "llm.layers.{i}"


def llama_name_map(prefix, title="Llama of transformers", layer=_LLAMA_LAYER, mark="mlp.gate_proj."):
    root = prefix + "model."
    return NameMap(
        title,
        f"{root}layers.0.{mark}",
        {
            "llm.word": root + "embed_tokens",
            **add_prefixes(_LAYERS, root + "layers.{i}", layer),
            "llm.norm": root + "norm",
            "llm.lm_head": prefix + "lm_head",
        },
        known=(
            (rf"^{prefix}.*rotary_emb\.inv_freq$", "buffer: computed here"),
            (rf"^{prefix}.*(alibi|future)_mask$", "buffer: computed here"),
        ),
        llm=LlamaConfig,
    )


def _baichuan(prefix):
    return llama_name_map(prefix, "Baichuan", {**_LLAMA_LAYER, **_PACKED}, "self_attn.W_pack.")


def opt_name_map(prefix, root="model.decoder."):
    root = prefix + root
    return NameMap(
        "OPT of transformers",
        f"{root}layers.0.fc1.",
        {
            "llm.word": root + "embed_tokens",
            "llm.position": root + "embed_positions",
            "llm.norm": root + "final_layer_norm",
            **add_prefixes(_LAYERS, root + "layers.{i}", _OPT_LAYER),
        },
        tied={
            prefix + "lm_head.weight": (root + "embed_tokens.weight", "tied: the word embedding, kept once")
        },
        known=((rf"^{prefix}.*decoder\.version$", "a version number"),),
        llm=OPTConfig,
    )


META = NameMap(
    "Llama of Meta",
    "layers.0.feed_forward.w1.",
    {
        "llm.word": "tok_embeddings",
        **add_prefixes(_LAYERS, "layers.{i}", _META_LAYER),
        "llm.norm": "norm",
        "llm.lm_head": "output",
    },
    known=((r"rope\.freqs$", "buffer: computed here"),),
    llm=LlamaConfig,
    interleaved=True,
)

_OURS_LAYER = {name: name for name in _LLAMA_LAYER}


def _ours(mark, llm):
    return NameMap(
        "a converted language model",
        mark,
        {
            **{name: name for name in ("llm.word", "llm.position", "llm.norm", "llm.lm_head")},
            **add_prefixes(_LAYERS, _LAYERS, _OURS_LAYER),
        },
        llm=llm,
        leaves={},
    )


LLAMA, BAICHUAN, OPT = llama_name_map(""), _baichuan(""), opt_name_map("")
# Baichuan's names are Llama's but for W_pack, and OPT's are there with and without "model." (6.7b): the first
# that fits counts.
LANGUAGE_MODELS = (
    *(
        make(prefix)
        for prefix in PREFIXES
        for make in (_baichuan, llama_name_map, opt_name_map, lambda prefix: opt_name_map(prefix, "decoder."))
    ),
    META,
    _ours("llm.position.", OPTConfig),
    _ours("llm.layers.0.ffn.gate.", LlamaConfig),
)


def _lavis(projection, llm):
    return NameMap(
        f"LAVIS stage 2 ({projection})",
        projection + ".",
        {**LAVIS_SHARED_MODULES, "llm_proj": projection},
        known=(POSITION_IDS,),
        llm=llm,
    )


LAVIS_OPT, LAVIS_LLM = _lavis("opt_proj", OPTConfig), _lavis("llm_proj", LlamaConfig)
HF_BRIDGE = NameMap(
    "transformers BLIP-2",
    "language_projection.",
    {**HF_SHARED_MODULES, "llm_proj": "language_projection"},
    HF_PARAMETERS,
    known=(POSITION_IDS,),
)
BRIDGES = (LAVIS_OPT, LAVIS_LLM, HF_BRIDGE)


def combine_name_maps(bridge, llm):
    """The source of a file that holds a bridge and the language model behind it."""
    return dataclasses.replace(
        bridge,
        modules={**bridge.modules, **llm.modules},
        tied={**bridge.tied, **llm.tied},
        known=(*bridge.known, *llm.known),
        llm=llm.llm,
    )


def with_tied_head(llm):
    """The source of a Llama whose head is its word embedding (tie_word_embeddings), for files that have it
    once."""
    return dataclasses.replace(
        llm, copies={"llm.lm_head": ("llm.word", "the head is the word embedding (tie_word_embeddings)")}
    )
