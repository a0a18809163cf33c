"""What a run needs of each card, and sends between them, on every mesh that fits: computed, before there are
cards.

Weights, gradients and moments are those of cells that are made with the shapes of one card and hold nothing,
so they are exact; ``traffic`` is exact too; ``activations`` are an estimate.
"""

import re
from collections import Counter
from dataclasses import dataclass

from mindblip2 import device
from mindblip2.checkpoint.pretrained import no_init
from mindblip2.config.schema import ConfigError
from mindblip2.distributed import comm
from mindblip2.distributed.data_parallel import meshes, owners
from mindblip2.generation.generation_config import ALIASES, LanguageGenerationConfig
from mindblip2.models.blip2_llm import SLOT_STEP, Blip2Llm
from mindblip2.models.blip2_qformer import Blip2Qformer
from mindblip2.trainer.activation_memory import activation_bytes
from mindblip2.trainer.communication_volume import BYTES, Step, traffic, update

UNITS = {"MB": 1e6, "GB": 1e9, "MiB": 2**20, "GiB": 2**30}
GB = 1e9
WAYS = {
    "": (False, False),
    "recompute": (False, True),
    "sharded moments": (True, False),
    "both": (True, True),
}


@dataclass(frozen=True)
class Needs:
    """Bytes of the fullest card of a mesh, and what it sends per update.  ``moments`` and ``travels`` by
    whether the moments are sharded, ``activations`` by whether feed-forwards are computed again; ``cache``:
    keys and values of generation, not there in training."""

    data: int
    model: int
    trained: int
    frozen: int
    gradients: int
    moments: dict
    activations: dict
    cache: int
    travels: dict

    def total(self, sharded=False, recompute=False):
        """Bytes that a training takes."""
        return (
            self.trained + self.frozen + self.gradients + self.moments[sharded] + self.activations[recompute]
        )

    def fits(self, memory):
        """The first of WAYS by which a training fits into ``memory`` bytes, or None."""
        return next((way for way, how in WAYS.items() if self.total(*how) <= memory), None)


def plan_mesh(config, device_memory="64GB", cards=1):
    """Print what a RunConfig needs on every mesh of ``cards`` cards with ``device_memory`` each; returns the
    list of :class:`Needs`.

    It is that of an NPU, where products are computed in ``compute_dtype``; with ``context.device_target:
    CPU`` that of a CPU, which computes in float32.  Raises ConfigError for a memory without a unit, and for
    less than one card."""
    memory = size_of(device_memory)
    if cards < 1:
        raise ConfigError(f"--cards {cards}: expected a whole number of at least 1")
    rows = [needs(config, data, model) for data, model in meshes(config.model.model_config, cards)]
    print("\n".join([*_memory_table(rows, memory, config), "", *_travel_table(rows)]))
    return rows


def size_of(text):
    """Bytes of "64GB" or "32 GiB"."""
    found = re.fullmatch(r"([0-9.]+) ?([A-Za-z]+)", text)
    if found is None or found[2] not in UNITS:
        raise ConfigError(
            f"--device_memory {text}: expected a number and one of {', '.join(UNITS)}, as in 64GB"
        )
    return float(found[1]) * UNITS[found[2]]


def needs(config, data, model):
    """The :class:`Needs` of a RunConfig on a mesh."""
    net, dtype = _cells(config, data, model)
    trained = net.trainable_params()
    step = step_of(config, data, model, dtype, any(p.requires_grad for p in net.vit.get_parameters()))
    lots = config.runner_config.accumulation_steps
    passes = Counter({what: times * lots for what, times in traffic(step).items()})
    weights = bytes_of(trained)
    return Needs(
        data,
        model,
        weights,
        bytes_of(net.get_parameters()) - weights,
        weights * min(lots, 2),
        {sharded: max(moment_bytes(trained, data, sharded)) for sharded in (False, True)},
        {
            again: activation_bytes(step, again, config.context.device_target or "Ascend")
            for again in (False, True)
        },
        cache_bytes(config, step),
        {sharded: passes + update(trained, data, model, sharded) for sharded in (False, True)},
    )


