"""What a language model writes after prompts of embeddings: the ids of transformers' generate on the same
logits."""

import numpy as np
import pytest

from mindblip2.generation import logits_processors
from mindblip2.generation.generate import LanguageGenerationConfig, complete, stream

VOCAB, EOS, PAD = 23, 10, 0
BATCH, LENGTH = 6, 5
FULL = (LENGTH,) * BATCH


@pytest.fixture(scope="module", params=["llama", "opt"])
def model(request):
    """A random language model of transformers in float64: what is computed with a cache equals what is
    computed without."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is too small to share
    torch.manual_seed(2)
    size = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "init_std": 0.6,
        "initializer_range": 0.6,
    }
    if request.param == "llama":
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=24, **size))
    else:
        made = transformers.OPTForCausalLM(transformers.OPTConfig(ffn_dim=24, word_embed_proj_dim=16, **size))
    yield made.double().eval()
    torch.set_num_threads(threads)


class Prompts:
    """Embeddings of prompts of unequal length, padded on the left; logits of the first token, and the step
    function."""

    def __init__(self, model, rows=range(BATCH), lengths=(5, 3, 1, 4, 2, 5)):
        import torch

        self.torch, self.model = torch, model
        noise = torch.from_numpy(np.random.default_rng(1).standard_normal((BATCH, LENGTH, 16)))
        mask = torch.tensor([[0] * (LENGTH - lengths[i]) + [1] * lengths[i] for i in range(BATCH)])
        self.x_BTD, self.mask_BT = noise[list(rows)], mask[list(rows)]
        self.rows = self.ids = None

    def logits(self):
        return self._logits(self.x_BTD, self.mask_BT)

    def __call__(self, tokens_N, position, order_N):
        column = self.torch.from_numpy(tokens_N[:, None].astype(np.int64))
        order = self.torch.from_numpy(order_N)
        self.rows = order if position == 0 else self.rows[order]
        self.ids = column if position == 0 else self.torch.cat([self.ids[order], column], 1)
        assert self.ids.shape[1] == position + 1
        x = self.torch.cat([self.x_BTD[self.rows], self.model.get_input_embeddings()(self.ids)], 1)
        mask = self.torch.cat([self.mask_BT[self.rows], self.torch.ones_like(self.ids)], 1)
        return self._logits(x, mask)

    def _logits(self, x, mask):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with self.torch.no_grad():
            return (
                self.model(inputs_embeds=x, attention_mask=mask, position_ids=positions).logits[:, -1].numpy()
            )

    def ours(self, prompt_BT=None, **how):
        return complete(self, self.logits(), decoding(**how), prompt_BT)

    def theirs(self, **how):
        """Without ``num_beams`` transformers' default is 1, ours LAVIS's 5."""
        how = {
            "num_beams": 5,
            "max_new_tokens": 12,
            "min_new_tokens": 0,
            "do_sample": False,
            "top_k": 0,
            **how,
        }
        return self.model.generate(inputs_embeds=self.x_BTD, attention_mask=self.mask_BT, **how).numpy()


def decoding(**how):
    return LanguageGenerationConfig(
        **{
            "max_new_tokens": 12,
            "min_new_tokens": 0,
            "num_beams": 5,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            **how,
        }
    )


def texts(ids, ends=(EOS,)):
    """Rows up to and including their end token."""
    rows = [list(map(int, row)) for row in ids]
    stops = [next((i + 1 for i, one in enumerate(row) if one in ends), len(row)) for row in rows]
    return [row[:stop] for row, stop in zip(rows, stops)]


# ------------------------------------------------------------------------------------------------ transformer
@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 1},
        {"num_beams": 1, "repetition_penalty": 1.6},
        {"num_beams": 1, "no_repeat_ngram_size": 2},
        {"num_beams": 1, "no_repeat_ngram_size": 1},
        {"num_beams": 1, "min_new_tokens": 6},
        {},
        {"num_beams": 2},
        {"num_beams": 9},
        {"length_penalty": 0.0},
        {"length_penalty": 3.0},
        {"length_penalty": -2.0},
        {"min_new_tokens": 1},
        {"min_new_tokens": 9},
        {"repetition_penalty": 1.6},
        {"repetition_penalty": 0.7},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 3},
        {"max_new_tokens": 1},
        {"max_new_tokens": 25},
        {"num_return_sequences": 5},
        {"num_beams": 3, "num_return_sequences": 2},
        {"eos_token_id": (EOS, 3, 11)},
        {"eos_token_id": (EOS, 3), "num_beams": 1},
        {
            "num_beams": 4,
            "repetition_penalty": 1.3,
            "length_penalty": 2.0,
            "no_repeat_ngram_size": 3,
            "min_new_tokens": 3,
            "num_return_sequences": 3,
        },
    ],
    ids=str,
)
def test_the_ids_are_those_of_transformers(model, how):
    theirs = dict(how, eos_token_id=list(how["eos_token_id"])) if "eos_token_id" in how else how
    prompts = Prompts(model, lengths=FULL) if "repetition_penalty" in how else Prompts(model)
    assert texts(prompts.ours(**how), how.get("eos_token_id", (EOS,))) == texts(
        prompts.theirs(**theirs), how.get("eos_token_id", (EOS,))
    )


def test_padding_on_the_left_leaves_no_token_out_of_the_penalty(model, monkeypatch):
    """transformers 5.23 takes padding of prompt embeddings for padding of ids, so the first generated tokens
    are not penalised."""
    how = {"num_beams": 1, "repetition_penalty": 1.6}
    theirs, marked = texts(Prompts(model).theirs(**how)), logits_processors._marked
    assert texts(Prompts(model).ours(**how)) != theirs

    def without_the_first(shape, ids_NT):
        padding_B1 = (Prompts(model).mask_BT == 0).sum(1, keepdim=True).numpy()
        return marked(shape, np.where(np.arange(ids_NT.shape[1]) < padding_B1, -1, ids_NT))

    monkeypatch.setattr(logits_processors, "_marked", without_the_first)
    assert texts(Prompts(model).ours(**how)) == theirs


def test_other_scores_would_be_noticed(model):
    """Negative control: the scorer of the old releases, and a length that counts a little more, give other
    captions."""
    how = {"max_new_tokens": 25, "num_return_sequences": 4}
    right = texts(Prompts(model).theirs(**how))
    assert texts(Prompts(model).ours(**how)) == right
    for wrong in ({"scorer": "lavis"}, {"length_penalty": 0.8}, {"num_beams": 4}, {"max_new_tokens": 24}):
        assert texts(Prompts(model).ours(**{**how, **wrong})) != right


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"top_k": 4},
        {"top_p": 0.6},
        {"top_k": 6, "top_p": 0.7, "temperature": 1.7},
        {"temperature": 0.4},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"num_return_sequences": 3},
        {"min_new_tokens": 7},
    ],
    ids=str,
)
def test_drawn_tokens_are_those_of_transformers(model, how, monkeypatch):
    """torch.multinomial takes our draws; everything else is transformers'."""
    import torch

    how = {"num_beams": 1, "do_sample": True, "top_p": 1.0, **how}
    generators = logits_processors.random_generators(decoding(**how))

    def multinomial(probs, num_samples):
        uniform_N = np.tile([random.random() for random in generators], len(probs) // len(generators))
        with np.errstate(divide="ignore"):
            return torch.from_numpy(logits_processors.sample_tokens(np.log(probs.numpy()), uniform_N))[
                :, None
            ]

    monkeypatch.setattr(torch, "multinomial", multinomial)
    prompts = Prompts(model, lengths=FULL)
    theirs = texts(prompts.theirs(**how))
    assert texts(prompts.ours(**how)) == theirs
    assert texts(prompts.ours(**how, seed=1)) != theirs


@pytest.mark.parametrize(
    "how", [{"num_beams": 3}, {"num_beams": 3, "top_k": 1, "temperature": 2.0}, {"top_p": 0.5}], ids=str
)
def test_drawn_beams_are_those_of_transformers(model, how, monkeypatch):
    import torch

    random = logits_processors.random_generators(decoding())[0]

    def multinomial(probs, num_samples):
        with np.errstate(divide="ignore"):
            return torch.from_numpy(
                logits_processors.gumbel_top_k(np.log(probs.numpy()), num_samples, random)
            )

    monkeypatch.setattr(torch, "multinomial", multinomial)
    how = {"do_sample": True, "top_p": 1.0, **how}
    assert texts(Prompts(model).ours(**how)) == texts(Prompts(model).theirs(**how))


@pytest.mark.parametrize(
    "how",
    [
        {"top_k": 3},
        {"top_p": 0.7},
        {"top_k": 5, "top_p": 0.4, "temperature": 0.7},
        {"top_p": 1e-6},
        {"top_k": 2, "temperature": 3.0},
        {"top_k": 1, "num_beams": 4},
        {"top_p": 0.01, "num_beams": 4},
    ],
    ids=str,
)
def test_what_may_be_drawn_is_what_the_warpers_of_transformers_leave(how):
    torch = pytest.importorskip("torch")
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(4).standard_normal((200, 40)).astype(np.float32) * 2
    if "top_p" not in how:
        logits[:, 5] = logits[:, 9]  # equally likely tokens stay together at top-k
    keep = 2 if how.get("num_beams", 1) > 1 else 1
    expected = TemperatureLogitsWarper(how.get("temperature", 1.0))(None, torch.from_numpy(logits))
    if "top_k" in how:
        expected = TopKLogitsWarper(how["top_k"], min_tokens_to_keep=keep)(None, expected)
    if "top_p" in how:
        expected = TopPLogitsWarper(how["top_p"], min_tokens_to_keep=keep)(None, expected)
    found = logits_processors.top_k_top_p(
        logits, LanguageGenerationConfig(do_sample=True, **{"top_p": 1.0, **how})
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


# ------------------------------------------------------------------------------------------------ prompts
SAMPLED = (
    {"do_sample": True, "num_beams": 1, "temperature": 2.0},
    {"do_sample": True, "num_beams": 1, "num_return_sequences": 3},
    {"do_sample": True, "num_beams": 3, "temperature": 2.0},
)


@pytest.mark.parametrize("how", SAMPLED, ids=str)
def test_a19_what_is_drawn_for_a_prompt_does_not_depend_on_its_batch(model, how):
    """Neither on its place nor on the others: the draws come from the seed and the number of the caption."""
    captions = how.get("num_return_sequences", 1)
    batch, back = (texts(Prompts(model, rows).ours(**how)) for rows in (range(BATCH), range(BATCH)[::-1]))
    assert batch == [
        text for row in range(BATCH)[::-1] for text in back[row * captions : (row + 1) * captions]
    ]
    assert texts(Prompts(model, [2] * 3).ours(**how)) == batch[2 * captions : 3 * captions] * 3
    seeds = {str(texts(Prompts(model, [2]).ours(**how, seed=seed))) for seed in range(4)}
    assert len(seeds) > 1  # control: other seeds draw other tokens
    if captions > 1:
        # and so do other captions
        assert any(len({*map(str, batch[i : i + captions])}) > 1 for i in range(0, len(batch), captions))
        assert batch[::captions] == texts(Prompts(model).ours(**{**how, "num_return_sequences": 1}))


def test_different_prompts_in_one_batch_give_what_each_gives_alone(model):
    for how in ({}, {"num_beams": 1}, {"num_return_sequences": 2, "repetition_penalty": 1.4}, *SAMPLED):
        batch = texts(Prompts(model).ours(**how))
        alone = [text for row in range(BATCH) for text in texts(Prompts(model, [row]).ours(**how))]
        assert batch == alone


def test_the_ids_of_a_prompt_count_only_where_they_are_given(model):
    """As input_ids in transformers: there the penalty and the n-grams see the prompt, with inputs_embeds they
    do not."""
    import torch

    ids = torch.from_numpy(np.random.default_rng(1).integers(1, 6, (BATCH, LENGTH)))
    prompts = Prompts(model, lengths=FULL)
    prompts.x_BTD = model.get_input_embeddings()(ids).detach()
    same = []
    for how in (
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 2, "num_beams": 1},
        {"repetition_penalty": 1.5, "num_beams": 1},
    ):
        theirs = model.generate(ids, **{"num_beams": 5, "max_new_tokens": 12, "do_sample": False, **how})[
            :, 5:
        ]
        assert texts(prompts.ours(prompt_BT=ids.numpy(), **how)) == texts(theirs)
        assert texts(prompts.ours(**how)) == texts(prompts.theirs(**how))
        same.append(texts(theirs) == texts(prompts.theirs(**how)))
    assert not all(same)


def test_padding_of_a_prompt_is_no_token(model):
    prompts = Prompts(model, lengths=FULL)
    how = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2}
    ids = np.array([[4, 4], [5, 6], [-1, 4], [-1, -1], [9, 9], [21, 6]])
    padded = np.concatenate([np.full((BATCH, 3), -1), ids], 1)
    assert texts(prompts.ours(prompt_BT=padded, **how)) == texts(prompts.ours(prompt_BT=ids, **how))
    assert texts(prompts.ours(**how))[3] == texts(prompts.ours(prompt_BT=padded, **how))[3]


