"""The task of stage 1: what happens before and after the training loop."""
import contextlib
import os
from pathlib import Path

import mindspore as ms

from mindblip2 import device
from mindblip2.cells.blip2_qformer import Blip2Qformer
from mindblip2.cells.layers import FeedForward
from mindblip2.cells.vit import ViTAttention
from mindblip2.hub import fingerprint, frozen_record, no_init
from mindblip2.sections import ConfigError
from mindblip2.trainer import saving
from mindblip2.trainer.held_out import held_out
from mindblip2.trainer.loaders import training_feed
from mindblip2.trainer.loop import fit, planned_steps
from mindblip2.zero_shot import check_vocabulary

GB = 1e9
CALLBACKS = {  # MindFormers' callbacks → their keys that mean something here
    "CheckpointMointor": {"save_checkpoint_steps": "save_steps", "keep_checkpoint_max": "keep_checkpoint_max"},
    "CheckpointMonitor": {"save_checkpoint_steps": "save_steps", "keep_checkpoint_max": "keep_checkpoint_max"},
    "MFLossMonitor": {"per_print_times": "log_every"}, "SummaryMonitor": {}, "ObsMonitor": {}}


class Pretrain:
    """Stage 1: train the Q-Former (and a ViT that is not frozen) with ITC, ITM and LM."""

    @staticmethod
    def train(trainer, checkpoint):
        config = trainer.config.replace(runner_config=with_callbacks(trainer.config))
        if trainer.model is None:
            device.use(config.context)
        resume = saving.find(config.resume_training, _folder(config)) if config.resume_training else None
        model = trainer.model or _model(config, bool(checkpoint or resume))
        frozen = starting_weights(model, config, checkpoint, resume)
        if config.recompute_config.recompute:
            recompute(model)
        processor = trainer.processor()
        check_vocabulary(model, processor.tokenizer)
        feed = training_feed(config, processor, trainer.train_dataset)
        _check_sizes(model.config, feed.max_length, processor.image_processor.image_size)
        wanted = config.do_eval or trainer.eval_dataset is not None
        examination = held_out(config, model, processor, trainer.eval_dataset) if wanted else None
        print("\n".join(summary(model, feed, config, trainer.name or "a model", bool(checkpoint or resume or trainer.model))))
        if examination:
            print(f"evaluation: {examination}")
        log = fit(model, feed, config, config.output_dir, resume, frozen, examination)
        trainer.model = model
        if frozen:
            last = (saving.saved(_folder(config)) or [resume])[-1]
            print(f"checkpoint is saved at: {last} (what was trained; the rest is in {frozen['path']})")
        else:
            path = _folder(config) / f"{trainer.name or 'blip2'}.ckpt"
            model.save_checkpoint(path)
            print(f"checkpoint is saved at: {path}")
        if examination:
            print("best checkpoint: {checkpoint}".format(**saving.best(_folder(config))), *list(saving.best(_folder(config)).items())[1])
        return log


def recompute(model):
    """Feed-forward cells, and a trained ViT's attention, keep their input only and are computed again for the gradient.  They draw no
    random numbers: a draw would differ the second time.  Raises ConfigError in PyNative, where MindSpore mixes up the calls of a
    cell that is used several times."""
    if ms.get_context("mode") != ms.GRAPH_MODE:
        raise ConfigError("recompute_config.recompute needs graph mode: set context.mode to 0")
    for _, cell in model.cells_and_names():
        if isinstance(cell, (FeedForward, ViTAttention)) and any(p.requires_grad for p in cell.get_parameters()):
            cell.recompute()


def with_callbacks(config):
    """The RunnerConfig with what MindFormers' callbacks say.  Raises ValueError for an unknown callback."""
    changes = {}
    for callback in config.callbacks:
        kind = callback.get("type")
        if kind not in CALLBACKS:
            raise ValueError(f"callbacks: unknown type {kind!r}; known: {', '.join(CALLBACKS)}")
        changes.update({ours: callback[theirs] for theirs, ours in CALLBACKS[kind].items() if theirs in callback})
        if kind == "SummaryMonitor":
            changes["summary"] = True
    return config.runner_config.replace(**changes)


