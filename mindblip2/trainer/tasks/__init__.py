"""What a task does for each verb of ``Trainer``.  A task is a class of functions; ``TASKS`` is the
registry."""

import dataclasses
import re
from pathlib import Path

import numpy as np
from PIL import Image

from mindblip2.compat.mindformers.keys import TASK_ALIASES
from mindblip2.config.schema import Count, argument
from mindblip2.data.datasets.captioned_images import check_readable, pictures_and_texts
from mindblip2.data.datasets.labelled_images import LabelledSet
from mindblip2.data.images.decoded import DecodedPictures
from mindblip2.data.images.load import load_image
from mindblip2.distributed import comm
from mindblip2.evaluation import retrieval
from mindblip2.evaluation.features import caption_ids, caption_lines, extract
from mindblip2.evaluation.visualize import confusion_sheet, hit_sheet, score_sheet
from mindblip2.evaluation.zero_shot import TEMPLATE, ZeroShotClassifier, accuracy, check_vocabulary
from mindblip2.file_io import atomic_file
from mindblip2.models.blip2_qformer import Blip2Classifier, Blip2Qformer
from mindblip2.trainer import export
from mindblip2.trainer.data_sources import captioned_pictures, labelled_sets, token_ids
from mindblip2.trainer.tasks.generation import Generation
from mindblip2.trainer.tasks.inputs import load, pictures_of
from mindblip2.trainer.tasks.pretrain import Pretrain

SHEET_LIMIT = 48  # pictures on one result page
QUERIES = 6  # pictures, and texts, whose hits are drawn


class ZeroShot:
    """Zero-shot image classification with the stage-1 model."""

    @staticmethod
    def predict(trainer, input_data, checkpoint, options):
        pictures = pictures_of(input_data)
        top_k = argument(Count, options.pop("top_k", 1), "top_k")
        batch_size = argument(Count, options.pop("batch_size", 8), "batch_size")
        picture_file = options.pop("save_picture", None)
        decoded = DecodedPictures(
            pictures, trainer.processor().image_processor, SHEET_LIMIT if picture_file else 0
        )
        result = _classifier(trainer, checkpoint, options)(decoded, None, batch_size)
        for picture, row in zip(pictures, result):
            if isinstance(picture, (str, Path)):
                scores = ", ".join(f"{entry['label']} {entry['score']:.3f}" for entry in row[: max(top_k, 3)])
                print(f"{picture}: {scores}")
        if picture_file:
            small = [decoded.thumbnail(i) for i in range(min(len(pictures), SHEET_LIMIT))]
            _save(score_sheet(small, result), picture_file)
        return [row[:top_k] for row in result]

    @staticmethod
    def evaluate(trainer, checkpoint, options):
        figures, config = {}, trainer.config
        sets = trainer.eval_dataset
        if sets is None:
            sets = labelled_sets(config.eval_dataset.data_loader, config.processor.image_processor.image_size)
        sets = [sets] if isinstance(sets, LabelledSet) else sets
        for data in sets:
            classifier = _classifier(
                trainer,
                checkpoint,
                {"candidate_labels": data.labels, "hypothesis_template": data.template, **options},
            )
            figures[data.name], counts_LL = accuracy(
                classifier, data.pictures, data.truths, max(config.eval_dataset.batch_size, 1)
            )
            line = "top-1 {top1:.2%}, top-5 {top5:.2%} of {pictures} pictures, {labels} labels".format(
                **figures[data.name]
            )
            print(f"{data.name}: {line}")
            _save(
                confusion_sheet(counts_LL, classifier.labels, f"{data.name}: {line}"),
                Path(config.output_dir)
                / f"{trainer.task}_{re.sub(r'[^a-z0-9]+', '_', data.name.lower())}_confusion.png",
            )
        return figures

    @staticmethod
    def export(trainer, checkpoint, options):
        """Parts, and what else ``mindir.json`` says."""
        batch = options.pop("batch_size")
        classifier = _classifier(trainer, checkpoint, options)
        if classifier.use_itm or classifier.temperature is not None:
            raise ValueError(
                "the exported classifier divides ITC similarities by the learnt temperature: leave use_itm "
                "and temperature "
                "out (the ITM head is exported by the task image_to_text_retrieval)"
            )
        return (
            export.classifier(trainer.model, batch, classifier.ids_LT),
            {"labels": classifier.labels, "label_ids": classifier.ids_LT.asnumpy().tolist()},
        )