def step_of(config, data, model, dtype, trained_vit):
    """One step of a RunConfig, as far as its memory and its messages go."""
    section = config.train_dataset
    text = min(section.text_transforms.max_length, config.processor.tokenizer.max_length)
    return Step(
        config.model.model_config,
        data,
        model,
        config.runner_config.batch_size,
        text,
        trained_vit,
        section.use_image_id,
        dtype,
    )


def moment_bytes(trained, data, sharded):
    """Of each card of a data group: both moments of what it updates, and the number of steps."""
    sizes = [p.size for p in trained]
    if not sharded or data == 1:
        return [4 + 8 * sum(sizes)] * data
    held = [4] * data
    for size, who in zip(sizes, owners(sizes, data)):
        held[who] += 8 * size
    return held


def cache_bytes(config, step):
    """Keys and values of the language model for one batch of the evaluation; 0 in stage 1."""
    text = config.model.model_config.text_config
    if text is None:
        return 0
    known = {*LanguageGenerationConfig.names(), *ALIASES}
    how = LanguageGenerationConfig.of(
        {name: value for name, value in config.generation.items() if name in known}
    )
    wanted = config.model.model_config.qformer_config.query_length + step.text + how.max_new_tokens
    slots = -(-wanted // SLOT_STEP) * SLOT_STEP
    each = (
        2
        * text.num_layers
        * text.kv_heads
        * (text.hidden_size // text.num_heads)
        * BYTES[step.dtype]
        // step.model
    )
    return config.eval_dataset.batch_size * how.rows * slots * each


def _cells(config, data, model):
    """The model as one card of a mesh has it, without values; and what its products are computed in."""
    own = config.model.model_config
    with (
        device.simulate_device(config.context.device_target or "Ascend"),
        comm.simulate_mesh(data, model),
        no_init(),
    ):
        net = (Blip2Qformer if own.text_config is None else Blip2Llm)(own)
    return net, net.config.compute_dtype


def bytes_of(parameters):
    return sum(p.size * p.itemsize for p in parameters)


# ------------------------------------------------------------------------------------------------ tables
def _memory_table(rows, memory, config):
    batch = config.runner_config.batch_size
    head = [
        "data x model",
        "trained",
        "frozen",
        "gradients",
        "moments",
        "sharded",
        "activations",
        "recomputed",
        "total",
        "least",
    ]
    head += ["cache"] * bool(rows[0].cache) + ["fits"]
    lines = []
    for row in rows:
        numbers = [
            row.trained,
            row.frozen,
            row.gradients,
            row.moments[False],
            row.moments[True],
            row.activations[False],
            row.activations[True],
            row.total(),
            row.total(True, True),
        ] + [row.cache] * bool(row.cache)
        fits = row.fits(memory)
        lines.append(
            [
                f"{row.data} x {row.model}",
                *(f"{number / GB:.2f}" for number in numbers),
                "no" if fits is None else f"with {fits}" if fits else "yes",
            ]
        )
    return [
        f"GB per card in training, {batch} pairs per card; {memory / GB:g} GB are there (computed)",
        "",
        *_table(head, lines),
    ]


def _travel_table(rows):
    head, lines = ["data x model", "group", "when", "what", "calls", "GB"], []
    for row in rows:
        times, size = Counter(), Counter()
        for (what, group, when, each), count in row.travels[True].items():
            times[group, when, what] += count
            size[group, when, what] += count * each
        lines += [
            [f"{row.data} x {row.model}", *kind, str(times[kind]), f"{size[kind] / GB:.3f}"]
            for kind in sorted(times)
        ]
    if not lines:
        return ["nothing travels between cards"]
    return [
        'what a card sends per update (computed); "parameters" only where the moments are sharded',
        "",
        *_table(head, lines),
    ]


def _table(head, lines):
    """Rows of a Markdown table."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    made = [
        [cell.rjust(width) for cell, width in zip(line, widths)]
        for line in [head, ["-" * width for width in widths], *lines]
    ]
    return ["| " + " | ".join(line) + " |" for line in made]
