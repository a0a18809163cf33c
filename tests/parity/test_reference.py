"""The torch twin reproduces what LAVIS 1.0.2 computed on the tiny checkpoint;
tests/parity/test_reference_controls.py shows that these comparisons can fail."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mindblip2.parity import seeded_weights  # noqa: E402
from mindblip2.parity.reference import losses  # noqa: E402
from mindblip2.parity.reference.generate import Rules  # noqa: E402
from mindblip2.parity.reference.lavis_arrays import Reference, beyond, distance, tolerance  # noqa: E402
from mindblip2.parity.reference.model import (  # noqa: E402
    ReferenceConfig,
    ReferenceModel,
    capture,
    decay_groups,
    load,
    part,
    read_state_dict,
    seeded_state_dict,
)
from mindblip2.parity.reference.qformer import Layer  # noqa: E402
from mindblip2.parity.reference.vit import Block  # noqa: E402

TINY = Path(__file__).parents[1] / "reference" / "tiny"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two threads that wait for each other on busy cores take ten times as long for matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lavis():
    return Reference(TINY)


@pytest.fixture(scope="module")
def twin(lavis):
    return lavis.twin(torch.float64)


@pytest.fixture(scope="module")
def gradients(lavis, twin):
    return lavis.gradients(twin)


def test_every_array_of_lavis_is_reproduced_in_float64(lavis, twin):
    seen = lavis.observe(twin)
    elsewhere = {"itc_targets", "itm_labels", "lm_columns"} | {
        n for n in lavis.outputs if n.startswith("generate.")
    }
    assert set(seen) == set(lavis.outputs) - elsewhere
    assert lavis.unlike_lavis64(seen, lavis.outputs, "outputs") == set()
    assert beyond(seen, lavis.outputs) == set()
    # negatives and LM ids, which are exact
    assert sum(value.dtype.kind == "i" for value in seen.values()) == 6


def test_float32_stays_within_the_reference_tolerances(lavis):
    assert beyond(lavis.observe(lavis.twin(torch.float32)), lavis.outputs) == set()


def test_a_float16_vit_gives_what_lavis_gives_on_a_cpu(lavis):
    """LAVIS on a CPU rounds the ViT's matrices to float16 and computes in float32; the rounding must show."""
    rounded = lavis.arrays("outputs_fp16vit.npz")
    seen = lavis.observe(lavis.twin(torch.float32, "blip2_tiny_fp16vit.pth"))
    seen = {name: value for name, value in seen.items() if name in rounded}
    assert set(seen) == set(rounded) and beyond(seen, rounded) == set()
    assert {"vit.out", "ln_vision", "sim_i2t", "loss_itc"} <= beyond(seen, lavis.outputs)


def test_gradients_of_every_trainable_parameter(lavis, gradients):
    assert set(gradients) == set(lavis.grads) - {"names", "word_rows"}
    assert lavis.unlike_lavis64(gradients, lavis.grads, "grads") == set()
    assert beyond(gradients, lavis.grads) == set()
    assert beyond(lavis.gradients(lavis.twin(torch.float32)), lavis.grads) == set()


def test_gradients_when_gathered_features_learn(lavis, twin, gradients):
    """The losses are the same to the last digit: only gradients can tell the two gathers apart."""
    other = lavis.arrays("grads_gather_with_grad.npz")
    seen = lavis.gradients(twin, gather_with_grad=True)
    assert beyond(seen, other) == set()
    assert distance(seen["loss"], gradients["loss"]) == 0
    wrong = beyond(seen, lavis.grads)
    assert {
        "grad.vision_proj.weight",
        "grad.text_proj.weight",
        "grad.query_tokens",
        "gradnorm.loss_itc",
    } <= wrong
    assert not {"grad.temp", "gradnorm.loss_itm", "gradnorm.loss_lm", "loss"} & wrong


def test_three_optimizer_steps(lavis):
    seen = lavis.three_steps(lavis.twin())
    assert set(seen) == set(lavis.adamw) - {"word_rows"}
    assert lavis.unlike_lavis64(seen, lavis.adamw, "adamw3") == set()
    # a key bias has the true gradient 0; Adam blows its float32 noise up to whole steps
    assert all(name.endswith("self.key.bias") for name in beyond(seen, lavis.adamw))


def test_decay_groups_are_those_of_lavis(twin):
    names = {id(value): name for name, value in twin.named_parameters()}
    groups = json.loads((TINY / "optimizer_groups.json").read_text())
    for ours, theirs in zip(decay_groups(twin), groups, strict=True):
        assert sorted(names[id(value)] for value in ours["params"]) == sorted(theirs["names"])
        assert ours["weight_decay"] == theirs["weight_decay"]


