"""Stage 1's losses in torch: tensors in, scalars out (paper, section 3.1; LAVIS ``blip2_qformer.py``).

# B batch · Q queries · E embed · T text · V vocabulary
"""

import torch
from torch.nn import functional as F

SMOOTHING = 0.1  # of the ITC and LM targets; ITM has none
IGNORED = -100  # label of a pad
NEVER = -10000.0  # similarity of a pair that must not be drawn as a negative


def wide(x: torch.Tensor) -> torch.Tensor:
    """At least float32: similarities and losses are never taken in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def similarities(
    image_BQE, text_BE, temp, gather_with_grad: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs' scores, image-to-text and text-to-image (B, B): best query's cosine over the temperature.

    The features of "all cards" are constants in LAVIS, whose all-gather runs under no_grad even for one
    process: the image learns from image-to-text only and the text from text-to-image only; with
    ``gather_with_grad``, from both.
    """
    all_image = image_BQE if gather_with_grad else image_BQE.detach()
    all_text = text_BE if gather_with_grad else text_BE.detach()
    sim_i2t = torch.einsum("bqe,ne->bnq", image_BQE, all_text).max(-1).values / temp
    sim_t2i = torch.einsum("be,nqe->bnq", text_BE, all_image).max(-1).values / temp
    return sim_i2t, sim_t2i


def soft_targets(image_id_B: torch.Tensor, dtype: torch.dtype, smoothing: float = SMOOTHING) -> torch.Tensor:
    """Targets (B, B) when several captions show one image: 0.9 shared among its own, 0.1 over all."""
    same = (image_id_B[:, None] == image_id_B[None, :]).to(dtype)
    return (1 - smoothing) * same / same.sum(1, keepdim=True) + smoothing / len(same)


def itc(sim_i2t, sim_t2i, image_id_B=None, smoothing: float = SMOOTHING) -> torch.Tensor:
    """Image-text contrast: cross entropy of both directions, averaged."""
    if image_id_B is not None:
        targets = soft_targets(image_id_B, sim_i2t.dtype, smoothing)
        return sum(-(F.log_softmax(sim, dim=1) * targets).sum(1).mean() for sim in (sim_i2t, sim_t2i)) / 2
    targets = torch.arange(len(sim_i2t), device=sim_i2t.device)
    return sum(F.cross_entropy(sim, targets, label_smoothing=smoothing) for sim in (sim_i2t, sim_t2i)) / 2


def negative_weights(sim_BB: torch.Tensor, image_id_B=None) -> torch.Tensor:
    """Probability (B, B) of each candidate to be row's negative: softmax over all but the row's own image."""
    ids = torch.arange(len(sim_BB), device=sim_BB.device) if image_id_B is None else image_id_B
    return sim_BB.detach().masked_fill(ids[:, None] == ids[None, :], NEVER).softmax(dim=1)


def hard_negatives(sim_i2t, sim_t2i, image_id_B=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable negative of each row: image index per text, text index per image, (B,) each.

    LAVIS draws from these weights; the reference data and the twin take the largest, so that runs can be
    compared.
    """
    return negative_weights(sim_t2i, image_id_B).argmax(1), negative_weights(sim_i2t, image_id_B).argmax(1)


def itm(logits_3B2: torch.Tensor) -> torch.Tensor:
    """Image-text matching on [B true pairs | B with a false image | B with a false text]."""
    labels = torch.zeros(len(logits_3B2), dtype=torch.long, device=logits_3B2.device)
    labels[: len(labels) // 3] = 1
    return F.cross_entropy(logits_3B2, labels)


def lm(logits_BTV: torch.Tensor, labels_BT: torch.Tensor, smoothing: float = SMOOTHING) -> torch.Tensor:
    """Caption loss: position t predicts label t + 1, mean over labels that are not pads, smoothing
    included."""
    return F.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1),
        labels_BT[:, 1:].flatten(),
        ignore_index=IGNORED,
        label_smoothing=smoothing,
    )
