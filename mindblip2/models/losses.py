"""The three losses of stage 1 (paper section 3.2) and the one of stage 2: tensors in, scalars out, all in
float32.

B batch · G batch over all cards · Q queries · E embed · T text · V vocab · U vocabulary entries of this card
N = B · T · M cards of a model group
"""

import mindspore as ms
from mindspore import ops

from mindblip2.distributed import comm
from mindblip2.models.layers import MASKED, linear

LOG2_E = 1.4426950408889634
CHUNK = 128  # numbers that are added one after the other


def normalise(x):
    """Unit length along the last axis, as torch's ``F.normalize`` (the length is at least 1e-12)."""
    x = x.astype(ms.float32)
    return x / ops.sqrt(ops.maximum((x * x).sum(-1, keepdims=True), 1e-24))  # the root of 0 has no gradient


def similarity(image_BQE, text_GE):
    """Cosine of every image with every text, the best query counts: (B, Q, E), (G, E) → (B, G)."""
    return ops.amax(linear(image_BQE, text_GE), 1)


def itc(image_BQE, text_BE, temp, image_id_B=None, smoothing=0.1, gather_with_grad=False):
    """Image-text contrast.  Unit vectors in; returns the loss and the scaled similarities sim_i2t, sim_t2i
    (B, G).

    What is gathered from all cards carries no gradient, on one card too (LAVIS' ``concat_all_gather``):
    images learn from i2t, texts from t2i.  With ``image_id`` all samples of the same picture share the
    target."""
    image_GQE, text_GE = comm.all_gather_data(image_BQE), comm.all_gather_data(text_BE)
    if not gather_with_grad:
        image_GQE, text_GE = ops.stop_gradient(image_GQE), ops.stop_gradient(text_GE)
    sim_i2t_BG = similarity(image_BQE, text_GE) / temp
    sim_t2i_BG = similarity(image_GQE, text_BE).T / temp
    targets_BG = itc_targets(text_BE.shape[0], text_GE.shape[0], image_id_B, smoothing)
    loss = (soft_cross_entropy(sim_i2t_BG, targets_BG) + soft_cross_entropy(sim_t2i_BG, targets_BG)) / 2
    return loss, sim_i2t_BG, sim_t2i_BG


def itc_targets(batch, world_batch, image_id_B=None, smoothing=0.1):
    """1 - smoothing shared by the samples of the same picture, the rest over all: (B, G), rows sum to 1."""
    same_BG = same_picture(batch, world_batch, image_id_B).astype(ms.float32)
    return (1 - smoothing) * same_BG / same_BG.sum(1, keepdims=True) + smoothing / world_batch


def same_picture(batch, world_batch, image_id_B=None):
    """Which of all samples show the own picture: (B, G) bool.  Without ids only the sample itself."""
    if image_id_B is None:
        own = ops.arange(batch) + comm.data_rank() * batch
        return own[:, None] == ops.arange(world_batch)[None]
    return image_id_B[:, None] == comm.all_gather_data(image_id_B)[None]


def log_softmax(logits):
    """Over the last axis, as accurate as torch's: MindSpore's CPU kernels of exp and log_softmax are off by
    5e-6, exp2's is not."""
    logits = logits.astype(ms.float32)
    logits = logits - ops.stop_gradient(ops.amax(logits, -1, keepdims=True))
    log_sum = ops.log(chunked_sum(ops.exp2(logits * LOG2_E)))
    # a product with ones instead of a broadcast: its gradient is a sum over the vocabulary too
    return logits - linear(log_sum, ops.ones((logits.shape[-1], 1), ms.float32))


def chunked_sum(x):
    """The sum over the last axis, (…, 1).  MindSpore's CPU kernel adds one number after the other, which over
    a vocabulary of 30523 is off by up to 1e-6; pieces first are off by 1e-7."""
    length = x.shape[-1]
    if length > 2 * CHUNK:
        if length % CHUNK:
            x = ops.cat((x, ops.zeros(x.shape[:-1] + (CHUNK - length % CHUNK,), x.dtype)), -1)
        x = x.reshape(x.shape[:-1] + (-1, CHUNK)).sum(-1)
    return x.sum(-1, keepdims=True)


def soft_cross_entropy(logits_BV, targets_BV):
    """Mean over rows of -Σ target · log softmax."""
    return -(targets_BV * log_softmax(logits_BV)).sum(-1).mean()


def hard_negatives(sim_BG, same_BG, noise_BG):
    """One index into the global batch per row, drawn with probability softmax(sim) over the other pictures.

    argmax(sim + Gumbel noise) is such a draw (the Gumbel-max trick), so uniform ``noise`` in (0, 1) in, no
    loop.  Where every sample shows the same picture the draw falls on any of them: finite, if useless (batch
    of 1)."""
    logits_BG = ops.where(same_BG, ops.full_like(sim_BG, MASKED), sim_BG.astype(ms.float32))
    gumbel_BG = -ops.log(-ops.log(ops.clip(noise_BG, 1e-7, 1 - 1e-6)))  # MindSpore's CPU log of 1 - 1e-7 is 0
    return ops.stop_gradient(logits_BG + gumbel_BG).argmax(1).astype(ms.int32)


