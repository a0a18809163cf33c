"""Checkpoints of a training run: whole or not at all, and enough in them to go on as if nothing had happened.

A checkpoint is a folder ``step_0000100`` of ``model.ckpt``, ``optimizer.ckpt`` and ``state.json``.  It is written under another name
and renamed when all of it has reached the disk, so a run killed at any moment leaves the checkpoints that it had.
"""
import json
import os
import re
import shutil
from pathlib import Path

from mindblip2 import comm
from mindblip2.checkpoint import Checkpoint, CheckpointError
from mindblip2.hub import save_whole, whole

NAME = "step_{:07d}"
PARTIAL = ".partial_"
BEST = "best.json"
LOWER = ("loss", "eval_loss")     # metrics of which less is better; of the others more is


def save(folder, model, optimizer, state, keep=3):
    """Write the checkpoint of ``state["step"]`` into ``folder`` and delete all but the last ``keep`` and the best; returns
    its path.

    Where ``state["frozen"]`` names the file of what is not trained, only what is trained is written.  What is written does not depend on
    the mesh: whole tensors, made one after the other by all processes, which all call this; the first one writes."""
    folder = Path(folder)
    final, partial = folder / NAME.format(state["step"]), folder / (PARTIAL + NAME.format(state["step"]))
    if comm.first():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    parameters = {name: p for name, p in model.parameters_dict().items() if p.requires_grad or not state.get("frozen")}
    save_whole(partial / "model.ckpt", ((name, str(p.dtype), whole(p)) for name, p in parameters.items()))
    save_whole(partial / "optimizer.ckpt", optimizer.entries())
    if comm.first():
        _finish(folder, final, partial, state, keep)
    comm.barrier()
    return final


def _finish(folder, final, partial, state, keep):
    """Give a written checkpoint its name, and delete old ones."""
    _write_json(partial / "state.json", state)
    _sync(partial)
    if final.exists():
        _delete(final)
    partial.rename(final)
    _sync(folder)
    spared = {path.name for path in saved(folder)[-keep:]} | {final.name, best(folder).get("checkpoint")}
    for old in saved(folder):
        if old.name not in spared:
            _delete(old)


def saved(folder):
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in Path(folder).glob("step_*") if re.fullmatch(r"step_\d+", path.name) and (path / "state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def clean(folder):
    """Remove what killed saves and deletions have left."""
    for rest in Path(folder).glob(PARTIAL + "*"):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()


def set_aside(folder, step):
    """Rename the checkpoints beyond ``step``, which another course of the run made; returns their new names."""
    moved = []
    for path in saved(folder):
        if int(path.name[5:]) > step:
            moved.append(_free(path.with_name("earlier_" + path.name)))
            path.rename(moved[-1])
            if best(folder).get("checkpoint") == path.name:
                (Path(folder) / BEST).unlink()
    return moved


def _free(path):
    return next(one for one in (path.with_name(path.name + tail) for tail in ("", *map("_{}".format, range(1, 1000)))) if not one.exists())


def record_best(folder, checkpoint, name, value):
    """Note that ``checkpoint`` has the best ``value`` of the run so far; it is kept when older ones are deleted."""
    _write_json(Path(folder) / BEST, {"checkpoint": checkpoint.name, name: value})


def note_best(folder, checkpoint, judged):
    """``record_best`` where ``judged``, {metric: value}, is at least as good as what is recorded."""
    for metric, value in judged.items():
        known = best(folder).get(metric)
        if known is None or (value <= known if metric in LOWER else value >= known):
            record_best(folder, checkpoint, metric, value)


def find_best(folder, metric):
    """Note the best of the checkpoints that are there: a run may have been killed before it was noted, or set aside what was."""
    for path in saved(folder):
        judged = read_state(path).get("judged", {})
        note_best(folder, path, {metric: judged[metric]} if metric in judged else {})


def best(folder):
    """``{"checkpoint": "step_…", metric: value}``, or an empty dict."""
    path = Path(folder) / BEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def find(resume, folder):
    """The checkpoint to resume from: ``resume`` is its path, or True for the newest in ``folder``."""
    if isinstance(resume, (str, Path)):
        path = Path(resume)
        path = path if (path / "state.json").is_file() else (saved(path) or [path])[-1]
        if (path / "state.json").is_file():
            return path
        raise CheckpointError(f"{path.absolute()} is no checkpoint of a training run: expected a folder step_… with state.json, "
                              "or a folder that holds such folders")
    found = saved(folder)
    if not found:
        raise CheckpointError(f"nothing to resume: {Path(folder).absolute()} holds no checkpoint; give --resume_training FOLDER, or "
                              "leave the flag out to start anew")
    return found[-1]


def read_state(path):
    """``state.json`` of a checkpoint."""
    try:
        return json.loads((Path(path) / "state.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}/state.json is damaged ({error}): resume from another checkpoint") from None


def restore_optimizer(path, optimizer):
    """Moments and step count; raises CheckpointError where the file does not fit."""
    stored, wanted = Checkpoint(Path(path) / "optimizer.ckpt"), optimizer.shapes()
    wrong = [name for name in wanted | stored.shapes if name not in wanted or stored.shapes.get(name) != wanted[name]]
    if wrong:
        raise CheckpointError(f"{stored.path} belongs to another model or to other trained parameters: {len(wrong)} do not fit, "
                              f"first {wrong[0]}; resume with the configuration of the run")
    optimizer.restore(stored)


def _delete(path):
    doomed = path.with_name(PARTIAL + "deleted_" + path.name)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)     # half a deleted checkpoint must not look like one
    shutil.rmtree(doomed)


def _write_json(path, content):
    partial = path.with_name(PARTIAL + path.name)
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _sync(folder):
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
