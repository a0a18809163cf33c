"""OPT: what LAVIS's own Blip2OPT computed on the reference checkpoint.  What all language models must do is
in test_llama.py."""

import mindspore as ms
import numpy as np
import pytest

from mindblip2.config import OPTConfig
from mindblip2.models import opt
from mindblip2.models.opt import OPT
from tests.models.language import (
    SMALL,
    TINY,
    greedy,
    ids_of,
    mask_of,
    mean_loss,
    random_model,
    reference_model,
    until,
)

REFERENCE = OPTConfig(
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    intermediate_size=160,
    vocab_size=320,
    max_position_embeddings=128,
)
END = 202  # "\n" of the reference's tokenizer
CASES = ["noprompt", "prompt"]


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.runtime.launch_blocking()


@pytest.fixture(scope="module")
def reference():
    """(model, state dict, arrays)."""
    pytest.importorskip("torch")
    from mindblip2.convert.name_maps.language_models import opt_name_map as source

    model, state = reference_model(OPT, REFERENCE, "blip2opt_tiny.pth", source("opt_model."))
    return model, state, np.load(TINY / "stage2_opt.npz")


@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss_are_those_of_lavis(reference, case):
    llm, _, arrays = reference
    mask = arrays[f"{case}.attention_mask"]
    logits = llm.head(llm(ms.Tensor(arrays[f"{case}.inputs_embeds"]), ms.Tensor(mask.astype(np.int32))))
    assert np.abs(logits.asnumpy() - arrays[f"{case}.logits"])[mask.astype(bool)].max() < 1e-4
    assert abs(float(mean_loss(logits, arrays[f"{case}.labels"])) - float(arrays[f"{case}.loss"])) < 1e-5


def test_words_are_embedded_as_lavis_does(reference):
    llm, _, arrays = reference
    ids = arrays["noprompt.input_ids"].astype(np.int32)
    queries = arrays["noprompt.inputs_embeds"].shape[1] - ids.shape[1]
    assert np.array_equal(llm.embed(ms.Tensor(ids)).asnumpy(), arrays["noprompt.inputs_embeds"][:, queries:])


def test_positions_without_their_offset_would_be_noticed(reference, monkeypatch):
    llm, _, arrays = reference
    monkeypatch.setattr(opt, "OFFSET", 1)
    mask = arrays["noprompt.attention_mask"]
    logits = llm.head(llm(ms.Tensor(arrays["noprompt.inputs_embeds"]), ms.Tensor(mask.astype(np.int32))))
    assert np.abs(logits.asnumpy() - arrays["noprompt.logits"])[mask.astype(bool)].max() > 1e-2


def test_the_projection_learns_as_in_lavis(reference):
    """Gradients of the loss by ``opt_proj``, through the frozen model; without a prompt, as LAVIS's file has
    them."""
    llm, state, arrays = reference
    query = ms.Tensor(np.load(TINY / "outputs.npz")["image_branch.last_hidden"])
    text = ms.Tensor(arrays["noprompt.inputs_embeds"][:, query.shape[1] :])
    mask = ms.Tensor(arrays["noprompt.attention_mask"].astype(np.int32))

    def loss(weight, bias):
        x = ms.ops.cat((ms.ops.matmul(query, weight.T) + bias, text), 1)
        return mean_loss(llm.head(llm(x, mask)), arrays["noprompt.labels"])

    grads = ms.grad(loss, (0, 1))(
        *(ms.Tensor(state[f"opt_proj.{leaf}"].float().numpy()) for leaf in ("weight", "bias"))
    )
    for grad, leaf in zip(grads, ("weight", "bias")):
        expected = arrays[f"noprompt.grad.opt_proj.{leaf}"]
        assert (
            np.abs(grad.asnumpy() - expected).max()
            < 2e-5 + 1e-4 * np.abs(expected).max()
            < 0.1 * np.abs(expected).max()
        )


@pytest.mark.parametrize("case", CASES)
def test_greedy_captions_are_those_of_lavis(reference, case):
    llm, _, arrays = reference
    ids = arrays[f"{case}.generate.beam1.prompt_ids"].astype(np.int32)
    queries = arrays[f"{case}.inputs_embeds"].shape[1] - arrays[f"{case}.input_ids"].shape[1]
    x = ms.ops.cat((ms.Tensor(arrays[f"{case}.inputs_embeds"][:, :queries]), llm.embed(ms.Tensor(ids))), 1)
    found = greedy(llm, x, ms.Tensor(np.ones(x.shape[:2], np.int32)), 20, END)
    expected = arrays[f"{case}.generate.beam1.ids"][:, ids.shape[1] :]
    assert [until(row, END) for row in found] == [until(row, END)[: found.shape[1]] for row in expected]


def test_the_head_is_the_word_embedding():
    llm = random_model(OPT, OPTConfig(**SMALL, intermediate_size=48, max_position_embeddings=20))
    hidden = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    assert np.allclose(
        llm.head(ms.Tensor(hidden)).asnumpy(), hidden @ llm.word.embedding_table.asnumpy().T, atol=1e-5
    )
    assert not any("lm_head" in parameter.name for parameter in llm.get_parameters())


def test_the_last_position_is_reached():
    """2048 positions are 2048 tokens: the table has two rows more."""
    llm = random_model(OPT, OPTConfig(**SMALL, intermediate_size=48, max_position_embeddings=6))
    assert llm.position.embedding_table.shape == (8, 32)
    x, mask = llm.embed(ms.Tensor(ids_of((1, 6)))), mask_of("......")
    before = llm(x, mask).asnumpy()
    table = llm.position.embedding_table.asnumpy().copy()
    table[:2] += 1  # belong to no position
    llm.position.embedding_table.set_data(ms.Tensor(table))
    assert np.array_equal(llm(x, mask).asnumpy(), before)
    table[7, 0] += 1  # belongs to the last; a norm would not see a shift of the whole row
    llm.position.embedding_table.set_data(ms.Tensor(table))
    changed = np.abs(llm(x, mask).asnumpy() - before).max((0, 2))
    assert not changed[:5].any() and changed[5] > 1e-3
