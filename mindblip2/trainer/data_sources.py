"""The training batches, and the pictures and texts of an evaluation, that a configuration describes."""

from pathlib import Path

from mindblip2.config.schema import ConfigError
from mindblip2.data.datasets.pairs import Pairs
from mindblip2.data.datasets.questions import read_questions
from mindblip2.data.datasets.registry import captioned
from mindblip2.data.datasets.registry import labelled_sets as labelled_sets
from mindblip2.data.images.augmentation import recipes
from mindblip2.data.loader import Feed
from mindblip2.data.text.checks import warn_truncated
from mindblip2.data.text.prompting import PromptedText
from mindblip2.demo import scenes


def training_samples(loader, seed, image_size, batch_size, stage2=False):
    """The training samples of a ``LoaderConfig``: ``{"image", "caption", "image_id"?}`` as ``Feed`` takes
    them."""
    if loader.type == "DigitScenes" and stage2:
        return scenes.CaptionedScenes(loader.scenes, seed, image_size)
    if loader.type == "DigitScenes":
        return scenes.TrainingScenes(loader.scenes, seed, loader.property_epochs, image_size, batch_size)
    return captioned(loader, "train")


def training_feed(config, processor, samples=None, rank=0, world=1, model_config=None):
    """The :class:`~mindblip2.data.loader.Feed` of a RunConfig; ``model_config``: see ``text_arguments``.

    ``samples``: what ``Trainer(train_dataset=…)`` was given, else those of ``train_dataset.data_loader``.  A
    loader of ours gets the transforms of the configuration, or by default LAVIS's for training (see
    ``recipes``); any other samples get those of the configuration, or else only the processor's resize.
    Batches hold ``runner_config.batch_size`` pairs per rank."""
    data, size = config.train_dataset, config.runner_config.batch_size
    image = processor.image_processor
    if data.repeat != 1:
        raise ValueError(f"train_dataset.repeat = {data.repeat}: set runner_config.epochs instead")
    if samples is None:
        samples = training_samples(
            data.data_loader, config.seed, image.image_size, size * world, model_config is not None
        )
    ours = isinstance(samples, Pairs)
    if ours and not samples.repeat_images:
        raise ValueError("training takes one caption per sample: make the loader with stage='train'")
    names = samples.names if ours else ("",)
    transforms = (
        recipes(data.transforms, names, image.image_size, image.mean, image.std)
        if ours or data.transforms
        else ()
    )
    return Feed(
        samples,
        processor,
        size,
        config.seed,
        transforms=transforms,
        ratios=getattr(samples, "ratios", ()),
        shuffle=getattr(samples, "shuffle", True),
        **text_arguments(config, data.text_transforms, processor, model_config),
        rank=rank,
        world=world,
        workers=data.num_parallel_workers,
        processes=data.python_multiprocessing,
        max_unreadable=data.max_unreadable,
    )


def text_arguments(config, text, processor, model_config=None):
    """The keywords of a ``Feed`` that say how the ``text_transforms`` of a section make texts.

    ``model_config``: in stage 2 that of the model, whose language model reads ``prompt_of`` before every
    caption.  A model that the user made may have another than the run's."""
    length = min(text.max_length, processor.max_length or processor.tokenizer.max_length)
    if model_config is None:
        return {"prompt": text.prompt, "max_words": text.max_words, "max_length": length}
    prompted = PromptedText(processor.tokenizer, model_config, prompt_of(config), length)
    return {"text": prompted, "max_words": text.max_words, "max_length": length}


def prompt_of(config):
    """The prompt before every caption of stage 2: ``text_transforms.prompt`` of the training data, or
    ``model_config.prompt`` where that is a text.  Raises ConfigError where both are, and differ."""
    given, own = config.train_dataset.text_transforms.prompt, config.model.model_config.prompt
    own = own if isinstance(own, str) else ""
    if given and own and given != own:
        raise ConfigError(
            f"train_dataset.text_transforms.prompt = {given!r}, but model.model_config.prompt = {own!r}: one "
            "prompt goes "
            "before every caption; give both the same, or remove one"
        )
    return given or own


def captioned_pictures(loader, image_size):
    """The pictures of a ``LoaderConfig`` with all their captions, for retrieval: samples of
    ``data.captioned``."""
    return scenes.captioned(image_size) if loader.type == "DigitScenes" else captioned(loader, "eval")


def questions(loader, image_size):
    """The questions of a ``LoaderConfig``, or None where its files hold something else."""
    if loader.type == "DigitScenes":
        return scenes.questions(image_size)
    if not loader.annotation_files:
        return None
    return read_questions(
        *(
            [Path(loader.dataset_dir) / name for name in names]
            for names in (loader.annotation_files, loader.image_dirs)
        )
    )


def token_ids(model, tokenizer, texts, length):
    """Texts as the model reads them: (T, ``length``) int32, padded.  Warns of texts that are cut."""
    positions = model.config.qformer_config.max_position_embeddings
    if length > positions:
        raise ValueError(
            f"texts of {length} tokens, but the model has {positions} positions: lower "
            "eval_dataset.text_transforms.max_length"
        )
    encoded = tokenizer(texts, max_length=length, padding="max_length", return_tensors="np")
    warn_truncated(tokenizer, texts, encoded["attention_mask"], length, "text_transforms.max_length")
    return encoded["input_ids"]
