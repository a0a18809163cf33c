"""LAVIS's numbers for the processors, and small pictures of every kind."""
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROCESSORS = Path(__file__).resolve().parents[1] / "reference" / "processors"


@pytest.fixture(scope="session")
def lavis_images():
    with np.load(PROCESSORS / "images.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def lavis_images_json():
    return json.loads((PROCESSORS / "images.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def lavis_text():
    return json.loads((PROCESSORS / "text.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def noise():
    """A picture (20 high, 30 wide) of random colours: no compression or symmetry hides a wrong pixel."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def encode():
    """encode(picture, "PNG", **options) → bytes."""
    def encoded(picture, kind, **options):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        return stream.getvalue()
    return encoded
