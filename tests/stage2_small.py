"""A stage 2 small enough to train in a test, with its YAML file, weights, tokenizer and pictures on the
disk."""

import json
from types import SimpleNamespace

import numpy as np
import yaml
from PIL import Image

LINES = [
    "a photo of a red square",
    "a photo of a blue square",
    "a green square",
    "a red square",
    "a blue square",
    "Question: what colour is it? Short answer: red",
    "the square is green",
    "it is blue",
    "###问题：什么颜色？###答案：红色",
]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "grey": (120, 120, 120)}
VISION = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
QFORMER = {
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
}


def tokenizer_files(folder):
    """A byte-level BPE with OPT's special tokens; its vocabulary is 300."""
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        LINES * 9, vocab_size=300, min_frequency=2, special_tokens=["<s>", "<pad>", "</s>", "<unk>"]
    )
    folder.mkdir(exist_ok=True)
    made.save_model(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    return SimpleNamespace(folder=folder, size=len(vocabulary), line_end=vocabulary["Ċ"])


def sections(words, **text):
    """The sections of a YAML file."""
    return {
        "trainer": {"type": "image_to_text_generation", "model_name": "small"},
        "model": {
            "model_config": {
                "max_txt_len": 16,
                "vision_config": VISION,
                "qformer_config": QFORMER,
                "text_config": {
                    "type": "OPTConfig",
                    "vocab_size": words.size,
                    "hidden_size": 24,
                    "num_layers": 2,
                    "num_heads": 2,
                    "intermediate_size": 32,
                    "max_position_embeddings": 60,
                    "eos_token_id": words.line_end,
                    "initializer_range": None,
                    **text,
                },
            },
            "arch": {"type": "Blip2ImageToTextGeneration"},
        },
        "processor": {
            "image_processor": {"image_size": 16},
            "tokenizer": {"type": "GPT2Tokenizer", "vocab_file": str(words.folder), "max_length": 16},
        },
        "train_dataset": {"text_transforms": {"max_length": 16}, "num_parallel_workers": 0},
        "runner_config": {"epochs": 2, "batch_size": 4, "log_every": 2},
        "lr_schedule": {"warmup_steps": 2, "learning_rate": 1e-3, "warmup_lr_init": 1e-4},
    }


def write(folder):
    """``yaml`` and ``ckpt`` paths of a model with random weights, ``pictures`` by colour, and the
    ``words``."""
    import mindspore as ms

    from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration

    words = tokenizer_files(folder / "words")
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(sections(words), allow_unicode=True), encoding="utf-8")
    ms.set_seed(5)
    from mindblip2.config import load_config

    model = Blip2ImageToTextGeneration(load_config(path).model.model_config)
    model.save_checkpoint(folder / "small.ckpt")
    pictures = {}
    for colour, rgb in COLOURS.items():
        picture = np.full((16, 16, 3), 255, np.uint8)
        picture[4:12, 4:12] = rgb
        pictures[colour] = str(folder / f"{colour}.png")
        Image.fromarray(picture).save(pictures[colour])
    return SimpleNamespace(
        yaml=str(path), ckpt=str(folder / "small.ckpt"), pictures=pictures, words=words, folder=folder
    )


def samples(pictures):
    """Training pairs, each picture with two captions of its colour."""
    return [
        {"image": path, "caption": caption.format(colour), "image_id": i}
        for i, (colour, path) in enumerate(pictures.items())
        for caption in ("a {} square", "the square is {}")
    ]
