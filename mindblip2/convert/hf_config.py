"""What the JSON files in a folder of weights say and no shape does: Hugging Face's config.json and
generation_config.json, Meta's params.json."""

import math
from pathlib import Path
from typing import NamedTuple

from mindblip2.checkpoint.ckpt import CheckpointError
from mindblip2.config import LlamaConfig, OPTConfig, QFormerConfig, ViTConfig
from mindblip2.file_io import read_json

MODEL_TYPES = {LlamaConfig: ("llama", "baichuan"), OPTConfig: ("opt",)}
BLIP2 = ("blip-2", "blip_2", "blip-2_model")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MAX_BYTES = 16 << 20
# two names of the exact one; gelu_new, gelu_fast and others are approximations
GELU = ("gelu", "gelu_python")
# What is not built here, by the model_type of config.json, and what to do.
UNSUPPORTED_MODEL_TYPES = {
    "instructblip": "InstructBLIP, whose Q-Former reads the instruction: it is not built here, and without that half it would be another "
    "model.  Take Salesforce/blip2-opt-2.7b, or LAVIS's blip2_pretrained_vicuna7b.pth",
    "instructblipvideo": "InstructBLIP for videos, which is not built here: take Salesforce/blip2-opt-2.7b",
    "blip": (
        "BLIP-1, another model than BLIP-2, which is not built here: take a BLIP-2, such as "
        "Salesforce/blip2-itm-vit-g"
    ),
    "t5": "T5, whose bridge (FlanT5) is not built here: take an OPT or a Vicuna of stage 2",
    "mistral": "Mistral, whose layers have Llama's names but whose attention sees a window only: it is not built here.  Take a Llama or "
    "Vicuna",
    "phi": "Phi, which is not built here: take a Llama, Vicuna, Baichuan or OPT",
    "phi3": "Phi-3, which is not built here: take a Llama, Vicuna, Baichuan or OPT",
    "gpt_neox": "GPT-NeoX (Pythia, Dolly, …), which is not built here: take a Llama, Vicuna, Baichuan or OPT",
    "qwen2": "Qwen, which is not built here: take a Llama, Vicuna, Baichuan or OPT",
    "gemma": "Gemma, which is not built here: take a Llama, Vicuna, Baichuan or OPT",
}
VISION = {
    "num_attention_heads": "num_attention_heads",
    "layer_norm_eps": "layer_norm_eps",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "intermediate_size": "intermediate_size",
}
QFORMER = {
    "num_attention_heads": "num_attention_heads",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "intermediate_size": "intermediate_size",
    "cross_attention_frequency": "cross_attention_freq",
}
# transformers', where a config.json leaves them out
OPT_IDS = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
# of transformers' vision_model.post_layernorm, which is ln_vision: that of vision_config
HF_LAYER_NORM_EPS = 1e-6


class HfFolderConfig(NamedTuple):
    """What the files say.  ``sections``: name of our section ("" for the model itself) → {key: value};
    ``tied``: the head of the language model is its word embedding; ``remarks`` for the table; ``path`` of the
    config.json, or None where there is none."""

    sections: dict
    tied: bool = False
    remarks: tuple = ()
    path: Path | None = None

    def text(self):
        return dict(self.sections.get("text_config", {}))


def read_hf_config(path, llm, bert=False) -> HfFolderConfig:
    """What stands in the folder of weights.  ``llm``: LlamaConfig or OPTConfig where they hold a language
    model, else None; ``bert``: they are a BERT alone.  Raises :class:`CheckpointError` where it describes a
    model that is not built here, or no model."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if (folder / "config.json").is_file():
        return _from_transformers(JsonSection(folder / "config.json"), llm, bert)
    if (folder / "params.json").is_file() and llm is LlamaConfig:
        return _from_meta(JsonSection(folder / "params.json"))
    return HfFolderConfig({})


def check_supported(path):
    """Raises :class:`CheckpointError` where the config.json beside weights names a model that is not built
    here, by its name, or says that the weights are quantised."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        base = JsonSection(folder / "adapter_config.json").values.get("base_model_name_or_path")
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: this folder is a PEFT adapter (LoRA) for {base!r}, not a "
            "model: load it "
            "on its base with peft, call merge_and_unload(), save_pretrained, and convert that folder"
        )
    if not (folder / "config.json").is_file():
        return
    config = JsonSection(folder / "config.json")
    for one in (config, config.section("text_config")):
        if "quantization_config" in one.values:
            method = one.section("quantization_config").values.get("quant_method", "bitsandbytes")
            raise CheckpointError(
                f"{config.path} says quantization_config, quant_method = {method!r}: quantised weights are "
                "not read "
                "here; take the original model, or load it with transformers, call dequantize() and "
                "save_pretrained"
            )
        kind = one.get("model_type", str)
        if kind in UNSUPPORTED_MODEL_TYPES:
            raise CheckpointError(
                f"{one.name} says model_type {kind!r}: this is {UNSUPPORTED_MODEL_TYPES[kind]}"
            )


