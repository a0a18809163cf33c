"""The files of stage 2 as they are published, with random weights: LAVIS's bridges, EVA's ViT, language
models, transformers' BLIP-2.

Names, shapes, formats and types are the public ones as far as they are known without a download: LAVIS's
bridge is float32 and holds 260 tensors, no ViT and no language model; eva_vit_g.pth has 40 blocks in float16;
OPT-2.7B and Vicuna-7B are float16 in torch files; Salesforce/blip2-opt-2.7b is float32 in safetensors, its
vocabulary padded to 50304.  Models are cut into shards of SHARD bytes.

The tokenizers have the published number of words and the ids that matter, but are trained on a few lines:
nearly all of their words are placeholders.
"""

import json
import math
import struct
from pathlib import Path

SHARD = 3_000_000_000
LINES = [
    "a photo of a temple with a curved roof",
    "a large red flower",
    "what is in the picture? a temple",
    "a photo of a flower",
] * 8
TEXT_HALF = (".intermediate.", ".output.dense", ".output.LayerNorm")
SEES = (
    "Qformer.bert.encoder.",
    "query_tokens",
    "ln_vision.",
    "Qformer.bert.embeddings.LayerNorm",
    "Qformer.bert.embeddings.position_ids",
)
SMALL = {
    "vision_config": {
        "image_size": 56,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    },
    "qformer_config": {
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "encoder_width": 32,
    },
    "text_config": {"hidden_size": 64, "num_heads": 4, "intermediate_size": 176},
}


def make(source, folder, config):
    """The files of a source below ``folder``: "opt_lavis", "vicuna" (bridge.pth, eva_vit_g.pth, llm/) or
    "opt_hf" (blip2/)."""
    import torch

    torch.manual_seed(0)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if source == "opt_hf":
        return transformers_blip2(folder / "blip2", config)
    bridge(folder / "bridge.pth", config, "opt_proj" if source == "opt_lavis" else "llm_proj")
    vit(folder / "eva_vit_g.pth", config)
    language_model(folder / "llm", config.text_config)


def bridge(path, config, projection):
    """As blip2_pretrained_opt2.7b.pth and blip2_pretrained_vicuna7b.pth."""
    import torch

    shapes = {
        name: shape
        for name, shape in lavis_shapes(config).items()
        if name.startswith(SEES) and not (any(part in name for part in TEXT_HALF) and "attention" not in name)
    }
    wide, width = config.text_config.hidden_size, config.qformer_config.hidden_size
    shapes |= {f"{projection}.weight": (wide, width), f"{projection}.bias": (wide,)}
    torch.save({"model": {name: value(name, shape) for name, shape in shapes.items()}}, path)


def vit(path, config):
    """As eva_vit_g.pth: a block more than is used, the final norm and the classifier."""
    import torch

    blocks = config.vision_config.num_hidden_layers + 1
    more = config.replace(vision_config={"num_hidden_layers": blocks})
    shapes = {
        name.removeprefix("visual_encoder."): shape
        for name, shape in lavis_shapes(more).items()
        if name.startswith("visual_encoder.")
    }
    width = config.vision_config.hidden_size
    shapes |= {
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (1024, width),
        "head.bias": (1024,),
    }
    torch.save({name: value(name, shape).half() for name, shape in shapes.items()}, path)


