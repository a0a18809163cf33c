"""Pictures of a prediction: each file is decoded once, what cannot be read is known early, and memory is
bounded."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mindblip2.data.images import decoded as module
from mindblip2.data.images.decoded import DecodedPictures
from mindblip2.data.processor import Blip2ImageProcessor

SIZE = 16
ROOM = 3 * SIZE * SIZE  # bytes of one decoded picture


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def decodes(monkeypatch):
    """How often each file was decoded."""
    counted, load = Counter(), module.load_image

    def counting(source, **options):
        counted[source] += 1
        return load(source, **options)

    monkeypatch.setattr(module, "load_image", counting)
    return counted


@pytest.mark.parametrize("budget", [100 * ROOM, 2 * ROOM, 0])
def test_a20_a_file_is_decoded_once_and_gives_the_same_numbers(files, decodes, budget):
    processor = Blip2ImageProcessor(SIZE)
    pictures = DecodedPictures(files, processor, thumbnails=2, budget=budget)
    made = [processor(pictures[i : i + 4], return_tensors="np") for i in (0, 4)]
    shown = [pictures.thumbnail(i) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(made), processor(files, return_tensors="np"))
    assert decodes == dict.fromkeys(files, 1)
    assert all(small.size == (60, 40) for small in shown)
    assert not pictures.ready and len(pictures.small) == 2  # nothing is kept but the thumbnails
    pictures[0]
    assert decodes[files[0]] == 2  # negative control: the count counts


def test_a20_no_more_than_the_budget_waits(files):
    pictures = DecodedPictures(files, Blip2ImageProcessor(SIZE), budget=2 * ROOM)
    assert 2 <= len(pictures.ready) < len(files)  # one for each thread that was at work may come on top


def test_a20_one_picture_for_many_prompts_is_decoded_once(files, decodes):
    pictures = DecodedPictures(files[:1] * 5, Blip2ImageProcessor(SIZE))
    assert len({one.tobytes() for one in pictures}) == 1 and decodes == {files[0]: 1} and not pictures.ready


@pytest.mark.parametrize("budget", [100 * ROOM, 0])
def test_a20_what_cannot_be_read_is_named_before_anything_is_given_out(files, budget):
    page = files[0].with_name("page.png")
    page.write_text("<html>not found</html>")
    with pytest.raises(
        ValueError, match="2 of 8 pictures cannot be read.*page.png.*an HTML page.*nowhere.png"
    ) as error:
        DecodedPictures(
            [*files, page, str(page.with_name("nowhere.png"))], Blip2ImageProcessor(SIZE), budget=budget
        )
    assert "\n" not in str(error.value)
    DecodedPictures(files, Blip2ImageProcessor(SIZE), budget=budget)  # negative control


def test_a20_a_truncated_file_is_known_early_within_the_budget_and_else_when_it_is_asked_for(files):
    files[5].write_bytes(files[5].read_bytes()[:2000])
    with pytest.raises(ValueError, match="5.png .*truncated"):
        DecodedPictures(files, Blip2ImageProcessor(SIZE))
    late = DecodedPictures(files, Blip2ImageProcessor(SIZE), budget=0)
    with pytest.raises(ValueError, match="5.png .*truncated"):
        late[5]


def test_pictures_in_memory_and_other_processors_are_left_alone(files):
    array, picture = np.zeros((4, 4, 3), np.uint8), Image.new("RGB", (5, 5))
    pictures = DecodedPictures([array, picture, files[0]], object())
    assert pictures[0] is array and pictures[1] is picture and pictures[2].size == (60, 40)
