"""Training batches: the same from wherever an epoch is entered and whoever makes them; unreadable
pictures."""

import weakref

import numpy as np
import pytest
from PIL import Image

from mindblip2.data.images.augmentation import recipe
from mindblip2.data.loader import TRIES, Feed, UnreadableError
from mindblip2.data.processor import Blip2Processor
from mindblip2.data.text.cleaning import BlipCaption
from mindblip2.demo.scenes import TrainingScenes

PICTURE = recipe("blip_image_train", 48)


@pytest.fixture(scope="module")
def processor():
    return Blip2Processor.from_pretrained("blip2_digits")


def samples(count, **more):
    pictures = [
        np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), dtype=np.uint8) for i in range(count)
    ]
    return [
        {"image": picture, "caption": f"A red, {'seven ' * (i % 9)}!", "image_id": i, **more}
        for i, picture in enumerate(pictures)
    ]


def equal(one, other):
    assert len(one) == len(other)
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in zip(one, other)
    )


def ids(batches):
    return [batch["image_id"].tolist() for batch in batches]


# ------------------------------------------------------------------------------------------------ batches
def test_batches_of_cleaned_captions_behind_the_prompt(processor):
    rows = [
        {"image": np.full((9, 9, 3), 9, np.uint8), "caption": text, "image_id": 4}
        for text in ("A red seven!", "a (blue) two")
    ]
    (batch,) = Feed(rows, processor, 2, 0, shuffle=False, prompt="A handwritten ").epoch(0)
    assert batch["image"].shape == (2, 3, 48, 48) and batch["image"].dtype == np.float32
    assert (
        batch["image_id"].tolist() == [4, 4]
        and batch["image_id"].dtype == batch["input_ids"].dtype == np.int32
    )
    assert processor.tokenizer.batch_decode(batch["input_ids"]) == [
        "a handwritten a red seven",
        "a handwritten a blue two",
    ]
    assert (batch["image"][0] == processor([rows[0]["image"]], return_tensors="np")["image"][0]).all()
    (cut,) = Feed(rows, processor, 2, 0, max_length=4).epoch(0)
    assert (
        cut["input_ids"].shape == (2, 4)
        and (cut["input_ids"][:, 3] == processor.tokenizer.sep_token_id).all()
    )


def test_only_padding_is_left_out(processor):
    rows = samples(4)
    rows[3]["caption"] = "a red seven, a green two and a blue one from left to right"
    lengths = {}
    for batch in Feed(rows, processor, 1, 3).epoch(0):
        number, length = int(batch["image_id"][0]), batch["input_ids"].shape[1]
        caption = BlipCaption()(rows[number]["caption"])
        whole = processor(text=[caption], return_tensors="np")["input_ids"]
        assert (whole[:, :length] == batch["input_ids"]).all() and not whole[:, length:].any()
        lengths[number] = length
    assert lengths == {0: 5, 1: 10, 2: 10, 3: 18}  # a quarter of 18, half, all


def test_samples_without_ids_give_batches_without(processor):
    rows = [{key: row[key] for key in ("image", "caption")} for row in samples(2)]
    assert set(next(Feed(rows, processor, 2, 0).epoch(0))) == {"image", "input_ids"}


def test_an_epoch_is_a_function_of_seed_and_number(processor):
    def made(seed, epoch, start=0):
        return list(Feed(samples(11), processor, 3, seed, transforms=[PICTURE]).epoch(epoch, start))

    assert len(made(1, 0)) == 3 and equal(made(1, 2), made(1, 2))
    assert not equal(made(1, 2), made(1, 3)) and not equal(made(1, 2), made(2, 2))
    in_order = Feed(samples(4), processor, 4, 1, transforms=[PICTURE], shuffle=False)
    assert (next(in_order.epoch(0))["image"] != next(in_order.epoch(1))["image"]).any()  # augmented anew
    for start in (1, 2, 3):
        assert equal(made(1, 2)[start:], made(1, 2, start))  # bit for bit, augmentations too
    with pytest.raises(ValueError, match="start_step = 4: an epoch has 3 steps"):
        made(1, 2, 4)


