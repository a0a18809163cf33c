"""What the shapes of a language model do not tell and the config.json, or Meta's params.json, beside its weights does."""
import json
from pathlib import Path

from mindblip2.checkpoint import CheckpointError
from mindblip2.config import LlamaConfig, OPTConfig

MODEL_TYPES = {LlamaConfig: ("llama", "baichuan"), OPTConfig: ("opt",)}
WITHIN = ("blip-2", "instructblip")  # their language model is the section text_config
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def beside(path, llm):
    """(fields of the section ``llm``, LlamaConfig or OPTConfig; whether the head is the word embedding; remarks); all empty where
    no file is there.  Raises :class:`CheckpointError` where it describes another model."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if (folder / "config.json").is_file():
        return _from_transformers(_json(folder / "config.json"), folder / "config.json", llm)
    if (folder / "params.json").is_file() and llm is LlamaConfig:
        return _from_meta(_json(folder / "params.json"))
    return {}, False, []


def _from_transformers(config, path, llm):
    remarks = []
    image = config.get("image_token_index", config.get("image_token_id"))
    if config.get("model_type") in WITHIN:
        config = config.get("text_config") or {}
        if image is not None:
            remarks.append(f"the image token of transformers, {image}, is not used here: the queries are put in its place directly")
    kind = config.get("model_type")
    if kind not in MODEL_TYPES[llm]:
        raise CheckpointError(f"{path} says model_type {kind!r}, but the weights beside it look like "
                              f"{' or '.join(MODEL_TYPES[llm])}: models of other types are not built here, even where the names "
                              "agree")
    fields = {"num_heads": config.get("num_attention_heads"), **(_llama if llm is LlamaConfig else _opt)(config, path)}
    return _known(fields), bool(config.get("tie_word_embeddings")), remarks


def _llama(config, path):
    _check(path, config, hidden_act="silu", attention_bias=False, mlp_bias=False)
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {key: value for key, value in rope.items() if key != "rope_theta"}
    ids = {key: config.get(key) for key in IDS}
    ids = {key: value[0] if isinstance(value, list) and value else value for key, value in ids.items()}  # Llama-3 has several
    baichuan = {"position_embedding": "rope" if "max_position_embeddings" in config else "alibi"}
    return {"n_kv_heads": config.get("num_key_value_heads"), "rms_norm_eps": config.get("rms_norm_eps"),
            "rope_theta": rope.get("rope_theta", config.get("rope_theta")),
            "rope_scaling": None if scaling.get("rope_type", scaling.get("type", "default")) == "default" else scaling,
            **(baichuan if config["model_type"] == "baichuan" else {}),
            **{key: value for key, value in ids.items() if isinstance(value, int) and value >= 0}}


def _opt(config, path):
    _check(path, config, activation_function="relu", do_layer_norm_before=True, enable_bias=True,
           layer_norm_elementwise_affine=True)
    return {}


def _from_meta(params):
    remarks = []
    if params.get("use_scaled_rope"):
        remarks.append("params.json says use_scaled_rope, whose factors are in no file of Meta: copy text_config.rope_scaling "
                       "from the config.json of the same model on Hugging Face")
    fields = {"num_heads": params.get("n_heads"), "n_kv_heads": params.get("n_kv_heads"), "rms_norm_eps": params.get("norm_eps"),
              "rope_theta": params.get("rope_theta")}
    return _known(fields), False, remarks


def _known(fields):
    if fields.get("n_kv_heads") == fields["num_heads"]:     # then ours is None
        fields["n_kv_heads"] = None
    return {key: value for key, value in fields.items() if value is not None}


def _check(path, config, **expected):
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{path} says {key} = {config[key]!r}; only {value!r} is built here")


def _json(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no mapping, but a {type(found).__name__}")
    return found
