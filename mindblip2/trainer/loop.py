"""Training: a feed of batches in; a trained model, its checkpoints and its log out."""

import fnmatch
import itertools
import json
import logging
import math
import tempfile
import time
from pathlib import Path

import mindspore as ms

from mindblip2 import device
from mindblip2.checkpoint import training_state
from mindblip2.checkpoint.ckpt import CheckpointError
from mindblip2.checkpoint.pretrained import unsharded_bytes
from mindblip2.distributed import comm
from mindblip2.file_io import DISK_FULL, DiskFullError, write_json
from mindblip2.trainer.evaluator import is_due
from mindblip2.trainer.logging import TrainingLog
from mindblip2.trainer.lr_schedule import learning_rate
from mindblip2.trainer.optimizer import layer_scales
from mindblip2.trainer.signals import StopSignals, error_of, how_to_go_on
from mindblip2.trainer.train_step import TrainStep

logger = logging.getLogger("mindblip2")
# What may differ in a resumed run without a change of the data's order or of the model; the differences are
# printed.
MAY_CHANGE = (
    "lr_schedule.*",
    "layer_decay",
    "optimizer.max_grad_norm",
    "optimizer.learning_rate",
    "total_steps",
    "epochs",
    "save_steps",
    "log_every",
    "keep_checkpoint_max",
    "summary",
    "evaluation.*",
    "*dataset_dir",
    "*num_parallel_workers",
    "*python_multiprocessing",
    "*max_unreadable",
    "*checkpoint_name_or_path",
)
_ABSENT = object()


