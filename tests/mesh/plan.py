"""The program of a mesh's processes: what a training step of the small models moves, and what a card holds,
into one .json per process.

    python tests/mesh/plan.py DATA MODEL FILE PART…     # names of tests.mesh.steps.PARTS
"""

import json
import sys
from collections import Counter

import mindspore as ms

from mindblip2 import device
from mindblip2.config import Blip2Config, ContextConfig, OptimizerConfig
from mindblip2.distributed import comm
from mindblip2.trainer.train_step import TrainStep
from tests.mesh.steps import PARTS, RATE, SIZES, batch_of, own_rows


def held(arrays):
    """Bytes of arrays that are there."""
    return sum(array.asnumpy().nbytes for array in arrays)


def measured(part):
    """Bytes of weights, gradients and moments of this process, and [what, group, bytes, times] of a step."""
    kind, changes = PARTS[part]
    model = kind(Blip2Config(**{**SIZES, **changes})).set_train()
    step = TrainStep(model, OptimizerConfig(), shard_optimizer=comm.mesh.data > 1)
    batch = own_rows(batch_of(0))
    gradients = step._gradients(batch)[2]
    with comm.record_communication() as tally:
        step([batch], RATE)
    trained = model.trainable_params()
    return {
        "trained": held(trained),
        "frozen": held(p for p in model.get_parameters() if not p.requires_grad),
        "gradients": held(gradients),
        "moments": held(step.optimizer.kept().values()),
        "travelled": [[*what, times] for what, times in sorted(Counter(tally).items())],
    }


def main(data, model, file, parts):
    device.use(ContextConfig(device_target="CPU", mode=1))
    ms.set_seed(7)
    comm.init_mesh(int(data), int(model))
    with open(f"{file}.{comm.mesh.rank}", "w", encoding="utf-8") as out:
        json.dump({part: measured(part) for part in parts}, out)


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4:])