@pytest.mark.parametrize("processes", [True, False])
def test_workers_make_the_same_batches(processor, processes):
    def made(workers, start=0):
        return list(
            Feed(
                samples(14), processor, 4, 5, transforms=[PICTURE], workers=workers, processes=processes
            ).epoch(1, start)
        )

    assert equal(made(0), made(2)) and equal(made(0)[1:], made(2, 1))
    assert not equal(made(0)[1:], made(2)[:-1])  # control


def test_ranks_share_a_step(processor):
    whole = ids(Feed(samples(13), processor, 4, 5).epoch(0))
    parts = [ids(Feed(samples(13), processor, 2, 5, rank=rank, world=2).epoch(0)) for rank in (0, 1)]
    assert [left + right for left, right in zip(*parts)] == whole and len(parts[0]) == 3
    augmented = [
        list(Feed(samples(13), processor, size, 5, transforms=[PICTURE], rank=rank, world=world).epoch(0))
        for size, rank, world in ((4, 0, 1), (2, 1, 2))
    ]
    # a sample does not depend on the number of ranks
    assert (augmented[0][1]["image"][2:] == augmented[1][1]["image"]).all()


def test_sets_have_their_own_transforms_and_ratios(processor):
    class Two(list):
        sizes = (6, 2)

    black, white = (
        lambda picture, rng, level=level: np.full((3, 48, 48), level, np.float32) for level in (0, 1)
    )
    rows = Two(samples(8))
    for batch in Feed(rows, processor, 4, 0, transforms=[black, white]).epoch(0):
        assert (batch["image"][:, 0, 0, 0] == (batch["image_id"] >= 6)).all()
    assert {i for row in ids(Feed(rows, processor, 2, 0, ratios=(0, 1)).epoch(0)) for i in row} == {6, 7}


# ------------------------------------------------------------------------------------------------ iterables
def test_scenes_are_read_epoch_by_epoch_and_entered_anywhere(processor):
    feed = Feed(TrainingScenes(13, 3, 1, 2, batch=4), processor, 4, 0, workers=2)
    epochs = [list(feed.epoch(epoch)) for epoch in (0, 1, 0)]
    assert (
        equal(epochs[0], epochs[2]) and not equal(epochs[0], epochs[1]) and len(epochs[0]) == len(feed) == 3
    )
    assert equal(epochs[1][2:], list(feed.epoch(1, 2)))
    halves = [
        list(Feed(TrainingScenes(13, 3, 1, 2, batch=4), processor, 2, 0, rank=rank, world=2).epoch(0))
        for rank in (0, 1)
    ]
    assert [a["image_id"].tolist() + b["image_id"].tolist() for a, b in zip(*halves)] == ids(epochs[0])


def test_any_iterable_is_read_in_its_own_order(processor):
    class Shuffled:
        def set_epoch(self, epoch):
            self.first = epoch

        def __iter__(self):
            return iter(samples(8)[self.first :])

    feed = Feed(Shuffled(), processor, 2, 0)
    assert ids(feed.epoch(0)) == [[0, 1], [2, 3], [4, 5], [6, 7]] and ids(feed.epoch(3, 1)) == [[5, 6]]
    with pytest.raises(ValueError, match="the training samples are a Shuffled without a length"):
        len(feed)
    once = Feed((row for row in samples(4)), processor, 2, 0)
    assert ids(once.epoch(0)) == [[0, 1], [2, 3]]
    with pytest.raises(
        ValueError, match="the samples end after step 0 of epoch 1 .* A generator can be read once"
    ):
        list(once.epoch(1))


def test_an_iterable_is_not_kept_in_memory(processor):
    class Sample(dict):
        __hash__ = object.__hash__

    made = weakref.WeakSet()

    def stream():
        for sample in samples(4) * 50:
            sample = Sample(sample)
            made.add(sample)
            yield sample

    most = max(len(made) for _ in Feed(stream(), processor, 2, 0).epoch(0))
    assert 2 <= most < 30  # of 200: the first batch, those made ahead, the one at hand


