"""LAVIS's numbers for the processors, small pictures of every kind, and small tokenizers of language
models."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindblip2.data.text.language_tokenizer import LanguageTokenizer

PROCESSORS = Path(__file__).resolve().parents[1] / "reference" / "processors"


@pytest.fixture(scope="session")
def lavis_images():
    with np.load(PROCESSORS / "images.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def lavis_images_json():
    return json.loads((PROCESSORS / "images.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def lavis_text():
    return json.loads((PROCESSORS / "text.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def noise():
    """A picture (20 high, 30 wide) of random colours: no compression or symmetry hides a wrong pixel."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def encode():
    """encode(picture, "PNG", **options) → bytes."""

    def encoded(picture, kind, **options):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        return stream.getvalue()

    return encoded


LINES = [
    "a photo of a red cat on the table",
    "a dog and a cat, two birds!",
    "Question: what colour is the seven? Short answer: blue",
    "一只红色的猫坐在桌子上",
    "图片中有什么？ 请详细描述图片内容。",
    "###问题： 详细描述图片内容。 ###答案：",
    "the seven is green, the three blue",
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """``llama``: a sentencepiece BPE model with byte fallback, made as Llama's; ``gpt2``: vocab.json and
    merges.txt of OPT's kind."""
    import sentencepiece
    from tokenizers import ByteLevelBPETokenizer

    root = tmp_path_factory.mktemp("tokenizers")
    text = root / "lines.txt"
    text.write_text("\n".join(LINES * 9), encoding="utf-8")
    (root / "llama").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(root / "llama" / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    (root / "gpt2").mkdir()
    byte_level = ByteLevelBPETokenizer()
    byte_level.train(
        str(text), vocab_size=400, min_frequency=2, special_tokens=["<s>", "<pad>", "</s>", "<unk>"]
    )
    byte_level.save_model(str(root / "gpt2"))
    return root


@pytest.fixture(scope="session")
def llama(folder):
    return LanguageTokenizer(folder / "llama")


@pytest.fixture(scope="session")
def opt(folder):
    return LanguageTokenizer(folder / "gpt2", "GPT2Tokenizer")


@pytest.fixture
def copy(folder, tmp_path):
    """A folder with the files of ``llama`` or ``gpt2``, and others given as JSON."""

    def copied(name, **others):
        for path in (folder / name).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        for stem, content in others.items():
            (tmp_path / f"{stem}.json").write_text(json.dumps(content))
        return tmp_path

    return copied
