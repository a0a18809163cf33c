"""What BLIP-2 of transformers generates: the same ids from random tiny bridges to OPT and Llama, prompts of
unequal length in one batch.

transformers' processor puts the image tokens in front of a prompt that is padded on the left, and hands all
of these ids to the penalty on repetition, to the n-grams and to min_length.  Weights go through the real
converter."""

import itertools

import mindspore as ms
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig  # noqa: E402
from mindblip2.convert.convert_weight import to_mindspore  # noqa: E402
from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration  # noqa: E402

QUERIES, VOCAB, IMAGE_TOKEN, PAD, BOS, NEW = 4, 37, 36, 1, 2, 8
ENDS = (5, 9, 13, 20, 21, 28)
# with tokens and pairs that the n-grams see twice
PROMPTS = [[BOS, 7, 8, 7, 8, 11], [BOS, 14], [BOS], [BOS, 30, 17, 17]]
SIZES = {
    "vision_config": {
        "image_size": 28,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    },
    "qformer_config": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "encoder_width": 16,
        "query_length": QUERIES,
    },
}
IDS = {"bos_token_id": BOS, "eos_token_id": ENDS[0], "pad_token_id": PAD, "image_token_id": IMAGE_TOKEN}
SECTIONS = {
    "opt": OPTConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        **IDS,
    ),
    "llama": LlamaConfig(
        hidden_size=16, num_layers=2, num_heads=4, n_kv_heads=2, intermediate_size=24, vocab_size=VOCAB, **IDS
    ),
}
BEAMS = (1, 3, 5)
GRID = [
    {"num_beams": beams, "repetition_penalty": penalty, "no_repeat_ngram_size": size}
    for beams, penalty, size in itertools.product(BEAMS, (1.0, 1.1, 1.5), (0, 1, 2, 3))
]
COMPACT = [
    {"num_beams": 1, "repetition_penalty": 1.5, "no_repeat_ngram_size": 3},
    {"num_beams": 1, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "repetition_penalty": 1.1, "num_return_sequences": 3},
    {"num_beams": 3, "no_repeat_ngram_size": 1},
    {"num_beams": 5, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
]


def bridge(kind, seed, folder):
    """(transformers' model, ours with its weights)."""
    torch.manual_seed(seed)
    ids = {name: IDS[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, **ids}
    if kind == "opt":
        text = {
            "model_type": "opt",
            "num_attention_heads": 2,
            "ffn_dim": 24,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": 64,
            **sizes,
        }
    else:
        text = {
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 24,
            "rms_norm_eps": 1e-6,
            **sizes,
        }
    qformer = {
        key: value
        for key, value in SIZES["qformer_config"].items()
        if key not in ("encoder_width", "query_length")
    }
    theirs = transformers.Blip2ForConditionalGeneration(
        transformers.Blip2Config(
            vision_config={**SIZES["vision_config"], "patch_size": 14},
            text_config=text,
            num_query_tokens=QUERIES,
            qformer_config={**qformer, "encoder_hidden_size": 16, "cross_attention_frequency": 2},
            image_token_index=IMAGE_TOKEN,
        )
    ).eval()
    for name, parameter in theirs.named_parameters():
        if (
            name.startswith(("language_model.", "language_projection.", "query_tokens"))
            and parameter.ndim > 1
        ):
            parameter.data.normal_(0, 0.6)  # so that texts end, repeat themselves and differ
    theirs.save_pretrained(folder / f"{kind}{seed}")
    config = Blip2Config(**SIZES, text_config=SECTIONS[kind], text_bos=True, ln_vision_eps=1e-6)
    to_mindspore(folder / f"{kind}{seed}", folder / f"{kind}{seed}.ckpt", config=config)
    return theirs, Blip2ImageToTextGeneration(config).load_checkpoint(
        folder / f"{kind}{seed}.ckpt"
    ).set_train(False)


def their_ids(model, image, **how):
    """New ids of transformers, from the input_ids and mask that its processor would make."""
    width = max(map(len, PROMPTS))
    rows = [[IMAGE_TOKEN] * QUERIES + [PAD] * (width - len(row)) + row for row in PROMPTS]
    mask = [[1] * QUERIES + [0] * (width - len(row)) + [1] * len(row) for row in PROMPTS]
    how = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD, **how}
    with torch.no_grad():
        return model.generate(
            pixel_values=torch.from_numpy(image),
            input_ids=torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            **how,
        ).numpy()[:, QUERIES + width :]


def texts(ids, ends):
    """Rows up to and including their end token."""
    rows = [list(map(int, row)) for row in ids]
    return [row[: next((i + 1 for i, one in enumerate(row) if one in ends), len(row))] for row in rows]


def both(pair, ends=ENDS, ours=None, **how):
    """(our texts, theirs) of one picture for each prompt; ``ours``: arguments that only our model gets, over
    ``how``."""
    image = np.random.default_rng(3).standard_normal((len(PROMPTS), 3, 28, 28)).astype(np.float32)
    theirs = their_ids(pair[0], image, eos_token_id=list(ends), **how)
    found = pair[1].generate(
        ms.Tensor(image),
        PROMPTS,
        **{"max_new_tokens": NEW, "min_new_tokens": 0, "eos_token_id": list(ends), **how, **(ours or {})},
    )
    return texts(found, ends), texts(theirs, ends)


def prompts_hidden(monkeypatch):
    monkeypatch.setattr(Blip2ImageToTextGeneration, "_counted", lambda self, rows, how: None)


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope="module", params=["opt", "llama"])
def pair(request, tmp_path_factory):
    return bridge(request.param, 0, tmp_path_factory.mktemp("bridge"))