class JsonSection:
    """A mapping of a JSON file whose values are asked for by type; every error names the file and the key."""

    def __init__(self, path, values=None, prefix=""):
        self.path, self.prefix = Path(path), prefix
        self.values = (
            read_json(path, dict, "a model's configuration", max_bytes=MAX_BYTES)
            if values is None
            else values
        )
        self.name = f"{path} ({prefix[:-1]})" if prefix else str(path)

    def section(self, key):
        """The mapping under ``key``, empty where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            self.wrong(key, "a mapping {…}")
        return JsonSection(self.path, value or {}, f"{self.prefix}{key}.")

    def get(self, key, kind, default=None):
        """The value under ``key``, or ``default`` where there is none: an int of at least 0, a positive
        finite float, a bool, a str."""
        value = self.values.get(key)
        if value is None:
            return default
        if kind is float and type(value) in (int, float) and math.isfinite(value) and value > 0:
            return float(value)
        if type(value) is not kind or kind is int and not 0 <= value < 2**40:
            self.wrong(
                key,
                {
                    int: "a whole number of at least 0",
                    float: "a number above 0",
                    bool: "true or false",
                    str: "a text",
                }[kind],
            )
        return value

    def expect(self, **expected):
        """Only one value of these keys is built here."""
        for key, allowed in expected.items():
            allowed = allowed if isinstance(allowed, tuple) else (allowed,)
            value = self.values.get(key)
            if value is not None and not any(type(value) is type(one) and value == one for one in allowed):
                raise CheckpointError(
                    f"{self.path} says {self.prefix}{key} = {value!r:.100}; only {allowed[0]!r} is built here"
                )

    def wrong(self, key, expected):
        raise CheckpointError(
            f"{self.path}: {self.prefix}{key} = {self.values.get(key)!r:.100}, expected {expected}; correct "
            "the file, "
            "or get it again"
        )


def _from_transformers(config, llm, bert):
    kind, remarks, sections = config.get("model_type", str), [], {}
    text, image = config, None
    if kind in BLIP2:
        image = _id(config, "image_token_index" if "image_token_index" in config.values else "image_token_id")
        if image is not None:
            remarks.append(
                f"the image token of transformers, {image}, is text_config.image_token_id: the queries are "
                "put in its place "
                "directly, and generation with a penalty on repetition or n-grams counts it"
            )
        sections = _parts(config)
        text = config.section("text_config")
        if llm and not text.values:
            text = None
    elif bert:
        if kind not in (None, "bert"):
            raise CheckpointError(
                f"{config.path} says model_type {kind!r}, but the weights beside it look like bert"
            )
        config.expect(hidden_act=GELU, position_embedding_type="absolute")
        return HfFolderConfig(
            {
                "qformer_config": _picked(
                    config, {"num_attention_heads": "num_attention_heads", "layer_norm_eps": "layer_norm_eps"}
                )
            },
            path=config.path,
        )
    if llm is None or text is None:
        return HfFolderConfig(sections, False, tuple(remarks), config.path)
    kind = text.get("model_type", str)
    if kind not in MODEL_TYPES[llm]:
        raise CheckpointError(
            f"{text.path} says {text.prefix}model_type {kind!r}, but the weights beside it look like "
            f"{' or '.join(MODEL_TYPES[llm])}: models of other types are not built here, even where the "
            "names agree"
        )
    fields = {
        "num_heads": text.get("num_attention_heads", int),
        **(_llama if llm is LlamaConfig else _opt)(text),
    }
    sections["text_config"] = _known({**fields, **_ids(text, config), "image_token_id": image})
    return HfFolderConfig(sections, bool(text.get("tie_word_embeddings", bool)), tuple(remarks), config.path)


def _parts(config):
    """Fields of ViT, Q-Former and the model itself, of transformers' BLIP-2.  What a file leaves out is
    transformers' default, which is the same as ours where no shape tells it."""
    vision, qformer = config.section("vision_config"), config.section("qformer_config")
    vision.expect(hidden_act=GELU, qkv_bias=True)
    qformer.expect(hidden_act=GELU, position_embedding_type="absolute")
    for key in ("image_size", "patch_size"):
        value = vision.values.get(key)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            vision.values[key] = value[0]
    default = {"num_attention_heads": ViTConfig().num_attention_heads, "layer_norm_eps": HF_LAYER_NORM_EPS}
    default_q = {
        "num_attention_heads": QFormerConfig().num_attention_heads,
        "layer_norm_eps": QFormerConfig().layer_norm_eps,
    }
    vision_fields = {**default, **_picked(vision, VISION)}
    queries = config.get("num_query_tokens", int)
    return {
        "vision_config": vision_fields,
        "qformer_config": {
            **default_q,
            **_picked(qformer, QFORMER),
            **({"query_length": queries} if queries else {}),
        },
        "": {"ln_vision_eps": vision_fields["layer_norm_eps"]},
    }


