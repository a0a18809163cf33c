"""Our side of the first link: what our model gives on the reference's inputs, under the names of LAVIS's
arrays.

``mindblip2/parity/reference/lavis_arrays.py`` does the same for the twin, and holds the arrays and their
tolerances.

    # B batch · Q queries · T text · V vocabulary
"""

import mindspore as ms
import numpy as np
import torch
from mindspore import nn, ops

from mindblip2.convert.name_maps.blip2 import LAVIS, source_name
from mindblip2.models import losses
from mindblip2.parity.activation_hooks import twin_paths
from mindblip2.parity.candidate.chained import VERBS, our_activations
from mindblip2.parity.model_triple import tensor
from mindblip2.parity.reference.lavis_arrays import BRANCHES, Reference, lm_views
from mindblip2.parity.reference.model import best_only

LOSSES = ("loss", "loss_itc", "loss_itm", "loss_lm")
# we draw by the Gumbel-max trick, which needs no weights
NO_TWIN = ("neg_weights", "derived.image_id.neg_weights")
BRANCH = dict(zip(VERBS, BRANCHES, strict=True))


def observe(model: nn.Cell, ref: Reference) -> dict[str, np.ndarray]:
    """A forward pass as outputs.npz has it: activations, features, similarities, logits, losses, rankings."""
    image, ids = tensor(ref.inputs["image"].numpy()), ref.inputs["input_ids"].numpy()
    seen = forward(model, image, tensor(ids))
    inputs = {
        "image": ref.inputs["image"].numpy(),
        "ids": ids,
        "image_idx": seen["neg_image_idx"],
        "text_idx": seen["neg_text_idx"],
    }
    layers = our_activations(
        model, twin_paths(model, model.config.qformer_config.cross_attention_freq), inputs
    )
    seen |= activations(layers) | {"itm_logits": layers["itm_head"].mean(1)}
    logits = torch.from_numpy(layers["qformer.lm_head"])
    views = lm_views(logits, ref.inputs["input_ids"], torch.from_numpy(ref.outputs["lm_columns"]))
    seen |= {name: value.numpy() for name, value in views.items()}
    seen |= features(model, image, tensor(ref.inputs["longest_input_ids"].numpy())) | all_pairs(
        model, image, tensor(ids)
    )
    seen |= shared_image(model, image, ids, ref.inputs["image_id"].numpy())
    return {name: value for name, value in seen.items() if name in ref.outputs}


def forward(model: nn.Cell, image, ids, image_id=None) -> dict[str, np.ndarray]:
    """Losses, similarities, and the likeliest negatives, with which the losses are computed."""
    feats = model.extract_features({"image": image}, "image").image_embeds_proj
    _, sim_i2t, sim_t2i = losses.itc(feats, model.text_features(ids), model.temp, image_id)
    same = losses.same_picture(*sim_i2t.shape, image_id)
    level = ops.full_like(sim_i2t, 0.5)  # the same noise for all: the draw falls on the likeliest
    negatives = losses.hard_negatives(sim_t2i, same, level), losses.hard_negatives(sim_i2t, same, level)
    values = model(image, ids, image_id, negatives, True)
    arrays = (*values, sim_i2t, sim_t2i, *negatives)
    names = (*LOSSES, "sim_i2t", "sim_t2i", "neg_image_idx", "neg_text_idx")
    return {name: value.asnumpy() for name, value in zip(names, arrays, strict=True)}


