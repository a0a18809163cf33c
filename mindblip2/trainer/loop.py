"""Stage-1 training: batches in, a trained model and its log out."""
import json
import time
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, nn, ops
from tqdm import tqdm

from mindblip2.trainer.optim import AdamW
from mindblip2.trainer.schedule import learning_rate

LOSSES = ("loss", "itc", "itm", "lm")
_square_sum = ops.MultitypeFuncGraph("square_sum")
_scaled = ops.MultitypeFuncGraph("scaled")


@_square_sum.register("Tensor")
def _square_sum_of(gradient):
    return ops.square(gradient.astype(ms.float32)).sum()


@_scaled.register("Tensor", "Tensor")
def _scaled_by(scale, gradient):
    return gradient * scale.astype(gradient.dtype)


class TrainStep(nn.Cell):
    """Losses and gradients of one batch, and the update.  Returns (loss, itc, itm, lm, norm of the gradients)."""

    def __init__(self, model, config):
        super().__init__(auto_prefix=False)
        self.model = model
        trained = model.trainable_params()
        self.optimizer = AdamW(trained, config)
        self.max_norm = config.max_grad_norm
        self.map = ops.HyperMap()
        self.value_and_grad = ops.value_and_grad(_Losses(model), None, ms.ParameterTuple(trained), has_aux=True)

    def construct(self, image, input_ids, image_id, rate):
        (loss, parts), gradients = self.value_and_grad(image, input_ids, image_id)
        norm = ops.sqrt(ops.addn(self.map(_square_sum, gradients)))
        if self.max_norm is not None:
            scale = ops.minimum(self.max_norm / (norm + 1e-6), ops.ones_like(norm))
            gradients = self.map(ops.partial(_scaled, scale), gradients)
        self.optimizer(gradients, rate)
        return loss, parts[0], parts[1], parts[2], norm


class _Losses(nn.Cell):
    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, image, input_ids, image_id):
        loss, itc, itm, lm = self.model(image, input_ids, image_id, None, True)
        return loss, (itc, itm, lm)


def fit(model, epochs, total_steps, config, output_dir):
    """Train ``model`` on ``epochs``, an iterable of batches (see ``data.batches``), for ``total_steps`` steps.

    ``config``: the RunConfig.  Writes ``log/train.jsonl`` and ``log/loss_curve.png`` under ``output_dir``.  Raises
    FloatingPointError, naming the loss, when one is not finite.  Returns the log: a list of dicts, one per logged step."""
    model.set_train()
    step_cell, log, sums, started = TrainStep(model, config.optimizer), [], [0.0] * len(LOSSES), time.time()
    path = Path(output_dir) / "log" / "train.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file, tqdm(total=total_steps, desc="train", unit="step") as bar:
        for step, batch in enumerate(epochs):
            rate = learning_rate(config.lr_schedule, step, total_steps)
            image_id = batch.get("image_id")
            *values, norm = step_cell(Tensor(batch["image"]), Tensor(batch["input_ids"]),
                                      None if image_id is None else Tensor(image_id), Tensor(rate, ms.float32))
            values = _finite([float(value) for value in values], step)
            sums = [a + b for a, b in zip(sums, values)]
            bar.update()
            every = config.runner_config.log_every
            if (step + 1) % every == 0 or step + 1 == total_steps:
                count = (step % every) + 1
                entry = {"step": step + 1, **{n: s / count for n, s in zip(LOSSES, sums)}, "temp": float(model.temp),
                         "lr": rate, "grad_norm": float(norm), "seconds": time.time() - started}
                bar.set_postfix({n: f"{entry[n]:.3f}" for n in LOSSES[1:]}, refresh=False)
                file.write(json.dumps(entry) + "\n")
                file.flush()
                log.append(entry)
                sums = [0.0] * len(LOSSES)
            if step + 1 == total_steps:
                break
    model.set_train(False)
    draw_curve(log, path.with_name("loss_curve.png"))
    return log


def draw_curve(log, path):
    """The three losses over the steps as a picture; returns False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name in LOSSES[1:]:
        axes.plot([entry["step"] for entry in log], [entry[name] for entry in log], label=name)
    axes.set(xlabel="step", ylabel="loss", title="BLIP-2 stage 1")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def _finite(values, step):
    for name, value in zip(LOSSES[1:] + LOSSES[:1], values[1:] + values[:1]):
        if value != value or value in (float("inf"), float("-inf")):
            raise FloatingPointError(f"step {step + 1}: loss_{name} is {value}; lower the learning rate or set "
                                     "optimizer.max_grad_norm")
    return values
