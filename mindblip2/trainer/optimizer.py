"""AdamW as torch has it: decoupled decay, bias correction, epsilon after it; LAVIS's two groups; layer-wise
rates for the ViT."""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindblip2.checkpoint.pretrained import local_shard, unshard
from mindblip2.distributed import comm
from mindblip2.distributed.data_parallel import Spread
from mindblip2.distributed.sharding import whole_shape

_KERNEL = ops.AdamWeightDecay()
_scaled = ops.MultitypeFuncGraph("scaled")
# mapped over the parameters of a group: loops are unrolled and compile ten times as long
_update = ops.MultitypeFuncGraph("update")


@_scaled.register("Tensor", "Tensor")
def _times(factor, gradient):
    return gradient * factor


@_update.register("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _adamw(rate, beta1, beta2, eps, decay, parameter, moment1, moment2, gradient):
    return _KERNEL(parameter, moment1, moment2, rate, beta1, beta2, eps, decay, gradient.astype(ms.float32))


def decayed(parameter):
    """LAVIS (blip2.py, after 1.0.2) decays everything but vectors and biases; the 0-d temp is decayed too."""
    return parameter.ndim != 1 and not parameter.name.endswith("bias")


def layer_scales(parameters, decay, depth):
    """Factor of the learning rate per parameter: ``decay`` to the power of the distance from the ViT's end, 1
    outside of the ViT.

    LAVIS writes these factors into its groups and never reads them (``lr_layer_decay``): embeddings
    decay^(depth+1), block i decay^(depth-i)."""
    return [decay ** (depth + 1 - _layer(p.name)) if p.name.startswith("vit.") else 1.0 for p in parameters]


def _layer(name):
    parts = name.split(".")
    return int(parts[2]) + 1 if parts[1] == "blocks" else 0


def corrections(step, beta1, beta2):
    """For the biases of both moments at ``step``, from 1: factors of the rate and of epsilon."""
    root = ops.sqrt(1.0 - ops.pow(beta2, step))
    return root / (1.0 - ops.pow(beta1, step)), root


class AdamW:
    """One update of all parameters: called with their gradients, which count ``factor`` times, and the step's
    learning rate, which counts ``scales`` times per parameter.

    One kernel per parameter, and no copy of the gradients where they count once: on a CPU MindSpore keeps all
    copies of a graph.

    ``owner``: which card of the data group keeps the moments of each parameter, updates it, and gives it to
    the others; None: all do everything."""

    def __init__(self, parameters, config, scales=None, owner=None):
        groups = list(zip(scales or [1.0] * len(parameters), [decayed(p) for p in parameters]))
        self.parameters, self.owner = parameters, owner
        own = [i for i in range(len(parameters)) if owner is None or owner[i] == comm.mesh.data_rank]
        kinds = sorted({groups[i] for i in own})
        self.members = [[i for i in own if groups[i] == kind] for kind in kinds]
        self.update = _Update(kinds, [[parameters[i] for i in members] for members in self.members], config)
        self.spread = None if owner is None else Spread(parameters, owner)

    def __call__(self, gradients, rate, factor=1.0):
        # mutable: as constants they would make a new graph of every step
        self.update(
            ms.mutable(tuple(tuple(gradients[i] for i in members) for members in self.members)),
            Tensor(rate, ms.float32),
            None if factor == 1.0 else Tensor(factor, ms.float32),
        )
        if self.spread is not None:
            self.spread()

    def entries(self):
        """(name, type, array) of what has to be saved, whole.  On a mesh all processes go through it
        together."""
        own = self.kept()
        for name, (parameter, owner) in self._moments().items():
            array = own[name].asnumpy() if name in own else np.zeros(parameter.shape, np.float32)
            yield (
                name,
                "Float32",
                unshard(parameter, array if self.owner is None else comm.broadcast_from(array, owner)),
            )
        yield "step", "Float32", self.update.step.asnumpy()

    def bytes(self):
        """The size of what ``entries`` gives."""
        return sum(4 * math.prod(shape) for shape in self.shapes().values())

    def shapes(self):
        """{name: shape} of what ``entries`` gives."""
        return {name: whole_shape(parameter) for name, (parameter, _) in self._moments().items()} | {
            "step": ()
        }

    def restore(self, stored):
        """Take what this card keeps from a mapping of such entries."""
        moments = self._moments()
        for name, kept in self.kept().items():
            kept.set_data(
                Tensor.from_numpy(
                    local_shard(moments[name][0], stored[name]) if name in moments else stored[name]
                )
            )

    def _moments(self):
        """Name of each moment → (its parameter, the card that keeps it)."""
        owner = self.owner or [0] * len(self.parameters)
        return {
            f"{kind}.{p.name}": (p, who)
            for kind in ("moment1", "moment2")
            for p, who in zip(self.parameters, owner)
        }

    def kept(self):
        """Name → Parameter of what this card keeps: moments, and the number of steps."""
        return {
            p.name: p
            for group in (*self.update.moment1, *self.update.moment2, (self.update.step,))
            for p in group
        }


class _Update(nn.Cell):
    """``groups``: (scale of the rate, decayed?) of each tuple of parameters."""

    def __init__(self, groups, parameters, config):
        super().__init__(auto_prefix=False)
        self.groups = groups
        self.parameters = tuple(ms.ParameterTuple(group) for group in parameters)
        self.moment1 = tuple(group.clone("moment1", init="zeros") for group in self.parameters)
        self.moment2 = tuple(group.clone("moment2", init="zeros") for group in self.parameters)
        self.beta1, self.beta2 = Tensor(config.beta1, ms.float32), Tensor(config.beta2, ms.float32)
        self.eps, self.weight_decay = config.eps, config.weight_decay
        self.step = Parameter(Tensor(0.0, ms.float32), name="step", requires_grad=False)
        self.map = ops.HyperMap()

    def construct(self, gradients, rate, factor):
        if factor is not None:
            gradients = self.map(ops.partial(_scaled, factor), gradients)
        step = self.step + 1.0
        # The kernel: w -= rate (m / (√v + eps) + decay w). torch corrects m and v for their bias first, and
        # its decay is of the rate
        # before that.
        of_rate, of_eps = corrections(step, self.beta1, self.beta2)
        updated = ()
        for (scale, is_decayed), parameters, moment1, moment2, own in zip(
            self.groups, self.parameters, self.moment1, self.moment2, gradients
        ):
            decay = self.weight_decay / of_rate if is_decayed else ops.zeros_like(of_rate)
            update = ops.partial(
                _update, rate * scale * of_rate, self.beta1, self.beta2, self.eps * of_eps, decay
            )
            updated += (self.map(update, parameters, moment1, moment2, own),)
        return ops.depend(ops.assign(self.step, step), updated)