# ------------------------------------------------------------------------------------------------ streaming
@pytest.mark.parametrize(
    "how", [{"num_beams": 1}, {"num_beams": None, "do_sample": True, "num_return_sequences": 2}], ids=str
)
def test_a_stream_gives_the_ids_of_complete_one_step_at_a_time(model, how):
    whole, told = Prompts(model).ours(**how), []
    prompts = Prompts(model)
    assert np.stack(list(stream(prompts, prompts.logits(), decoding(**how))), 1).tolist() == whole.tolist()
    complete(
        prompts, prompts.logits(), decoding(**how), on_token=lambda token_N: told.append(token_N.tolist())
    )
    assert np.array(told).T.tolist() == whole.tolist()
    assert whole.dtype == np.int32


def test_a_stream_computes_only_what_is_asked_for(model):
    prompts, calls = Prompts(model), []

    def step(*inputs):
        calls.append(inputs[1])
        return prompts(*inputs)

    tokens = stream(step, prompts.logits(), decoding(num_beams=1))
    next(tokens)
    assert calls == []
    next(tokens)
    assert calls == [0]


def test_beams_cannot_be_streamed(model):
    prompts = Prompts(model)
    for call in (
        lambda: stream(prompts, prompts.logits(), decoding()),
        lambda: complete(prompts, prompts.logits(), decoding(), on_token=print),
    ):
        with pytest.raises(ValueError, match="no streaming with num_beams = 5: .*use num_beams=1"):
            call()