def fit(model, feed, config, output_dir, resume=None, frozen=None, held_out=None):
    """Train ``model`` on ``feed`` (``len``: batches per epoch; ``feed.epoch(e, start)``: those of epoch e
    from ``start`` on).

    ``config``: the RunConfig.  ``resume``: a checkpoint of this run, see ``saving.find``.  ``frozen``:
    ``{"path", "crc32"}`` of the file that holds what is not trained; then checkpoints hold only what is.
    ``held_out``: what is evaluated on the way, see ``held_out``; it decides which checkpoint is the best,
    else the mean loss does.  Writes checkpoints to ``checkpoint/rank_0`` and the log to ``log`` under
    ``output_dir``.

    After SIGTERM or SIGINT the step in hand is finished, a checkpoint is saved, and SystemExit(143) or
    KeyboardInterrupt is raised; see :class:`StopSignals`.  Raises FloatingPointError, naming the loss or
    gradient and the last good checkpoint, when a number is not finite, :class:`CheckpointError` where
    ``resume`` does not belong to this run, and :class:`DiskFullError`.  Returns the log: a list of dicts."""
    runner, folder = config.runner_config, Path(output_dir) / "checkpoint" / "rank_0"
    epoch_steps = -(-len(feed) // runner.accumulation_steps)
    total = planned_steps(config, epoch_steps)
    model.set_train()
    if comm.mesh.data > 1 and device.target() != "CPU":  # there MindSpore's own operators draw
        ms.set_seed(config.seed + comm.data_rank())
    step_of = TrainStep(
        model, config.optimizer, _scales(model, config), config.parallel.enable_parallel_optimizer
    )
    facts = _facts(model, config, epoch_steps, total, held_out) | {"frozen": frozen}
    state = training_state.read_state(resume) if resume else {"step": _fresh(folder)}
    if resume:
        _restore(resume, state, facts, step_of, folder)
    start = state["step"]
    # of the steps since the last checkpoint that was planned
    loss_sum, loss_count = state.get("window") or (0.0, 0)
    if hasattr(feed, "skipped"):
        feed.seen, feed.skipped = state.get("unreadable") or (0, 0)
    comm.barrier()  # all have looked into the folder
    if comm.is_main_process():
        _tidy(folder, start, f"eval_{held_out.metric}" if held_out else "loss")
    log_folder = (
        Path(output_dir) / "log" if comm.is_main_process() else tempfile.mkdtemp(prefix="mindblip2-log-")
    )
    monitor, signals, stopped_by = (
        TrainingLog(log_folder, total, runner.log_every, start, runner.summary),
        StopSignals(),
        None,
    )
    every, unreadable, done = runner.save_steps or epoch_steps, 0, start
    try:
        with signals:
            if held_out and resume and is_due(config, start, epoch_steps) and not state["judged"]:
                _judge_again(folder, resume, state, _evaluated(held_out, model, monitor))
            for step, batches in zip(
                range(start, total), _steps(feed, epoch_steps, runner.accumulation_steps, start)
            ):
                if not config.train_dataset.use_image_id:
                    batches = [
                        {name: array for name, array in batch.items() if name != "image_id"}
                        for batch in batches
                    ]
                rate = learning_rate(config.lr_schedule, step, total, epoch_steps)
                model.noise.set(config.seed, step)
                numbers = step_of(batches, rate)
                loss_sum, loss_count = loss_sum + numbers["loss"], loss_count + 1
                unreadable = _told(feed, unreadable)
                monitor.add(
                    {**numbers, "lr": rate},
                    sum(len(batch["input_ids"]) for batch in batches) * comm.mesh.data,
                    unreadable,
                )
                done, last = step + 1, step + 1 == total
                stopped_by = signals.agreed()
                examined = (
                    held_out and (last or is_due(config, done, epoch_steps)) and (last or not stopped_by)
                )
                judged = _evaluated(held_out, model, monitor) if examined else {}
                planned = done % every == 0 or last or bool(judged)
                if planned or stopped_by:
                    loss = loss_sum / loss_count
                    if planned:
                        loss_sum, loss_count = 0.0, 0
                    made = {
                        "step": done,
                        "epoch": done // epoch_steps,
                        "loss_scale": step_of.scale.state(),
                        **facts,
                        "loss": loss,
                        "judged": judged if held_out else {"loss": loss} if planned else {},
                        "window": [loss_sum, loss_count],
                        "unreadable": [getattr(feed, "seen", 0), getattr(feed, "skipped", 0)],
                    }
                    path = training_state.save(
                        folder, model, step_of.optimizer, made, runner.keep_checkpoint_max
                    )
                    if comm.is_main_process():
                        training_state.note_best(folder, path, made["judged"])
                    stopped_by = signals.agreed()  # evaluating and saving may have taken long
                if stopped_by:
                    break
    except FloatingPointError as error:
        raise FloatingPointError(f"step {done + 1}: {error}; {_after_divergence(folder, config)}") from None
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise _disk_full(error, folder, log_folder, model, step_of.optimizer, facts) from error
    finally:
        monitor.close()
        model.set_train(False)
    if stopped_by:
        print(
            f"{stopped_by.name}: stopped after step {done} of {total}; the checkpoint is saved at: "
            f"{folder / training_state.NAME.format(done)}.  "
            f"Go on with: {how_to_go_on()}",
            flush=True,
        )
        comm.barrier()  # the launcher ends all processes as soon as one has ended
        raise error_of(stopped_by)
    return monitor.log


def _facts(model, config, epoch_steps, total_steps, held_out=None):
    """What decides the numbers of a run, and what it does on the way."""
    runner, sections = config.runner_config, ("optimizer", "lr_schedule", "train_dataset")
    return {
        "seed": config.seed,
        "batch_size": runner.batch_size * comm.mesh.data,
        "epoch_steps": epoch_steps,
        "total_steps": total_steps,
        "accumulation_steps": runner.accumulation_steps,
        "layer_decay": config.layer_decay,
        "model_config": model.config.to_dict(),
        **{
            name: getattr(runner, name)
            for name in ("epochs", "save_steps", "log_every", "keep_checkpoint_max", "summary")
        },
        "evaluation": {
            "metric": held_out.metric if held_out else None,
            "eval_step_interval": config.eval_step_interval,
            "eval_epoch_interval": config.eval_epoch_interval,
        },
        **{name: getattr(config, name).to_dict() for name in sections},
    }


def planned_steps(config, epoch_steps):
    """Updates of the whole run: the epochs, or ``lr_schedule.total_steps`` where that is given and less."""
    total = config.runner_config.epochs * epoch_steps
    return min(total, config.lr_schedule.total_steps) if config.lr_schedule.total_steps > 0 else total


def _steps(feed, epoch_steps, accumulate, start):
    """Lists of batches, one list per update, from update ``start`` on; the last list of an epoch may be
    shorter."""
    for epoch in itertools.count(start // epoch_steps):
        batches = iter(feed.epoch(epoch, start % epoch_steps * accumulate))
        while group := list(itertools.islice(batches, accumulate)):
            yield group
        start = 0


def _scales(model, config):
    if config.layer_decay is None:
        return None
    return layer_scales(
        model.trainable_params(), config.layer_decay, model.config.vision_config.num_hidden_layers
    )


def _fresh(folder):
    found = training_state.saved(folder)
    if found:
        raise CheckpointError(
            f"{Path(folder).absolute()} holds checkpoints of another run, the newest {found[-1].name}: go on "
            "with it "
            "by --resume_training true, or choose another --output_dir"
        )
    return 0


def _tidy(folder, step, metric):
    """What the first process does in the checkpoints' folder before the run goes on after ``step``."""
    for path in training_state.set_aside(folder, step) if step else ():
        print(f"a later checkpoint of the earlier course is kept as {path.name}")
    training_state.clean(folder)
    training_state.find_best(folder, metric)


def _told(feed, before):
    """Say so when more pictures could not be read than ``before``; returns how many it are."""
    skipped = getattr(feed, "skipped", 0)
    if skipped > before:
        logger.warning(
            "%d pictures could not be read so far and were replaced by others: %s; run_blip2.py --run_mode "
            "check lists all",
            skipped,
            ", ".join(map(str, feed.skipped_names)),
        )
    return skipped


def _flat(facts, name=""):
    """Nested dicts as {dotted name: value}."""
    if not isinstance(facts, dict):
        return {name: facts}
    flat = {}
    for key, value in facts.items():
        flat.update(_flat(value, f"{name}.{key}" if name else key))
    return flat


def _restore(checkpoint, state, facts, step_of, folder):
    """Take the optimizer and the loss scale of a checkpoint with this ``state``; the model's weights have
    been loaded already.

    Raises :class:`CheckpointError` that names all keys which differ and may not; prints those that may."""
    then, now = _flat(state), _flat(facts)
    differ = [
        name
        for name in now
        if not name.startswith("frozen") and then.get(name, _ABSENT) != json.loads(json.dumps(now[name]))
    ]
    free = [name for name in differ if any(fnmatch.fnmatchcase(name, pattern) for pattern in MAY_CHANGE)]
    wrong = [name for name in differ if name not in free]
    if wrong:
        listed = "; ".join(
            f"{name} = {then.get(name)!r}, now {now[name]!r}{_of_mesh(name, then)}" for name in wrong
        )
        raise CheckpointError(
            f"{checkpoint} belongs to a run with {listed}: these decide the model or the order of the data, "
            "so resume "
            f"with those of the run, or begin a new one with --load_checkpoint {checkpoint} and another "
            "--output_dir"
        )
    if Path(checkpoint).resolve().parent != Path(folder).resolve():
        _fresh(folder)
    if (state["frozen"] or {}).get("crc32") != (facts["frozen"] or {}).get("crc32"):
        raise CheckpointError(
            f"{checkpoint} was trained on other frozen weights "
            f"({(state['frozen'] or {}).get('path', 'none')}): give "
            "that file as --load_checkpoint"
        )
    if state["step"] > facts["total_steps"]:
        raise CheckpointError(
            f"{checkpoint} has made {state['step']} steps, but the run is to have {facts['total_steps']}: "
            "raise "
            "runner_config.epochs or lr_schedule.total_steps, or use the checkpoint as it is"
        )
    training_state.restore_optimizer(checkpoint, step_of.optimizer)
    step_of.scale.restore(state["loss_scale"])
    print(f"resumed from {checkpoint}: step {state['step']} of {facts['total_steps']}")
    for name in free:
        if name in then:  # older versions did not save all of them
            print(f"changed: {name} {then[name]!r} -> {now[name]!r}")


def _of_mesh(name, then):
    """How another mesh goes on with the same global batch."""
    if name != "batch_size":
        return ""
    if then[name] % comm.mesh.data:
        return f" in all, which {comm.mesh.data} data-parallel cards cannot share"
    return (
        f" in all; with data_parallel = {comm.mesh.data} that run goes on with runner_config.batch_size = "
        f"{then[name] // comm.mesh.data}"
    )


def _judge_again(folder, checkpoint, state, judged):
    """Write down the evaluation of a checkpoint that was saved by a run which was stopped before it."""
    if comm.is_main_process() and Path(checkpoint).resolve().parent == folder.resolve():
        write_json(Path(checkpoint) / "state.json", {**state, "judged": judged})
        training_state.note_best(folder, Path(checkpoint), judged)


def _after_divergence(folder, config):
    """What to do after a number that is not finite."""
    rate, good = config.lr_schedule.learning_rate / 2, training_state.last_good(folder)
    if good is None:
        return (
            "no checkpoint from before the divergence is there; begin again with a lower learning rate: "
            f"{how_to_go_on(None, lr_schedule__learning_rate=rate)}, and with another --output_dir if "
            f"{folder} holds checkpoints"
        )
    return (
        f"the last good checkpoint from before the divergence is {good}; go on from it with a lower learning "
        "rate: "
        f"{how_to_go_on(good, lr_schedule__learning_rate=rate)}"
    )


def _disk_full(error, folder, log_folder, model, optimizer, facts):
    """The error of a full disk during a training."""
    needed = unsharded_bytes(training_state.saved_parameters(model, facts).values()) + optimizer.bytes()
    there = training_state.saved(folder)
    advice = (
        f"the last good checkpoint is {there[-1]}; when there is room, go on with: {how_to_go_on()}"
        if there
        else "no checkpoint has been saved yet: begin again when there is room"
    )
    return DiskFullError(
        error.errno,
        f"{error.strerror}.  A checkpoint of this run takes about {needed:,} bytes; {advice}",
        error.filename or str(Path(log_folder) / "train.jsonl"),
    )


def _evaluated(held_out, model, monitor):
    """{metric: value} of the model as it is; all figures go to the log."""
    start = time.perf_counter()
    model.set_train(False)
    figures = held_out.figures()
    model.set_train()
    entry = monitor.add_evaluation(figures, time.perf_counter() - start)
    name = f"eval_{held_out.metric}"
    if not math.isfinite(entry[name]):
        logger.warning(
            "%s is %s after step %d, which decides nothing about the best checkpoint",
            name,
            entry[name],
            monitor.step,
        )
        return {}
    return {name: entry[name]}
