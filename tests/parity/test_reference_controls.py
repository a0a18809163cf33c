"""Negative controls: the comparisons of test_twin.py fail for each of these defects, in the arrays that it
touches.

Each row is a defect, arrays that must differ from LAVIS and arrays that must not: a comparison that fails
everywhere would locate nothing.
"""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from mindblip2.parity.compare import LOOK, noise_ratio  # noqa: E402
from mindblip2.parity.reference import generate, losses, qformer, vit  # noqa: E402
from mindblip2.parity.reference import model as twin_module  # noqa: E402
from mindblip2.parity.reference.lavis_arrays import Reference, beyond  # noqa: E402

TINY = Path(__file__).parents[1] / "reference" / "tiny"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """See test_twin.py."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lavis():
    return Reference(TINY)


def failing(lavis, twin):
    return lavis.unlike_lavis64(lavis.observe(twin), lavis.outputs, "outputs")


CONFIG = {  # changes to ReferenceConfig: must fail, must not
    "tanh GELU": ({"gelu": "tanh"}, "vit.block_00.mlp text_branch.layer_00 loss", "vit.block_00.attn"),
    "block eps 1e-5": ({"vit_eps": 1e-5}, "vit.block_00.norm1 vit.out", "vit.embed text_branch.last_hidden"),
    "ln_vision eps 1e-6": ({"ln_vision_eps": 1e-6}, "ln_vision sim_i2t loss_itc", "vit.out text_feat"),
    "no smoothing": (
        {"smoothing": 0.0},
        "loss_itc loss_lm loss derived.image_id.loss_lm",
        "sim_i2t loss_itm",
    ),
    "Q-Former eps 1e-6": ({"qformer_eps": 1e-6}, "image_branch.layer_00 text_branch.layer_00", "ln_vision"),
}


@pytest.mark.parametrize("defect", CONFIG)
def test_a_wrong_constant_fails(lavis, defect):
    changes, touched, untouched = CONFIG[defect]
    wrong = failing(lavis, lavis.twin(**changes))
    assert set(touched.split()) <= wrong and not set(untouched.split()) & wrong


@torch.no_grad()
def test_a_wrong_eps_needs_the_noise_floor_and_isolated_feeding(lavis):
    """HF has eps 1e-6 for ln_vision. That stays within every tolerance of the reference data; chained, the
    noise of the blocks before it half hides it (a "look"); fed with the same input on both sides, it
    fails."""
    truth, torch32, wrong32 = (
        lavis.twin(torch.float64),
        lavis.twin(torch.float32),
        lavis.twin(torch.float32, ln_vision_eps=1e-6),
    )
    truth_seen, torch_seen, wrong_seen = map(lavis.observe, (truth, torch32, wrong32))
    assert beyond(wrong_seen, lavis.outputs) == set()
    chained = noise_ratio(*(seen["ln_vision"] for seen in (wrong_seen, torch_seen, truth_seen)))
    x = torch.from_numpy(torch_seen["vit.out"])
    isolated = noise_ratio(
        *(twin.ln_vision(x.to(twin.temp.dtype)).numpy() for twin in (wrong32, torch32, truth))
    )
    assert isolated > LOOK and isolated > 3 * chained  # 35 and 4.4 on x86-64


def roll_positions(twin):
    table = twin.Qformer.bert.embeddings.position_embeddings.weight
    table.copy_(table.roll(1, dims=0))


def permute_heads(twin):
    query = twin.visual_encoder.blocks[1].attn
    width = twin.config.vit_width
    head = width // twin.config.vit_heads
    query.qkv.weight[:width] = query.qkv.weight[:width].roll(head, dims=0)


def exchange_feed_forwards(twin):
    layer = twin.Qformer.bert.encoder["layer"][1]
    layer.output, layer.output_query = layer.output_query, layer.output


def lose_cross_attention(twin):
    twin.Qformer.bert.encoder["layer"][2].crossattention = None


STATE = {
    "positions off by one": (
        roll_positions,
        "text_branch.layer_00 lm_branch.layer_00 itm_branch.layer_00",
        "image_branch.last_hidden",
    ),
    "heads of q permuted": (permute_heads, "vit.block_01", "vit.block_00"),
    "text and query feed-forward exchanged": (
        exchange_feed_forwards,
        "image_branch.layer_01 text_branch.layer_01",
        "image_branch.layer_00 text_branch.layer_00",
    ),
    "a cross-attention lost": (
        lose_cross_attention,
        "image_branch.layer_02 itm_branch.layer_02",
        "image_branch.layer_01 text_branch.last_hidden",
    ),
}


@pytest.mark.parametrize("defect", STATE)
def test_a_wrong_weight_fails(lavis, defect):
    spoil, touched, untouched = STATE[defect]
    twin = lavis.twin()
    with torch.no_grad():
        spoil(twin)
    wrong = failing(lavis, twin)
    assert set(touched.split()) <= wrong and not set(untouched.split()) & wrong


def bias_without_zeros(self, x_BPW):
    bias = torch.cat([self.q_bias, self.v_bias, torch.zeros_like(self.q_bias)])
    q, k, v = F.linear(x_BPW, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
    return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def see_the_future(mask_BT, cached, dtype):
    return qformer.padding_bias(F.pad(mask_BT, (cached, 0), value=1), dtype)


def smooth_over_pads(logits_BTV, labels_BT, smoothing):
    """MindFormers' label smoothing: the uniform part is averaged over all positions, pads included."""
    log_p, labels = logits_BTV[:, :-1].log_softmax(2), labels_BT[:, 1:]
    return 0.9 * F.nll_loss(log_p.flatten(0, 1), labels.flatten()) - 0.1 * log_p.mean()