@pytest.mark.parametrize("how", COMPACT, ids=str)
def test_a4_penalty_and_ngrams_see_image_tokens_padding_and_prompt(pair, how):
    ours, theirs = both(pair, **how)
    assert ours == theirs


def test_a4_not_seeing_the_prompt_would_be_noticed(pair, monkeypatch):
    """Negative control: the same cases, with what release 5 gives for inputs_embeds alone."""
    prompts_hidden(monkeypatch)
    assert any(ours != theirs for ours, theirs in (both(pair, **how) for how in COMPACT))


@pytest.mark.parametrize("beams", [1, 3])
def test_a3_every_end_token_of_a_list_ends_a_text(pair, beams):
    ours, theirs = both(pair, num_beams=beams)
    assert ours == theirs
    one, _ = both(pair, ends=ENDS[:1], num_beams=beams)
    assert one != ours  # control: with the first alone texts go on


@pytest.mark.parametrize("beams", [1, 3])
def test_min_new_tokens_and_min_length_are_those_of_transformers(pair, beams):
    """min_length of transformers counts image tokens, padding and prompt; ours is another name of
    min_new_tokens."""
    ours, theirs = both(pair, num_beams=beams, min_new_tokens=4)
    assert ours == theirs and min(map(len, ours)) > 4
    before = QUERIES + max(map(len, PROMPTS))
    image = np.random.default_rng(3).standard_normal((len(PROMPTS), 3, 28, 28)).astype(np.float32)
    counted = texts(
        their_ids(pair[0], image, num_beams=beams, eos_token_id=list(ENDS), min_length=before + 4), ENDS
    )
    assert counted == ours
    assert both(pair, num_beams=beams)[0] != ours  # control: without it some end earlier


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a4_the_whole_grid(kind, seed, tmp_path, monkeypatch):
    """3 numbers of beams, 3 penalties, 4 sizes of n-grams, one end token and three: 72 cases of 4 texts per
    model."""
    pair = bridge(kind, seed, tmp_path)
    cases = [(ends, {**how, "max_new_tokens": 12}) for ends in (ENDS[:1], ENDS) for how in GRID]
    differ = [(ends, how) for ends, how in cases if len(set(map(str, both(pair, ends, **how)))) > 1]
    print(f"{kind} {seed}: {len(cases) - len(differ)} of {len(cases)} equal")
    assert differ == []
    prompts_hidden(monkeypatch)
    assert any(len(set(map(str, both(pair, ends, **how)))) > 1 for ends, how in cases)