def language_model(folder, config):
    """As the folders of OPT-2.7B and Vicuna-7B on Hugging Face: shards of torch's format in float16."""
    import torch
    import transformers

    from mindblip2.parity.reference.language_model import llama_config, opt_config

    opt = config.type == "OPTConfig"
    theirs = (opt_config if opt else llama_config)(config)
    shapes = on_meta(lambda: transformers.AutoModelForCausalLM.from_config(theirs))
    if opt:
        # the word embedding
        shapes = {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}
    else:  # a buffer that the transformers of that time saved
        shapes |= {
            f"model.layers.{i}.self_attn.rotary_emb.inv_freq": (config.hidden_size // config.num_heads // 2,)
            for i in range(config.num_layers)
        }
    theirs.save_pretrained(folder)
    write_shards(
        folder, shapes, "pytorch_model", ".bin", lambda name, shape: value(name, shape).half(), torch.save, 2
    )


def transformers_blip2(folder, config):
    """As Salesforce/blip2-opt-2.7b: shards of safetensors in float32."""
    import transformers
    from safetensors.torch import save_file

    from mindblip2.parity.reference.language_model import opt_config

    vision, qformer = config.vision_config, config.qformer_config
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    theirs = transformers.Blip2Config(
        vision_config={
            **{key: getattr(vision, key) for key in sizes},
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        qformer_config={
            **{key: getattr(qformer, key) for key in sizes},
            "encoder_hidden_size": vision.hidden_size,
            "cross_attention_frequency": qformer.cross_attention_freq,
        },
        text_config=opt_config(config.text_config.replace(vocab_size=50304)).to_dict(),
        num_query_tokens=qformer.query_length,
        image_token_index=50265,
    )
    shapes = on_meta(lambda: transformers.Blip2ForConditionalGeneration(theirs))
    shapes.pop("language_model.lm_head.weight", None)  # tied
    theirs.save_pretrained(folder)
    write_shards(
        folder,
        shapes,
        "model",
        ".safetensors",
        value,
        lambda tensors, path: save_file(tensors, path, {"format": "pt"}),
        4,
    )


def write_shards(folder, shapes, stem, end, made, save, size):
    """Shards and their index; one shard is held at a time.  ``size``: bytes of a number."""
    numbers = {name: size * math.prod(shape) for name, shape in shapes.items()}
    most = min(SHARD, sum(numbers.values()) // 2 + 1)  # at least two, in a small try too
    parts, filled = [[]], 0
    for name in shapes:
        if parts[-1] and filled + numbers[name] > most:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += numbers[name]
    index = {}
    for number, names in enumerate(parts, 1):
        file = f"{stem}-{number:05d}-of-{len(parts):05d}{end}"
        save({name: made(name, shapes[name]) for name in names}, folder / file)
        index |= dict.fromkeys(names, file)
    (folder / f"{stem}{end}.index.json").write_text(
        json.dumps({"metadata": {"total_size": sum(numbers.values())}, "weight_map": index})
    )


def lavis_shapes(config):
    """Of the whole stage 1 under LAVIS's names, from the torch twin."""
    from mindblip2.parity.reference.config import ReferenceConfig
    from mindblip2.parity.reference.model import ReferenceModel

    vision, qformer = config.vision_config, config.qformer_config
    sizes = ReferenceConfig(
        image_size=vision.image_size,
        patch=vision.patch_size,
        vit_width=vision.hidden_size,
        vit_depth=vision.num_hidden_layers,
        vit_heads=vision.num_attention_heads,
        vit_hidden=vision.intermediate_size,
        width=qformer.hidden_size,
        layers=qformer.num_hidden_layers,
        heads=qformer.num_attention_heads,
        ffn=qformer.intermediate_size,
        cross_attention_freq=qformer.cross_attention_freq,
        queries=qformer.query_length,
    )
    return on_meta(lambda: ReferenceModel(sizes))


def on_meta(model):
    """{name: shape} of a model that is never filled."""
    import torch

    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in model().state_dict().items()}


def value(name, shape):
    """A random tensor: matrices around 0, the weights of norms around 1."""
    import torch

    if name.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape).contiguous()
    norm = len(shape) == 1 and name.endswith("weight")
    return torch.empty(shape).normal_(1.0 if norm else 0.0, 0.02)


# ------------------------------------------------------------------------------------------------ tokenizers
def opt_tokenizer(folder, words=50265, line_end=50118):
    """vocab.json and merges.txt of a byte-level BPE with OPT's special tokens and its id of a line's end."""
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        LINES, vocab_size=320, min_frequency=2, special_tokens=["<s>", "<pad>", "</s>", "<unk>"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save_model(str(folder))
    learnt = made.get_vocab()
    tokens = sorted((token for token in learnt if token != "Ċ"), key=learnt.get)
    ids = {token: i for i, token in enumerate(tokens)} | {"Ċ": line_end}
    ids |= {f"placeholder{i}": i for i in set(range(words)) - set(ids.values())}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")


def vicuna_tokenizer(path, words=32000):
    """A sentencepiece model with byte pieces and Llama's first ids: <unk> 0, <s> 1, </s> 2."""
    import sentencepiece

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES),
            model_writer=file,
            vocab_size=300,
            model_type="bpe",
            byte_fallback=True,
            minloglevel=2,
        )
    known = len(sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes()))
    with open(path, "ab") as file:  # in a protobuf message more pieces may follow its end
        for i in range(known, words):
            token = f"placeholder{i}".encode()
            # 5: never chosen
            piece = (
                b"\x0a" + bytes([len(token)]) + token + b"\x15" + struct.pack("<f", -float(i)) + b"\x18\x05"
            )
            file.write(b"\x0a" + bytes([len(piece)]) + piece)
