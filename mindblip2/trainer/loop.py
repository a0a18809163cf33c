"""Stage-1 training: a feed of batches in; a trained model, its checkpoints and its log out."""
import itertools
import logging
import tempfile
import time
from pathlib import Path

import mindspore as ms

from mindblip2 import comm, device
from mindblip2.checkpoint import CheckpointError
from mindblip2.trainer import saving
from mindblip2.trainer.held_out import is_due
from mindblip2.trainer.monitor import Monitor
from mindblip2.trainer.optim import layer_scales
from mindblip2.trainer.schedule import learning_rate
from mindblip2.trainer.step import TrainStep

logger = logging.getLogger("mindblip2")
# What may differ in a resumed run: where things lie, and how fast they are read.
FREE = ("dataset_dir", "num_parallel_workers", "python_multiprocessing", "max_unreadable", "checkpoint_name_or_path")


def fit(model, feed, config, output_dir, resume=None, frozen=None, held_out=None):
    """Train ``model`` on ``feed`` (``len``: batches per epoch; ``feed.epoch(e, start)``: those of epoch e from ``start`` on).

    ``config``: the RunConfig.  ``resume``: a checkpoint of this run, see ``saving.find``.  ``frozen``: ``{"path", "crc32"}`` of the file
    that holds what is not trained; then checkpoints hold only what is.  ``held_out``: what is evaluated on the way, see ``held_out``;
    it decides which checkpoint is the best, else the mean loss does.  Writes checkpoints to ``checkpoint/rank_0`` and the log to
    ``log`` under ``output_dir``.  Raises FloatingPointError, naming the loss or gradient, when one is not finite, and
    :class:`CheckpointError` where ``resume`` does not belong to this run.  Returns the log: a list of dicts."""
    runner, folder = config.runner_config, Path(output_dir) / "checkpoint" / "rank_0"
    epoch_steps = -(-len(feed) // runner.accumulation_steps)
    total = planned_steps(config, epoch_steps)
    model.set_train()
    if comm.mesh.data > 1 and device.target() != "CPU":     # there MindSpore's own operators draw
        ms.set_seed(config.seed + comm.rank())
    step_of = TrainStep(model, config.optimizer, _scales(model, config), config.parallel.enable_parallel_optimizer)
    facts = _facts(model, config, epoch_steps, total) | {"frozen": frozen}
    start = _restored(resume, facts, step_of, folder) if resume else _fresh(folder)
    comm.barrier()      # all have looked into the folder
    if comm.first():
        _tidy(folder, start, f"eval_{held_out.metric}" if held_out else "loss")
    log_folder = Path(output_dir) / "log" if comm.first() else tempfile.mkdtemp(prefix="mindblip2-log-")
    monitor = Monitor(log_folder, total, runner.log_every, start, runner.summary)
    every, losses, unreadable = runner.save_steps or epoch_steps, [], 0
    try:
        for step, batches in zip(range(start, total), _steps(feed, epoch_steps, runner.accumulation_steps, start)):
            if not config.train_dataset.use_image_id:
                batches = [{name: array for name, array in batch.items() if name != "image_id"} for batch in batches]
            rate = learning_rate(config.lr_schedule, step, total, epoch_steps)
            model.noise.set(config.seed, step)
            numbers = step_of(batches, rate)
            losses.append(numbers["loss"])
            monitor.add({**numbers, "lr": rate}, sum(len(batch["input_ids"]) for batch in batches) * comm.mesh.data)
            unreadable = _told(feed, unreadable)
            done, last = step + 1, step + 1 == total
            judged = _evaluated(held_out, model, monitor) if held_out and (last or is_due(config, done, epoch_steps)) else {}
            if done % every == 0 or last or judged:
                loss = sum(losses) / len(losses)
                state = {"step": done, "epoch": done // epoch_steps, "loss_scale": step_of.scale.state(), **facts, "loss": loss,
                         "judged": judged if held_out else {"loss": loss}}
                path = saving.save(folder, model, step_of.optimizer, state, runner.keep_checkpoint_max)
                if comm.first():
                    saving.note_best(folder, path, state["judged"])
                losses = []
    finally:
        monitor.close()
        model.set_train(False)
    return monitor.log


def _facts(model, config, epoch_steps, total_steps):
    """What decides the numbers of a run."""
    runner, sections = config.runner_config, ("optimizer", "lr_schedule", "train_dataset")
    return {"seed": config.seed, "batch_size": runner.batch_size * comm.mesh.data, "epoch_steps": epoch_steps,
            "total_steps": total_steps, "accumulation_steps": runner.accumulation_steps, "layer_decay": config.layer_decay,
            "model_config": model.config.to_dict(),
            **{name: getattr(config, name).to_dict() for name in sections}}


def planned_steps(config, epoch_steps):
    """Updates of the whole run: the epochs, or ``lr_schedule.total_steps`` where that is given and less."""
    total = config.runner_config.epochs * epoch_steps
    return min(total, config.lr_schedule.total_steps) if config.lr_schedule.total_steps > 0 else total


def _steps(feed, epoch_steps, accumulate, start):
    """Lists of batches, one list per update, from update ``start`` on; the last list of an epoch may be shorter."""
    for epoch in itertools.count(start // epoch_steps):
        batches = iter(feed.epoch(epoch, start % epoch_steps * accumulate))
        while group := list(itertools.islice(batches, accumulate)):
            yield group
        start = 0


def _scales(model, config):
    if config.layer_decay is None:
        return None
    return layer_scales(model.trainable_params(), config.layer_decay, model.config.vision_config.num_hidden_layers)


def _fresh(folder):
    found = saving.saved(folder)
    if found:
        raise CheckpointError(f"{Path(folder).absolute()} holds checkpoints of another run, the newest {found[-1].name}: go on with it "
                              "by --resume_training true, or choose another --output_dir")
    return 0


def _tidy(folder, step, metric):
    """What the first process does in the checkpoints' folder before the run goes on after ``step``."""
    for path in saving.set_aside(folder, step) if step else ():
        print(f"a later checkpoint of the earlier course is kept as {path.name}")
    saving.clean(folder)
    saving.find_best(folder, metric)


def _told(feed, before):
    """Say so when more pictures could not be read than ``before``; returns how many it are."""
    skipped = getattr(feed, "skipped", 0)
    if skipped > before:
        logger.warning("%d pictures could not be read so far and were replaced by others: %s; run_blip2.py --run_mode check lists all",
                       skipped, ", ".join(map(str, feed.skipped_names)))
    return skipped


def _flat(facts, name=""):
    """Nested dicts as {dotted name: value}, without what is FREE."""
    if not isinstance(facts, dict):
        return {name: facts}
    flat = {}
    for key, value in facts.items():
        if key not in FREE:
            flat.update(_flat(value, f"{name}.{key}" if name else key))
    return flat


def _restored(checkpoint, facts, step_of, folder):
    """Optimizer, loss scale and the number of steps made; the model's weights have been loaded already."""
    state = saving.read_state(checkpoint)
    then, now = ({name: value for name, value in _flat(one).items() if not name.startswith("frozen")} for one in (state, facts))
    wrong = [name for name in now if name not in then or then[name] != now[name]]
    if wrong:
        raise CheckpointError(f"{checkpoint} belongs to a run with {wrong[0]} = {then.get(wrong[0])!r}, this one has "
                              f"{now[wrong[0]]!r}{_of_mesh(wrong[0], then)}: resume with the configuration of the run, or begin a new "
                              f"one with --load_checkpoint {checkpoint} and another --output_dir")
    if Path(checkpoint).resolve().parent != Path(folder).resolve():
        _fresh(folder)
    if (state["frozen"] or {}).get("crc32") != (facts["frozen"] or {}).get("crc32"):
        raise CheckpointError(f"{checkpoint} was trained on other frozen weights ({(state['frozen'] or {}).get('path', 'none')}): give "
                              "that file as --load_checkpoint")
    saving.restore_optimizer(checkpoint, step_of.optimizer)
    step_of.scale.restore(state["loss_scale"])
    print(f"resumed from {checkpoint}: step {state['step']} of {state['total_steps']}")
    return state["step"]


def _of_mesh(name, then):
    """How another mesh goes on with the same global batch."""
    if name != "batch_size":
        return ""
    if then[name] % comm.mesh.data:
        return f" in all, which {comm.mesh.data} data-parallel cards cannot share"
    return (f" in all; with data_parallel = {comm.mesh.data} that run goes on with runner_config.batch_size = "
            f"{then[name] // comm.mesh.data}")


def _evaluated(held_out, model, monitor):
    """{metric: value} of the model as it is; all figures go to the log."""
    start = time.perf_counter()
    model.set_train(False)
    figures = held_out.figures()
    model.set_train()
    entry = monitor.add_evaluation(figures, time.perf_counter() - start)
    return {f"eval_{held_out.metric}": entry[f"eval_{held_out.metric}"]}
