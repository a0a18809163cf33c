"""What a task works with: the model with its weights, and pictures however they were given."""

from pathlib import Path

from mindblip2.checkpoint.pretrained import find_weights, named_file, no_init
from mindblip2.data.datasets.labelled_images import PICTURE_SUFFIXES

DEFAULT_MODEL = {
    "contrastive_language_image_pretrain": "blip2_stage1_vit_g",
    "zero_shot_image_classification": "blip2_stage1_classification",
    "image_to_text_retrieval": "blip2_stage1_evaluator",
    "feature_extraction": "blip2_stage1_vit_g",
    "image_to_text_generation": "itt_blip2_stage2_vit_g_opt_2_7b",
}


def load(trainer, cell, checkpoint):
    """See that ``trainer.model`` is there, with the weights of ``checkpoint``, else those that the
    configuration names, else the preset's; returns what these are called.  A model object has the weights
    that its configuration names already."""
    config = trainer.config.model.model_config
    if checkpoint:
        checkpoint = named_file(checkpoint, "load_checkpoint")
    if trainer.model is None:
        checkpoint = checkpoint or (
            named_file(config.checkpoint_name_or_path)
            if config.checkpoint_name_or_path
            else find_weights(Path(trainer.name or DEFAULT_MODEL[trainer.task]).stem)
        )
        with no_init():
            trainer.model = cell(config)
    if checkpoint:
        trainer.model.load_checkpoint(checkpoint)
    trainer.model.set_train(False)
    return str(checkpoint or "those of trainer.model")


def pictures_of(data):
    """One picture, a list of them, or folders, whose pictures are taken in the order of their names."""
    data = list(data) if isinstance(data, (list, tuple)) else [data]
    found = []
    for one in data:
        if isinstance(one, (str, Path)) and Path(one).is_dir():
            inside = sorted(p for p in Path(one).iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
            if not inside:
                raise FileNotFoundError(
                    f"no pictures ({', '.join(PICTURE_SUFFIXES)}) in {Path(one).absolute()}"
                )
            found += inside
        else:
            found.append(one)
    return found