def itm(logits_32):
    """Image-text matching: logits (3B, 2) of B pairs, B with a wrong image, B with a wrong text; class 1 is
    "a pair"."""
    batch = logits_32.shape[0] // 3
    is_pair = ops.cat((ops.ones((batch,), ms.float32), ops.zeros((2 * batch,), ms.float32)))
    return soft_cross_entropy(logits_32, ops.stack((1.0 - is_pair, is_pair), 1))


def retrieval_accuracy(sim_BG, same_BG):
    """How often the nearest of the batch shows the own picture."""
    best_B1 = sim_BG.argmax(1)[:, None].astype(ms.int32)
    return ops.gather_elements(same_BG.astype(ms.float32), 1, best_B1).mean()


def itm_accuracy(logits_32):
    """How often ITM (3B, 2) is right about "a pair" and "no pair"."""
    is_pair = ops.arange(logits_32.shape[0]) < logits_32.shape[0] // 3
    return ((logits_32[:, 1] > logits_32[:, 0]) == is_pair).astype(ms.float32).mean()


def lm(logits_BTV, input_ids_BT, pad_id, smoothing=0.1, vocab=None):
    """Language modelling: position t predicts token t + 1.  The mean, smoothing included, is over real tokens
    only."""
    labels_BT = input_ids_BT[:, 1:]
    return next_token_loss(
        logits_BTV[:, :-1], labels_BT, (labels_BT != pad_id).astype(ms.float32), smoothing, vocab
    )


def next_token_loss(logits_BTV, labels_BT, learnt_BT, smoothing=0.0, vocab=None):
    """Position t predicts label t.  The mean, smoothing included, is over the positions where ``learnt_BT``
    is 1, of all cards of a data group: their mean is then that of one card with all samples.

    On a model group the logits are those of this card's words, of ``vocab`` in all."""
    labels, learnt = labels_BT.reshape(-1), learnt_BT.reshape(-1)
    logits_NV = logits_BTV.reshape(-1, logits_BTV.shape[-1])
    if comm.mesh.model > 1:
        right_N, mean_N = vocab_parallel_log_probs(logits_NV, labels, vocab)
    else:
        log_probs = log_softmax(logits_NV)
        right_N = ops.gather_elements(log_probs, 1, labels[:, None].astype(ms.int32))[:, 0]
        mean_N = log_probs.mean(-1) if smoothing else None
    loss = -(1 - smoothing) * right_N
    if smoothing:
        loss = loss - smoothing * mean_N
    return (loss * learnt).sum() / ops.maximum(comm.all_reduce_mean(learnt.sum()), 1.0)


def vocab_parallel_log_probs(logits_NU, labels_N, vocab):
    """Log-probabilities (N,) of the labels, and their means over the vocabulary, from every card's piece of
    the logits.

    U this card's words.  Three numbers per row travel, never the logits."""
    logits_NU, token_id_U = local_vocabulary(logits_NU, vocab)
    top_N1 = ops.stop_gradient(ops.amax(comm.all_gather_model(ops.amax(logits_NU, -1, keepdims=True)), 0))
    logits_NU = logits_NU - top_N1
    # every card's words wait for its gradient
    log_sum_N1 = comm.copy_to_tensor_parallel(
        ops.log(comm.reduce_from_tensor_parallel(chunked_sum(ops.exp2(logits_NU * LOG2_E))))
    )
    log_probs_NU = logits_NU - linear(log_sum_N1, ops.ones((logits_NU.shape[-1], 1), ms.float32))
    is_label_NU = (token_id_U[None] == labels_N[:, None]).astype(ms.float32)
    is_token_U = (token_id_U < vocab).astype(ms.float32)
    both_N2 = comm.reduce_from_tensor_parallel(
        ops.cat((chunked_sum(log_probs_NU * is_label_NU), chunked_sum(log_probs_NU * is_token_U)), -1)
    )
    return both_N2[:, 0], both_N2[:, 1] / vocab


def local_vocabulary(logits_NU, vocab):
    """(logits in float32, which word each column is): columns beyond the vocabulary, which fill up the last
    card's piece, are MASKED."""
    token_id_U = ops.arange(logits_NU.shape[-1]) + comm.mesh.model_rank * logits_NU.shape[-1]
    is_token_U = (token_id_U < vocab).astype(ms.float32)
    return logits_NU.astype(ms.float32) * is_token_U + MASKED * (1.0 - is_token_U), token_id_U


def token_accuracy(logits_BTV, labels_BT, learnt_BT, vocab=None):
    """How often the likeliest word is the label, where ``learnt_BT`` is 1."""
    hit_BT = (argmax_token(logits_BTV, vocab) == labels_BT.astype(ms.int32)).astype(ms.float32)
    return (hit_BT * learnt_BT).sum() / ops.maximum(comm.all_reduce_mean(learnt_BT.sum()), 1.0)


def argmax_token(logits_BTV, vocab=None):
    """The word with the largest logit: (B, T) int32."""
    if comm.mesh.model == 1:
        return logits_BTV.argmax(-1).astype(ms.int32)
    logits_BTU, token_id_U = local_vocabulary(logits_BTV, vocab)
    best_BT = logits_BTU.argmax(-1).astype(ms.int32)
    tops_MBT = comm.all_gather_model(ops.amax(logits_BTU, -1))
    bests_MBT = comm.all_gather_model((best_BT + token_id_U[0]).astype(ms.float32))
    card_BT = tops_MBT.argmax(0)[None].astype(ms.int32)
    return ops.gather_elements(bests_MBT, 0, card_BT)[0].astype(ms.int32)