def first_query_only(self, ids_BT, image_BPW, mask_BT=None):
    return self.itm_head(self.match(ids_BT, image_BPW, mask_BT)[:, 0])


LM = "loss_lm loss derived.image_id.loss_lm"
FUNCTION = {  # what is replaced, by what
    "pads visible": (
        twin_module,
        "not_pad",
        lambda ids, mask, pad: torch.ones_like(ids),
        "text_branch.layer_00 itm_branch.layer_00 loss_itc loss_itm",
        "image_branch.last_hidden",
    ),
    "q, v biases without k's zeros": (
        vit.Attention,
        "forward",
        bias_without_zeros,
        "vit.block_00.attn",
        "vit.block_00.norm1",
    ),
    "captions see the future": (
        twin_module,
        "caption_bias",
        see_the_future,
        f"lm_branch.layer_00 {LM}",
        "loss_itm",
    ),
    "captions start with [CLS]": (
        twin_module.ReferenceModel,
        "started",
        lambda self, ids: ids,
        f"lm_branch.layer_00 {LM}",
        "loss_itm",
    ),
    "smoothing over pads": (losses, "lm", smooth_over_pads, LM, "lm_logits_columns loss_itc"),
    "image ids ignored": (
        losses,
        "soft_targets",
        lambda ids, dtype, smoothing=0: torch.eye(len(ids), dtype=dtype),
        "derived.image_id.soft_targets derived.image_id.loss_itc",
        "loss_itc",
    ),
    "ITM from one query": (
        twin_module.ReferenceModel,
        "itm_logits",
        first_query_only,
        "itm_logits itm.logits loss_itm",
        "itm_branch.last_hidden loss_itc",
    ),
}


@pytest.mark.parametrize("defect", FUNCTION)
def test_a_wrong_function_fails(lavis, defect, monkeypatch):
    owner, name, wrong_one, touched, untouched = FUNCTION[defect]
    monkeypatch.setattr(owner, name, wrong_one)
    wrong = failing(lavis, lavis.twin())
    assert set(touched.split()) <= wrong and not set(untouched.split()) & wrong


def test_a_detached_cache_shows_in_gradients_only(lavis, monkeypatch):
    """The caption loss must train the query pass through the keys and values that it cached."""
    see = twin_module.ReferenceModel.see

    def cut(self, image_BPW):
        query, memory = see(self, image_BPW)
        return query, [(key.detach(), value.detach()) for key, value in memory]

    monkeypatch.setattr(twin_module.ReferenceModel, "see", cut)
    wrong = lavis.unlike_lavis64(lavis.gradients(lavis.twin()), lavis.grads, "grads")
    assert {"grad.query_tokens", "gradnorm.loss_lm"} <= wrong and "loss" not in wrong


@pytest.mark.parametrize(
    "defect, change",
    [
        (
            "decay on everything",
            {
                "groups": lambda twin: [
                    {"params": [p for p in twin.parameters() if p.requires_grad], "weight_decay": 0.05}
                ]
            },
        ),
        (
            "no decay",
            {
                "groups": lambda twin: [
                    {"params": [p for p in twin.parameters() if p.requires_grad], "weight_decay": 0.0}
                ]
            },
        ),
        ("beta2 0.98", {"betas": (0.9, 0.98)}),
    ],
)
def test_a_wrong_optimizer_fails(lavis, defect, change):
    wrong = lavis.unlike_lavis64(lavis.three_steps(lavis.twin(), **change), lavis.adamw, "adamw3")
    touched = "after3.itm_head.bias" if defect == "decay on everything" else "after3.itm_head.weight"
    assert touched in wrong


def test_new_length_rule_gives_other_beam_scores(lavis, monkeypatch):
    """transformers >= 4.36 divides by the generated length; the reference counted [DEC] too."""
    add = generate.Hypotheses.add
    monkeypatch.setattr(
        generate.Hypotheses, "add", lambda self, ids, score: add(self, ids, score * len(ids) / (len(ids) + 1))
    )
    twin = lavis.twin()
    _, scores = twin.generate(lavis.image(twin), num_beams=3)
    assert (scores - torch.from_numpy(lavis.outputs["generate.beam3.sequences_scores"])).abs().min() > 0.1
