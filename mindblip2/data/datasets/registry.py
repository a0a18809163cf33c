"""Data loaders by the name that the configuration gives them."""

from mindblip2.data.datasets.cifar import Cifar100DataLoader
from mindblip2.data.datasets.labelled_images import ImageFolder
from mindblip2.data.datasets.pairs import Flickr8kDataLoader, MultiImgCapDataLoader
from mindblip2.demo import scenes

CAPTIONED = ("MultiImgCapDataLoader", "Flickr8kDataLoader")
LABELLED = ("Cifar100DataLoader", "ImageFolder")


def captioned(loader, stage):
    """The captioned pictures of a ``LoaderConfig``; ``stage``, "train" or "eval", counts where the
    configuration says none.

    Raises ValueError for a loader of another kind, and as the loader does."""
    stage = loader.stage or stage
    if loader.type == "MultiImgCapDataLoader":
        return MultiImgCapDataLoader(
            loader.dataset_dir,
            loader.annotation_files,
            loader.image_dirs,
            stage,
            loader.column_names,
            loader.repeat_images,
            loader.shuffle,
            loader.ratios,
        )
    if loader.type == "Flickr8kDataLoader":
        return Flickr8kDataLoader(loader.dataset_dir, stage, loader.shuffle)
    raise ValueError(
        f"data_loader.type = {loader.type!r}: pictures with captions come from "
        f"{', '.join(map(repr, CAPTIONED))}"
    )


def labelled_sets(loader, image_size):
    """The sets of a ``LoaderConfig`` to classify: a list of
    :class:`~mindblip2.data.datasets.labelled_images.LabelledSet`."""
    if loader.type == "DigitScenes":
        return scenes.labelled_sets(image_size)
    if loader.type == "Cifar100DataLoader":
        return [
            Cifar100DataLoader(
                loader.dataset_dir, loader.stage or "test", loader.fine_label, loader.hypothesis_template
            )
        ]
    if loader.type == "ImageFolder":
        return [ImageFolder(loader.dataset_dir, loader.hypothesis_template)]
    raise ValueError(
        f"data_loader.type = {loader.type!r}: pictures with labels come from "
        f"{', '.join(map(repr, LABELLED))}, "
        "'DigitScenes'"
    )
