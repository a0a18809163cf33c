"""Data loaders by the name that the configuration gives them."""
from mindblip2.data import scenes


def training_samples(loader, seed, image_size, batch_size):
    """The training samples of a ``LoaderConfig``: an iterable with a length of ``{"image", "caption", "image_id"?}``."""
    if loader.type == "DigitScenes":
        return scenes.TrainingScenes(loader.scenes, seed, loader.property_epochs, loader.single_epochs, image_size, batch_size)
    raise NotImplementedError(f"train_dataset.data_loader.type = {loader.type!r}: this version trains on 'DigitScenes' "
                              "or on what Trainer(train_dataset=…) is given; the loaders of COCO, VG and Flickr come with a later one")


def labelled_sets(loader, image_size):
    """The sets of a ``LoaderConfig`` to classify: each has name, pictures, truths, labels and template."""
    if loader.type == "DigitScenes":
        return scenes.labelled_sets(image_size)
    raise NotImplementedError(f"eval_dataset.data_loader.type = {loader.type!r}: this version evaluates 'DigitScenes'")


def captioned_pictures(loader, image_size):
    """The pictures of a ``LoaderConfig`` with all their captions, for retrieval: samples of ``data.captioned``."""
    if loader.type == "DigitScenes":
        return scenes.captioned(image_size)
    raise NotImplementedError(f"eval_dataset.data_loader.type = {loader.type!r}: this version searches 'DigitScenes' or what "
                              "Trainer(eval_dataset=…) is given")
