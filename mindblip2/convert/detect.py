"""Which kind of file this is, by the names in it, and what is not built here."""

import re

from mindblip2.checkpoint.ckpt import CheckpointError
from mindblip2.convert.hf_config import check_supported
from mindblip2.convert.name_maps.blip2 import BERT, EVA, HF, LAVIS
from mindblip2.convert.name_maps.language_models import BRIDGES, HF_BRIDGE, LANGUAGE_MODELS, combine_name_maps
from mindblip2.convert.readers.lazy_state_dict import LazyStateDict, shape_of

QFORMER_TEXT_NAMES = (
    r"(Qformer\.bert|qformer)\.(embeddings\.word_embeddings\.|encoder\.layer\.\d+\.intermediate\.)"
)
# Names that tell a model or a format that is not built here: regular expression, and what the file is and
# what to do.
UNSUPPORTED_NAMES = (
    (
        r"\.(SCB|weight_format)$",
        "quantised to int8 by bitsandbytes: take the original model, or load it with transformers, call "
        "dequantize() and save_pretrained",
    ),
    (
        r"\.(absmax|quant_map|nested_absmax|quant_state\.\w+)$",
        "quantised to 4 bits by bitsandbytes: take the original model, or load it "
        "with transformers, call dequantize() and save_pretrained",
    ),
    (r"\.(qweight|qzeros)$", "quantised (GPTQ or AWQ): take the original model"),
    (
        r"\.lora_(A|B|embedding_A|embedding_B)\b",
        "a PEFT adapter (LoRA), not a model: load it on its base with peft, call "
        "merge_and_unload(), save_pretrained, and convert that folder",
    ),
    (
        r"^(blip\.)?(text_encoder|text_decoder)\.",
        "BLIP-1 (or ALBEF), another model than BLIP-2, which is not built here: take a BLIP-2, "
        "such as blip2_pretrained.pth",
    ),
    (
        r"(^|\.)(t5_proj|t5_model)\.|(^|language_model\.)encoder\.block\.|(^|language_model\.)decoder\.block\.",
        "a T5 or leads into FlanT5, which is not built here: take an OPT or a Vicuna file of stage 2",
    ),
    (
        r"\.project_in\.",
        "OPT-350m, the one OPT with projected words (project_in) and norms behind its layers: it is not "
        "built here, and no "
        "bridge leads into it.  Take opt-2.7b or opt-6.7b",
    ),
    (
        r"(^|\.)gpt_neox\.",
        "GPT-NeoX (Pythia, Dolly, …), which is not built here: take a Llama, Vicuna, Baichuan or OPT",
    ),
    (
        r"(^|\.)transformer\.h\.\d+\.",
        "GPT-2, GPT-J, Falcon or Bloom, which are not built here: take a Llama, Vicuna, Baichuan or OPT",
    ),
    (
        r"^(language_model\.)?model\.layers\.0\.(mlp\.(fc1|gate_up_proj)|self_attn\.(dense|qkv_proj))\.",
        "Phi, which is not built here: take a Llama, Vicuna, Baichuan or OPT",
    ),
)
BARE = (
    r"^(layers\.\d+\.(self_attn|mlp|input_layernorm|post_attention_layernorm)\.|embed_tokens\.|norm\.weight$)"
)
# of DistributedDataParallel, torch.compile, PEFT, Lightning
PREFIXES = ("module.", "_orig_mod.", "base_model.model.", "model.")


class PrefixStrippedStateDict(LazyStateDict):
    """A file all of whose names begin with a ``prefix`` that a wrapper put there, without it."""

    def __init__(self, state, prefix):
        self._state, self._prefix, self.names = (
            state,
            prefix,
            {name.removeprefix(prefix): None for name in state},
        )
        self.remarks = [
            *getattr(state, "remarks", ()),
            f"all names begin with {prefix!r}, which a wrapper put there: it is left out",
        ]

    def __getitem__(self, name):
        return self._state[self._prefix + name]

    def shape(self, name):
        return shape_of(self._state, self._prefix + name)

    def path_of(self, name):
        return self._state.path_of(self._prefix + name)


def strip_wrapper_prefixes(state):
    """``state``, without prefixes of wrappers that all of its names begin with, where nothing is known by its
    names as they are."""
    while _kind(state) is None:
        prefix = next(
            (one for one in PREFIXES if state and all(name.startswith(one) for name in state)), None
        )
        if prefix is None:
            break
        state = PrefixStrippedStateDict(state, prefix)
    return state


