"""What the tests of Llama and OPT share: small models of random weights, and those of the reference."""

from pathlib import Path

import mindspore as ms
import numpy as np

TINY = Path(__file__).parents[1] / "reference" / "tiny"
SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 40}
FULL, RIGHT, LEFT, HOLE = "........", ".....ooo", "ooo.....", "...ooo.."  # . a token, o padding


def mask_of(*rows):
    return ms.Tensor(np.array([[place == "." for place in row] for row in rows]).astype(np.int32))


def random_model(kind, config, **how):
    """A model whose weights are far from those that training begins with, so that nothing is small by
    chance."""
    model, random = kind(config, **how), np.random.default_rng(5)
    for parameter in model.get_parameters():
        value = random.standard_normal(parameter.shape) * (0.3 if parameter.ndim == 2 else 0.15) + (
            parameter.name.endswith("gamma")
        )
        parameter.set_data(ms.Tensor(value.astype(np.float32)).astype(parameter.dtype))
    return model.set_train(False)


def ids_of(shape, vocab=SMALL["vocab_size"], seed=0):
    return np.random.default_rng(seed).integers(0, vocab, shape).astype(np.int32)


def reference_model(kind, config, file, source):
    """The model of a reference checkpoint, by the converter's table."""
    import torch

    from mindblip2.convert.name_maps.blip2 import source_name

    state = torch.load(TINY / file, weights_only=True)
    state = state.get("model", state)
    model = kind(config)
    for parameter in model.get_parameters():
        parameter.set_data(ms.Tensor(state[source_name(source, f"llm.{parameter.name}")].float().numpy()))
    return model.set_train(False), state


def greedy(llm, x_BTD, mask_BT, steps, end):
    """The likeliest token each time, (B, steps), until the end token; after it anything."""
    rows = np.arange(x_BTD.shape[0])
    logits, state = llm.prefill(x_BTD, mask_BT, steps)
    found = []
    for _ in range(steps):
        found.append(logits.asnumpy().argmax(1).astype(np.int32))
        if np.any(np.stack(found) == end, 0).all():
            break
        logits, state = llm.decode(found[-1], rows, state)
    return np.stack(found, 1)


def until(row, end):
    """A row up to and with the end token."""
    row = list(map(int, row))
    return row[: row.index(end) + 1] if end in row else row


def mean_loss(logits_BLV, labels_BL):
    """Cross-entropy of each position's next label, over those that are not -100."""
    logits, labels = logits_BLV[:, :-1].reshape(-1, logits_BLV.shape[-1]), labels_BL[:, 1:].reshape(-1)
    return ms.ops.cross_entropy(logits, ms.Tensor(labels.astype(np.int32)), ignore_index=-100)
