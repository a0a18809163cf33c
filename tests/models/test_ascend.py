"""The kernels of an Ascend NPU, as MindSpore documents them, in NumPy: packed by cells.ascend they give the
composed forms' numbers.

This proves the packing (padding, scale, the mask's polarity, ALiBi as a shift), if the kernels do what their
documentation says.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, mint, ops

from mindblip2 import device
from mindblip2.models import decoder, layers, llama
from mindblip2.models.kernels import ascend
from mindblip2.models.qformer import caption_bias, read_bias

KERNELS = {"attention": "shift after the scale"}
SEEING = np.array([[0, 0, 1, 1, 1], [1] * 5])  # of the mask "left"
# of float32 scores and weights against float64; what is wrong in the packing shows as 1e-3 and more
NOISE = 4e-6


def flash_attention_score(
    query,
    key,
    value,
    head_num,
    real_shift=None,
    attn_mask=None,
    keep_prob=1.0,
    scalar_value=1.0,
    input_layout="BSH",
):
    """``ops.flash_attention_score``'s documentation in float64, with its demands on shapes.  Where the
    documents of MindSpore's function and of its primitive differ, KERNELS says which is obeyed."""
    q, k, v = (x.asnumpy().astype(np.float64) for x in (query, key, value))
    batch, heads, length, width = q.shape
    slots = k.shape[2]
    assert (
        (input_layout, head_num, keep_prob) == ("BNSD", heads, 1.0) and k.shape == v.shape and width % 16 == 0
    )
    scores = q @ k.swapaxes(2, 3)
    shift = 0.0 if real_shift is None else real_shift.asnumpy().astype(np.float64)
    if real_shift is not None:
        assert (
            real_shift.shape in ((batch, heads, length, slots), (1, heads, length, slots))
            and real_shift.dtype == query.dtype
        )
    scores = (
        scalar_value * scores + shift
        if KERNELS["attention"] == "shift after the scale"
        else scalar_value * (scores + shift)
    )
    if attn_mask is not None:
        assert attn_mask.dtype == ms.bool_
        assert attn_mask.shape in ((batch, heads, length, slots), (batch, 1, length, slots), (length, slots))
        scores = np.where(attn_mask.asnumpy(), -np.inf, scores)  # True: discard
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return Tensor((weights / weights.sum(-1, keepdims=True) @ v).astype(np.float32))


def rms_norm(x, gamma, epsilon):
    wide = x.asnumpy().astype(np.float64)
    scale = 1 / np.sqrt((wide**2).mean(-1, keepdims=True) + epsilon)
    return Tensor((wide * scale * gamma.asnumpy()).astype(np.float32)), Tensor(scale.astype(np.float32))


def rotary_position_embedding(x, cos, sin, mode):
    """Mode 0, rotate_half: x · cos + (-right, left) · sin."""
    assert mode == 0 and x.dtype == cos.dtype == sin.dtype
    wide = x.asnumpy()
    left, right = np.split(wide, 2, -1)
    return Tensor(wide * cos.asnumpy() + np.concatenate([-right, left], -1) * sin.asnumpy())


@pytest.fixture(autouse=True)
def documented(monkeypatch):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    for kernel in (flash_attention_score, rms_norm, rotary_position_embedding):
        monkeypatch.setattr(ops, kernel.__name__, kernel)
    monkeypatch.setattr(mint.nn.functional, "gelu", lambda x, approximate: ops.gelu(x, approximate))
    monkeypatch.setattr(
        mint.nn.functional,
        "layer_norm",
        lambda x, shape, *weights: ops.LayerNorm(-1, -1, weights[2])(x, *weights[:2])[0],
    )


def heads_of(width, length=5, slots=5, batch=2, heads=3, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Tensor(rng.standard_normal((batch, heads, n, width)).astype(np.float32))
        for n in (length, slots, slots)
    ]


def difference(one, other, rows=None):
    """Largest, of numbers of the order of 1.  Of ``rows`` (B, T) only those that are 1: where nothing is
    seen, the composed form adds -10000 to all scores, which costs float32 three digits.  There the numbers
    count for nothing, but they must be numbers."""
    gap_BHTK = np.abs(one.asnumpy() - other.asnumpy())
    if not np.isfinite(gap_BHTK).all():
        return np.inf
    return gap_BHTK.max() if rows is None else (gap_BHTK * rows[:, None, :, None]).max()