class Retrieval:
    """Which text belongs to a picture, and which picture to a text?"""

    @staticmethod
    def evaluate(trainer, checkpoint, options):
        config, data, text = (
            trainer.config,
            trainer.config.eval_dataset,
            trainer.config.eval_dataset.text_transforms,
        )
        known = [field.name for field in dataclasses.fields(retrieval.RetrievalConfig)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(
                f"{trainer.task} has no option {unknown[0]}; it takes {', '.join(known)} (rerank='itm' for "
                "the matching head "
                "alone)"
            )
        recipe = retrieval.RetrievalConfig.of(data, **options)
        samples = trainer.eval_dataset
        if samples is None:
            samples = captioned_pictures(data.data_loader, config.processor.image_processor.image_size)
        pictures, texts, owners = pictures_and_texts(samples, text.prompt, text.max_words)
        check_readable(pictures)
        weights = load(trainer, Blip2Qformer, checkpoint)
        processor = trainer.processor()
        check_vocabulary(trainer.model, processor.tokenizer)
        ids_TL = token_ids(trainer.model, processor.tokenizer, texts, recipe.text_length)
        scores = retrieval.score(trainer.model, processor.image_processor, pictures, ids_TL, recipe)
        figures = retrieval.report(
            scores, owners, recipe, weights=weights, image_size=processor.image_processor.image_size
        )
        print(retrieval.table(figures))
        title = "picture to text R@1 {txt_r1:.1f} %, text to picture R@1 {img_r1:.1f} %".format(**figures)
        _save(
            _hits_page(pictures, texts, owners, scores, title),
            Path(config.output_dir) / f"{trainer.task}_hits.png",
        )
        return figures

    @staticmethod
    def export(trainer, checkpoint, options):
        """Parts, and what else ``mindir.json`` says."""
        load(trainer, Blip2Qformer, checkpoint)
        return export.stage1(
            trainer.model, **{"length": trainer.config.eval_dataset.text_transforms.max_length, **options}
        ), {}


class Features:
    """Embeddings of pictures and captions, as arrays in one file."""

    export = staticmethod(Retrieval.export)

    @staticmethod
    def predict(trainer, input_data, checkpoint, options):
        """Pictures, folders, and ``.txt`` files that hold one caption per line; or ``captions=[…]``."""
        path = Path(options.pop("save_arrays", f"{trainer.task}_result.npz"))
        captions, batch_size = (
            options.pop("captions", ()),
            argument(Count, options.pop("batch_size", 8), "batch_size"),
        )
        captions = [captions] if isinstance(captions, str) else list(captions)
        if options:
            raise TypeError(
                f"unknown option {sorted(options)[0]!r}; {trainer.task} takes captions, batch_size, "
                "save_arrays"
            )
        pictures = []
        for one in pictures_of(input_data):
            if isinstance(one, (str, Path)) and Path(one).suffix.lower() == ".txt":
                captions += caption_lines(one)
            else:
                pictures.append(one)
        processor = trainer.processor()
        decoded = DecodedPictures(pictures, processor.image_processor)
        load(trainer, Blip2Qformer, checkpoint)
        check_vocabulary(trainer.model, processor.tokenizer)
        ids_TL = caption_ids(trainer, processor, captions) if captions else None
        arrays = extract(trainer.model, processor.image_processor, decoded, ids_TL, batch_size)
        names = {
            "paths": [
                str(one) if isinstance(one, (str, Path)) else f"picture {i}" for i, one in enumerate(pictures)
            ],
            "captions": captions,
        }
        if comm.is_main_process():
            with atomic_file(path, "wb") as file:
                np.savez(
                    file, **arrays, **{name: np.array(values) for name, values in names.items() if values}
                )
        return {"file": str(path), **{name: list(array.shape) for name, array in arrays.items()}}


TASKS = {
    "contrastive_language_image_pretrain": Pretrain,
    "zero_shot_image_classification": ZeroShot,
    "image_to_text_retrieval": Retrieval,
    "feature_extraction": Features,
    "image_to_text_generation": Generation,
}


def task_named(name):
    """The task of a name or of MindFormers' alias.  Raises ValueError, naming what there is."""
    name = TASK_ALIASES.get(name, name)
    if name in TASKS:
        return name
    raise ValueError(f"no task {name!r}; there is: {', '.join(TASKS)}")


def _classifier(trainer, checkpoint, options):
    load(trainer, Blip2Classifier, checkpoint)
    data = trainer.config.eval_dataset.data_loader
    options = {**options}
    options["candidate_labels"] = (
        options.get("candidate_labels") or trainer.candidate_labels or data.candidate_labels
    )
    options["hypothesis_template"] = (
        options.get("hypothesis_template")
        or trainer.hypothesis_template
        or data.hypothesis_template
        or TEMPLATE
    )
    options.setdefault("temperature", trainer.config.eval_dataset.temperature)
    return ZeroShotClassifier(trainer.model, trainer.processor(), **options)


def _hits_page(pictures, texts, owners, scores, title):
    """The first hits of a few pictures and texts, evenly spread over the set."""

    def few(count):
        return np.unique(np.linspace(0, count - 1, QUERIES).astype(int))

    image_rows = [
        (
            _shown(pictures[i]),
            [(texts[t], value, owners[t] == i) for t, value in retrieval.best(scores.i2t[i])],
        )
        for i in few(len(pictures))
    ]
    text_rows = [
        (
            texts[t],
            [(_shown(pictures[i]), value, owners[t] == i) for i, value in retrieval.best(scores.t2i[t])],
        )
        for t in few(len(texts))
    ]
    return hit_sheet(image_rows, text_rows, title)


def _shown(picture):
    return picture if isinstance(picture, Image.Image) else load_image(picture)


def _save(page, path):
    if not comm.is_main_process():
        return
    with atomic_file(path, "wb") as file:
        page.save(file, Image.registered_extensions().get(Path(path).suffix.lower(), "PNG"))
    print(f"picture of the result is saved at: {path}")