def detect(state, path):
    """The :class:`~mindblip2.convert.name_maps.blip2.NameMap` of a file; of a bridge with the language model
    behind it in the same file, both in one."""
    kind = _kind(state)
    bridge = kind if kind in BRIDGES else None
    if bridge and any(re.match(QFORMER_TEXT_NAMES, name) for name in state):
        raise CheckpointError(
            f"{path} is InstructBLIP: a bridge whose Q-Former reads the instruction (it has a text half).  "
            "It is not "
            "built here, and without that half it would be another model: take blip2_pretrained_vicuna7b.pth "
            "or "
            "blip2_pretrained_opt2.7b.pth"
        )
    for pattern, what in UNSUPPORTED_NAMES:
        found = next((name for name in state if re.search(pattern, name)), None)
        if found:
            raise CheckpointError(f"{path} is {what} (it holds {found})")
    llm = next((one for one in LANGUAGE_MODELS if _has(state, one.mark)), None)
    if kind is None and all(re.match(BARE, name) or name.endswith("inv_freq") for name in state):
        raise CheckpointError(
            f"{path} is a bare LlamaModel, without its head (lm_head): load it with transformers' "
            "LlamaForCausalLM, "
            "save_pretrained, and convert that folder"
        )
    # LAVIS's files are in no folder of Hugging Face
    if kind in (None, HF, HF_BRIDGE) or kind is llm and not is_converted(kind):
        check_supported(path)
    if bridge and llm:
        _check_family(bridge, llm.llm, path, path)
        return combine_name_maps(bridge, llm)
    if kind:
        return kind
    raise CheckpointError(
        f"{path} is none of the files that can be converted (LAVIS stage 1 or 2, eva_vit_g, "
        "bert-base-uncased, "
        "transformers blip2-itm or blip2-opt, MindFormers stage 1, Llama, Baichuan, OPT): its names begin "
        "with "
        f"{', '.join(sorted(state)[:3])}"
    )


def _kind(state):
    """The first of the known kinds whose mark is in the file, or None."""
    return next(
        (kind for kind in (*BRIDGES, LAVIS, HF, EVA, BERT, *LANGUAGE_MODELS) if _has(state, kind.mark)), None
    )


def is_converted(kind):
    """Is it a .ckpt that was converted before?"""
    return kind.modules.get("llm.word") == "llm.word"


def is_bridge(kind):
    """Does the file hold a Q-Former and a projection into a language model?"""
    return "llm_proj" in kind.modules


def is_language_model(kind):
    """Is the file a language model alone?"""
    return "llm.word" in kind.modules and not is_bridge(kind)


def has_vit(state):
    """Does the file hold the ViT?  LAVIS saves it where it was trained."""
    return _has(state, "visual_encoder.", "vision_model.encoder.")


def check_bridge(bridge, width, text_config, path, other):
    """A bridge leads into the language model that it was trained with: the kind and the width of ``other``
    are checked."""
    _check_family(bridge, type(text_config), path, other)
    if width != text_config.hidden_size:
        raise CheckpointError(
            f"{path} leads into a language model {width} wide ({_named(width, bridge.llm)}), but {other} is "
            f"{text_config.hidden_size} wide ({_named(text_config.hidden_size, type(text_config))}): a "
            "bridge "
            "fits only the model that it was trained with"
        )


def _check_family(bridge, llm, path, other):
    if bridge.llm not in (None, llm):
        raise CheckpointError(
            f"{path} is a bridge into {_family(bridge.llm)} ({bridge.modules['llm_proj']}), but {other} is "
            f"{_family(llm)}: a bridge fits only the model that it was trained with"
        )


def _family(llm):
    return llm.__name__.removesuffix("Config")


def _named(width, llm):
    widths = {
        2560: {"OPT": "OPT-2.7b"},
        4096: {"OPT": "OPT-6.7b", "Llama": "a 7B"},
        5120: {"OPT": "OPT-13b", "Llama": "a 13B"},
    }
    family = _family(llm) if llm else ""
    known = widths.get(width, {})
    return known.get(family) or " or ".join(known.values()) or "no published size"


def _has(state, *starts):
    return any(name.startswith(starts) for name in state)