def _model(config, is_loaded):
    """A new model; without random values where it ``is_loaded`` at once."""
    with no_init() if is_loaded else contextlib.nullcontext():
        return Blip2Qformer(config.model.model_config)


def _check_sizes(config, text_length, image_size):
    if text_length > config.qformer_config.max_position_embeddings:
        raise ConfigError(f"texts of {text_length} tokens, but the model has {config.qformer_config.max_position_embeddings} positions: "
                          "lower train_dataset.text_transforms.max_length")
    if image_size != config.vision_config.image_size:
        raise ConfigError(f"processor.image_processor.image_size = {image_size}, but model.model_config.vision_config.image_size = "
                          f"{config.vision_config.image_size}: give both the same")


def starting_weights(model, config, checkpoint, resume):
    """Load what the run starts from.  Returns ``{"path", "crc32"}`` of the file that holds what is not trained, or None where there
    is no such file or everything is to be saved."""
    source = checkpoint or ((saving.read_state(resume)["frozen"] or {}).get("path") if resume else None)
    if resume:
        model.load_checkpoint(resume, source)
    elif source:
        model.load_checkpoint(source)
    kept = {name: p for name, p in model.parameters_dict().items() if not p.requires_grad}
    if not (source and kept and config.runner_config.save_trainable_only):
        return None
    source = (frozen_record(source) or {"path": source})["path"]
    return {"path": os.path.abspath(source), "crc32": fingerprint(kept, lambda name: kept[name].asnumpy())}


def summary(model, feed, config, name, is_loaded):
    """What is going to happen, in lines: sizes, negatives, parameters by part, memory."""
    runner = config.runner_config
    steps = planned_steps(config, -(-len(feed) // runner.accumulation_steps))
    batches = f" x {runner.accumulation_steps} accumulated" if runner.accumulation_steps > 1 else ""
    parts, trained = {}, model.trainable_params()
    for p in trained:
        part = p.name.split(".")[0]
        parts[part] = parts.get(part, 0) + p.size
    total = sum(p.size for p in model.get_parameters())
    count = sum(p.size for p in trained)
    lines = [f"training {name}: {steps:,} steps of {runner.batch_size} pairs{batches}, {runner.batch_size - 1} negatives for each pair",
             f"trained parameters: {count:,} of {total:,} ({', '.join(f'{part} {size:,}' for part, size in parts.items())})",
             f"memory: weights {total * 4 / GB:.2f} GB, gradients and moments {count * 12 / GB:.2f} GB, activations about "
             f"{activation_bytes(model.config, runner.batch_size) / GB:.2f} GB"]
    if model.config.freeze_vision and not is_loaded:
        lines.append("warning: the frozen ViT has random weights, from which nothing can be learnt: give --load_checkpoint")
    if config.lr_schedule.warmup_steps >= steps:
        lines.append(f"warning: the run ends within the warm-up of {config.lr_schedule.warmup_steps} steps and never reaches the learning "
                     "rate: lower lr_schedule.warmup_steps")
    if runner.batch_size == 1:
        lines.append("warning: with one pair per batch there are no negatives: ITC is 0 and ITM learns nothing")
    return lines


def activation_bytes(config, batch):
    """What the Q-Former's layers keep for the gradient in float32, an estimate: per token about 12 widths and 3 feed-forward
    widths, per attention two maps, and the logits of the language model twice."""
    q, text = config.qformer_config, config.max_txt_len
    tokens = batch * (q.query_length * 4 + text * 5)        # see, read, match three times, caption
    layer = tokens * (12 * q.hidden_size + 3 * q.intermediate_size)
    joint = q.query_length + text
    maps = 2 * q.num_attention_heads * batch * (3 * joint ** 2 + q.query_length ** 2 + 2 * text ** 2 + text * q.query_length)
    memory = 8 * batch * config.vision_config.num_tokens * q.hidden_size / q.cross_attention_freq
    return 4 * (q.num_hidden_layers * (layer + maps + memory) + 2 * batch * text * q.vocab_size)


def _folder(config):
    return Path(config.output_dir) / "checkpoint" / "rank_0"
