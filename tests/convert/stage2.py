"""Small language models of transformers with weights that tell things apart, and our cells filled from a
converted file."""

import json
import re

import mindspore as ms
import numpy as np
import torch
import transformers
import yaml

from mindblip2.config import Blip2Config, LlamaConfig
from mindblip2.models.layers import LayerNorm, Linear
from mindblip2.models.llama import Llama
from mindblip2.models.opt import OPT
from mindblip2.models.qformer import QFormer
from mindblip2.models.vit import ViT

LLAMA = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
}
# What a config.json says of it that no shape does.
SAID = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
OPT_SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 60,
}


def sharpened(model, seed=0):
    """Random weights with biases and norms away from 0 and 1, and attention that is no mean."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            sharp = 4 if re.search(r"q_proj|k_proj|query|key", name) else 1.2
            scale = sharp / value[0].numel() ** 0.5 if value.ndim > 1 else 0.2
            value.copy_(
                torch.randn(value.shape) * scale
                + (value.ndim == 1 and "norm" in name.lower() and "weight" in name)
            )
    return model.eval()


def llama(**changes):
    return sharpened(transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **changes})))


def opt(**changes):
    return sharpened(transformers.OPTForCausalLM(transformers.OPTConfig(**{**OPT_SIZES, **changes})))


def printed_text_config(text):
    """The section that the command prints for the user's YAML, read as the user's YAML would be."""
    return Blip2Config(text_config=printed(text)).text_config


def printed(text):
    line = next(line for line in text.splitlines() if line.startswith("note:    text_config: "))
    return yaml.safe_load(line.removeprefix("note:    "))["text_config"]


def filled(cell, stored, prefix=""):
    """A cell with the parameters of a checkpoint below ``prefix``: all of both."""
    names = {name.removeprefix(prefix) for name in stored if name.startswith(prefix)}
    parameters = cell.parameters_dict()
    assert names == set(parameters)
    for name, parameter in parameters.items():
        value = stored.float32(prefix + name)
        assert value.shape == tuple(parameter.shape), name
        parameter.set_data(ms.Tensor(value))
    return cell.set_train(False)


def language_model(stored, config):
    return filled((Llama if isinstance(config, LlamaConfig) else OPT)(config), stored, "llm.")


def logits(llm, ids, mask):
    """Of our cell, at the tokens."""
    hidden = llm(llm.embed(ms.Tensor(ids.astype(np.int32))), ms.Tensor(mask.astype(np.float32)))
    return llm.head(hidden).asnumpy()[mask.astype(bool)]


def their_logits(model, ids, mask):
    """Of transformers, at the tokens; positions count tokens, as in its generate()."""
    ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
    positions = (
        {} if model.config.model_type == "opt" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    )
    with torch.no_grad():
        return (
            model(input_ids=ids, attention_mask=mask, **positions)
            .logits.float()
            .numpy()[mask.numpy().astype(bool)]
        )


def prompts(vocab):
    """Three texts of unequal length, padded on the left."""
    random = np.random.default_rng(3)
    ids = random.integers(3, vocab, (3, 9))
    mask = np.ones_like(ids)
    mask[1, :4] = mask[2, :1] = 0
    return ids, mask


def packed(state):
    """A Llama with as many heads of keys as of queries, as Baichuan names it."""
    packs = {
        name.replace("q_proj", "W_pack"): torch.cat(
            [state[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
        )
        for name in state
        if "q_proj" in name
    }
    return {name: value for name, value in state.items() if not re.search("[qkv]_proj", name)} | packs


META_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "lm_head": "output",
    "model.": "",
}


def meta(state, heads):
    """A Llama as Meta names it, its rotary pairs side by side; ``heads`` of queries, so many rows each."""
    width, found = state["model.norm.weight"].shape[0] // heads, {}
    for name, value in state.items():
        if re.search("[qk]_proj", name):
            halves = value.unflatten(0, (-1, 2, width // 2))  # head, half, pair
            value = torch.stack((halves[:, 0], halves[:, 1]), 2).flatten(0, 2)
        for theirs, metas in META_NAMES.items():
            name = name.replace(theirs, metas)
        found[name] = value
    return found


def save(state, folder, beside="config.json", parts=1, file="pytorch_model.bin", **said):
    """A folder with a torch file, or so many shards with their index, and a JSON file beside it where
    something is ``said``."""
    folder.mkdir(exist_ok=True)
    names = list(state)
    if parts == 1:
        torch.save(dict(state), folder / file)
    else:
        cut, index = -(-len(names) // parts), {}
        for part in range(parts):
            own, shard = (
                names[part * cut : (part + 1) * cut],
                f"pytorch_model-{part + 1:05d}-of-{parts:05d}.bin",
            )
            torch.save({name: state[name].clone() for name in own}, folder / shard)
            index |= dict.fromkeys(own, shard)
        (folder / "pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index})
        )
    if said:
        (folder / beside).write_text(json.dumps(said))
    return folder


def write_config(folder, text_config, **more):
    """A YAML file whose model has this language model."""
    section = None if text_config is None else text_config.to_dict()
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {"model_config": {"text_config": section, **more}}}))
    return path


def queries(stored, config, image):
    """What the cells of a converted stage 2 hand to the language model: (B, Q, width of the language
    model)."""
    vision, qformer = config.vision_config, config.qformer_config
    vit = filled(ViT(vision), stored, "vit.")
    norm = filled(LayerNorm(vision.hidden_size, config.ln_vision_eps), stored, "ln_vision.")
    seer = filled(QFormer(qformer, text=False), stored, "qformer.")
    projection = filled(
        Linear(qformer.hidden_size, stored.shapes["llm_proj.bias"][0], "float32"), stored, "llm_proj."
    )
    memory = seer.memory(norm(vit(ms.Tensor(image))))
    return projection(seer.see(memory)[0])
