"""The training of both stages: what happens before and after the loop."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import mindspore as ms

from mindblip2 import device
from mindblip2.checkpoint import training_state
from mindblip2.checkpoint.ckpt import Checkpoint
from mindblip2.checkpoint.pretrained import (
    external_checkpoints,
    fingerprint,
    frozen_record,
    named_file,
    no_init,
)
from mindblip2.compat.mindformers.keys import CALLBACKS
from mindblip2.config import STAGE_2, RunConfig
from mindblip2.config.schema import ConfigError
from mindblip2.distributed import comm
from mindblip2.evaluation.zero_shot import check_vocabulary
from mindblip2.models import opt
from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration
from mindblip2.models.blip2_qformer import Blip2Qformer
from mindblip2.models.layers import FeedForward
from mindblip2.models.llama import SwiGLU
from mindblip2.models.vit import ViTAttention
from mindblip2.trainer.activation_memory import activation_bytes
from mindblip2.trainer.data_sources import training_feed
from mindblip2.trainer.evaluator import make_evaluator
from mindblip2.trainer.loop import fit, planned_steps
from mindblip2.trainer.output_lock import one_at_a_time
from mindblip2.trainer.plan import bytes_of, moment_bytes, step_of

GB = 1e9


class Pretrain:
    """Stage 1: train the Q-Former (and a ViT that is not frozen) with ITC, ITM and LM.  Stage 2, where the
    architecture is ``Blip2Llm``: train it and the projection with the loss of the frozen language model."""

    @staticmethod
    @one_at_a_time
    def train(trainer, checkpoint):
        config = trainer.config.replace(runner_config=with_callbacks(trainer.config))
        if trainer.model is None:
            device.use(config.context)
        resume = (
            training_state.find(config.resume_training, _folder(config)) if config.resume_training else None
        )
        stage2 = (
            config.model.arch.type in STAGE_2 if trainer.model is None else hasattr(trainer.model, "stage2")
        )
        checkpoint = checkpoint and named_file(checkpoint, "load_checkpoint")
        # MindFormers: in stage 2 those of stage 1
        named = config.model.model_config.checkpoint_name_or_path
        if named and trainer.model is None and not (checkpoint or resume):
            checkpoint = named_file(named)
        model = trainer.model or _model(config, bool(checkpoint or resume))
        frozen = starting_weights(model, config, checkpoint, resume)
        if config.recompute_config.recompute:
            recompute(model)
        processor = trainer.processor()
        if not stage2:  # there the prompts and captions check it
            check_vocabulary(model, processor.tokenizer)
        feed = training_feed(
            config,
            processor,
            trainer.train_dataset,
            comm.data_rank(),
            comm.mesh.data,
            model.config if stage2 else None,
        )
        _check_sizes(model.config, feed.max_length, processor.image_processor.image_size, stage2)
        wanted = config.do_eval or trainer.eval_dataset is not None
        examination = (
            make_evaluator(config, model, processor, trainer.eval_dataset, trainer.hypothesis_template)
            if wanted
            else None
        )
        if not wanted:
            _say_unused_evaluation(config)
        is_loaded = bool(
            checkpoint
            or resume
            or trainer.model
            or config.model.model_config.vision_config.checkpoint_name_or_path
        )
        print("\n".join(summary(model, feed, config, trainer.name or "a model", is_loaded)))
        if examination:
            print(f"evaluation: {examination}")
        log = fit(model, feed, config, config.output_dir, resume, frozen, examination)
        trainer.model = model
        if frozen:
            last = (training_state.saved(_folder(config)) or [resume])[-1]
            print(f"checkpoint is saved at: {last} (what was trained; the rest is in {frozen['path']})")
        else:
            path = _folder(config) / f"{Path(trainer.name or 'blip2').name.removesuffix('.yaml')}.ckpt"
            model.save_checkpoint(path)
            print(f"checkpoint is saved at: {path}")
        best = training_state.best(_folder(config))
        if examination and best:
            print(f"best checkpoint: {_folder(config) / best.pop('checkpoint')} ({best})")
        return log


def _say_unused_evaluation(config):
    """Name the keys of an evaluation that there is not."""
    defaults = RunConfig()
    names = [
        name
        for name in ("metric", "eval_epoch_interval", "eval_step_interval")
        if getattr(config, name) != getattr(defaults, name)
    ]
    if names:
        print(
            f"no effect: {', '.join(names)}, since nothing is evaluated in training (do_eval is false and "
            "Trainer has no eval_dataset)"
        )


def recompute(model):
    """Feed-forward cells, and a trained ViT's attention, keep their input only and are computed again for the
    gradient.  They draw no random numbers: a draw would differ the second time.  Raises ConfigError in
    PyNative, where MindSpore mixes up the calls of a cell that is used several times."""
    if ms.get_context("mode") != ms.GRAPH_MODE:
        raise ConfigError("recompute_config.recompute needs graph mode: set context.mode to 0")
    for _, cell in model.cells_and_names():
        trained = any(p.requires_grad for p in cell.get_parameters())
        if isinstance(cell, (SwiGLU, opt.FeedForward)) or (
            isinstance(cell, (FeedForward, ViTAttention)) and trained
        ):
            cell.recompute()  # gradients pass through a frozen language model too


def with_callbacks(config):
    """The RunnerConfig with what MindFormers' callbacks say."""
    changes = {}
    for callback in config.callbacks:
        kind = callback["type"]
        changes.update(
            {ours: callback[theirs] for theirs, ours in CALLBACKS[kind].items() if theirs in callback}
        )
        if kind == "SummaryMonitor":
            changes["summary"] = True
    return config.runner_config.replace(**changes)


