"""Pictures with one right label each: what zero-shot classification is examined with."""

import os
from dataclasses import dataclass
from pathlib import Path

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
TEMPLATE = "a picture of {}"  # MindFormers' for CIFAR-100


@dataclass(frozen=True)
class LabelledSet:
    """Pictures with one right label each, and the labels to choose from.

    ``pictures``: a sequence of anything that ``load_image`` takes, such as paths, which are read batch by
    batch; ``truths``: the label of each; ``template``: the text of a label, with {} in its place."""

    name: str
    pictures: list
    truths: list
    labels: tuple
    template: str

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return {"image": self.pictures[index], "label": self.truths[index]}


class ImageFolder(LabelledSet):
    """A folder with one sub-folder of pictures per label, named after it; underscores become spaces
    ("hot_air_balloon")."""

    def __init__(self, dataset_dir, hypothesis_template=TEMPLATE):
        root = Path(dataset_dir)
        folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        found = [(path, folder.name.replace("_", " ")) for folder in folders for path in pictures_in(folder)]
        if not found:
            raise FileNotFoundError(
                f"no pictures ({', '.join(PICTURE_SUFFIXES)}) in sub-folders of {root.absolute()}; expected "
                "one sub-folder per label: cat/1.jpg, dog/1.jpg"
            )
        paths, truths = map(list, zip(*found))
        super().__init__(
            root.absolute().name, paths, truths, tuple(dict.fromkeys(truths)), hypothesis_template or TEMPLATE
        )


def pictures_in(folder):
    """Paths of the pictures directly in ``folder``, in the order of their names."""
    return [
        os.path.join(folder, name)
        for name in sorted(os.listdir(folder))
        if name.lower().endswith(PICTURE_SUFFIXES)
    ]