def _picked(section, keys):
    found = {
        ours: section.get(theirs, float if theirs.endswith("eps") else int) for theirs, ours in keys.items()
    }
    return {key: value for key, value in found.items() if value is not None}


def _ids(text, config):
    """Special tokens as transformers resolves them: of a language model generation_config.json comes before
    config.json; its BLIP-2 generates by the language model's own configuration, text_config."""
    default = OPT_IDS if text.values.get("model_type") == "opt" else {}
    ids = {key: _id(text, key) if key in text.values else default.get(key) for key in IDS}
    file = config.path.with_name("generation_config.json")
    if text is config and file.is_file():
        generation = JsonSection(file)
        ids |= {key: value for key in IDS if (value := _id(generation, key)) is not None}
    return ids


def _id(section, key):
    """An id, a tuple of several for eos, or None where there is none (null, or -1)."""
    value = section.values.get(key)
    several = value if isinstance(value, list) and key == "eos_token_id" else [value]
    if not all(one is None or type(one) is int and -(2**40) < one < 2**40 for one in several):
        section.wrong(key, "a token id" + (" or a list of them" if key == "eos_token_id" else ""))
    several = tuple(dict.fromkeys(one for one in several if one is not None and one >= 0))
    return several if several[1:] else several[0] if several else None


def _llama(config):
    config.expect(hidden_act="silu", attention_bias=False, mlp_bias=False)
    rope, scaling = config.section("rope_parameters"), config.section("rope_scaling")
    scaling = scaling.values or {key: value for key, value in rope.values.items() if key != "rope_theta"}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if not isinstance(kind, str):
        config.wrong(
            "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters",
            "a mapping with rope_type, a text",
        )
    width, heads, head = (config.get(key, int) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    if head and width and heads and head * heads != width:
        raise CheckpointError(
            f"{config.path} says {config.prefix}head_dim = {head}; only hidden_size / num_attention_heads = "
            f"{width / heads:g} is built here"
        )
    baichuan = {"position_embedding": "rope" if "max_position_embeddings" in config.values else "alibi"}
    return {
        "n_kv_heads": config.get("num_key_value_heads", int),
        "rms_norm_eps": config.get("rms_norm_eps", float),
        "rope_theta": rope.get("rope_theta", float, config.get("rope_theta", float)),
        "rope_scaling": None if kind == "default" else scaling,
        **(baichuan if config.values["model_type"] == "baichuan" else {}),
    }


def _opt(config):
    config.expect(
        activation_function="relu",
        do_layer_norm_before=True,
        enable_bias=True,
        layer_norm_elementwise_affine=True,
        _remove_final_layer_norm=False,
    )
    return {}


def _from_meta(params):
    remarks = []
    if params.values.get("use_scaled_rope"):
        remarks.append(
            "params.json says use_scaled_rope, whose factors are in no file of Meta: copy "
            "text_config.rope_scaling "
            "from the config.json of the same model on Hugging Face"
        )
    fields = {
        "num_heads": params.get("n_heads", int),
        "n_kv_heads": params.get("n_kv_heads", int),
        "rms_norm_eps": params.get("norm_eps", float),
        "rope_theta": params.get("rope_theta", float),
    }
    return HfFolderConfig({"text_config": _known(fields)}, False, tuple(remarks), params.path)


def _known(fields):
    if fields.get("n_kv_heads") == fields["num_heads"]:  # then ours is None
        fields["n_kv_heads"] = None
    return {key: value for key, value in fields.items() if value is not None}
