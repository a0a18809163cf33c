"""Training beside torch: the same batches, negatives and rates, step by step; losses and parameters by the
noise floor.

A run is not chaotic (tests/parity/test_training.py says how that was found), so curves and last parameters
are judged as any tensor. One thing would part any two roundings: where two queries tie for the best of a
picture and a text, the gradient goes to one or the other. The batches are therefore drawn until the truth has
no tie to ``TIE``. Key biases are left out: softmax does not see them, so their true gradient is 0, and AdamW
makes steps of full size of its rounding.

    # S steps · B batch · Q queries · E embed · T text
"""

import argparse
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import mindspore as ms
import numpy as np
import torch
from torch.nn import functional as F

from mindblip2.config import Blip2Config, OptimizerConfig, ScheduleConfig, load_config
from mindblip2.config.schema import ConfigError
from mindblip2.convert.name_maps.blip2 import LAVIS, source_name
from mindblip2.models.blip2_qformer import Blip2Qformer
from mindblip2.parity.candidate.weights import fill
from mindblip2.parity.compare import Row, rms
from mindblip2.parity.inputs import words_of
from mindblip2.parity.model_triple import judge, pynative
from mindblip2.parity.reference.model import ReferenceModel, capture
from mindblip2.parity.weights import Weights, ckpt_of, make_twin
from mindblip2.trainer.lr_schedule import learning_rate
from mindblip2.trainer.train_step import VALUES, TrainStep

# captions, of which some show the same picture; samples per batch; tokens
POOL, PICTURES, BATCH, WORDS = 12, 8, 4, 12
MOST_WORDS = 29_000  # of a large vocabulary
RATE, TIE, SEEDS, WINDOW = 1e-4, 1e-5, range(8, 14), 50
LOSSES = ("loss", "loss_itc", "loss_itm", "loss_lm")
KEY_BIAS = "self.key.bias"
# parameters are kept so often in a run, but only at its end where they are many
SNAPSHOTS, LARGE = 10, 20_000_000


class Run(NamedTuple):
    """Losses before each step (S, 4), and the trained parameters by LAVIS's names after some steps, the last
    among them."""

    losses: np.ndarray
    snapshots: list[dict[str, np.ndarray]]


def rows_of(options: argparse.Namespace) -> tuple[list[Row], dict]:
    """Rows of a run as ``--config``, ``--blocks`` and ``--steps`` say, and the curves for the page."""
    pynative()
    config = load_config(options.config).model.model_config
    depth = options.blocks or config.vision_config.num_hidden_layers
    config = config.replace(
        vision_config={"num_hidden_layers": depth}, text_config=None, freeze_vision=True, frozen=()
    )
    weights = Weights(config, options.weights, options.vit_path, ckpt_of(options), options.seed)
    found = references(weights, config, options.steps)
    ours = our_run(our_model(weights, config), found.given, found.negatives)
    return judged(ours, found.torch32, found.truth), {
        "curves": curves(ours, found.torch32, found.truth),
        "closest call of two queries": f"{found.closest:.1e}",
    }


class References(NamedTuple):
    """Both runs of torch, and what all sides are given: the batches, and the negatives that the truth
    drew."""

    truth: Run
    torch32: Run
    given: list[dict]
    negatives: np.ndarray
    closest: float


def references(weights: Weights, config: Blip2Config, steps: int) -> References:
    """Raises :class:`ConfigError` where the truth ties in the batches of every seed."""
    for seed in SEEDS:
        given = batches(config, steps, seed)
        truth, negatives, closest = twin_run(make_twin(weights, config, torch.float64), given)
        if closest > TIE:
            torch32 = twin_run(make_twin(weights, config, torch.float32), given, negatives)[0]
            return References(truth, torch32, given, negatives, closest)
    raise ConfigError(
        f"in each of {len(SEEDS)} runs two queries tie to {TIE:g}, so no two roundings agree: give another "
        "--seed"
    )


def our_model(weights: Weights, config: Blip2Config) -> Blip2Qformer:
    with ms.nn.utils.no_init_parameters():
        model = Blip2Qformer(config)
    fill(model, weights.given)
    return model.set_train(False)


