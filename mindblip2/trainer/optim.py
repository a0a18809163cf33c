"""AdamW as torch has it: decoupled decay, bias correction, epsilon after it; LAVIS's two groups; layer-wise rates for the ViT."""
import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

_ADAM = ops.Adam()
_update = ops.MultitypeFuncGraph("update")  # one function mapped over all parameters: a loop would be unrolled call by call


@_update.register("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _adamw(power1, power2, beta1, beta2, eps, factor, rate, keep, parameter, moment1, moment2, gradient):
    parameter = ops.depend(parameter, ops.assign(parameter, parameter * keep))
    return _ADAM(parameter, moment1, moment2, power1, power2, rate, beta1, beta2, eps, gradient.astype(ms.float32) * factor)


def decayed(parameter):
    """LAVIS (blip2.py, after 1.0.2) decays everything but vectors and biases; the 0-d temp is decayed too."""
    return parameter.ndim != 1 and not parameter.name.endswith("bias")


def layer_scales(parameters, decay, depth):
    """Factor of the learning rate per parameter: ``decay`` to the power of the distance from the ViT's end, 1 outside of the ViT.

    LAVIS writes these factors into its groups and never reads them (``lr_layer_decay``): embeddings decay^(depth+1), block i
    decay^(depth-i)."""
    return [decay ** (depth + 1 - _layer(p.name)) if p.name.startswith("vit.") else 1.0 for p in parameters]


def _layer(name):
    parts = name.split(".")
    return int(parts[2]) + 1 if parts[1] == "blocks" else 0


class AdamW(nn.Cell):
    """One update of all parameters.  ``construct(gradients, rate, factor)``: the gradients count ``factor`` times; the learning
    rate comes from the caller, step by step, and counts ``scales`` times per parameter."""

    def __init__(self, parameters, config, scales=None):
        super().__init__(auto_prefix=False)
        self.parameters = ms.ParameterTuple(parameters)
        self.moment1 = self.parameters.clone("moment1", init="zeros")
        self.moment2 = self.parameters.clone("moment2", init="zeros")
        self.beta1, self.beta2 = Tensor(config.beta1, ms.float32), Tensor(config.beta2, ms.float32)
        self.eps, self.weight_decay = config.eps, config.weight_decay
        groups = list(zip(scales or [1.0] * len(parameters), [decayed(p) for p in parameters]))
        self.groups = sorted(set(groups))
        self.group_of = [self.groups.index(group) for group in groups]
        self.step = Parameter(Tensor(0.0, ms.float32), name="step", requires_grad=False)
        self.map = ops.HyperMap()

    def state(self):
        """Name → Parameter of what has to be saved."""
        return {p.name: p for p in (*self.moment1, *self.moment2, self.step)}

    def construct(self, gradients, rate, factor):
        step = self.step + 1.0
        power1, power2 = ops.pow(self.beta1, step), ops.pow(self.beta2, step)
        eps = self.eps * ops.sqrt(1.0 - power2)  # the primitive adds it before the bias correction, torch after
        rates, keep = (), ()
        for scale, is_decayed in self.groups:
            rates += (rate * scale,)
            keep += (1.0 - rate * (scale * self.weight_decay) if is_decayed else ops.ones_like(rate),)
        rates, keep = tuple([rates[i] for i in self.group_of]), tuple([keep[i] for i in self.group_of])
        update = ops.partial(_update, power1, power2, self.beta1, self.beta2, eps, factor)
        updated = self.map(update, rates, keep, self.parameters, self.moment1, self.moment2, gradients)
        return ops.depend(ops.assign(self.step, step), updated)
