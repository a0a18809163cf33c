"""What a task does for each verb of ``Trainer``.  A task is a class of functions; ``TASKS`` is the registry."""
from pathlib import Path

from PIL import Image

from mindblip2.cells.blip2_qformer import Blip2Classifier
from mindblip2.data.image import load_image
from mindblip2.data.labelled import PICTURE_SUFFIXES, LabelledSet
from mindblip2.data.sheet import score_sheet
from mindblip2.hub import find_weights, no_init
from mindblip2.trainer.loaders import labelled_sets
from mindblip2.trainer.pretrain import Pretrain
from mindblip2.zero_shot import TEMPLATE, ZeroShotClassifier

SHEET_LIMIT = 48    # pictures on one result page


class ZeroShot:
    """Zero-shot image classification with the stage-1 model."""

    @staticmethod
    def predict(trainer, input_data, checkpoint, options):
        pictures = _pictures(input_data)
        top_k = options.pop("top_k", 1)
        batch_size = options.pop("batch_size", 8)
        picture_file = options.pop("save_picture", None)
        result = _classifier(trainer, checkpoint, options)(pictures, None, batch_size)
        for picture, row in zip(pictures, result):
            if isinstance(picture, (str, Path)):
                scores = ", ".join(f"{entry['label']} {entry['score']:.3f}" for entry in row[:max(top_k, 3)])
                print(f"{picture}: {scores}")
        if picture_file:
            _save_sheet(pictures, result, picture_file)
        return [row[:top_k] for row in result]

    @staticmethod
    def evaluate(trainer, checkpoint, options):
        figures, config = {}, trainer.config
        size = config.processor.image_processor.image_size
        sets = trainer.eval_dataset or labelled_sets(config.eval_dataset.data_loader, size)
        sets = [sets] if isinstance(sets, LabelledSet) else sets
        for data in sets:
            classifier = _classifier(trainer, checkpoint, {"candidate_labels": data.labels,
                                                           "hypothesis_template": data.template, **options})
            figures[data.name] = _accuracy(classifier, data, config.eval_dataset.batch_size)
            line = ", ".join(f"{key} {value:.2%}" if isinstance(value, float) else f"{key} {value}"
                             for key, value in figures[data.name].items())
            print(f"{data.name}: {line}")
        return figures


TASKS = {"contrastive_language_image_pretrain": Pretrain, "zero_shot_image_classification": ZeroShot}
DEFAULT_MODEL = {"contrastive_language_image_pretrain": "blip2_stage1_vit_g",
                 "zero_shot_image_classification": "blip2_stage1_classification"}
ALIASES = {"ContrastiveLanguageImagePretrainTrainer": "contrastive_language_image_pretrain",
           "ZeroShotImageClassificationTrainer": "zero_shot_image_classification"}
LATER = ("image_to_text_retrieval", "image_to_text_generation")


def task_named(name):
    """The task of a name or of MindFormers' alias.  Raises ValueError, naming what there is."""
    name = ALIASES.get(name, name)
    if name in TASKS:
        return name
    later = " (a later version brings it)" if name in LATER else ""
    raise ValueError(f"no task {name!r}{later}; there is: {', '.join(TASKS)}")


def _classifier(trainer, checkpoint, options):
    config = trainer.config
    if trainer.model is None:
        with no_init():
            trainer.model = Blip2Classifier(config.model.model_config)
        trainer.model.load_checkpoint(checkpoint or config.model.model_config.checkpoint_name_or_path
                                      or find_weights(trainer.name or "blip2_stage1_classification"))
    elif checkpoint:
        trainer.model.load_checkpoint(checkpoint)
    trainer.model.set_train(False)
    data = config.eval_dataset.data_loader
    options = {**options}
    options["candidate_labels"] = options.get("candidate_labels") or trainer.candidate_labels or data.candidate_labels
    options["hypothesis_template"] = (options.get("hypothesis_template") or trainer.hypothesis_template
                                      or data.hypothesis_template or TEMPLATE)
    return ZeroShotClassifier(trainer.model, trainer.processor(), **options)


def _accuracy(classifier, data, batch_size):
    """Share of pictures whose label is the best, and among the best five."""
    probabilities = classifier.probabilities(data.pictures, max(batch_size, 1))
    truth = [classifier.labels.index(label) for label in data.truths]
    ranks = [int((row > row[index]).sum()) for row, index in zip(probabilities, truth)]
    return {"top1": sum(rank < 1 for rank in ranks) / len(ranks), "top5": sum(rank < 5 for rank in ranks) / len(ranks),
            "pictures": len(ranks), "labels": len(classifier.labels)}


def _pictures(data):
    """One picture, a list of them, or folders, whose pictures are taken in the order of their names."""
    data = list(data) if isinstance(data, (list, tuple)) else [data]
    found = []
    for one in data:
        if isinstance(one, (str, Path)) and Path(one).is_dir():
            inside = sorted(p for p in Path(one).iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
            if not inside:
                raise FileNotFoundError(f"no pictures ({', '.join(PICTURE_SUFFIXES)}) in {Path(one).absolute()}")
            found += inside
        else:
            found.append(one)
    return found


def _save_sheet(pictures, result, path):
    shown = [one if isinstance(one, Image.Image) else load_image(one) for one in pictures[:SHEET_LIMIT]]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    score_sheet(shown, result).save(path)
    print(f"picture of the result is saved at: {path}")
