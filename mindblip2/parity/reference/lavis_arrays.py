"""The first link of the chain of trust: what LAVIS 1.0.2 computed on a tiny checkpoint, and the same of the
twin.

``Reference(folder)`` reads the arrays; ``observe``, ``gradients``, ``three_steps`` give a twin's values under
the same names. Two comparisons: ``beyond`` uses the tolerances that come with the data, for float32.
``unlike_lavis64`` is much sharper and for float64: tolerance.json holds, for each array, how far LAVIS in
float32 was from LAVIS in float64, and a twin in float64 must be exactly that far from the float32 array.
Wrong eps values pass the first and fail the second.

    # B batch · Q queries · P patches + cls · W image width · T text · V vocabulary
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mindblip2.file_io import read_json
from mindblip2.parity import seeded_weights
from mindblip2.parity.dump_file import Arrays
from mindblip2.parity.reference import losses as reference_losses
from mindblip2.parity.reference.config import ReferenceConfig
from mindblip2.parity.reference.model import ReferenceModel, capture, decay_groups, load, read_state_dict

WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
BRANCHES = ("image", "text", "itm", "lm")  # the order in which a forward pass runs the Q-Former
PARTS = {
    "visual_encoder.patch_embed": "vit.patch_embed",
    "visual_encoder.pos_drop": "vit.embed",
    "visual_encoder.blocks.0.norm1": "vit.block_00.norm1",
    "visual_encoder.blocks.0.attn": "vit.block_00.attn",
    "visual_encoder.blocks.0.mlp": "vit.block_00.mlp",
    "ln_vision": "ln_vision",
}


class Reference:
    """The reference arrays of one folder, and twins of its checkpoints."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.outputs, self.grads, self.adamw = map(self.arrays, ("outputs.npz", "grads.npz", "adamw3.npz"))
        inputs = self.arrays("inputs.npz")
        self.inputs = {
            name: torch.from_numpy(value) for name, value in inputs.items() if value.dtype.kind != "U"
        }
        noise = read_json(self.folder / "tolerance.json", dict)
        self.noise = {
            file: {name: entry["fp32_vs_fp64_max_abs"] for name, entry in table.items()}
            for file, table in noise.items()
        }

    def arrays(self, file: str) -> dict[str, np.ndarray]:
        """All arrays of one .npz."""
        return dict(Arrays(self.folder / file, compressed=True))

    def twin(
        self, dtype: torch.dtype = torch.float64, file: str = "blip2_tiny.pth", **changes
    ) -> ReferenceModel:
        """A twin of the checkpoint; ``changes`` to its ReferenceConfig make deliberate defects."""
        state = read_state_dict(self.folder / file)
        resolved = read_json(self.folder / "config.json", dict)["resolved"]
        heads = resolved["vit"]["num_heads"], resolved["qformer"]["num_attention_heads"]
        config = ReferenceConfig.from_state_dict(state, *heads)
        return load(state, replace(config, **changes), dtype)

    def image(self, twin: ReferenceModel) -> torch.Tensor:
        """The input images (B, 3, S, S) in the twin's dtype."""
        return self.inputs["image"].to(twin.query_tokens.dtype)

    def unlike_lavis64(
        self, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], file: str
    ) -> set[str]:
        """Names in ``ours`` that are not as far from ``theirs`` as LAVIS in float64 was, to 2e-8 and 1 %."""
        noise = self.noise[file]
        return {
            name
            for name in ours
            if name in noise
            and abs(distance(ours[name], theirs[name]) - noise[name]) > 2e-8 + 0.01 * noise[name]
        }

    @torch.no_grad()
    def observe(self, twin: ReferenceModel) -> dict[str, np.ndarray]:
        """A forward pass as outputs.npz has it: activations, features, similarities, logits, losses,
        rankings."""
        ids, image = self.inputs["input_ids"], self.image(twin)
        with capture(twin, [*PARTS, "visual_encoder.blocks.?", "Qformer.bert.encoder.layer.?"]) as layers:
            out = twin(image, ids)
        seen = activations(twin, layers) | named_losses(out)
        seen |= {"neg_weights_t2i": old_weights(out.sim_t2i), "neg_weights_i2t": old_weights(out.sim_i2t)}
        seen |= lm_views(out.lm_logits, ids, torch.from_numpy(self.outputs["lm_columns"]))
        seen |= features(twin, image, self.inputs["longest_input_ids"]) | all_pairs(twin, image, ids)
        seen |= shared_image(twin(image, ids, self.inputs["image_id"]), self.inputs["image_id"])
        return {name: value.numpy() for name, value in seen.items() if name in self.outputs}

    def gradients(self, twin: ReferenceModel, gather_with_grad: bool = False) -> dict[str, np.ndarray]:
        """grads.npz: gradients of the total by parameter, and each loss's gradient norms (0: it does not
        reach)."""
        names = [str(name) for name in self.grads["names"]]
        weights = [twin.get_parameter(name) for name in names]
        out, seen = twin(self.image(twin), self.inputs["input_ids"], gather_with_grad=gather_with_grad), {}
        for name in ("loss_itc", "loss_itm", "loss_lm", "loss"):
            found = torch.autograd.grad(
                getattr(out, name), weights, retain_graph=name != "loss", allow_unused=True
            )
            seen["gradnorm." + name] = np.array([0.0 if g is None else g.norm().item() for g in found])
            seen["gradnone." + name] = np.array([g is None for g in found])
        if seen.pop("gradnone.loss").any():
            raise ValueError("a trainable parameter got no gradient from the total loss")
        seen["loss"] = np.array([x.item() for x in out[:4]])
        return seen | self.stored({f"grad.{name}": g for name, g in zip(names, found, strict=True)})

    def three_steps(
        self, twin: ReferenceModel, groups: Callable = decay_groups, **adam
    ) -> dict[str, np.ndarray]:
        """adamw3.npz: three AdamW steps on one batch, the losses before each and after, the negatives of
        each."""
        optimizer = torch.optim.AdamW(
            groups(twin), **({"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8} | adam)
        )
        losses, negatives, seen = [], [], {}
        for step in range(1, 5):
            out = twin(self.image(twin), self.inputs["input_ids"])
            losses.append([x.item() for x in out[:4]])
            if step == 4:
                break
            negatives.append(torch.cat(out.negatives).numpy())
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            now = self.stored({f"after{step}.{name}": value for name, value in twin.named_parameters()})
            seen |= {name: value.copy() for name, value in now.items() if name in self.adamw}
        return seen | {"losses": np.array(losses), "negatives": np.array(negatives)}

    def stored(self, tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Arrays by parameter name; of the word embeddings some rows and three statistics, as the files have
        them."""
        seen = {name: value.detach().numpy() for name, value in tensors.items()}
        for name in [name for name in seen if name.endswith(WORDS)]:
            value = seen.pop(name)
            flat = value.astype(np.float64).ravel()
            probe = seeded_weights.normal(99, "probe.stats", flat.shape)
            seen[name + "@rows"] = value[self.grads["word_rows"]]
            seen[name + "@stats"] = np.array([flat.sum(), np.linalg.norm(flat), flat @ probe])
        return seen


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference of two arrays of one shape."""
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes differ: ours {ours.shape}, theirs {theirs.shape}")
    return float(np.abs(np.subtract(ours, theirs, dtype=np.float64)).max(initial=0))


def beyond(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> set[str]:
    """Names in ``ours`` that leave the tolerance which the reference data suggests for a float32 port."""
    return {name for name in ours if not distance(ours[name], theirs[name]) <= tolerance(name, theirs[name])}


def tolerance(name: str, theirs: np.ndarray) -> float:
    """The reference data's own table, by kind of array; ids, labels and flags are exact."""
    if theirs.dtype.kind in "ib":
        return 0.0
    if name.endswith("@stats"):
        return 1e-5 * np.abs(theirs).max()  # sums over a million elements, for which the table has no line
    if name.startswith("after"):
        return 1e-5
    if name.startswith("grad"):
        return 2e-5 + 1e-4 * np.abs(theirs).max()
    if "loss" in name:
        return 1e-5
    small = ("feat", "sim", "itm_logits", "itm.", "retrieval", "neg_weights", "soft_targets")
    return 3e-5 if any(part in name for part in small) else 1e-4


def activations(twin: ReferenceModel, layers: dict[str, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Captured outputs under the reference's names; a Q-Former layer ran once per branch."""
    depth, last = twin.config.vit_depth, twin.config.layers - 1
    seen = {name: layers[module][0] for module, name in PARTS.items()}
    seen |= {f"vit.block_{i:02d}": layers[f"visual_encoder.blocks.{i}"][0] for i in range(depth)}
    seen["vit.out"] = seen[f"vit.block_{depth - 1:02d}"]
    for call, branch in enumerate(BRANCHES):
        seen |= {
            f"{branch}_branch.layer_{i:02d}": layers[f"Qformer.bert.encoder.layer.{i}"][call]
            for i in range(last + 1)
        }
        seen[f"{branch}_branch.last_hidden"] = seen[f"{branch}_branch.layer_{last:02d}"]
    return seen


def named_losses(out) -> dict[str, torch.Tensor]:
    """A Losses tuple as a dict, the negatives apart."""
    image_idx, text_idx = out.negatives
    return out._asdict() | {"neg_image_idx": image_idx, "neg_text_idx": text_idx}


def old_weights(sim_BB: torch.Tensor) -> torch.Tensor:
    """LAVIS 1.0.2's sampling weights; later revisions, and the twin, mask before the softmax. Same argmax."""
    return (sim_BB.softmax(1) + 1e-4).fill_diagonal_(0)


def lm_views(logits_BTV, ids_BT, columns) -> dict[str, torch.Tensor]:
    """The LM logits that predict tokens 1…T-1, by some columns and summaries: all of them would be 15 MB."""
    logits, targets = logits_BTV[:, :-1], ids_BT[:, 1:]
    return {
        "lm_logits_columns": logits[..., columns],
        "lm_argmax": logits.argmax(2),
        "lm_logsumexp": logits.logsumexp(2),
        "lm_logits_mean": logits.mean(2),
        "lm_label_logit": logits.gather(2, targets[..., None])[..., 0],
        "lm_shifted_labels": targets.masked_fill(targets == 0, reference_losses.IGNORED),
    }


def features(twin: ReferenceModel, image, ids) -> dict[str, torch.Tensor]:
    """``extract_features`` and the keys and values that the image branch hands on."""
    seen = {f"features.{name}": value for name, value in twin.extract_features(image, ids)._asdict().items()}
    for i, pair in enumerate(twin.see(twin.embed_image(image))[1]):
        seen |= {
            f"image_branch.past_{part}_{i:02d}": value
            for part, value in zip(("key", "value"), pair, strict=True)
        }
    return seen


def all_pairs(twin: ReferenceModel, image, ids) -> dict[str, torch.Tensor]:
    """ITC features, ITM logits and cosines of every image with every caption, and what retrieval makes of
    them."""
    image_BPW = twin.embed_image(image)
    image_feats, text_feat = twin.image_feats(twin.see(image_BPW)[0]), twin.text_feats(twin.read(ids)[:, 0])
    seen = {
        "image_feats": image_feats,
        "text_feat": text_feat,
        "itm.logits": torch.stack([twin.itm_logits(ids, one.expand(len(ids), -1, -1)) for one in image_BPW]),
        "itm.itc": reference_losses.similarities(image_feats, text_feat, temp=1)[0],
    }
    for k in (2, 4):
        seen[f"retrieval.k{k}.i2t"], seen[f"retrieval.k{k}.t2i"] = twin.retrieval(image, ids, k)
    return seen


def shared_image(out, image_id) -> dict[str, torch.Tensor]:
    """A forward pass with image ids under the names ``derived.image_id.*``."""
    seen = named_losses(out) | {
        "soft_targets": reference_losses.soft_targets(image_id, out.sim_i2t.dtype),
        "neg_weights_t2i": reference_losses.negative_weights(out.sim_t2i, image_id),
        "neg_weights_i2t": reference_losses.negative_weights(out.sim_i2t, image_id),
    }
    return {f"derived.image_id.{name}": value for name, value in seen.items()}
