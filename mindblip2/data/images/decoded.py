"""The pictures of a prediction, each decoded once: for the check, for the model, and for the page of
results."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from mindblip2.data.images.color_conversion import ImageError
from mindblip2.data.images.load import check_header, load_image
from mindblip2.data.images.transforms import resize
from mindblip2.data.processor import Blip2ImageProcessor, rgb
from mindblip2.progress import progress

BUDGET = 256 << 20  # bytes of decoded pictures that wait for the model: 1,700 at 224 pixels
THUMBNAIL = 224  # pixels of the longer side of a picture on the page of results
SHOWN = 5  # unreadable files named in a message


class DecodedPictures(Sequence):
    """A sequence of pictures for an image processor, of which files and addresses are read and decoded once
    each.

    As many as fit into ``budget`` bytes are decoded at once, in threads; of the files beyond that the headers
    are read, and they are decoded when the model asks for them.  So a picture that cannot be read is known
    before the model works, unless it lies beyond the budget and is damaged behind its header.  A picture is
    let go when it was given out as often as it occurs.

    ``thumbnails``: of how many of the first pictures :meth:`thumbnail` is asked; small copies of them are
    kept.  Pictures in memory (PIL, arrays, tensors, bytes) stay as they are.  Raises ValueError that names
    the files that cannot be read."""

    def __init__(
        self, pictures: Sequence[Any], image_processor: Any, thumbnails: int = 0, budget: int = BUDGET
    ):
        self.pictures, self.processor, self.left = list(pictures), image_processor, budget
        self.uses = Counter(one for one in self.pictures if isinstance(one, (str, Path)))
        self.wanted = {one for one in self.pictures[:thumbnails] if isinstance(one, (str, Path))}
        self.ready: dict = {}
        self.small: dict = {}
        self._check(list(self.uses))

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, place):
        """What the image processor takes: a picture or, of a slice, a list of them.  Raises OSError,
        ImageError."""
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        picture = self.pictures[place]
        if not isinstance(picture, (str, Path)):
            return picture
        decoded = self.ready.pop(picture, None)
        if decoded is None:
            decoded = self._decoded(picture)
        else:
            self.left += _size(decoded)
        self.uses[picture] -= 1
        if self.uses[picture] > 0 and self.left > 0:
            self._keep(picture, decoded)
        return decoded

    def thumbnail(self, place: int) -> Image.Image:
        """A small copy of one of the first pictures, for the page of results."""
        picture = self.pictures[place]
        return self.small[picture] if isinstance(picture, (str, Path)) else rgb(picture, "the picture")

    def _check(self, files):
        """Decode what fits into the budget, read the headers of the others."""
        bad = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for file, error in progress(
                zip(files, pool.map(self._try, files)),
                "check",
                "picture",
                len(files),
                disable=len(files) <= 100,
            ):
                if error is not None:
                    bad.append(f"{error}" if str(file) in str(error) else f"{file}: {error}")
        if bad:
            more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            raise ValueError(
                f"{len(bad)} of {len(files)} pictures cannot be read; correct or remove them: "
                f"{'; '.join(bad[:SHOWN])}{more}"
            )

    def _try(self, file):
        try:
            if self.left > 0:
                self._keep(file, self._decoded(file))
            else:
                check_header(file)
        except (OSError, ImageError) as error:
            return error

    def _keep(self, file, decoded):
        self.ready[file] = decoded
        self.left -= _size(decoded)

    def _decoded(self, file):
        picture = load_image(file, alpha=getattr(self.processor, "alpha", "drop"))
        if file in self.wanted:
            small = picture.copy()
            small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            self.small[file] = small
        # what its first step makes of it, which resizes nothing the second time
        return (
            resize(picture, self.processor.image_size)
            if isinstance(self.processor, Blip2ImageProcessor)
            else picture
        )


def _size(picture):
    """Bytes of an RGB picture."""
    return 3 * picture.width * picture.height
