"""AdamW as torch has it: decoupled decay, bias correction, epsilon after it; and the two groups of LAVIS."""
import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

_ADAM = ops.Adam()
_update = ops.MultitypeFuncGraph("update")  # one function mapped over all parameters: a loop would be unrolled call by call


@_update.register("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _adamw(power1, power2, beta1, beta2, eps, rate, keep, parameter, moment1, moment2, gradient):
    parameter = ops.depend(parameter, ops.assign(parameter, parameter * keep))
    return _ADAM(parameter, moment1, moment2, power1, power2, rate, beta1, beta2, eps, gradient)


def decayed(parameter):
    """LAVIS (blip2.py, after 1.0.2) decays everything but vectors and biases; the 0-d temp is decayed too."""
    return parameter.ndim != 1 and not parameter.name.endswith("bias")


class AdamW(nn.Cell):
    """One update of all parameters.  ``construct(gradients, rate)``; the learning rate comes from the caller, step by step."""

    def __init__(self, parameters, config):
        super().__init__(auto_prefix=False)
        self.parameters = ms.ParameterTuple(parameters)
        self.moment1 = self.parameters.clone("moment1", init="zeros")
        self.moment2 = self.parameters.clone("moment2", init="zeros")
        self.beta1, self.beta2 = Tensor(config.beta1, ms.float32), Tensor(config.beta2, ms.float32)
        self.eps, self.weight_decay = config.eps, config.weight_decay
        self.is_decayed = [decayed(p) for p in parameters]
        self.step = Parameter(Tensor(0.0, ms.float32), name="step", requires_grad=False)
        self.map = ops.HyperMap()

    def construct(self, gradients, rate):
        step = self.step + 1.0
        power1, power2 = ops.pow(self.beta1, step), ops.pow(self.beta2, step)
        eps = self.eps * ops.sqrt(1.0 - power2)  # the primitive adds it before the bias correction, torch after
        shrink, stay = 1.0 - rate * self.weight_decay, ops.ones_like(rate)
        keep = tuple([shrink if is_decayed else stay for is_decayed in self.is_decayed])
        update = ops.partial(_update, power1, power2, self.beta1, self.beta2, eps, rate)
        updated = self.map(update, keep, self.parameters, self.moment1, self.moment2, gradients)
        return ops.depend(ops.assign(self.step, step), updated)
