"""Evaluation during training: how good is the model on data that it does not learn from?

Pictures with all their captions are retrieved, by the recipe of ``eval_dataset``; where every sample is one
caption, there is nothing to retrieve among, and the losses are computed.  So they are in stage 2, unless
``metric.type`` is a score of captions: then captions are written; or the data are questions: then they are
answered.  The run goes on as if nothing had been evaluated: all that training draws is a function of (seed,
step), and its graphs stay compiled.
"""

import mindspore as ms
from mindspore import Tensor

from mindblip2.config.schema import ConfigError
from mindblip2.data.datasets.captioned_images import check_readable, pictures_and_texts
from mindblip2.data.datasets.questions import asks
from mindblip2.data.loader import Feed
from mindblip2.distributed import comm
from mindblip2.evaluation.retrieval import Match, RetrievalConfig, recalls, score
from mindblip2.trainer.caption_evaluator import SCORES, AnswerEvaluator, CaptionEvaluator
from mindblip2.trainer.data_sources import captioned_pictures, questions, text_arguments, token_ids
from mindblip2.trainer.train_step import check_losses, losses_of

KEY = 1_000_003  # of the losses' negatives: no step of training draws with it


class RetrievalEvaluator:
    """The recalls of pictures and their captions, LAVIS's names; ``metrics``: by one of them the best
    checkpoint is chosen."""

    metrics = ("agg_metrics",)  # as in LAVIS

    def __init__(self, model, processor, data, samples):
        text, self.recipe = data.text_transforms, RetrievalConfig.of(data)
        self.model, self.net, self.image_processor = model, Match(model), processor.image_processor
        self.pictures, texts, self.owners = pictures_and_texts(samples, text.prompt, text.max_words)
        if len(self.pictures) == 1:
            raise ConfigError(
                "do_eval by retrieval with one picture: every text finds it, whatever the model, so no "
                "checkpoint is better "
                "than another; give at least two pictures in eval_dataset"
            )
        check_readable(self.pictures)
        self.ids_TL = token_ids(model, processor.tokenizer, texts, self.recipe.text_length)

    def __str__(self):
        return f"retrieval among {len(self.pictures)} pictures and {len(self.ids_TL)} texts"

    def figures(self):
        scores = score(self.model, self.image_processor, self.pictures, self.ids_TL, self.recipe, self.net)
        return recalls(scores.i2t, scores.t2i, self.owners)


class LossEvaluator:
    """The means of the losses and accuracies over pairs, without dropout, in stage 1 always with the same
    draws of negatives."""

    metrics = ("loss",)

    def __init__(self, model, processor, config, samples):
        data = config.eval_dataset
        self.model, self.net, self.seed, self.use_image_id = (
            model,
            losses_of(model, True),
            config.seed,
            data.use_image_id,
        )
        texts = text_arguments(
            config, data.text_transforms, processor, model.config if hasattr(model, "stage2") else None
        )
        self.feed = Feed(
            samples,
            processor,
            config.runner_config.batch_size,
            config.seed,
            shuffle=False,
            **texts,
            max_unreadable=data.max_unreadable,
            rank=comm.data_rank(),
            world=comm.mesh.data,
        )

    def __str__(self):
        return f"losses of {len(self.feed) * self.feed.chunk} pairs"

    def figures(self):
        sums = 0
        for place, batch in enumerate(self.feed.epoch(0)):
            self.model.noise.set(self.seed, place, KEY)
            if not self.use_image_id:
                batch.pop("image_id", None)
            inputs = (Tensor(batch[name]) if name in batch else None for name in self.net.inputs)
            values = self.net(
                self.model.vit.by_blocks(Tensor(batch["image"])), *inputs, Tensor(1.0, ms.float32)
            )[1].asnumpy()
            values = comm.host_all_reduce_data(values) / comm.mesh.data
            check_losses(values, self.net.names)
            sums = sums + values
        figures = dict(zip(self.net.names, (sums / len(self.feed)).tolist()))
        return {name: value for name, value in figures.items() if name != "temp"}


def make_evaluator(config, model, processor, samples=None, prompt=""):
    """What a RunConfig evaluates during training; ``samples``: those that ``Trainer(eval_dataset=…)`` was
    given, else those of ``eval_dataset.data_loader``; ``prompt``: that before captions, else the
    configuration's.  Its ``metric`` is ``metric.type``, by which the best checkpoint is chosen; in stage 2 a
    score of captions there has captions written.

    Raises ConfigError where there are no samples, or no such metric."""
    examination = _examination(config, model, processor, samples, prompt)
    examination.metric = config.metric.type or examination.metrics[0]
    if examination.metric not in examination.metrics:
        raise ConfigError(
            f"metric.type = {config.metric.type!r}: expected {' or '.join(examination.metrics)}, since what "
            "is evaluated is "
            f"{examination}"
            + (f", or a score of captions: {', '.join(SCORES)}" if hasattr(model, "stage2") else "")
        )
    return examination


def _examination(config, model, processor, samples, prompt):
    stage2 = hasattr(model, "stage2")
    if samples is None:
        loader = config.eval_dataset.data_loader
        if loader.type != "DigitScenes" and not (loader.dataset_dir or loader.annotation_files):
            raise ConfigError(
                "do_eval needs held-out data: name them in eval_dataset.data_loader, or pass eval_dataset to "
                "Trainer"
            )
        size, asked = processor.image_processor.image_size, None
        if stage2 and (loader.type != "DigitScenes" or config.metric.type in AnswerEvaluator.metrics):
            asked = questions(loader, size)
        samples = captioned_pictures(loader, size) if asked is None else asked
    if stage2 and asks(samples):
        return AnswerEvaluator(model, processor, config, samples, prompt)
    if stage2 and config.metric.type in SCORES:
        return CaptionEvaluator(model, processor, config, samples, prompt)
    if getattr(samples, "repeat_images", False) or stage2:
        return LossEvaluator(model, processor, config, samples)
    return RetrievalEvaluator(model, processor, config.eval_dataset, samples)


def is_due(config, step, epoch_steps):
    """Whether there is an evaluation after ``step`` updates, by ``eval_step_interval`` or
    ``eval_epoch_interval``."""
    steps, epochs = config.eval_step_interval, config.eval_epoch_interval
    return (steps > 0 and step % steps == 0) or (epochs > 0 and step % (epochs * epoch_steps) == 0)
