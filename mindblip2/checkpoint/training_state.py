"""Checkpoints of a training run: whole or not at all, and enough in them to go on as if nothing had happened.

A checkpoint is a folder ``step_0000100`` of ``model.ckpt``, ``optimizer.ckpt`` and ``state.json``.  It
appears under its name when all of it has reached the disk (``file_io.atomic_folder``), so a run killed at any
moment leaves the checkpoints that it had.
"""

import contextlib
import logging
import math
import re
import shutil
from pathlib import Path

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, count_not_finite
from mindblip2.checkpoint.pretrained import save_unsharded, unshard, unsharded_bytes
from mindblip2.distributed import comm
from mindblip2.file_io import FileError, atomic_folder, read_json, write_json

logger = logging.getLogger("mindblip2")

NAME = "step_{:07d}"
DELETED = ".deleted_"
BEST = "best.json"
LOWER = ("loss", "eval_loss")  # metrics of which less is better; of the others more is
STEP_NAME = re.compile(r"(earlier_)?step_(\d{1,18})(_\d+)?")  # earlier_: see set_aside
DIVERGED = 1.5  # times the lowest loss so far: a model with more is not worth going on from


def save(folder, model, optimizer, state, keep=3):
    """Write the checkpoint of ``state["step"]`` into ``folder`` and delete all but the last ``keep`` and the
    best; returns its path.

    Where ``state["frozen"]`` names the file of what is not trained, only what is trained is written.  What is
    written does not depend on the mesh: whole tensors, made one after the other by all processes, which all
    call this; the main process writes."""
    final = Path(folder) / NAME.format(state["step"])
    parameters = saved_parameters(model, state)
    with (
        comm.fail_together(),
        atomic_folder(final) if comm.is_main_process() else contextlib.nullcontext(final) as partial,
    ):
        save_unsharded(
            partial / "model.ckpt",
            ((name, str(p.dtype), unshard(p)) for name, p in parameters.items()),
            unsharded_bytes(parameters.values()),
        )
        save_unsharded(partial / "optimizer.ckpt", optimizer.entries(), optimizer.bytes())
        if comm.is_main_process():
            write_json(partial / "state.json", state)
    if comm.is_main_process():
        spared = {path.name for path in saved(folder)[-keep:]} | {final.name, best(folder).get("checkpoint")}
        for old in saved(folder):
            if old.name not in spared:
                _delete(old)
    return final


def saved_parameters(model, state):
    """{name: parameter} of what a checkpoint holds: all, or what is trained where ``state["frozen"]`` names
    the file of the rest."""
    return {
        name: p for name, p in model.parameters_dict().items() if p.requires_grad or not state.get("frozen")
    }


def saved(folder):
    """The complete checkpoints of a run, oldest first."""
    found = [
        path
        for path in Path(folder).glob("step_*")
        if re.fullmatch(r"step_\d{1,18}", path.name) and (path / "state.json").is_file()
    ]
    return sorted(found, key=lambda path: int(path.name[5:]))


def clean(folder):
    """Remove what killed saves and deletions have left; only one training at a time may write into the
    folder."""
    # the last: of older versions
    for pattern in (f"{DELETED}*", ".step_*.partial", ".best.json.*.partial", ".partial_*"):
        for rest in Path(folder).glob(pattern):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()


def set_aside(folder, step):
    """Rename the checkpoints beyond ``step``, which another course of the run made; returns their new
    names."""
    moved = []
    for path in saved(folder):
        if int(path.name[5:]) > step:
            moved.append(_free(path.with_name("earlier_" + path.name)))
            path.rename(moved[-1])
            if best(folder).get("checkpoint") == path.name:
                (Path(folder) / BEST).unlink()
    return moved


def _free(path):
    return next(
        one
        for one in (path.with_name(path.name + tail) for tail in ("", *map("_{}".format, range(1, 1000))))
        if not one.exists()
    )


# ------------------------------------------------------------------------------------------------ the best ch
def record_best(folder, checkpoint, name, value):
    """Note that ``checkpoint`` has the best ``value`` of the run so far; it is kept when older ones are
    deleted."""
    write_json(Path(folder) / BEST, {"checkpoint": checkpoint.name, name: value})


def note_best(folder, checkpoint, judged):
    """``record_best`` where ``judged``, {metric: value}, is at least as good as what is recorded."""
    for metric, value in judged.items():
        known = best(folder).get(metric)
        if known is None or (value <= known if metric in LOWER else value >= known):
            record_best(folder, checkpoint, metric, value)


def find_best(folder, metric):
    """Note the best of the checkpoints that are there: a run may have been killed before it was noted, or set
    aside what was.  A note that is damaged, or names a checkpoint that is gone, is made again; a checkpoint
    that is damaged is passed over.  Both with a warning."""
    note = Path(folder) / BEST
    known = best(folder)
    if note.is_file() and not (known and (Path(folder) / known["checkpoint"]).is_dir()):
        logger.warning(
            "%s is damaged, or names a checkpoint that is not there: it is made again from the checkpoints",
            note,
        )
        note.unlink()
    for path in saved(folder):
        try:
            judged = read_state(path)["judged"]
        except CheckpointError as error:
            logger.warning("%s", error)
            continue
        note_best(folder, path, {metric: judged[metric]} if metric in judged else {})


