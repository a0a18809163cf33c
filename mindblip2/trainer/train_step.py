"""One training step in two graphs: the gradients of a batch, and the update.

Between them the host decides: add the gradients of several batches, skip an update that overflowed, stop at a
number that is not finite.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindblip2.distributed import comm
from mindblip2.distributed.data_parallel import Total, owners
from mindblip2.distributed.sharding import is_split
from mindblip2.trainer.optimizer import AdamW

VALUES = ("loss", "itc", "itm", "lm", "i2t_acc", "t2i_acc", "itm_acc", "temp")  # of stage 1
FIRST_SCALE, GROWTH_STEPS = 2.0**16, 2000  # torch's GradScaler
_square_sum = ops.MultitypeFuncGraph("square_sum")
_add = ops.MultitypeFuncGraph("add")


@_square_sum.register("Tensor")
def _square_sum_of(gradient):
    return ops.square(gradient.astype(ms.float32)).sum()


@_add.register("Tensor", "Tensor")
def _added(one, other):
    return one + other


class Gradients(nn.Cell):
    """(values, norm, gradients) of a batch: the losses' ``names`` as one vector, and the gradients of loss ·
    scale with their norm.

    A frozen ViT has run before, in ``ViT.by_blocks``: no activation of it is kept, and ``picture`` is its
    output."""

    def __init__(self, model, frozen_vision):
        super().__init__(auto_prefix=False)
        self.losses, parameters = losses_of(model, frozen_vision), model.trainable_params()
        self.value_and_grad = ops.value_and_grad(
            self.losses, None, ms.ParameterTuple(parameters), has_aux=True
        )
        self.norm = Norm(parameters)

    def construct(self, picture, input_ids, one, other, scale):
        made, gradients = self.value_and_grad(picture, input_ids, one, other, scale)
        return made[1], self.norm(gradients), gradients


class Losses(nn.Cell):
    """Stage 1: (loss · scale, ``names`` as one vector) of a batch; ``picture`` is the output of the ViT where
    that is frozen or has run before.  ``inputs``: what a batch has besides, the last two perhaps not."""

    names: tuple[str, ...] = VALUES
    inputs: tuple[str, ...] = ("input_ids", "image_id", "negatives")

    def __init__(self, model, frozen_vision):
        super().__init__(auto_prefix=False)
        self.model, self.frozen_vision = model, frozen_vision

    def construct(self, picture, input_ids, image_id, negatives, scale):
        vit_BPW = picture if self.frozen_vision else self.model.vit(picture)
        loss, parts, accuracies = self.model.stage1(vit_BPW, input_ids, image_id, negatives)
        # a parameter itself cannot be stacked
        return loss * scale, ops.stack((loss, *parts, *accuracies, self.model.temp * 1.0))


class LanguageModelLosses(Losses):
    """Stage 2: the same with the loss of the language model and its share of right tokens."""

    names, inputs = ("loss", "lm", "word_acc"), ("input_ids", "prompt_length", "length")

    def construct(self, picture, input_ids, prompt_length, length, scale):
        vit_BPW = picture if self.frozen_vision else self.model.vit(picture)
        loss, accuracy = self.model.stage2(vit_BPW, input_ids, prompt_length, length)
        return loss * scale, ops.stack((loss, loss, accuracy))


def losses_of(model, frozen_vision):
    """The losses that a model is trained with."""
    return (LanguageModelLosses if hasattr(model, "stage2") else Losses)(model, frozen_vision)


class Norm(nn.Cell):
    """The norm of the gradients of ``parameters``, those that are split over a model group whole."""

    def __init__(self, parameters):
        super().__init__(auto_prefix=False)
        self.map = ops.HyperMap()
        self.is_piece = Tensor([float(is_split(p, comm.mesh.model)) for p in parameters], ms.float32)

    def construct(self, gradients):
        squares = self.map(_square_sum, gradients)
        if comm.mesh.model == 1:
            return ops.sqrt(ops.addn(squares))
        squares = ops.stack(squares)
        return ops.sqrt(
            (squares * (1.0 - self.is_piece)).sum()
            + comm.all_reduce_sum((squares * self.is_piece).sum(), "model")
        )


class _Sum(nn.Cell):
    """Two lots of gradients as one, and its norm."""

    def __init__(self, parameters):
        super().__init__(auto_prefix=False)
        self.map, self.norm = ops.HyperMap(), Norm(parameters)

    def construct(self, one, other):
        added = self.map(_add, one, other)
        return self.norm(added), added


class _Mean(nn.Cell):
    """Gradients averaged over the data group, and their norm."""

    def __init__(self, parameters):
        super().__init__(auto_prefix=False)
        self.total, self.norm = Total(parameters, 1.0 / comm.mesh.data), Norm(parameters)

    def construct(self, gradients):
        mean = self.total(gradients)
        return self.norm(mean), mean


class LossScale:
    """Keeps half precision gradients from becoming 0: the loss is multiplied by ``value``, which doubles
    after GROWTH_STEPS good steps and halves after an overflow, as torch's GradScaler.  Without half precision
    it is 1 and stays so."""

    def __init__(self, value=None):
        self.value, self.dynamic, self.good = value or 1.0, value is not None, 0

    def update(self, finite):
        """After a step; returns whether its update may be made."""
        if not self.dynamic:
            return finite
        self.good = self.good + 1 if finite else 0
        self.value *= 0.5 if not finite else 2.0 if self.good % GROWTH_STEPS == 0 else 1.0
        return finite

    def state(self):
        return {"value": self.value, "good": self.good}

    def restore(self, state):
        self.value, self.good = state["value"], state["good"]


class TrainStep:
    """Updates ``model`` from batches.  ``scales``: factor of the learning rate per trained parameter, 1 by
    default.

    On a data group every card gives its own batches, and all make the update of one card with all of them.
    ``shard_optimizer``: each keeps the moments of its share of the parameters only."""

    def __init__(self, model, config, scales=None, shard_optimizer=False):
        self.model, parameters = model, model.trainable_params()
        self.frozen_vision = not any(p.requires_grad for p in model.vit.get_parameters())
        self.gradients, self.sum = Gradients(model, self.frozen_vision), _Sum(parameters)
        self.mean = _Mean(parameters) if comm.mesh.data > 1 else None
        self.names, self.inputs = self.gradients.losses.names, self.gradients.losses.inputs
        owner = (
            owners([p.size for p in parameters], comm.mesh.data)
            if shard_optimizer and comm.mesh.data > 1
            else None
        )
        self.optimizer = AdamW(parameters, config, scales, owner)
        self.max_norm = config.max_grad_norm
        half = model.config.compute_dtype == "float16"
        self.scale = LossScale(config.loss_scale or (FIRST_SCALE if half else None))

    def __call__(self, batches, rate):
        """One update from a list of batches (dicts of arrays), whose gradients are averaged.  Returns {name:
        number}: the means of the losses' ``names``, the gradients' norm before clipping, and whether the
        update was "skipped".  A batch holds "image", "input_ids", and perhaps, in stage 1, "image_id" and
        "negatives" (2, B): image_idx and text_idx that are used instead of sampling; in stage 2
        "prompt_length" and "length" (B,).

        Raises FloatingPointError that names the first loss, or else the first gradient, that is not finite;
        with a dynamic loss scale an overflow of gradients is skipped instead."""
        sums, total = None, None
        for batch in batches:
            values, norm, gradients = self._gradients(batch)
            values = comm.host_all_reduce_data(values.asnumpy()) / comm.mesh.data
            check_losses(values, self.names)
            sums = values if sums is None else sums + values
            if total is not None:
                norm, gradients = self.sum(ms.mutable(total), ms.mutable(gradients))
            total = gradients
        if self.mean is not None:
            norm, total = self.mean(ms.mutable(total))
        divisor = self.scale.value * len(batches)
        norm = float(norm) / divisor
        made = self.scale.update(norm - norm == 0)
        if made:
            clip = 1.0 if self.max_norm is None else min(1.0, self.max_norm / (norm + 1e-6))
            self.optimizer(total, rate, clip / divisor)
        elif not self.scale.dynamic or self.scale.value < 2.0**-14:
            raise FloatingPointError(
                f"the gradient of {self._first_wrong(total)} is not finite; lower the learning rate or set "
                "optimizer.max_grad_norm"
            )
        return {
            **dict(zip(self.names, (sums / len(batches)).tolist())),
            "grad_norm": norm,
            "skipped": not made,
        }

    def _gradients(self, batch):
        picture = Tensor(batch["image"])
        if self.frozen_vision:
            picture = self.model.vit.by_blocks(picture)
        inputs = (Tensor(batch[name]) if name in batch else None for name in self.inputs)
        return self.gradients(picture, *inputs, Tensor(self.scale.value, ms.float32))

    def _first_wrong(self, gradients):
        sizes = (
            (p.name, float(abs(g).sum().asnumpy())) for p, g in zip(self.optimizer.parameters, gradients)
        )
        return next((name for name, size in sizes if size - size != 0), "all parameters together")


def check_losses(values, names=VALUES):
    """Raises FloatingPointError that names the first loss that is not finite, the parts before their sum."""
    losses = [(name, value) for name, value in zip(names, values) if name in ("itc", "itm", "lm", "loss")]
    for name, value in losses[1:] + losses[:1]:
        if value - value != 0:
            raise FloatingPointError(
                f"loss_{name} is {value}; lower the learning rate or set optimizer.max_grad_norm"
            )
