"""Llama: what transformers computed on the reference checkpoint, and what no padding, cache, order or mode
may change."""

import mindspore as ms
import numpy as np
import pytest

from mindblip2.config import LlamaConfig, OPTConfig
from mindblip2.models import layers
from mindblip2.models.llama import Llama, slopes
from mindblip2.models.opt import OPT
from tests.models.language import (
    FULL,
    HOLE,
    LEFT,
    RIGHT,
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

KINDS = {
    "llama": (Llama, LlamaConfig(**SMALL)),
    "grouped": (Llama, LlamaConfig(**SMALL, n_kv_heads=2)),
    "alibi": (Llama, LlamaConfig(**SMALL, position_embedding="alibi", normalized_head=True)),
    "grouped alibi": (Llama, LlamaConfig(**SMALL, position_embedding="alibi", n_kv_heads=1)),
    "opt": (OPT, OPTConfig(**SMALL, intermediate_size=48, max_position_embeddings=20)),
}
REFERENCE = LlamaConfig(hidden_size=64, num_layers=3, num_heads=4, intermediate_size=172, vocab_size=320)


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.runtime.launch_blocking()


@pytest.fixture(scope="module", params=KINDS)
def llm(request):
    return random_model(*KINDS[request.param])


def logits_of(llm, ids_BT, mask_BT):
    return llm.head(llm(llm.embed(ms.Tensor(ids_BT)), mask_BT)).asnumpy()


# ------------------------------------------------------------------------------------------------ all languag
@pytest.mark.parametrize(
    "row, kept",
    [(RIGHT, slice(0, 5)), (LEFT, slice(3, 8)), (HOLE, [0, 1, 2, 6, 7])],
    ids=["right", "left", "hole"],
)
def test_padding_changes_nothing(llm, row, kept):
    """The tokens of a padded row have the logits that they have alone."""
    ids = ids_of((2, 8))
    padded = logits_of(llm, ids, mask_of(row, FULL))[0][kept]
    alone = logits_of(llm, ids[:1, kept], mask_of("....."))[0]
    assert np.abs(padded - alone).max() < 1e-5 < np.abs(padded).mean()
    seen = logits_of(llm, ids[:1], mask_of(FULL))[0][kept]
    # padding that is seen would be noticed
    assert row == RIGHT or np.abs(padded[-1] - seen[-1]).max() > 1e-3


def test_no_token_sees_what_follows(llm):
    """By the gradient of the logits at position 4."""

    def fourth(x):
        return llm.head(llm(x, mask_of(FULL)))[:, 4].sum()

    grad = ms.grad(fourth)(llm.embed(ms.Tensor(ids_of((1, 8))))).asnumpy()[0]
    assert not grad[5:].any() and all(np.abs(grad[t]).max() > 1e-4 for t in range(5))


@pytest.mark.parametrize("row", [FULL, LEFT, HOLE])
def test_the_cache_changes_nothing(llm, row):
    """Prompt and one token after the other, as the whole text at once."""
    ids, rows = ids_of((2, 13)), np.arange(2)
    whole = logits_of(llm, ids, mask_of(row + ".....", FULL + "....."))
    logits, state = llm.prefill(llm.embed(ms.Tensor(ids[:, :8])), mask_of(row, FULL), 5)
    found = [logits.asnumpy()]
    for t in range(8, 13):
        logits, state = llm.decode(ids[:, t], rows, state)
        found.append(logits.asnumpy())
    assert np.abs(np.stack(found, 1) - whole[:, 7:]).max() < 1e-5 * np.abs(whole).max()
    other = ids.copy()
    other[:, 9] = (other[:, 9] + 1) % SMALL["vocab_size"]
    assert (
        np.abs(logits_of(llm, other, mask_of(row + ".....", FULL + "....."))[:, -1] - found[-1]).max() > 1e-3
    )


def test_rows_are_put_into_the_order_of_the_beams(llm):
    """Each row goes on from the row that it was made of: two prompts become four rows, which then change
    places."""
    ids = ids_of((2, 4))
    _, state = llm.prefill(llm.embed(ms.Tensor(ids)), mask_of("....", "oo.."), 3)
    text, order = [ids[0], ids[0], ids[1], ids[1]], [0, 0, 1, 1]
    for step, moved in enumerate(([0, 1, 2, 3], [1, 1, 2, 3], [3, 2, 1, 0])):
        token = (ids_of(1, seed=9 + step) + np.arange(4)) % SMALL["vocab_size"]  # different for each row
        logits, state = llm.decode(token, np.array(order), state)
        text = [np.append(row, one) for row, one in zip(text, token)]
        order = moved
        if step < 2:
            text = [text[i] for i in moved]
    # the last logits belong to the rows before the last order
    masks = ["o" * 0 + "." * 7 if (row[:4] == ids[0]).all() else "oo" + "." * 5 for row in text]
    expected = logits_of(llm, np.stack(text).astype(np.int32), mask_of(*masks))[:, -1]
    assert np.abs(logits.asnumpy() - expected).max() < 1e-5
    assert len({tuple(row) for row in text}) == 4 and np.abs(logits.asnumpy() - expected[::-1]).max() > 1e-2


def test_a_state_without_room_is_an_error(llm):
    logits, state = llm.prefill(llm.embed(ms.Tensor(ids_of((1, 3)))), mask_of("..."), 1)
    _, state = llm.decode([5], [0], state)
    with pytest.raises(ValueError, match="all 4 slots of this state are used: prefill with more room"):
        llm.decode([5], [0], state)


def test_the_names_of_parameters(llm):
    names = {parameter.name for parameter in llm.get_parameters()}
    layer = {
        f"layers.1.{part}" for part in ("norm1.gamma", "norm2.gamma", "ffn.up.weight", "ffn.down.weight")
    }
    layer |= {f"layers.1.attention.{part}.weight" for part in ("query", "key", "value", "output")}
    assert layer | {"word.embedding_table", "norm.gamma"} <= names
    own = (
        {"position.embedding_table", "norm.beta", "layers.0.attention.query.bias"}
        if isinstance(llm, OPT)
        else {"lm_head.weight", "layers.0.ffn.gate.weight"}
    )
    assert own <= names and not any("_graphs" in name for name in names)


@pytest.mark.parametrize("kind, large", [("grouped", 0), ("grouped", layers.LARGE), ("opt", layers.LARGE)])
def test_graph_mode_computes_the_same_and_compiles_a_shape_once(kind, large, monkeypatch):
    """Of small layers and of those that count as large, whose graphs have a branch."""
    monkeypatch.setattr(layers, "LARGE", large)
    eager, ids = random_model(*KINDS[kind]), ids_of((2, 6))

    def decoded(llm, ids):
        logits, state = llm.prefill(llm.embed(ms.Tensor(ids[:, :3])), mask_of("...", "o.."), 3)
        found = [logits.asnumpy()]
        for t, order in zip(range(3, 6), ([0, 1], [1, 0], [0, 1])):
            logits, state = llm.decode(ids[:, t], order, state)
            found.append(logits.asnumpy())
        return np.stack(found)

    expected = decoded(eager, ids), decoded(eager, ids[:, ::-1].copy())
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        llm = random_model(*KINDS[kind])
        first, compiled = decoded(llm, ids), graphs_of(llm)
        assert {kind: len(graphs) for kind, graphs in compiled.items()} == {
            # a layer for a prompt and for a token
            "_Begin": 1,
            "SharedLayer": 2,
            "_End": 1,
            "_Step": 1,
            "_Reorder": 1,
        }
        assert all(
            (cell.async_flag[0] is None) == (large > 0)
            for cell in llm._graphs.values()
            if hasattr(cell, "async_flag")
        )
        second = decoded(llm, ids[:, ::-1].copy())
        assert graphs_of(llm) == compiled
        # the control: a prompt of another length
        llm.prefill(llm.embed(ms.Tensor(ids[:, :2])), mask_of("..", "o."), 1)
        assert {kind for kind, graphs in graphs_of(llm).items() if graphs != compiled[kind]} == {
            "_Begin",
            "SharedLayer",
        }
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    assert max(np.abs(first - expected[0]).max(), np.abs(second - expected[1]).max()) < 1e-5
    assert np.abs(first - second).max() > 1e-2


def graphs_of(llm):
    """What prefill and decode have compiled, by the kind of cell."""
    return {type(cell).__name__: set(cell.compile_cache) for cell in llm._graphs.values()}


def test_weights_can_be_held_in_half_precision():
    """As an accelerator holds a frozen model; what is sensitive stays float32."""
    wide, narrow = (
        random_model(*KINDS["llama"]),
        random_model(*KINDS["llama"], dtype="float16", param_dtype="float16"),
    )
    dtypes = {parameter.name: str(parameter.dtype) for parameter in narrow.get_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == "Float32"} == {
        name for name in dtypes if name.endswith("gamma")
    }
    ids, mask = ids_of((2, 8)), mask_of(LEFT, FULL)
    assert (
        narrow.embed(ms.Tensor(ids)).dtype == ms.float16
        and narrow.head(narrow(narrow.embed(ms.Tensor(ids)), mask)).dtype == ms.float32
    )
    found, expected = logits_of(narrow, ids, mask)[:, 3:], logits_of(wide, ids, mask)[:, 3:]
    assert 1e-6 < np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 5e-3
    logits, state = narrow.prefill(narrow.embed(ms.Tensor(ids)), mask, 1)
    assert state[0][0][0].dtype == ms.float16
    assert np.isfinite(narrow.decode(ids[:, 0], [0, 1], state)[0].asnumpy()).all()


# ------------------------------------------------------------------------------------------------ the relativ
def test_the_head_of_baichuan2_knows_only_directions():
    llm = random_model(Llama, LlamaConfig(**SMALL, normalized_head=True))
    hidden = ms.Tensor(np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32))
    before = llm.head(hidden).asnumpy()
    weight = llm.lm_head.weight.asnumpy()
    assert np.allclose(
        before, hidden.asnumpy() @ (weight / np.linalg.norm(weight, axis=1, keepdims=True)).T, atol=1e-5
    )
    llm.lm_head.weight.set_data(llm.lm_head.weight * ms.Tensor(np.linspace(0.1, 9, 40)[:, None], ms.float32))
    assert np.allclose(llm.head(hidden).asnumpy(), before, atol=1e-5)


