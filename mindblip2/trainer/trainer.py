"""``Trainer``: one object per task, with the surface that users of MindFormers know."""

import contextlib
import functools
import logging
import os
from pathlib import Path

import mindspore as ms

from mindblip2 import device
from mindblip2.compat.mindformers.printing import print_support_list
from mindblip2.config import RunConfig, load_config, presets, without_effect
from mindblip2.config.schema import Count, argument, build, warn_ignored
from mindblip2.data.datasets.check import check_data
from mindblip2.data.processor import Blip2Processor
from mindblip2.distributed import comm
from mindblip2.distributed.data_parallel import join as join_mesh
from mindblip2.file_io import write_json, write_text
from mindblip2.lock import exclusive
from mindblip2.trainer.export import write as write_parts
from mindblip2.trainer.tasks import TASKS, task_named
from mindblip2.trainer.tasks.inputs import DEFAULT_MODEL

logger = logging.getLogger("mindblip2")
NO_SAMPLE = (str, bytes, Path, int, float)
# argument → the tasks that use it
TEXT_ARGUMENTS = {
    "candidate_labels": ("zero_shot_image_classification",),
    "hypothesis_template": (
        "zero_shot_image_classification",
        "image_to_text_generation",
        # the last of an evaluation of stage 2
        "contrastive_language_image_pretrain",
    ),
}


def main_process_stdout(verb):
    """A verb of the Trainer on the mesh of its configuration, of which the first process alone prints."""

    @exclusive
    @functools.wraps(verb)
    def spoken(self, *args, **options):
        join_mesh(self.config, self.model)
        with contextlib.ExitStack() as stack:
            if not comm.is_main_process():
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            return verb(self, *args, **options)

    return spoken