def test_two_processes_are_one_batch_whose_lm_loss_is_averaged_per_process(lavis, twin):
    """outputs_ws2.npz: LAVIS with two processes of two samples; gradients as DDP averages them."""
    two, ids = lavis.arrays("outputs_ws2.npz"), lavis.inputs["input_ids"]
    out = twin(lavis.image(twin), ids)
    labels = ids.masked_fill(ids == 0, losses.IGNORED)
    lm = [losses.lm(out.lm_logits[rows], labels[rows]) for rows in (slice(0, 2), slice(2, 4))]
    theirs = (two["rank0.losses"] + two["rank1.losses"]) / 2
    total = out.loss_itc + out.loss_itm + sum(lm) / 2
    assert np.abs(theirs - [x.item() for x in (total, out.loss_itc, out.loss_itm, sum(lm) / 2)]).max() < 1e-5
    names = [name.removeprefix("grad.") for name in two if name.startswith("grad.")]
    assert len(names) > 120
    for name, grad in zip(
        names, torch.autograd.grad(total, [twin.get_parameter(n) for n in names]), strict=True
    ):
        assert distance(grad.numpy(), two["grad." + name]) <= tolerance("grad", two["grad." + name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_captions(lavis, dtype):
    twin = lavis.twin(dtype)
    ids, none = twin.generate(lavis.image(twin), num_beams=1)
    assert none is None and ids.tolist() == lavis.outputs["generate.beam1.ids"].tolist()
    ids, scores = twin.generate(lavis.image(twin), num_beams=3)
    assert ids.tolist() == lavis.outputs["generate.beam3.ids"].tolist()
    assert distance(scores.numpy(), lavis.outputs["generate.beam3.sequences_scores"]) < 1e-5


@torch.no_grad()
def test_greedy_scores_without_the_cache(lavis, twin):
    """One pass over the finished captions gives the scores of every step of the cached decoding."""
    ids = torch.from_numpy(lavis.outputs["generate.beam1.ids"])
    _, memory = twin.see(twin.embed_image(lavis.image(twin)))
    scores = twin.Qformer.logits(twin.caption(ids[:, :-1], memory, torch.ones_like(ids[:, :-1]))[0])
    scores[:, : Rules.min_length - 1, Rules.end] = -torch.inf
    first, second = scores.topk(2).values.unbind(-1)
    running = (ids[:, :-1] != 0) & (ids[:, :-1] != Rules.end)
    for ours, name in ((first, "top1_logit"), (first - second, "top1_minus_top2")):
        theirs = torch.from_numpy(lavis.outputs["generate.beam1." + name])
        assert (ours - theirs)[running].abs().max() < 1e-4


def test_seeded_weights_are_the_checkpoint():
    manifest = json.loads((TINY / "manifest.json").read_text())
    state = read_state_dict(TINY / "blip2_tiny.pth")
    assert set(state) == set(manifest["params"])
    for name, entry in manifest["params"].items():
        value = seeded_weights.weight(
            name, tuple(entry["shape"]), manifest["seed"], seeded_weights.SEP_BIAS["tiny"]
        )
        assert seeded_weights.crc32(value) == entry["crc32"] == seeded_weights.crc32(state[name].numpy()), (
            name
        )


def test_full_size_has_the_names_and_sizes_of_the_published_model():
    with torch.device("meta"):
        state = ReferenceModel(ReferenceConfig()).state_dict()
    assert len(state) == 857 and len(part(state, "Qformer.")) == 336
    vit = part(state, "visual_encoder.")
    assert len(vit) == 511 and sum(value.numel() for value in vit.values()) == 985_894_528
    assert ReferenceConfig.from_state_dict(state) == ReferenceConfig()
    without_vit = {name: value for name, value in state.items() if not name.startswith("visual_encoder.")}
    assert len(without_vit) == 346 and ReferenceConfig.from_state_dict(without_vit).vit_depth == 0


def test_a_checkpoint_without_vit_loads_and_a_broken_one_does_not(lavis):
    config = replace(lavis.twin().config, vit_depth=0)
    state = seeded_state_dict(config)
    assert load({"model": state}, config).visual_encoder is None
    with pytest.raises(RuntimeError, match="itm_head.weight"):
        load({name: value for name, value in state.items() if name != "itm_head.weight"}, config)
    with pytest.raises(RuntimeError, match="surplus"):
        load(state | {"surplus": torch.zeros(1)}, config)
    decoder = "Qformer.cls.predictions.decoder.weight"
    with pytest.raises(ValueError, match="differ in this checkpoint"):
        load(state | {decoder: state[decoder] + 1}, config)
    one_name = load({name: value for name, value in state.items() if name != decoder}, config)
    assert one_name.get_parameter(decoder) is one_name.Qformer.bert.embeddings.word_embeddings.weight
    with pytest.raises(ValueError, match="give heads="):
        ReferenceConfig.from_state_dict(state)


@torch.no_grad()
def test_a_block_and_a_layer_stand_alone(lavis, twin):
    """What streaming at full width relies on: one block's weights and its input give its output, bit for
    bit."""
    config, state = twin.config, twin.state_dict()
    names = ["visual_encoder.blocks.1", "Qformer.bert.encoder.layer.2"]
    with capture(twin, [*names, "ln_vision"]) as outputs, capture(twin, names, inputs=True) as inputs:
        twin.see(twin.embed_image(lavis.image(twin)))
    block = Block(config.vit_width, config.vit_heads, config.vit_hidden).double()
    layer = Layer(config, cross=True).double()
    for module, name in zip((block, layer), names, strict=True):
        module.load_state_dict(part(state, name + "."))
    assert torch.equal(block(inputs[names[0]][0]), outputs[names[0]][0])
    ours, _ = layer(inputs[names[1]][0], image_BPW=outputs["ln_vision"][0], queries=config.queries)
    assert torch.equal(ours, outputs[names[1]][0])


def test_capture_refuses_a_name_that_is_not_there(twin):
    with pytest.raises(ValueError, match="no submodule is called"), capture(twin, ["Qformer.bert.pooler"]):
        pass


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_and_keeps_its_losses_wide(lavis, dtype):
    twin = lavis.twin(dtype)
    with torch.no_grad():
        out = twin(
            lavis.image(twin),
            lavis.inputs["input_ids"],
            negatives=tuple(
                torch.from_numpy(lavis.outputs[name]) for name in ("neg_image_idx", "neg_text_idx")
            ),
        )
    assert out.loss.dtype == out.sim_i2t.dtype == torch.float32
    assert abs(out.loss.item() - lavis.outputs["loss"]) < (0.01 if dtype == torch.float16 else 0.1)
