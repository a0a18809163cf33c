"""What the planner computes is what the processes of a mesh hold and send, to the byte."""

import json
from collections import Counter

import pytest

from mindblip2.checkpoint.pretrained import no_init
from mindblip2.config import Blip2Config
from mindblip2.distributed import comm
from mindblip2.trainer.communication_volume import Step, traffic, update
from mindblip2.trainer.plan import moment_bytes
from tests.mesh.launch import ROOT, launch
from tests.mesh.steps import BATCH, PARTS, SIZES

MESHES = {(1, 2): ["stage1", "trained_vit", "llama", "opt"], (2, 1): ["stage1", "trained_vit", "llama"]}


def planned(part, data, model, rank, **wrong):
    """The same figures as tests.mesh.plan measures; ``wrong``: changes of the step."""
    kind, changes = PARTS[part]
    config = Blip2Config(**{**SIZES, **changes})
    with comm.simulate_mesh(data, model, rank), no_init():
        net = kind(config)
    trained = net.trainable_params()
    weights = sum(p.size * p.itemsize for p in trained)
    step = Step(
        **{
            "config": config,
            "data": data,
            "model": model,
            "batch": BATCH // data,
            "text": 8,
            "trained_vit": not config.freeze_vision,
            "image_id": True,
            "dtype": "float32",
            **wrong,
        }
    )
    travelled = Counter()
    for (what, group, _, size), times in (traffic(step) + update(trained, data, model, data > 1)).items():
        travelled[what, group, size] += times
    return {
        "trained": weights,
        "frozen": sum(p.size * p.itemsize for p in net.get_parameters()) - weights,
        "gradients": weights,
        "moments": moment_bytes(trained, data, data > 1)[rank // model],
        "travelled": [[*what, times] for what, times in sorted(travelled.items())],
    }


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: "{}x{}".format(*mesh))
def test_the_plan_is_what_real_processes_hold_and_send(mesh, tmp_path):
    code, said = launch(
        2,
        ROOT / "tests" / "mesh" / "plan.py",
        *mesh,
        tmp_path / "made",
        *MESHES[mesh],
        logs=tmp_path / "logs",
    )
    assert code == 0, said
    made = [json.loads((tmp_path / f"made.{rank}").read_text()) for rank in (0, 1)]
    for part in MESHES[mesh]:
        for rank in (0, 1):
            assert planned(part, *mesh, rank) == made[rank][part], (part, rank)
        # the controls: another mesh, and other ways of a step, are noticed
        other = planned(part, *mesh[::-1], 0)
        assert all(
            other[name] != made[0][part][name]
            for name in ("trained", "frozen", "gradients", "moments", "travelled")
            if made[0][part][name]
        )
    for wrong in ({"text": 9}, {"batch": 3}):
        assert planned("stage1", *mesh, 0, **wrong)["travelled"] != made[0]["stage1"]["travelled"]