def test_alibi_of_forty_heads_is_that_of_baichuan_13b():
    """Published: the first 32 are 2^(-1/4) … 2^-8, the other 8 lie between."""
    found = slopes(40)
    assert np.allclose(found[:32], 2.0 ** (-np.arange(1, 33) / 4)) and np.allclose(
        found[32:], 2.0 ** (-np.arange(1, 17, 2) / 8)
    )


# ------------------------------------------------------------------------------------------------ the referen
@pytest.fixture(scope="module")
def reference():
    """(model, state dict, arrays) of what transformers 4.28.1 computed."""
    pytest.importorskip("torch")
    from mindblip2.convert.name_maps.language_models import llama_name_map

    model, state = reference_model(Llama, REFERENCE, "llama_tiny.pth", llama_name_map("llm_model."))
    return model, state, np.load(TINY / "stage2_llama.npz")


@pytest.mark.parametrize("case", ["noprompt", "prompt"])
def test_hidden_states_logits_and_loss_are_those_of_the_reference(reference, case):
    llm, _, arrays = reference
    mask = arrays[f"{case}.attention_mask"]
    x, bias, turn = llm.begin(ms.Tensor(arrays[f"{case}.inputs_embeds"]), ms.Tensor(mask.astype(np.int32)))
    real = mask.astype(bool)
    for i, layer in enumerate(llm.layers):
        assert np.abs(x.asnumpy() - arrays[f"{case}.hidden_{i}"])[real].max() < 1e-4
        x = layer(x, bias, turn)[0]
    hidden = llm.norm(x)
    assert np.abs(hidden.asnumpy() - arrays[f"{case}.hidden_3"])[real].max() < 1e-4
    logits = llm.head(hidden)
    assert np.abs(logits.asnumpy() - arrays[f"{case}.logits"])[real].max() < 1e-4
    assert abs(float(mean_loss(logits, arrays[f"{case}.labels"])) - float(arrays[f"{case}.loss"])) < 1e-5
    shifted = np.roll(arrays[f"{case}.labels"], 1, axis=1)
    # the comparison can fail
    assert abs(float(mean_loss(logits, shifted)) - float(arrays[f"{case}.loss"])) > 1e-2