# ------------------------------------------------------------------------------------------------ wrong sampl
@pytest.mark.parametrize(
    "more, words",
    [
        ({"image_id": 1.5}, "image_id = 1.5: expected a text, or a whole number"),
        ({"image_id": 2**31}, "image_id = 2147483648"),
        ({"caption": 3}, "text must be a string, got int"),
        ({"caption": []}, "text must be a string, got list"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_used_is_an_error(processor, more, words, workers):
    with pytest.raises((ValueError, TypeError), match=words):
        list(Feed(samples(4, **more), processor, 2, 0, workers=workers).epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_c7_image_ids_may_be_texts_as_in_files(processor, workers):
    """The same text has the same number, whoever makes the sample; another text another."""
    rows = samples(8)
    for i, row in enumerate(rows):
        row["image_id"] = f"coco_{i // 2}"
    feeds = [
        list(Feed(given, processor, 8, 0, shuffle=False, workers=workers).epoch(0))
        for given in (rows, iter(rows))
    ]
    numbers = feeds[0][0]["image_id"]
    assert (
        [(numbers == one).sum() for one in numbers] == [2] * 8
        and numbers.dtype == np.int32
        and numbers.min() >= 0
    )
    np.testing.assert_array_equal(numbers, feeds[1][0]["image_id"])
    rows[0]["image_id"] = ""
    # the control
    assert (
        list(Feed(rows, processor, 8, 0, shuffle=False).epoch(0))[0]["image_id"]
        .tolist()
        .count(int(numbers[0]))
        == 1
    )


def test_a8_training_warns_of_unknown_tokens(processor, caplog):
    list(Feed(samples(6, caption="一只红色的猫"), processor, 2, 0).epoch(0))
    assert "does not know 75.0 % of the tokens of the first 6 captions" in caplog.text
    assert caplog.text.count("does not know") == 1
    caplog.clear()
    list(Feed(samples(6), processor, 2, 0).epoch(0))
    assert caplog.text == ""


def test_of_several_captions_one_is_drawn_and_always_the_same(processor):
    words = [f"a {colour} seven" for colour in ("red", "green", "blue", "pink")]

    def texts(epoch, **settings):
        feed = Feed(samples(40, caption=words), processor, 4, 0, **settings)
        return np.concatenate([batch["input_ids"] for batch in feed.epoch(epoch)])

    first = texts(0)
    assert len(np.unique(first, axis=0)) == 4 and not np.array_equal(first, texts(1))
    assert np.array_equal(first, texts(0, workers=2))


def test_settings_that_cannot_work_are_named(processor):
    with pytest.raises(ValueError, match="a dict with 'image' and 'caption', this one has \\['image'\\]"):
        list(Feed([{"image": 1}], processor, 1, 0).epoch(0))
    with pytest.raises(ValueError, match="this one has a tuple"):
        list(Feed([("x.png", "a one")], processor, 1, 0).epoch(0))
    with pytest.raises(ValueError, match="3 samples make no batch of 2 on 2 ranks"):
        Feed(samples(3), processor, 2, 0, world=2)
    with pytest.raises(ValueError, match="2 transforms for 1 sets"):
        Feed(samples(3), processor, 2, 0, transforms=[PICTURE] * 2)
    with pytest.raises(ValueError, match="a rank from 0 below world"):
        Feed(samples(3), processor, 1, 0, rank=1)


@pytest.fixture
def files(tmp_path):
    """files(count, broken) → samples of picture files, of which some are cut off."""

    def made(count, broken):
        rows = []
        for i in range(count):
            path = tmp_path / f"{i}.png"
            Image.new("RGB", (8, 8), (i, 2, 3)).save(path)
            if i in broken:
                path.write_bytes(path.read_bytes()[:40])
            rows.append({"image": str(path), "caption": "a one", "image_id": i})
        return rows

    return made


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_picture_is_replaced_by_that_of_the_next_batch_and_counted(processor, files, workers):
    rows = files(9, broken=(4, 7))
    healthy = ids(Feed(samples(9), processor, 3, 1, shuffle=False).epoch(0))
    assert healthy == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    feed = Feed(rows, processor, 3, 1, shuffle=False, workers=workers, max_unreadable=0.5)
    # 4 → 7, broken too → beyond the end: one further on, 2
    assert ids(feed.epoch(0)) == [[0, 1, 2], [3, 2, 5], [6, 2, 8]]
    assert feed.skipped == 3 and feed.skipped_names == [rows[i]["image"] for i in (4, 7, 7)]
    assert ids(
        Feed(rows, processor, 3, 1, shuffle=False, workers=workers, max_unreadable=0.5).epoch(0, 1)
    ) == [[3, 2, 5], [6, 2, 8]]
    missing = [
        {**row, "image": row["image"] + ".gone"} if i == 1 else row for i, row in enumerate(files(9, ()))
    ]
    assert ids(Feed(missing, processor, 3, 1, shuffle=False, max_unreadable=0.5).epoch(0))[0] == [0, 4, 2]


def test_an_unreadable_picture_of_an_iterable_is_replaced_too(processor, files):
    rows = files(7, broken=(1, 5))
    feed = Feed((row for row in rows), processor, 2, 0, max_unreadable=0.5)
    # 5 → 7, beyond the end: a sample of the first batch stands in
    assert ids(feed.epoch(0)) == [[0, 3], [2, 3], [4, 0]]
    assert feed.skipped == 2 and feed.skipped_names == [rows[1]["image"], rows[5]["image"]]


def test_more_unreadable_pictures_than_allowed_are_an_error_that_names_them(processor, files):
    rows = files(60, broken=(5, 20))
    feed = Feed(rows, processor, 10, 1, shuffle=False, max_unreadable=0.04)
    # 2 of 62
    assert len([batch for epoch in (0, 1) for batch in feed.epoch(epoch)]) == 12 and feed.skipped == 4
    made, feed = [], Feed(files(150, broken=(5, 20)), processor, 10, 1, shuffle=False)
    with pytest.raises(
        UnreadableError,
        match=r"2 of 102 pictures .* max_unreadable = 0.01: .*5.png, .*20.png.* --run_mode check",
    ):
        made.extend(feed.epoch(0))
    assert len(made) == 9  # 90 samples say little yet


@pytest.mark.parametrize("as_list", [True, False])
def test_a11_a_small_data_set_is_looked_at_before_the_last_batch_of_an_epoch(processor, files, as_list):
    """77 of 96 were unreadable, and the checkpoint was saved."""
    rows, made = files(12, broken=range(2, 8)), []
    feed = Feed(rows if as_list else (row for row in rows), processor, 2, 1, shuffle=False)
    with pytest.raises(
        UnreadableError,
        match=r"of \d+ pictures \(\d+.\d%\) could not be read, more than max_unreadable = 0.01",
    ):
        for batch in feed.epoch(0):
            made.append(batch)
    assert len(made) < 6 or not as_list  # without a length, the end is known when it is reached
    assert len(list(Feed(rows, processor, 2, 1, shuffle=False, max_unreadable=0.9).epoch(0))) == 6
    healthy = Feed(files(12, ()), processor, 2, 1, shuffle=False)
    assert len(list(healthy.epoch(0))) == 6 and healthy.skipped == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_is_not_there_ends_at_once(processor, workers):
    rows = [{"image": f"nowhere/{i}.jpg", "caption": "a one"} for i in range(40)]
    with pytest.raises(
        UnreadableError, match=f"{TRIES} pictures one after the other .*nowhere.*--run_mode check"
    ):
        next(Feed(rows, processor, 2, 1, workers=workers).epoch(0))
    with pytest.raises(UnreadableError, match="one after the other"):
        next(Feed((row for row in rows), processor, 2, 1).epoch(0))


def test_a_prompt_of_a_samples_own_is_for_stage_2(processor):
    rows = [{**row, "prompt": "Question: what? Short answer:"} for row in samples(2)]
    with pytest.raises(ValueError, match="a sample with a prompt of its own .* is for stage 2"):
        list(Feed(rows, processor, 2, 0).epoch(0))
