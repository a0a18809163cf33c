"""The mesh of a run: which meshes fit, joining one, and the averaging of gradients."""

import mindspore as ms
from mindspore import nn, ops

from mindblip2.config.schema import ConfigError
from mindblip2.distributed import comm
from mindblip2.distributed.sharding import is_split, whole_shape

_flat, _cut = ops.MultitypeFuncGraph("flat"), ops.MultitypeFuncGraph("cut")
_times, _assign = ops.MultitypeFuncGraph("times"), ops.MultitypeFuncGraph("assign")
BUCKET_BYTES = 25 * 2**20  # gradients travel together up to this size, larger ones alone


@_flat.register("Tensor")
def _flattened(array):
    return array.reshape(-1)


@_cut.register("Tensor", "Tensor", "Number")
def _cut_out(total, like, start):
    return ops.slice(total, (start,), (like.size,)).reshape(like.shape)


@_times.register("Tensor", "Number")
def _multiplied(array, number):
    return array * number


@_assign.register("Tensor", "Tensor")
def _assigned(parameter, value):
    return ops.assign(parameter, value)


def join(config, net=None):
    """Make this process one of the mesh that a RunConfig asks for.  Raises ConfigError, before anything is
    done, where the mesh does not fit the processes or the model, with the meshes that do.

    ``net``: a model that is there already; under model parallelism it must have been made after the mesh."""
    world, wanted = comm.world_size(), config.parallel_config
    data, model = wanted.data_parallel, wanted.model_parallel
    fitting = meshes(config.model.model_config, world)
    if not config.use_parallel:
        if world > 1:
            raise ConfigError(
                f"started on {world} processes, but use_parallel is false: give --use_parallel true and the "
                "mesh, "
                f"{_listed(fitting)}; or start without msrun"
            )
        return
    if data * model != world:
        raise ConfigError(
            f"parallel_config.data_parallel = {data} times model_parallel = {model} makes {data * model} "
            "processes, but "
            + (f"{world} were started" if world > 1 else "this is one process, started without msrun")
            + f".  Meshes that fit {world}: {_listed(fitting)}"
        )
    reasons = misfits(config.model.model_config, model)
    if reasons:
        raise ConfigError(
            f"parallel_config.model_parallel = {model} does not divide {'; '.join(reasons)}.  Meshes that "
            f"fit {world} "
            f"processes: {_listed(fitting)}"
        )
    comm.init_mesh(data, model)
    pieces = [p for p in net.get_parameters() if is_split(p, model)] if net is not None else []
    if any(tuple(p.shape) != p.division.shape(whole_shape(p), model) for p in pieces):
        raise ConfigError(
            f"the model was made before the mesh, so {pieces[0].name} is whole: call "
            "Trainer.set_parallel_config, or "
            "mindblip2.distributed.comm.init_mesh, first, and make the model then"
        )


def meshes(model_config, world):
    """The (data, model) of ``world`` processes that a model can be split over."""
    return [
        (world // model, model)
        for model in range(1, world + 1)
        if world % model == 0 and not misfits(model_config, model)
    ]


def misfits(model_config, model):
    """What ``model`` cards cannot share, in words.  Vocabularies need not be divisible: the last card's piece
    is filled up."""
    vision, qformer, text = model_config.vision_config, model_config.qformer_config, model_config.text_config
    counts = {
        "the ViT's heads": vision.num_attention_heads,
        "the ViT's feed-forward width": vision.intermediate_size,
        "the Q-Former's heads": qformer.num_attention_heads,
        "the Q-Former's feed-forward width": qformer.intermediate_size,
    }
    if text is not None:
        counts |= {
            "the language model's heads": text.num_heads,
            "the language model's heads of keys and values": text.kv_heads,
            "the language model's feed-forward width": getattr(text, "feed_forward_size", None)
            or text.intermediate_size,
        }
    return [f"{what} ({count})" for what, count in counts.items() if count % model]


def _listed(fitting):
    return ", ".join(f"data_parallel {data} x model_parallel {model}" for data, model in fitting)


def owners(sizes, cards):
    """Which of ``cards`` keeps the moments of each parameter: the largest first, each to whom has least so
    far."""
    loads, owner = [0] * cards, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owner[i] = loads.index(min(loads))
        loads[owner[i]] += sizes[i]
    return owner


def buckets(parameters):
    """Neighbouring indices whose arrays travel together."""
    groups, filled = [], BUCKET_BYTES
    for i, p in enumerate(parameters):
        size = p.size * p.itemsize
        if filled + size > BUCKET_BYTES or p.dtype != parameters[groups[-1][-1]].dtype:
            groups.append([])
            filled = 0
        groups[-1].append(i)
        filled += size
    return groups


class Total(nn.Cell):
    """The sums over the data group of arrays that have the shapes of ``parameters``, times ``factor``; in
    buckets.

    Maps instead of loops, which MindSpore unrolls: the parameters of a large model would go beyond its depth
    of calls."""

    def __init__(self, parameters, factor):
        super().__init__(auto_prefix=False)
        self.map, self.factor, self.buckets = ops.HyperMap(), factor, []
        for bucket in buckets(parameters):
            sizes = [parameters[i].size for i in bucket]
            self.buckets.append((bucket[0], bucket[-1] + 1, tuple(sum(sizes[:i]) for i in range(len(sizes)))))

    def construct(self, arrays):
        flat, made = self.map(_flat, arrays), ()
        for first, last, starts in self.buckets:
            total = comm.all_reduce_sum(ops.cat(flat[first:last]), "data") * self.factor
            made += self.map(ops.partial(_cut, total), arrays[first:last], starts)
        return made


class Spread(nn.Cell):
    """Each parameter as its owner has it, on all cards of the data group."""

    def __init__(self, parameters, owner):
        super().__init__(auto_prefix=False)
        self.parameters, self.map = ms.ParameterTuple(parameters), ops.HyperMap()
        self.own = tuple(float(who == comm.mesh.data_rank) for who in owner)
        self.total = Total(parameters, 1.0)

    def construct(self):
        return self.map(_assign, self.parameters, self.total(self.map(_times, self.parameters, self.own)))