def masks(kind, length=5, slots=5):
    """Biases as the towers make them, with padding."""
    ones = np.ones((2, slots), np.float32)
    if kind == "right":
        ones[1, 3:] = 0
    if kind == "left":
        ones[0, :2] = 0  # two rows of the causal mask see nothing
    seen = Tensor(ones)
    return {
        "none": None,
        "right": read_bias(seen),
        "left": decoder.causal_bias(seen),
        "caption": caption_bias(Tensor(ones[:, :length]), slots - length),
    }[kind]


@pytest.mark.parametrize("width", [88, 64, 10])
@pytest.mark.parametrize("kind", ["none", "right", "left", "caption"])
def test_attention_is_the_composed_one(width, kind):
    query, key, value = heads_of(width, length=3 if kind == "caption" else 5)
    bias = masks(kind, length=query.shape[2])
    rows = SEEING if kind == "left" else None
    assert (
        difference(ascend.attend(query, key, value, bias), layers.attend(query, key, value, bias), rows)
        < NOISE
    )


@pytest.mark.parametrize("formula", ["shift after the scale", "shift before the scale"])
def test_alibi_is_a_shift(formula, monkeypatch):
    monkeypatch.setitem(KERNELS, "attention", formula)
    query, key, value = heads_of(16)
    place = np.arange(5)
    distance = np.minimum(place[None] - place[:, None], 0) * llama.slopes(3)[:, None, None]
    bias = masks("left") + Tensor(distance[None].astype(np.float32))
    shifted = ascend.attend(query, key, value, bias, shifts=True)
    assert difference(shifted, layers.attend(query, key, value, bias), SEEING) < NOISE


def test_a_shift_in_half_precision_costs_no_more_than_half_precision_weights():
    """4096 keys behind one another, scores of the order of 3, Baichuan-13B's slopes: weights from a bfloat16
    shift, against weights that are themselves rounded to bfloat16."""
    scores = 3 * np.random.default_rng(0).standard_normal((40, 4096))
    exact = scores - np.arange(4096) * llama.slopes(40)[:, None]
    shift = Tensor((exact - scores).astype(np.float32)).astype(ms.bfloat16).astype(ms.float32).asnumpy()
    weights = [np.exp(one - one.max(-1, keepdims=True)) for one in (exact, scores + shift)]
    exact_HS, shifted_HS = (one / one.sum(-1, keepdims=True) for one in weights)
    rounded_HS = Tensor(exact_HS.astype(np.float32)).astype(ms.bfloat16).astype(ms.float32).asnumpy()
    assert np.abs(shifted_HS - exact_HS).max() < 2 * np.abs(rounded_HS - exact_HS).max()


def test_what_is_wrong_in_the_packing_is_noticed(monkeypatch):
    """Negative controls, one for each thing that is easy to get wrong."""
    query, key, value = heads_of(88)
    bias = masks("left")
    composed = layers.attend(query, key, value, bias)
    kernel = flash_attention_score

    def gap(**changes):
        def wrong(query, key, value, heads, **arguments):
            arguments |= {name: change(arguments[name]) for name, change in changes.items()}
            return kernel(query, key, value, heads, **arguments)

        monkeypatch.setattr(ops, "flash_attention_score", wrong)
        return difference(ascend.attend(query, key, value, bias), composed, SEEING)

    assert gap() < NOISE
    assert gap(scalar_value=lambda scale: 96**-0.5) > 1e-3  # the padded width's
    assert gap(attn_mask=lambda hidden: ops.logical_not(hidden)) > 0.1  # True: keep
    assert gap(attn_mask=lambda hidden: None) > 0.1
    monkeypatch.setattr(ascend, "hidden_keys", lambda bias, shape: ops.broadcast_to(bias < -5000.0, shape))
    assert gap() == np.inf  # rows that see nothing
    monkeypatch.undo()
    monkeypatch.setattr(ops, "flash_attention_score", kernel)
    monkeypatch.setattr(ascend, "widened", lambda x: ops.cat((x, ops.ones(x.shape[:-1] + (8,), x.dtype)), -1))
    # ones add the same to all scores …
    assert difference(ascend.attend(query, key, value), layers.attend(query, key, value)) < NOISE
    monkeypatch.setattr(ascend, "widened", lambda x: ops.cat((ops.ones(x.shape[:-1] + (8,), x.dtype), x), -1))
    # … but not on the left
    assert difference(ascend.attend(query, key, value), layers.attend(query, key, value)) > 0.1


