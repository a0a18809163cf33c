"""Batches of stage 2 made by workers: the tokenizer of a language model goes into other processes and stays
the same."""

import json
import pickle

import numpy as np
import pytest

from mindblip2.config import Blip2Config
from mindblip2.data.images.augmentation import recipe
from mindblip2.data.loader import Feed
from mindblip2.data.processor import Blip2ImageProcessor, Blip2Processor
from mindblip2.data.text.language_tokenizer import LanguageTokenizer
from mindblip2.data.text.prompting import PromptedText

PICTURE = recipe("blip_image_train", 16)
CAPTIONS = [
    "a red cat on the table",
    "two birds!",
    "一只红色的猫坐在桌子上",
    "the seven is green [PAD] </s>",
    "a dog and a cat, two birds, a photo",
]


@pytest.fixture(scope="module")
def tokenizers(folder):
    """Of every kind of file; Vicuna's has LAVIS's added token."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Metaspace

    plain = json.loads((folder / "gpt2" / "vocab.json").read_text(encoding="utf-8"))
    (folder / "fast").mkdir(exist_ok=True)
    fast = Tokenizer(BPE({**plain, "▁": len(plain)}, [], unk_token="<unk>"))
    fast.pre_tokenizer = Metaspace()
    fast.save(str(folder / "fast" / "tokenizer.json"))
    return {
        "llama": LanguageTokenizer(folder / "llama"),
        "vicuna": LanguageTokenizer(folder / "llama", pad_token="[PAD]", added_tokens=("[PAD]",)),
        "opt": LanguageTokenizer(folder / "gpt2", "GPT2Tokenizer"),
        "json": LanguageTokenizer(folder / "fast", "PreTrainedTokenizerFast"),
    }


def prompted(tokenizer, prompt="a photo of "):
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 8,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return PromptedText(tokenizer, Blip2Config(text_config={"type": "LlamaConfig", **text}), prompt, 64)


def batches(tokenizer, workers, processes=True, prompt="a photo of ", epoch=1):
    rng = np.random.default_rng(3)
    rows = [
        {
            "image": rng.integers(0, 256, (20, 30, 3), dtype=np.uint8),
            "caption": CAPTIONS[i % 5],
            "image_id": i,
        }
        for i in range(14)
    ]
    processor = Blip2Processor(Blip2ImageProcessor(16), tokenizer)
    return list(
        Feed(
            rows,
            processor,
            4,
            5,
            transforms=[PICTURE],
            text=prompted(tokenizer, prompt),
            max_length=64,
            workers=workers,
            processes=processes,
        ).epoch(epoch)
    )


def equal(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys()
        and all(np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
        for a, b in zip(one, other)
    )


@pytest.mark.parametrize("kind", ["llama", "vicuna", "opt", "json"])
def test_workers_make_the_same_batches_bit_for_bit(tokenizers, kind):
    alone = batches(tokenizers[kind], 0)
    assert len(alone) == 3 and {"image", "input_ids", "length", "prompt_length", "image_id"} == set(alone[0])
    assert (alone[0]["prompt_length"] > 0).all() and len(
        {int(one) for batch in alone for one in batch["length"]}
    ) > 2
    assert equal(alone, batches(tokenizers[kind], 2)) and equal(
        alone, batches(tokenizers[kind], 2, processes=False)
    )
    # the controls: another order, another prompt
    assert not equal(alone, batches(tokenizers[kind], 2, epoch=2))
    assert not equal(alone, batches(tokenizers[kind], 2, prompt="a dog "))


@pytest.mark.parametrize("kind", ["llama", "vicuna", "opt", "json"])
def test_a_text_that_was_pickled_is_the_same(tokenizers, kind):
    """As where processes are not forked: macOS, Windows, and what a user's own loader does."""
    text = prompted(tokenizers[kind])
    there = pickle.loads(pickle.dumps(text))
    for caption in CAPTIONS:
        assert all(np.array_equal(text(caption)[name], there(caption)[name]) for name in text(caption))
        ids = text.ids(caption)
        assert there.tokenizer.decode(ids) == text.tokenizer.decode(ids) and there.ids(caption + " x") != ids
    assert there.tokenizer.all_special_ids == text.tokenizer.all_special_ids and len(there.tokenizer) == len(
        text.tokenizer
    )