def _model(config, is_loaded):
    """A new model; without values where it ``is_loaded`` at once, else with random ones and the parts that
    the configuration names."""
    # which can be asked when it is trained
    cell = Blip2ImageToTextGeneration if config.model.arch.type in STAGE_2 else Blip2Qformer
    with no_init() if is_loaded else contextlib.nullcontext():
        return cell(config.model.model_config)


def _check_sizes(config, text_length, image_size, stage2):
    most = config.qformer_config.max_position_embeddings
    if stage2:
        most = config.text_config.positions - config.qformer_config.query_length
    if text_length > most:
        raise ConfigError(
            f"texts of {text_length} tokens, but the model has {most} positions for them: lower "
            "train_dataset.text_transforms.max_length"
        )
    if image_size != config.vision_config.image_size:
        raise ConfigError(
            f"processor.image_processor.image_size = {image_size}, but "
            "model.model_config.vision_config.image_size = "
            f"{config.vision_config.image_size}: give both the same"
        )


def starting_weights(model, config, checkpoint, resume):
    """Load what the run starts from.  Returns ``{"path", "crc32"}`` of the file that holds what is not
    trained, or None where there is no such file or everything is to be saved."""
    source = checkpoint or (
        (training_state.read_state(resume)["frozen"] or {}).get("path") if resume else None
    )
    if resume:
        model.load_checkpoint(resume, source)
    elif source:
        print("\n".join(model.load_start(source)))
    kept = {name: p for name, p in model.parameters_dict().items() if not p.requires_grad}
    if not (source and kept and config.runner_config.save_trainable_only):
        return None
    source = (frozen_record(source) or {"path": source})["path"]
    known = frozen_record(resume) if resume else None
    if known and set(Checkpoint(Path(resume) / "model.ckpt")) == set(model.parameters_dict()) - set(kept):
        crc32 = known["crc32"]  # of the same parameters, and compared when they were loaded
    else:
        files = external_checkpoints(model, source, kept)
        crc32 = fingerprint(kept, lambda name: files[name].float32(name))
    return {"path": os.path.abspath(source), "crc32": crc32}


def summary(model, feed, config, name, is_loaded):
    """What is going to happen, in lines: sizes, negatives, parameters by part, memory."""
    runner = config.runner_config
    steps, stage2 = (
        planned_steps(config, -(-len(feed) // runner.accumulation_steps)),
        hasattr(model, "stage2"),
    )
    batches = f" x {runner.accumulation_steps} accumulated" if runner.accumulation_steps > 1 else ""
    parts, trained = {}, model.trainable_params()
    for p in trained:
        part = p.name.split(".")[0]
        parts[part] = parts.get(part, 0) + p.size
    total = sum(p.size for p in model.get_parameters())
    count = sum(p.size for p in trained)
    pairs, mesh = runner.batch_size * comm.mesh.data, comm.mesh
    spread = f" ({mesh.data} data-parallel x {mesh.model} model-parallel cards)" if mesh.size > 1 else ""
    lines = [
        f"training {name}: {steps:,} steps of {pairs} pairs{spread}{batches}"
        + (_prompt_line(feed.text) if stage2 else f", {pairs - 1} negatives for each pair"),
        f"trained parameters: {count:,} of {total:,} "
        f"({', '.join(f'{part} {size:,}' for part, size in parts.items())})",
        _memory_line(model, trained, config),
    ]
    if model.config.freeze_vision and not is_loaded:
        lines.append(
            "warning: the frozen ViT has random weights, from which nothing can be learnt: give "
            "--load_checkpoint"
        )
    if config.lr_schedule.warmup_steps >= steps:
        lines.append(
            f"warning: the run ends within the warm-up of {config.lr_schedule.warmup_steps} steps and never "
            "reaches the learning "
            "rate: lower lr_schedule.warmup_steps"
        )
    if pairs == 1 and not stage2:
        lines.append(
            "warning: with one pair per batch there are no negatives: ITC is 0 and ITM learns nothing"
        )
    return lines


def _memory_line(model, trained, config):
    """Of this card, as the planner has it."""
    data, sharded = comm.mesh.data, config.parallel.enable_parallel_optimizer
    trained_vit = any(p.requires_grad for p in model.vit.get_parameters())
    step = replace(
        step_of(config, data, comm.mesh.model, model.config.compute_dtype, trained_vit), config=model.config
    )
    kept = bytes_of(trained) + moment_bytes(trained, data, sharded)[comm.data_rank()]
    activations = activation_bytes(step, config.recompute_config.recompute, device.target())
    return (
        f"memory: weights {bytes_of(model.get_parameters()) / GB:.2f} GB, gradients and moments "
        f"{kept / GB:.2f} GB, activations about "
        f"{activations / GB:.2f} GB (a graph on a CPU keeps more)"
    )


def _prompt_line(text):
    """What stage 2 puts before each caption."""
    return (
        f", each after {text.prompt!r}, {len(text.ids(text.prompt))} tokens that are not learnt"
        if text.prompt
        else ", without a prompt"
    )


def _folder(config):
    return Path(config.output_dir) / "checkpoint" / "rank_0"