def test_a_shift_that_meets_the_other_formula_unscaled_is_noticed(monkeypatch):
    """With the scale left to the kernel only one of the two formulas gives ALiBi."""
    query, key, value = heads_of(16)
    bias = masks("left") + Tensor(np.linspace(-3, 0, 75).reshape(1, 3, 5, 5).astype(np.float32))
    composed, gaps = layers.attend(query, key, value, bias), []
    hidden = ascend.hidden_keys(bias, (2, 3, 5, 5))
    for formula in ("shift after the scale", "shift before the scale"):
        monkeypatch.setitem(KERNELS, "attention", formula)
        made = flash_attention_score(
            query, key, value, 3, ops.where(hidden, ops.zeros_like(bias), bias), hidden, 1.0, 0.25, "BNSD"
        )
        gaps.append(difference(made, composed, SEEING))
    assert gaps[0] < NOISE and gaps[1] > 0.01


@pytest.mark.parametrize("name", ["rope", "alibi", "grouped"])
def test_a_language_model_of_kernels_is_the_composed_one(name):
    """Padding on the left, rotary positions or ALiBi, groups of heads: the whole text, then prefill and
    decode."""
    from mindblip2.config import LlamaConfig

    changes = {"alibi": {"position_embedding": "alibi"}, "grouped": {"n_kv_heads": 2}}.get(name, {})
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=48,
        initializer_range=None,
        **changes,
    )
    ms.set_seed(1)
    plain = llama.Llama(config)
    with device.simulate_device("Ascend"):
        made = llama.Llama(config)
    for own, given in zip(made.get_parameters(), plain.get_parameters(), strict=True):
        own.set_data(given)
    for layer in made.layers:
        assert layer.norm1.ascend and layer.attention.ascend and not layer.attention.flash  # float32
        layer.attention.flash = True
    ids, mask = (
        Tensor(np.arange(12).reshape(2, 6) % 20, ms.int32),
        Tensor([[0, 0, 1, 1, 1, 1], [1] * 6], ms.float32),
    )
    outputs = []
    for model in (plain, made):
        logits, state = model.prefill(model.embed(ids), mask, 3)
        step, _ = model.decode(np.array([5, 7]), np.array([1, 0]), state)
        # of padding nobody asks
        whole_BTV = model.head(model(model.embed(ids), mask)) * mask[:, :, None]
        outputs.append((whole_BTV, logits, step))
    assert max(difference(one, other) for one, other in zip(*outputs)) < NOISE
    # negative controls: the turn the other way round, ALiBi taken for a mask
    broken = made.layers[1].attention
    broken._apply_rotary = lambda x, rope_cache: (
        ascend.apply_rotary(x, rope_cache[0], -rope_cache[1]) if rope_cache else x
    )
    broken.shifts = False
    if name == "alibi":
        with pytest.raises(ValueError, match="BroadcastTo"):
            made(made.embed(ids), mask)
    else:
        assert difference(made.head(made(made.embed(ids), mask)) * mask[:, :, None], outputs[0][0]) > 1e-3


def test_norm_and_rotation():
    rng = np.random.default_rng(0)
    x, gamma = (
        Tensor(rng.standard_normal((2, 3, 8)).astype(np.float32)),
        Tensor(rng.standard_normal(8).astype(np.float32)),
    )
    with device.simulate_device("Ascend"):
        made = llama.RMSNorm(8, 1e-6)
    plain = llama.RMSNorm(8, 1e-6)
    made.gamma.set_data(gamma), plain.gamma.set_data(gamma)
    assert difference(made(x), plain(x)) < NOISE
    made.eps = 1e-2
    assert difference(made(x), plain(x)) > 1e-4


def test_attention_that_drops_stays_composed():
    """The kernel's own dropout would draw from another state, and wants keys in multiples of 8."""
    from mindblip2.models.rng import Dropout

    dropout = Dropout(0.5)
    query, key, value = heads_of(16)

    def kernel_used(training):
        dropout.set_train(training)
        dropout._words = (None,)
        dropout.native = lambda weights: weights * 0
        return (
            difference(
                layers.attend(query, key, value, dropout=dropout, flash=True),
                layers.attend(query, key, value),
            )
            < NOISE
        )

    assert kernel_used(training=False) and not kernel_used(training=True)


def test_the_device_says_which():
    assert not device.ascend() and not device.flash("bfloat16")
    with device.simulate_device("Ascend"):
        assert (
            device.ascend()
            and device.flash("bfloat16")
            and device.flash("float16")
            and not device.flash("float32")
        )
    assert device.target() == "CPU"