class Trainer:
    """Train, evaluate or predict one task.

    ``task``: a name of ``mindblip2.trainer.tasks.TASKS`` or one of MindFormers' aliases.  ``model``: a
    preset's name, a folder of ``save_pretrained``, or a model object.  ``args``: the run as a RunConfig, a
    preset's name or a YAML file; by default the preset of the model.  ``train_dataset``, ``eval_dataset``: an
    iterable of ``{"image", "caption", "image_id"?}``, a loader, or the path of a folder, which the
    configuration's ``data_loader`` reads.  ``candidate_labels`` and ``hypothesis_template`` may also be given
    to ``predict``.  The run's mode and device are set only where ``args`` names them.  Other threads wait
    while a method runs (``mindblip2.lock``)."""

    @exclusive
    def __init__(
        self,
        args=None,
        task=None,
        model=None,
        model_name=None,
        train_dataset=None,
        eval_dataset=None,
        tokenizer=None,
        image_processor=None,
        candidate_labels=None,
        hypothesis_template=None,
    ):
        model = str(model) if isinstance(model, Path) else model
        self.config = _run_config(args, model, model_name, task)
        self.task = task_named(task or self.config.trainer.type)
        if args is not None:
            device.use(self.config.context)
        if self.config.use_parallel:  # else set_parallel_config may still come; the verbs look again
            join_mesh(self.config)
        self.model = None if isinstance(model, (str, type(None))) else model
        self.name = model if isinstance(model, str) else model_name or self.config.trainer.model_name
        self.train_dataset, self.eval_dataset = (
            self._data_set(*one) for one in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset))
        )
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.candidate_labels = candidate_labels
        self.hypothesis_template = hypothesis_template
        for name in ("candidate_labels", "hypothesis_template"):
            if getattr(self, name) is not None and self.task not in TEXT_ARGUMENTS[name]:
                raise ValueError(
                    f"{name} is not used by the task {self.task}, but by {', '.join(TEXT_ARGUMENTS[name])}"
                )
        if args is not None and hasattr(self.model, "config"):
            own, said = self.model.config.to_dict(), self.config.model.model_config.to_dict()
            warn_ignored(
                [
                    f"model.model_config.{key} (the model object has its own)"
                    for key in said
                    # which the device may change
                    if said[key] != own[key] and key != "compute_dtype"
                ],
                "args",
            )
        if isinstance(model, str) and model_name not in (None, "", model):
            logger.warning("model_name = %r has no effect: model = %r decides", model_name, model)

    def _data_set(self, name, data):
        """Samples as they were given; None for a folder, which the configuration's loader then reads.  Raises
        FileNotFoundError or TypeError for what is no data set."""
        if isinstance(data, (str, Path)):
            loader = getattr(self.config, name).data_loader
            if not Path(data).is_dir():
                raise FileNotFoundError(
                    f"{name} = {str(data)!r}: no folder {Path(data).absolute()}: give the "
                    "data_loader.dataset_dir, a "
                    "list of samples, or a loader such as MultiImgCapDataLoader"
                )
            if loader.type == "DigitScenes":
                raise ValueError(
                    f"{name} = {str(data)!r}: the loader DigitScenes draws its own pictures and reads no "
                    "folder: set "
                    f"{name}.data_loader, or pass a loader of the folder (MultiImgCapDataLoader, ImageFolder)"
                )
            self.config = self.config.replace(**{name: {"data_loader": {"dataset_dir": str(data)}}})
            return None
        wrong = (
            next((one for one in data if isinstance(one, NO_SAMPLE)), None)
            if isinstance(data, (list, tuple))
            else data
        )
        if isinstance(wrong, (*NO_SAMPLE, dict)):
            one = "one of them is" if wrong is not data else "it is"
            raise TypeError(
                f"{name}: {one} a {type(wrong).__name__} ({str(wrong)[:80]!r}), expected a list of samples "
                '{"image": …, "caption": …}, a loader such as MultiImgCapDataLoader, or the path of a folder'
            )
        return data

    @exclusive
    def set_parallel_config(self, data_parallel=1, model_parallel=1, enable_parallel_optimizer=False):
        """Run on a mesh of processes, all of which call this and everything else; MindFormers' name.  Raises
        ConfigError where the mesh does not fit."""
        self.config = self.config.replace(
            use_parallel=data_parallel * model_parallel > 1,
            parallel_config={"data_parallel": data_parallel, "model_parallel": model_parallel},
            parallel={"enable_parallel_optimizer": enable_parallel_optimizer},
        )
        join_mesh(self.config, self.model)

    def set_recompute_config(self, recompute=False):
        """Compute feed-forwards again for the gradient, see ``recompute_config``; MindFormers' name."""
        self.config = self.config.replace(recompute_config={"recompute": recompute})

    @main_process_stdout
    def train(self, train_checkpoint=None):
        """Train from random weights, or from ``train_checkpoint`` / ``load_checkpoint``; returns the log.

        Writes ``<output_dir>/checkpoint/rank_0/<name>.ckpt``, ``log/train.jsonl`` and
        ``log/loss_curve.png``."""
        ms.set_seed(self.config.seed)
        return self._work("train")(self, train_checkpoint or self.config.load_checkpoint)

    @exclusive
    def finetune(self, finetune_checkpoint=None):
        """``train`` from weights that must be given.  Raises ValueError without them."""
        checkpoint = finetune_checkpoint or self.config.load_checkpoint
        if not checkpoint:
            raise ValueError(
                "finetune starts from weights: pass finetune_checkpoint='x.ckpt' (or --load_checkpoint)"
            )
        return self.train(checkpoint)

    @exclusive
    def check(self):
        """Look at the data sets before any training; returns the report of ``check_data``, whose "ok" says if
        all is well."""
        return check_data(self.config, self.train_dataset, self.eval_dataset)

    @main_process_stdout
    def evaluate(self, eval_checkpoint=None, **options):
        """The task's figures over ``eval_dataset``, printed and written to
        ``<output_dir>/<task>_evaluation.json``.

        ``options``: those of the task, for zero-shot classification use_itm, temperature and max_length."""
        figures = self._work("evaluate")(self, eval_checkpoint or self.config.load_checkpoint, options)
        path = Path(self.config.output_dir) / f"{self.task}_evaluation.json"
        if comm.is_main_process():
            write_json(path, figures)
        print(f"evaluation is saved at: {path}")
        return figures

    eval = evaluate  # the card's name

    @main_process_stdout
    def predict(self, input_data=None, predict_checkpoint=None, save_file=None, **options):
        """The task's answer to ``input_data``; prints MindFormers' three lines and writes the result file.

        ``save_file``: default ``<task>_result.txt`` in the working directory.  ``options``: those of the
        task, for zero-shot classification candidate_labels, hypothesis_template, top_k (1), use_itm,
        temperature, batch_size, max_length."""
        if input_data is None:
            raise ValueError(
                "predict needs input_data: a picture's path, URL, PIL image, array, or a list of them"
            )
        result = self._work("predict")(
            self, input_data, predict_checkpoint or self.config.load_checkpoint, options
        )
        path = Path(save_file or f"{self.task}_result.txt")
        if comm.is_main_process():
            write_text(path, f"{result}\n")
        print(f"output result is: {result}")
        print(f"output result is saved at: {path}")
        print(".........Predict Over!.............")
        return result

    @exclusive
    def export(self, export_checkpoint=None, folder=None, device_target="", batch_size=1, **options):
        """Write the task's model for inference to ``folder``, default ``<output_dir>/mindir``: MINDIR files,
        and ``mindir.json``, which says what each takes and gives.  See ``trainer.export``.

        ``device_target``: "Ascend" makes on any host the graphs of an NPU, with its kernels and in the
        ``compute_dtype``; default: what the host has.  ``options``: those of the task, for generation
        ``prompt`` and ``max_new_tokens``, for classification ``candidate_labels`` and
        ``hypothesis_template``.  Returns what ``mindir.json`` says."""
        with device.simulate_device(device_target) if device_target else contextlib.nullcontext():
            options["batch_size"] = argument(Count, batch_size, "batch_size")
            parts, about = self._work("export")(
                self, export_checkpoint or self.config.load_checkpoint, options
            )
            folder = Path(folder or Path(self.config.output_dir) / "mindir")
            said = write_parts(parts, folder, task=self.task, model=self.name or "", **about)
        print(f"MINDIR is saved at: {folder} ({', '.join(parts)}; mindir.json says what they take)")
        return said

    def processor(self):
        """The configuration's processor, with the tokenizer and image processor that were given instead."""
        processor = Blip2Processor.from_config(self.config.processor)
        processor.tokenizer = self.tokenizer or processor.tokenizer
        processor.image_processor = self.image_processor or processor.image_processor
        return processor

    @classmethod
    def show_support_list(cls):
        """Print and return the tasks."""
        return print_support_list(cls.__name__, list(TASKS))

    def _work(self, verb):
        work = getattr(TASKS[self.task], verb, None)
        if work is None:
            able = [name for name, task in TASKS.items() if hasattr(task, verb)]
            raise NotImplementedError(
                f"{self.task} cannot {verb}; tasks that can: {', '.join(able) or 'none'}"
            )
        return work


def _run_config(args, model, model_name, task):
    if isinstance(args, RunConfig):
        return args
    if isinstance(args, dict):
        config = build(RunConfig, args)
        warn_ignored(without_effect(config), "args")
        return config
    if args is not None:
        return load_config(args)
    name = (
        model
        if isinstance(model, str)
        else model_name or getattr(getattr(model, "config", None), "preset", None) or None
    )
    if name is None:
        name = DEFAULT_MODEL.get(task_named(task), None) if task else None
    config = load_config(name) if name else RunConfig()
    if isinstance(model, str) and name not in presets():
        logger.info("%s is read as preset %s", name, config.trainer.model_name)
    if hasattr(model, "config"):
        config = config.replace(model={"model_config": model.config.to_dict()})
    return config
