"""The formats of foreign files that mindblip2 reads: how a small sound file is made, and what its reader
makes of it."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.mutate import mutated_bytes, mutated_json


@dataclass(frozen=True)
class Format:
    """``make`` writes sound files into a folder and returns the one that is mutated; ``read`` gives its
    content."""

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    mutate: Callable[[bytes, random.Random], bytes] = mutated_bytes


def _arrays():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((5, 3)).astype(np.float32),
        "a.bias": rng.standard_normal(5).astype(np.float32),
        "half": rng.standard_normal((4, 4)).astype(np.float16),
        "scalar": np.float32(0.07) + np.zeros((), np.float32),
    }


# ------------------------------------------------------------------------------------------------ weights
def _make_ckpt(folder):
    from mindblip2.checkpoint.ckpt import write_checkpoint

    names = {np.dtype(np.float32): "Float32", np.dtype(np.float16): "Float16"}
    write_checkpoint(
        folder / "model.ckpt", ((name, names[array.dtype], array) for name, array in _arrays().items())
    )
    return folder / "model.ckpt"


def _read_ckpt(path):
    from mindblip2.checkpoint.ckpt import Checkpoint

    stored = Checkpoint(path)
    return {name: (stored.types[name], stored[name]) for name in stored}


def _tensors():
    import torch

    return {name: torch.from_numpy(np.array(array)) for name, array in _arrays().items()}


def _make_torch(name, **options):
    def make(folder):
        import torch

        torch.save(_tensors(), folder / name, **options)
        return folder / name

    return make


def _make_safetensors(folder):
    from safetensors.torch import save_file

    save_file(_tensors(), folder / "model.safetensors")
    return folder / "model.safetensors"


def _make_index(folder):
    from safetensors.torch import save_file

    weights = {}
    for number, (name, tensor) in enumerate(_tensors().items(), 1):
        file = f"model-{number:05d}-of-00004.safetensors"
        save_file({name: tensor}, folder / file)
        weights[name] = file
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 132}, "weight_map": weights}))
    return index


def _read_torch(path):
    from mindblip2.convert.readers.files import read_state_dict

    state = read_state_dict(path)
    return {name: state[name].numpy() for name in state}


# ------------------------------------------------------------------------------------------------ Hugging Fac
HF_CONFIG = {
    "model_type": "blip-2",
    "image_token_index": 39,
    "num_query_tokens": 2,
    "vision_config": {
        "model_type": "blip_2_vision_model",
        "image_size": 28,
        "patch_size": 14,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    },
    "qformer_config": {
        "model_type": "blip_2_qformer",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 40,
        "intermediate_size": 12,
        "encoder_hidden_size": 8,
        "hidden_act": "gelu",
        "cross_attention_frequency": 2,
    },
    "text_config": {
        "model_type": "opt",
        "vocab_size": 40,
        "hidden_size": 8,
        "ffn_dim": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 20,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "tie_word_embeddings": True,
    },
}
HF_GENERATION = {
    "bos_token_id": 2,
    "eos_token_id": [2, 9],
    "pad_token_id": 1,
    "transformers_version": "5.23.0",
}


def _make_hf(which):
    def make(folder):
        # a language model has both files
        config = HF_CONFIG if which == "config.json" else HF_CONFIG["text_config"]
        for name, content in (("config.json", config), ("generation_config.json", HF_GENERATION)):
            (folder / name).write_text(json.dumps(content))
        return folder / which

    return make


def _read_hf(path):
    from mindblip2.config import OPTConfig
    from mindblip2.convert.hf_config import check_supported, read_hf_config

    check_supported(path.parent)
    said = read_hf_config(path.parent, OPTConfig)
    return said.sections, said.tied


# ------------------------------------------------------------------------------------------------ annotations
def _make_json(name, content):
    def make(folder):
        (folder / name).write_text(json.dumps(content))
        return folder / name

    return make


CAPTIONS = [{"image": f"{i // 2}.jpg", "caption": f"caption {i}", "image_id": i // 2} for i in range(6)]
COCO = {
    "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
    "annotations": [{"image_id": i, "caption": f"caption {i}"} for i in range(3)],
}
QUESTIONS = {
    "data_type": "mscoco",
    "data_subtype": "val2014",
    "questions": [{"image_id": i, "question": f"question {i}?", "question_id": 10 + i} for i in range(3)],
}
ANSWERS = {
    "annotations": [
        {"question_id": 10 + i, "image_id": i, "answers": [{"answer": "yes"}, {"answer": "no"}]}
        for i in range(3)
    ]
}


def _read_annotations(path):
    from mindblip2.data.datasets.annotations import read_annotations

    return [tuple(one[:3]) for one in read_annotations([path], [path.parent / "pictures"])]


def _make_lines(folder):
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CAPTIONS))
    return folder / "captions.jsonl"


def _make_table(folder):
    (folder / "captions.csv").write_text(
        "image,caption\n" + "".join(f'{row["image"]},"{row["caption"]}, a"\n' for row in CAPTIONS)
    )
    return folder / "captions.csv"


def _make_questions(folder):
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    return _make_json("questions.json", QUESTIONS)(folder)


def _read_questions(path):
    from mindblip2.data.datasets.questions import read_questions

    return read_questions([path, path.parent / "answers.json"], [path.parent])


def _make_answers(folder):
    (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    return _make_json("answers.json", ANSWERS)(folder)


def _read_answers(path):
    from mindblip2.data.datasets.questions import read_questions

    return read_questions([path.parent / "questions.json", path], [path.parent])


def _make_flickr(folder):
    (folder / "Flicker8k_Dataset").mkdir()
    (folder / "Flickr_8k.trainImages.txt").write_text("1.jpg\n2.jpg\n")
    (folder / "Flickr8k.token.txt").write_text(
        "".join(f"{i}.jpg#{k}\tcaption {k} of {i}\n" for i in (1, 2) for k in range(3))
    )
    return folder / "Flickr8k.token.txt"


def _read_flickr(path):
    from mindblip2.data.datasets.pairs import Flickr8kDataLoader

    return list(Flickr8kDataLoader(path.parent, "train"))


CONFIG = """\
seed: 7
runner_config: {epochs: 3, batch_size: 4}
lr_schedule: {learning_rate: 1.e-4, warmup_steps: 10}
model:
  model_config:
    vision_config: {image_size: 56, patch_size: 14, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 48}
    qformer_config: {hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 40, encoder_width: 32}
