"""The program of a mesh's processes: what the embedded models find, write and answer, and a training with its
checkpoint, into one file.

    python tests/mesh/entry_points.py DATA MODEL FILE
"""

import json
import os
import sys

import mindspore as ms
import numpy as np

from mindblip2 import Trainer, load_config
from mindblip2.demo import digits, scenes
from mindblip2.demo.scenes import LabelledSet
from mindblip2.distributed import comm

FEW = 7  # no mesh of two divides it


def trainer(name, data, model, task=None, **overrides):
    made = Trainer(args=load_config(name, {"context.mode": 1, "output_dir": "out", **overrides}), task=task)
    made.set_parallel_config(data, model)
    return made


def found(mesh):
    chosen = list({scene.digits[0]: scene for scene in digits.held_out("digits")}.values())[:FEW]
    samples = [
        {
            "image": digits.render(scene),
            "captions": [digits.caption(scene, detail) for detail in ("all", "digit")],
            "image_id": i,
        }
        for i, scene in enumerate(chosen)
    ]
    retrieval = trainer("blip2_digits", *mesh, "image_to_text_retrieval")
    retrieval.eval_dataset = samples
    figures = retrieval.evaluate(k_test=3)
    for name in ("seconds", "pairs_per_second"):
        figures["recipe"].pop(name)
    classes = trainer("blip2_digits", *mesh)
    labels = sorted({digits.caption(scene, "digit") for scene in chosen})
    classes.eval_dataset = LabelledSet(
        "few", [one["image"] for one in samples], [one["captions"][1] for one in samples], labels, "{}"
    )
    return {
        "retrieval": figures,
        "classes": classes.evaluate(),
        "wrong order": [one["captions"][0] for one in samples],
    }


def written(mesh):
    teller, size = trainer("itt_blip2_digits", *mesh), 48
    pictures = scenes.captioned(size, "told")[:FEW]
    teller.eval_dataset = pictures
    figures = {"captions": teller.evaluate()}
    teller.eval_dataset = scenes.questions(size)[:FEW]
    figures["answers"] = teller.evaluate()
    beams = teller.predict(
        [one["image"] for one in pictures[:2]], save_file="beams.txt", num_beams=3, max_new_tokens=6
    )
    figures["beams"] = beams
    if comm.is_main_process():
        figures |= {
            name: json.loads(open(f"out/image_to_text_generation_{name}.json").read())
            for name in ("captions", "answers")
        }
    return figures


def main(data, model, file):
    mesh = int(data), int(model)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    made = {**found(mesh), **written(mesh)}
    np.save(f"{file}.rank_{comm.mesh.rank}.npy", np.array(json.dumps(made["beams"])))
    if comm.is_main_process():
        with open(file, "w", encoding="utf-8") as out:
            json.dump(made, out)


if __name__ == "__main__":
    os.environ.setdefault("GLOG_v", "3")
    main(*sys.argv[1:])