def best(folder):
    """``{"checkpoint": "step_…", metric: value}``; an empty dict where there is no such note, or it is
    damaged."""
    path = Path(folder) / BEST
    try:
        note = read_json(path, dict) if path.is_file() else {}
    except FileError:
        return {}
    whole_note = isinstance(note.get("checkpoint"), str) and all(
        _is_number(value) for name, value in note.items() if name != "checkpoint"
    )
    return note if whole_note else {}


# ------------------------------------------------------------------------------------------------ going on
def find(resume, folder):
    """The checkpoint to resume from: ``resume`` is its path, or True for the newest in ``folder``.

    Raises :class:`CheckpointError` where there is none, or a file of it is damaged; then the message names
    the one before it."""
    if isinstance(resume, (str, Path)):
        path = Path(resume)
        path = path if (path / "state.json").is_file() else (saved(path) or [path])[-1]
        if not (path / "state.json").is_file():
            raise CheckpointError(
                f"{path.absolute()} is no checkpoint of a training run: expected a folder step_… with "
                "state.json, "
                "or a folder that holds such folders"
            )
    else:
        found = saved(folder)
        if not found:
            raise CheckpointError(
                f"nothing to resume: {Path(folder).absolute()} holds no checkpoint; give --resume_training "
                "FOLDER, or "
                "leave the flag out to start anew"
            )
        path = found[-1]
    read_state(path)
    for name in ("model.ckpt", "optimizer.ckpt"):
        try:
            Checkpoint(path / name)
        except (CheckpointError, FileNotFoundError) as error:
            raise CheckpointError(f"{error}; {_other_than(path)}") from None
    return path


def read_state(path):
    """``state.json`` of a checkpoint folder, checked: the step is that of the folder's name.

    Raises :class:`CheckpointError` that names the file, what is wrong with it, and the checkpoint before
    it."""
    path = Path(path)
    file = path / "state.json"
    try:
        state = read_json(file, dict, "the state of a training run", advice=_other_than(path))
    except (FileError, OSError) as error:
        raise CheckpointError(str(error)) from None
    state.setdefault("judged", {})
    scale, frozen, window, unreadable = (
        state.get(name) for name in ("loss_scale", "frozen", "window", "unreadable")
    )
    complaints = {
        "step": None if _is_count(state.get("step")) else "a whole number of steps",
        "loss_scale": None
        if isinstance(scale, dict) and _is_number(scale.get("value")) and _is_count(scale.get("good"))
        else 'an object with "value" and "good"',
        "frozen": None
        if "frozen" in state
        and (
            frozen is None
            or isinstance(frozen, dict)
            and isinstance(frozen.get("path"), str)
            and _is_count(frozen.get("crc32"))
        )
        else 'null or an object with "path" and "crc32"',
        "judged": None
        if isinstance(state["judged"], dict) and all(map(_is_number, state["judged"].values()))
        else "an object of numbers",
        "window": None
        if window is None
        or isinstance(window, list)
        and len(window) == 2
        and _is_number(window[0])
        and _is_count(window[1])
        else "a sum and a count",
        "unreadable": None
        if unreadable is None
        or isinstance(unreadable, list)
        and len(unreadable) == 2
        and all(map(_is_count, unreadable))
        else "two counts",
    }
    for name, expected in complaints.items():
        if expected:
            got = repr(state[name]) if name in state else "nothing"
            raise CheckpointError(
                f"{file} is damaged: {name} is {got[:100]}, expected {expected}; {_other_than(path)}"
            )
    named = STEP_NAME.fullmatch(path.name)
    if named and int(named[2]) != state["step"]:
        raise CheckpointError(
            f"{file} is damaged, or its folder was renamed: step is {state['step']}, expected "
            f"{int(named[2])}, as "
            f"{path.name} says; {_other_than(path)}"
        )
    return state


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _other_than(path):
    """The advice for a checkpoint that cannot be used: the newest one before it."""
    named = STEP_NAME.fullmatch(path.name)
    before = [one for one in saved(path.parent) if named and int(one.name[5:]) < int(named[2])]
    if before:
        return f"resume from the checkpoint before it: --resume_training {before[-1]}"
    return "there is no checkpoint before it: resume from another one, or start anew"


def last_good(folder):
    """The newest checkpoint from before a divergence, or None: its weights are finite, and its loss is at
    most ``DIVERGED`` times the lowest of those up to it."""
    good, lowest = None, math.inf
    for path in saved(folder):
        try:
            state, stored = read_state(path), Checkpoint(path / "model.ckpt")
        except (CheckpointError, FileNotFoundError):
            continue
        loss = state.get("loss")
        if not _is_number(loss) or loss > DIVERGED * lowest:
            continue
        if not any(count_not_finite(stored.view(name), stored.types[name]) for name in stored):
            good, lowest = path, min(lowest, loss)
    return good


def restore_optimizer(path, optimizer):
    """Moments and step count; raises CheckpointError where the file does not fit."""
    stored, wanted = Checkpoint(Path(path) / "optimizer.ckpt"), optimizer.shapes()
    wrong = [
        name
        for name in wanted | stored.shapes
        if name not in wanted or stored.shapes.get(name) != wanted[name]
    ]
    if wrong:
        raise CheckpointError(
            f"{stored.path} belongs to another model or to other trained parameters: {len(wrong)} do not "
            "fit, "
            f"first {wrong[0]}; resume with the configuration of the run"
        )
    optimizer.restore(stored)


def _delete(path):
    doomed = path.with_name(DELETED + path.name)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)  # half a deleted checkpoint must not look like one
    shutil.rmtree(doomed)