processor:
  image_processor: {image_size: 56, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
"""


def _make_config(folder):
    (folder / "run.yaml").write_text(CONFIG)
    return folder / "run.yaml"


def _read_config(path):
    from mindblip2.config import load_config

    return load_config(path).to_dict()


# ------------------------------------------------------------------------------------------------ tokenizers
LINES = [
    "a photo of a red cat on the table",
    "a dog and a cat, two birds!",
    "the seven is green, the three blue",
]
TEXT = "a red cat, two birds and an owl"


def _make_vocabulary(folder):
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted({word for line in LINES for word in line.replace(",", "").split()}),
    ]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    return folder / "vocab.txt"


def _read_vocabulary(path):
    from mindblip2.data.text.tokenizer import BertTokenizer

    tokenizer = BertTokenizer(str(path))
    return len(tokenizer), tokenizer(TEXT)["input_ids"]


def _make_byte_level(which):
    def make(folder):
        from tokenizers import ByteLevelBPETokenizer

        (folder / "lines.txt").write_text("\n".join(LINES * 9))
        library = ByteLevelBPETokenizer()
        library.train(
            str(folder / "lines.txt"),
            vocab_size=300,
            min_frequency=2,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        )
        if which == "tokenizer.json":
            library.save(str(folder / "tokenizer.json"))
        else:
            library.save_model(str(folder))
        (folder / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "bos_token": {"content": "</s>", "special": True},
                    "eos_token": "</s>",
                    "pad_token": "<pad>",
                    "add_bos_token": True,
                    "added_tokens_decoder": {"0": {"content": "<s>", "special": True}},
                    "model_max_length": 1000,
                }
            )
        )
        (folder / "added_tokens.json").write_text(json.dumps({"<extra>": 300}))
        return folder / which

    return make


def _read_language_tokenizer(path):
    from mindblip2.data.text.language_tokenizer import LanguageTokenizer

    tokenizer = LanguageTokenizer(str(path.parent), "GPT2Tokenizer")
    ids = tokenizer(TEXT)["input_ids"]
    return len(tokenizer), ids, tokenizer.decode(ids), tokenizer.eos_token


def _make_sentencepiece(folder):
    import sentencepiece

    (folder / "lines.txt").write_text("\n".join(LINES * 9))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return folder / "tokenizer.model"


def _read_sentencepiece(path):
    from mindblip2.data.text.language_tokenizer import LanguageTokenizer

    tokenizer = LanguageTokenizer(str(path.parent))
    ids = tokenizer(TEXT)["input_ids"]
    return len(tokenizer), ids, tokenizer.decode(ids)


# ------------------------------------------------------------------------------------------------ pictures
def _make_picture(kind, **options):
    def make(folder):
        pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        path = folder / f"picture.{kind}"
        Image.fromarray(pixels).save(path, **options)
        return path

    return make


def _read_picture(path):
    from mindblip2.data.images.load import load_image

    return np.asarray(load_image(str(path)))


def _make_cifar(folder):
    import pickle

    names = {"fine_label_names": ["apple", "fish"], "coarse_label_names": ["fruit", "animal"]}
    rows = {
        "data": np.zeros((4, 3072), np.uint8),
        "fine_labels": [0, 1, 1, 0],
        "coarse_labels": [0, 1, 1, 0],
        "filenames": ["a", "b", "c", "d"],
    }
    for name, content in (("meta", names), ("train", rows), ("test", rows)):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder / "test"


def _read_cifar(path):
    from mindblip2.data.datasets.cifar import Cifar100DataLoader

    data = Cifar100DataLoader(str(path.parent), stage="test")
    return [np.asarray(data.pictures[i]) for i in range(len(data))], list(data.truths), list(data.labels)


# ------------------------------------------------------------------------------------------------ our own fil
def _make_state(folder):
    inside = folder / "step_0000012"
    inside.mkdir()
    (inside / "state.json").write_text(
        json.dumps(
            {
                "step": 12,
                "loss": 2.5,
                "loss_scale": {"value": 1.0, "good": 3},
                "frozen": {"path": "start.ckpt", "crc32": 7},
                "window": [5.0, 2],
                "judged": {"loss": 2.5},
                "unreadable": [0, 48],
                "run": {"seed": 7},
            }
        )
    )
    return inside / "state.json"


def _read_state(path):
    from mindblip2.checkpoint.training_state import read_state

    return read_state(path.parent)


def _make_best(folder):
    (folder / "best.json").write_text(json.dumps({"checkpoint": "step_0000012", "eval_loss": 2.5}))
    return folder / "best.json"


def _read_best(path):
    from mindblip2.checkpoint.training_state import best

    return best(path.parent)


def _make_dump(folder):
    from mindblip2.parity.dump_file import Writer

    arrays, truth = {"x": np.arange(6, dtype=np.float32)}, {"x": np.arange(6, dtype=np.float64)}
    with Writer(folder / "dump.npz") as writer:
        writer.add(
            "case",
            "layer",
            arrays,
            truth,
            arrays,
            weights=[],
            backward=True,
            fixed=[],
            stacked=[],
            values=True,
        )
        writer.close(config={}, seed=1, dtype="float32", fingerprints={}, weights="seeded 1")
    return folder / "dump.npz"


def _read_dump(path):
    from mindblip2.parity.dump_file import DumpFile

    dump = DumpFile(path)
    return [
        (entry["name"], {group: dump.group(entry, group) for group in ("inputs", "torch32", "truth")})
        for entry in dump.entries
    ]


FORMATS = [
    Format("ckpt", _make_ckpt, _read_ckpt),
    Format("torch_zip", _make_torch("model.pth"), _read_torch),
    Format("torch_legacy", _make_torch("model.bin", _use_new_zipfile_serialization=False), _read_torch),
    Format("safetensors", _make_safetensors, _read_torch),
    Format("shard_index", _make_index, _read_torch, mutated_json),
    Format("hf_config_json", _make_hf("config.json"), _read_hf, mutated_json),
    Format("hf_generation_config_json", _make_hf("generation_config.json"), _read_hf, mutated_json),
    Format("captions", _make_json("captions.json", CAPTIONS), _read_annotations),
    Format("captions_json", _make_json("captions.json", CAPTIONS), _read_annotations, mutated_json),
    Format("captions_jsonl", _make_lines, _read_annotations),
    Format("captions_csv", _make_table, _read_annotations),
    Format("coco_json", _make_json("captions_val2014.json", COCO), _read_annotations, mutated_json),
    Format("questions_json", _make_questions, _read_questions, mutated_json),
    Format("answers_json", _make_answers, _read_answers, mutated_json),
    Format("flickr8k", _make_flickr, _read_flickr),
    Format("yaml", _make_config, _read_config),
    Format("vocab_txt", _make_vocabulary, _read_vocabulary),
    Format("tokenizer_json", _make_byte_level("tokenizer.json"), _read_language_tokenizer),
    Format(
        "tokenizer_json_values", _make_byte_level("tokenizer.json"), _read_language_tokenizer, mutated_json
    ),
    Format("vocab_json", _make_byte_level("vocab.json"), _read_language_tokenizer),
    Format("merges_txt", _make_byte_level("merges.txt"), _read_language_tokenizer),
    Format(
        "tokenizer_config_json",
        _make_byte_level("tokenizer_config.json"),
        _read_language_tokenizer,
        mutated_json,
    ),
    Format(
        "added_tokens_json", _make_byte_level("added_tokens.json"), _read_language_tokenizer, mutated_json
    ),
    Format("sentencepiece", _make_sentencepiece, _read_sentencepiece),
    Format("png", _make_picture("png"), _read_picture),
    Format("jpeg", _make_picture("jpg", quality=90), _read_picture),
    Format("gif", _make_picture("gif"), _read_picture),
    Format("webp", _make_picture("webp", lossless=True), _read_picture),
    Format("tiff", _make_picture("tiff", compression="tiff_lzw"), _read_picture),
    Format("bmp", _make_picture("bmp"), _read_picture),
    Format("cifar_pickle", _make_cifar, _read_cifar),
    Format("training_state_json", _make_state, _read_state, mutated_json),
    Format("best_json", _make_best, _read_best, mutated_json),
    Format("parity_dump", _make_dump, _read_dump),
]