def batches(config: Blip2Config, steps: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Random pictures and captions, drawn four at a time from a pool that a model can learn by heart."""
    rng, vision, qformer = np.random.default_rng(seed), config.vision_config, config.qformer_config
    image = rng.standard_normal((PICTURES, vision.num_channels, vision.image_size, vision.image_size)).astype(
        np.float32
    )
    (cls, ordinary), tokens = words_of(config), min(WORDS, config.max_txt_len)
    ids = ordinary[rng.integers(0, min(len(ordinary), MOST_WORDS), (POOL, tokens))].astype(np.int32)
    ids[:, 0] = cls
    for row, length in zip(ids, rng.integers(min(5, tokens), tokens + 1, POOL)):
        row[length - 1], row[length:] = qformer.sep_token_id, qformer.pad_token_id
    drawn = [rng.choice(POOL, BATCH, replace=False) for _ in range(steps)]
    return [
        {"image": image[one % PICTURES], "input_ids": ids[one], "image_id": (one % PICTURES).astype(np.int32)}
        for one in drawn
    ]


def rates(steps: int) -> Iterator[float]:
    """Our schedule: a warm-up over a tenth of the run, then the cosine."""
    schedule = ScheduleConfig(learning_rate=RATE, warmup_steps=steps // 10)
    return (learning_rate(schedule, step, steps) for step in range(steps))


def kept(steps: int, size: int) -> set[int]:
    """After which steps parameters are kept."""
    return {steps - 1} if size > LARGE else {steps - 1} | set(range(0, steps, max(1, steps // SNAPSHOTS)))


def our_run(model: Blip2Qformer, given: list[dict], negatives: np.ndarray) -> Run:
    """Ours from the weights that ``model`` holds."""
    step, freq = TrainStep(model, OptimizerConfig()), model.config.qformer_config.cross_attention_freq
    at, losses, snapshots = kept(len(given), sum(p.size for p in model.trainable_params())), [], []
    for number, (batch, drawn, rate) in enumerate(zip(given, negatives, rates(len(given)))):
        values = step([batch | {"negatives": drawn}], rate)
        losses.append([values[name] for name in VALUES[:4]])
        if number in at:
            snapshots.append(
                {source_name(LAVIS, p.name, freq): p.asnumpy().copy() for p in model.trainable_params()}
            )
    return Run(np.array(losses, np.float32), snapshots)


def twin_run(
    twin: ReferenceModel, given: list[dict], negatives: np.ndarray | None = None
) -> tuple[Run, np.ndarray, float]:
    """The twin's with torch's AdamW; its negatives (S, 2, B), by default the likeliest; its closest call
    between two queries."""
    optimizer = torch.optim.AdamW(decay_groups(twin), betas=(0.9, 0.98), eps=1e-8)
    trained = {name: value for name, value in twin.named_parameters() if value.requires_grad}
    at, losses, drawn, margins, snapshots = (
        kept(len(given), sum(value.numel() for value in trained.values())),
        [],
        [],
        [],
        [],
    )
    for number, (batch, rate) in enumerate(zip(given, rates(len(given)))):
        image, ids, image_id = (torch.from_numpy(batch[name]) for name in ("image", "input_ids", "image_id"))
        chosen = None if negatives is None else tuple(torch.from_numpy(negatives[number]).long())
        with capture(twin, ["vision_proj", "text_proj"]) as seen:
            out = twin(image.to(twin.query_tokens.dtype), ids.long(), image_id, chosen)
        margins.append(margin(seen["vision_proj"][0], seen["text_proj"][0]))
        losses.append(torch.stack(out[:4]).detach().numpy())
        drawn.append(torch.stack(out.negatives).int().numpy())
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        if number in at:
            snapshots.append({name: value.detach().numpy().copy() for name, value in trained.items()})
    return Run(np.array(losses), snapshots), np.array(drawn), min(margins)


def decay_groups(twin: ReferenceModel) -> list[dict]:
    """Those of our rule: weight decay for all that has not one dimension and is no bias."""
    trained = [
        (value, value.ndim != 1 and not name.endswith("bias"))
        for name, value in twin.named_parameters()
        if value.requires_grad
    ]
    return [
        {"params": [value for value, decayed in trained if decayed is which], "weight_decay": decay}
        for which, decay in ((True, 0.05), (False, 0.0))
    ]


def margin(image_BQE: torch.Tensor, text_BE: torch.Tensor) -> float:
    """By how much of a cosine the best query of a picture and a text is better than the next, where it is
    least."""
    best = (
        torch.einsum("bqe,ne->bnq", F.normalize(image_BQE, dim=-1), F.normalize(text_BE, dim=-1))
        .topk(2)
        .values
    )
    return (best[..., 0] - best[..., 1]).min().item()


def judged(ours: Run, torch32: Run, truth: Run) -> list[Row]:
    """A row per loss and window of steps, and per parameter after the last step."""

    def tensors(run: Run) -> tuple[dict, dict]:
        losses = {
            f"{name} from step {start}": run.losses[start : start + WINDOW, i]
            for start in range(0, len(run.losses), WINDOW)
            for i, name in enumerate(LOSSES)
        }
        return losses, {
            name: value for name, value in run.snapshots[-1].items() if not name.endswith(KEY_BIAS)
        }

    losses, parameters = zip(*map(tensors, (ours, torch32, truth)))
    return [*judge("trajectory", *losses), *judge("trajectory", *parameters)]


def curves(ours: Run, torch32: Run, truth: Run) -> dict[str, dict]:
    """For the page: losses overlaid; how far they are from the truth's; the drift of parameters by group,
    torch's own as the band."""
    found = {
        "Loss": {"lines": {"truth": truth.losses[:, 0].tolist(), "ours": ours.losses[:, 0].tolist()}},
        "Distance of the loss from the truth": {
            "log": True,
            "lines": {
                name: np.abs(run.losses[:, 0] - truth.losses[:, 0]).tolist()
                for name, run in (("ours", ours), ("torch", torch32))
            },
        },
    }
    for group in sorted({group_of(name) for name in truth.snapshots[-1]}):
        lines = {
            name: [drift(one, true, group) for one, true in zip(run.snapshots, truth.snapshots)]
            for name, run in (("ours", ours), ("torch", torch32))
        }
        found[f"Drift of {group}"] = {"log": True, "x": "snapshot", "lines": lines}
    return found


def group_of(name: str) -> str:
    """Which part of the model a parameter of LAVIS's belongs to."""
    for mark, group in (
        ("crossattention", "cross-attention"),
        (".attention.", "self-attention"),
        ("_query.", "the queries' feed-forward"),
        ("layer.", "the text's feed-forward"),
        ("embeddings", "embeddings"),
        ("cls.", "the LM head"),
    ):
        if mark in name:
            return group
    return name.split(".")[0]


def drift(run: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], group: str) -> float:
    """rms(run - truth) over all parameters of a group."""
    names = [name for name in truth if group_of(name) == group and not name.endswith(KEY_BIAS)]
    return rms(np.concatenate([(run[name].astype(np.float64) - truth[name]).ravel() for name in names]))