def activations(layers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The chained rows under the reference's names."""
    seen = {name: layers[name] for name in ("vit.patch_embed", "vit.embed", "ln_vision")}
    seen |= {f"vit.block_00.{part}": layers[f"vit.blocks.0.{part}"] for part in ("norm1", "attn", "mlp")}
    for name, value in layers.items():
        path, _, verb = name.partition(" ")
        if path.startswith("vit.blocks.") and path.count(".") == 2:
            seen[f"vit.block_{int(path[11:]):02d}"] = seen["vit.out"] = value
        if path.startswith("qformer.encoder.layers.") and path.count(".") == 3:
            seen[f"{BRANCH[verb]}_branch.layer_{int(path[23:]):02d}"] = seen[
                f"{BRANCH[verb]}_branch.last_hidden"
            ] = value
    return seen


def features(model: nn.Cell, image, ids) -> dict[str, np.ndarray]:
    """The three modes of ``extract_features``, and the keys and values that ``see`` hands on."""
    seen = {}
    for mode in ("image", "text", "multimodal"):
        found = model.extract_features({"image": image, "text_input": ids}, mode)._asdict()
        seen |= {f"features.{name}": value.asnumpy() for name, value in found.items() if value is not None}
    for i, pair in enumerate(model.qformer.see(model.remember(image))[1]):
        seen |= {
            f"image_branch.past_{part}_{i:02d}": value.asnumpy()
            for part, value in zip(("key", "value"), pair, strict=True)
        }
    return seen


def all_pairs(model: nn.Cell, image, ids) -> dict[str, np.ndarray]:
    """ITC features, ITM logits and cosines of every image with every caption, and the rankings made of
    them."""
    sim = model.itc_similarity(image, ids)
    logits = ops.stack([model.itm_logits(ops.tile(one[None], (len(ids), 1, 1, 1)), ids) for one in image])
    seen = {
        "image_feats": model.extract_features({"image": image}, "image").image_embeds_proj,
        "text_feat": model.text_features(ids),
        "itm.itc": sim,
        "itm.logits": logits,
    }
    seen = {name: value.asnumpy() for name, value in seen.items()}
    cosine, match = torch.from_numpy(seen["itm.itc"]), torch.from_numpy(seen["itm.logits"][..., 1])
    for k in (2, 4):
        seen[f"retrieval.k{k}.i2t"] = best_only(cosine, match, k).numpy()
        seen[f"retrieval.k{k}.t2i"] = best_only(cosine.T, match.T, k).numpy()
    return seen


def shared_image(model: nn.Cell, image, ids, image_id) -> dict[str, np.ndarray]:
    """The same forward pass with image ids."""
    seen = forward(model, image, tensor(ids), tensor(image_id))
    inputs = {
        "image": image.asnumpy(),
        "ids": ids,
        "image_idx": seen["neg_image_idx"],
        "text_idx": seen["neg_text_idx"],
    }
    seen["itm_logits"] = our_activations(model, {"vit.blocks.0": "", "itm_head": ""}, inputs)[
        "itm_head"
    ].mean(1)
    seen["soft_targets"] = losses.itc_targets(len(ids), len(ids), tensor(image_id)).asnumpy()
    return {f"derived.image_id.{name}": value for name, value in seen.items()}


def gradients(model: nn.Cell, ref: Reference, parts: tuple[str, ...] = LOSSES) -> dict[str, np.ndarray]:
    """grads.npz: gradients of the total by LAVIS's parameter names, and the norms of each loss's
    gradients."""
    freq = model.config.qformer_config.cross_attention_freq
    ours = {source_name(LAVIS, parameter.name, freq): parameter for parameter in model.trainable_params()}
    names, seen = [str(name) for name in ref.grads["names"]], {}
    if set(ours) != set(names):
        raise ValueError(f"trainable on one side only: {sorted(set(ours) ^ set(names))}")
    inputs = [tensor(ref.inputs[name].numpy()) for name in ("image", "input_ids")]
    inputs += [tensor(ref.outputs[name]) for name in ("neg_image_idx", "neg_text_idx")]
    for part in sorted(parts, reverse=True):  # "loss" last: its gradients are kept
        values, grads = loss_and_gradients(model, [ours[name] for name in names], LOSSES.index(part), inputs)
        seen["gradnorm." + part] = np.array([np.linalg.norm(grad.astype(np.float64)) for grad in grads])
    kept = {f"grad.{name}": torch.from_numpy(grad) for name, grad in zip(names, grads, strict=True)}
    return seen | {"loss": values} | ref.stored(kept)


def loss_and_gradients(
    model: nn.Cell, weights: list, which: int, inputs: list
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The four losses, and the gradients of one of them; in the mode, graph or PyNative, that is set."""

    def forward_fn(image, ids, image_idx, text_idx):
        values = model(image, ids, None, (image_idx, text_idx), True)
        return values[which], values

    (_, values), grads = ms.value_and_grad(forward_fn, None, ms.ParameterTuple(weights), has_aux=True)(
        *inputs
    )
    return np.array([float(value.asnumpy()) for value in values]), [grad.asnumpy() for grad in grads]