@pytest.mark.parametrize("case", ["noprompt", "prompt"])
def test_the_projection_learns_as_in_the_reference(reference, case):
    """Gradients of the loss by the bridge's projection, through the frozen model."""
    llm, state, arrays = reference
    query = ms.Tensor(arrays["qformer_output"])
    text = ms.Tensor(arrays[f"{case}.inputs_embeds"][:, query.shape[1] :])
    mask = ms.Tensor(arrays[f"{case}.attention_mask"].astype(np.int32))

    def loss(weight, bias):
        x = ms.ops.cat((ms.ops.matmul(query, weight.T) + bias, text), 1)
        return mean_loss(llm.head(llm(x, mask)), arrays[f"{case}.labels"])

    grads = ms.grad(loss, (0, 1))(
        *(ms.Tensor(state[f"llm_proj.{leaf}"].numpy()) for leaf in ("weight", "bias"))
    )
    for grad, leaf in zip(grads, ("weight", "bias")):
        expected = arrays[f"{case}.grad.llm_proj.{leaf}"]
        assert (
            np.abs(grad.asnumpy() - expected).max()
            < 2e-5 + 1e-4 * np.abs(expected).max()
            < 0.1 * np.abs(expected).max()
        )


@pytest.mark.parametrize("case", ["noprompt", "prompt", "leftpad"])
def test_greedy_captions_are_those_of_the_reference(reference, case):
    """``leftpad``: prompts of unequal length behind the queries, padded on their left."""
    llm, _, arrays = reference
    queries, ids = arrays["queries"], arrays[f"{case}.generate.prompt_ids"].astype(np.int32)
    x = ms.ops.cat((ms.Tensor(queries), llm.embed(ms.Tensor(ids))), 1)
    mask = np.concatenate(
        [np.ones(queries.shape[:2]), arrays[f"{case}.generate.prompt_attention_mask"]], 1
    ).astype(np.int32)
    found = greedy(llm, x, ms.Tensor(mask), 20, end=2)
    expected = [until(row, 2) for row in arrays[f"{case}.greedy_loop.ids"]]
    assert [until(row, 2) for row in found] == expected
    # with transformers' own cache
    assert [until(row[1:], 2) for row in arrays[f"{case}.generate.beam1.ids"]] == expected
