"""Training batches: samples through their transforms, in an order that only (seed, epoch) decides, made ahead
of their use.

B batch · T text · S side of the picture
"""

import os
from hashlib import blake2b

import numpy as np

from mindblip2.data.images.color_conversion import ImageError
from mindblip2.data.prefetch import ahead, columns, from_workers, stacked
from mindblip2.data.processor import rgb
from mindblip2.data.sampler import sample_order
from mindblip2.data.text.checks import UnknownCount
from mindblip2.data.text.cleaning import BlipCaption

# texts are padded to a quarter, half, … of the full length: the same numbers, less work, few shapes to
# compile
LENGTHS = 4
TRIES = 16  # pictures tried for one place
SOON = 100  # samples after which the share of unreadable pictures is looked at
NAMED = 5  # unreadable pictures that messages name
UNREADABLE = (OSError, ImageError)
ADVICE = "; run_blip2.py --run_mode check lists all of them"
COLUMNS = ("image", "input_ids", "length", "prompt_length", "image_id", "skipped")


class UnreadableError(ValueError):
    """More pictures could not be read than a training run may lose."""


class Feed:
    """The training batches of one rank.

        for batch in feed.epoch(3, start_step=70): …    # "image" (B, 3, S, S) float32, "input_ids" (B, T),
        "image_id" (B,) int32

    An epoch is a pure function of ``seed`` and its number: (epoch, step) is the whole cursor.  A batch does
    not depend on where the epoch was entered, nor on ``workers``.  Over ``world`` ranks step s takes the
    samples from s * world * batch_size on, each rank its slice of ``batch_size``; what is left at the end of
    an epoch is dropped.  "image_id" is there if the samples have one.

    ``samples``: indexable with a length (``MultiImgCapDataLoader``, a list), or only iterable, of dicts
    ``{"image", "caption", "image_id"?}`` with one caption each, in stage 2 perhaps with a "prompt" of its
    own, whose answer the caption is.  Iterables are read in their own order; one with ``epoch(e)`` or
    ``set_epoch(e)`` is asked for each epoch.

    ``processor``: a ``Blip2Processor``; its image transform is used unless ``transforms`` has one callable
    (picture, generator) → array for each of ``samples.sizes`` (see ``recipe``).  ``ratios``: see ``order``.
    ``prompt`` goes before the cleaned caption.  ``text``: for stage 2, the
    :class:`~mindblip2.data.text.prompting.PromptedText` that makes the ids instead of the processor's
    tokenizer; batches then hold "length" and "prompt_length" (B,) too.  ``workers``: processes that make
    samples (threads if not ``processes``); 0 makes them in one thread of this process, as it is done for
    iterables.

    A picture that cannot be read is replaced by the sample at its place of the next batch (not by a
    neighbour: a batch shall not hold the same picture twice), and counted: ``skipped``, and the first
    ``skipped_names``.  UnreadableError is raised for more than ``max_unreadable`` of the samples: looked at
    from 100 samples on, and before the last batch of every epoch."""

    def __init__(
        self,
        samples,
        processor,
        batch_size,
        seed,
        *,
        transforms=(),
        ratios=(),
        shuffle=True,
        prompt="",
        max_words=50,
        max_length=None,
        text=None,
        rank=0,
        world=1,
        workers=0,
        processes=True,
        max_unreadable=0.01,
    ):
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(
                f"batch_size = {batch_size}, rank = {rank}, world = {world}: expected at least one pair per "
                "batch, and "
                "a rank from 0 below world"
            )
        self.samples, self.processor, self.batch_size, self.seed = samples, processor, batch_size, seed
        self.transforms, self.ratios, self.shuffle = tuple(transforms), tuple(ratios), shuffle
        self.clean, self.max_length, self.text = BlipCaption(prompt, max_words), max_length, text
        self.rank, self.chunk = rank, world * batch_size
        self.workers, self.processes, self.max_unreadable = (
            min(workers, os.cpu_count() or 1),
            processes,
            max_unreadable,
        )
        self.indexable = (
            hasattr(samples, "__getitem__") and hasattr(samples, "__len__") and not hasattr(samples, "epoch")
        )
        self.sizes = tuple(getattr(samples, "sizes", None) or (len(samples),)) if self.indexable else ()
        self.seen, self.skipped, self.skipped_names = 0, 0, []
        self.unknown = UnknownCount(processor.tokenizer if text is None else text.tokenizer, rank == 0)
        if hasattr(samples, "__len__") and len(samples) < self.chunk:
            raise ValueError(
                f"{len(samples)} samples make no batch of {batch_size} on {world} ranks: lower "
                "runner_config.batch_size"
            )
        if len(self.transforms) > 1 and len(self.transforms) != len(self.sizes):
            raise ValueError(
                f"{len(self.transforms)} transforms for {len(self.sizes)} sets: expected one for each, or "
                "one for all"
            )

    def __len__(self):
        """Steps of an epoch.  Raises ValueError where the samples do not say how many they are."""
        if not hasattr(self.samples, "__len__"):
            raise ValueError(
                f"the training samples are a {type(self.samples).__name__} without a length, which decides "
                "the learning rate "
                "and the end: pass a list, or give the object __len__"
            )
        return len(self.samples) // self.chunk

    def epoch(self, epoch, start_step=0):
        """The batches of an epoch from ``start_step`` on.  Closing or dropping the iterator ends what works
        for it."""
        made = (
            self._from_list(epoch, start_step)
            if self.indexable
            else ahead(self._from_stream(epoch, start_step))
        )
        for step, batch in enumerate(made, start_step + 1):
            self._count(batch["skipped"], is_last=hasattr(self.samples, "__len__") and step == len(self))
            self.unknown.add(batch["input_ids"], batch["length"])
            yield self._trimmed(batch)
        self.unknown.end()
        self._check_unreadable()  # samples without a length: now the end is known

    # ------------------------------------------------------------------------------------------------ samples
    def _from_list(self, epoch, start_step):
        places = _Places(self, epoch, start_step)
        if not len(places):
            return
        make = (places, self.batch_size, COLUMNS)
        made = (
            from_workers(*make, self.workers, self.processes, (UnreadableError,))
            if self.workers
            else ahead(stacked(*make))
        )
        for batch in made:
            tried = batch.pop("skipped")
            yield {
                **batch,
                "skipped": [_name(self.samples[int(index)], index) for index in tried[tried >= 0]],
            }

    def sample(self, index, epoch, place):
        """The arrays of COLUMNS but the last for sample ``index`` at ``place`` of ``epoch``.  Raises OSError,
        ImageError."""
        number = (
            int(np.searchsorted(np.cumsum(self.sizes), index, "right")) if len(self.transforms) > 1 else 0
        )
        return self.arrays(self.samples[int(index)], number, epoch, place)

    def arrays(self, sample, number, epoch, place):
        """The same of a sample in hand, which comes from set ``number``."""
        if not isinstance(sample, dict) or not {"image", "caption"} <= set(sample):
            got = sorted(sample) if isinstance(sample, dict) else f"a {type(sample).__name__}"
            raise ValueError(f"a training sample is a dict with 'image' and 'caption', this one has {got}")
        if self.transforms:
            rng = np.random.default_rng([self.seed, epoch, place])
            image = self.transforms[number if len(self.transforms) > 1 else 0](
                self._rgb(sample["image"]), rng
            )
        else:
            image = self.processor.image_processor([sample["image"]], return_tensors="np")[0]
        caption = sample["caption"]
        # one of them, the same whenever this place is made again
        if isinstance(caption, (list, tuple)) and caption:
            caption = caption[np.random.default_rng([self.seed, epoch, place, 1]).integers(len(caption))]
        return (
            image,
            *self._ids(self.clean(caption), sample.get("prompt")),
            _checked_id(sample.get("image_id", -1)),
        )

    def _rgb(self, picture):
        return rgb(picture, "the picture", getattr(self.processor.image_processor, "alpha", "drop"))

    def _ids(self, caption, prompt):
        if self.text is not None:
            made = self.text(caption, prompt)
            return tuple(made[name] for name in COLUMNS[1:4])
        if prompt is not None:
            raise ValueError(
                f"a sample with a prompt of its own ({prompt[:60]!r}) is for stage 2: the Q-Former reads "
                "captions only"
            )
        text = self.processor.tokenizer(
            [caption], max_length=self.max_length, padding="max_length", return_tensors="np"
        )
        return text["input_ids"][0], np.int32(text["attention_mask"].sum()), np.int32(0)

    # ------------------------------------------------------------------------------------------------ samples
    def _from_stream(self, epoch, start_step):
        window = _Window(_stream(self.samples, epoch), self.chunk)
        for step in range(start_step):
            window.reaches((step + 1) * self.chunk)
            window.forget((step + 1) * self.chunk)
        step = start_step
        while window.reaches((step + 1) * self.chunk):
            first, skipped = step * self.chunk + self.rank * self.batch_size, []
            rows = [
                self._readable(window, epoch, place, skipped)
                for place in range(first, first + self.batch_size)
            ]
            yield {**columns(rows, COLUMNS), "skipped": skipped}
            step += 1
            window.forget(step * self.chunk)
        if step < (len(self) if hasattr(self.samples, "__len__") else 1):
            raise ValueError(
                f"the samples end after step {step} of epoch {epoch} ({window.count} samples, {self.chunk} "
                "per step).  "
                "A generator can be read once: pass a list, or an object with epoch(e); and __len__ must be "
                "right"
            )

    def _readable(self, window, epoch, place, skipped):
        tried = []
        for turn in range(TRIES):
            sample = window.at(place + turn * self.chunk)
            try:
                return self.arrays(sample, 0, epoch, place)
            except UNREADABLE:
                tried.append(_name(sample, place + turn * self.chunk))
                skipped.append(tried[-1])
        raise UnreadableError(_in_a_row(tried))

    # ------------------------------------------------------------------------------------------------ batches
    def _count(self, skipped, is_last):
        self.seen += self.batch_size
        self.skipped += len(skipped)
        self.skipped_names += skipped[: max(NAMED - len(self.skipped_names), 0)]
        if self.seen >= SOON or is_last:
            self._check_unreadable()

    def _check_unreadable(self):
        share = self.skipped / max(self.seen + self.skipped, 1)
        if share > self.max_unreadable:
            raise UnreadableError(
                f"{self.skipped} of {self.seen + self.skipped} pictures ({share:.1%}) could not be read, "
                "more "
                f"than max_unreadable = {self.max_unreadable:g}: {_some(self.skipped_names)}{ADVICE}"
            )

    def _trimmed(self, made):
        full = made["input_ids"].shape[1]
        quarter = -(-full // LENGTHS)
        longest = -(-int(made["length"].max()) // quarter) * quarter
        batch = {"image": made["image"], "input_ids": np.ascontiguousarray(made["input_ids"][:, :longest])}
        if self.text is not None:
            batch |= {name: made[name] for name in ("length", "prompt_length")}
        if made["image_id"].min() >= 0:
            batch["image_id"] = made["image_id"]
        return batch


class _Places:
    """This rank's samples of an epoch, in order: indexable, as GeneratorDataset wants it.  Row: the arrays of
    COLUMNS, the last being the indices of the samples tried in vain, -1 where there are no more."""

    def __init__(self, feed, epoch, start_step):
        self.feed, self.epoch, self.start_step = feed, epoch, start_step
        self.indices = sample_order(feed.sizes, feed.seed, epoch, feed.chunk, feed.ratios, feed.shuffle)
        if not 0 <= start_step <= len(feed):
            raise ValueError(
                f"start_step = {start_step}: an epoch has {len(feed)} steps; was the cursor saved with "
                "another batch "
                "size?"
            )

    def __len__(self):
        return (len(self.feed) - self.start_step) * self.feed.batch_size

    def __getitem__(self, number):
        step, row = divmod(int(number), self.feed.batch_size)
        place = (self.start_step + step) * self.feed.chunk + self.feed.rank * self.feed.batch_size + row
        tried = np.full(TRIES, -1)
        for turn in range(TRIES):
            # the same place, turn batches later; beyond the end, one further on
            there = place + turn * self.feed.chunk
            index = self.indices[(there + there // len(self.indices)) % len(self.indices)]
            try:
                return *self.feed.sample(index, self.epoch, place), tried
            except UNREADABLE:
                tried[turn] = index
        raise UnreadableError(_in_a_row([_name(self.feed.samples[int(index)], index) for index in tried]))


class _Window:
    """An iterable by place, forwards.  The first ``keep`` samples are kept: they stand in where the end has
    been reached."""

    def __init__(self, samples, keep):
        self.samples, self.keep, self.rows, self.count = iter(samples), keep, {}, 0

    def reaches(self, count):
        """Whether there are as many samples; reads so far."""
        while self.count < count:
            try:
                self.rows[self.count] = next(self.samples)
            except StopIteration:
                return False
            self.count += 1
        return True

    def at(self, place):
        return self.rows[place if self.reaches(place + 1) else (place + place // self.keep) % self.keep]

    def forget(self, below):
        for place in [place for place in self.rows if self.keep <= place < below]:
            del self.rows[place]


def _stream(samples, epoch):
    """The samples of an epoch of something that can only be iterated."""
    if hasattr(samples, "epoch"):
        return samples.epoch(epoch)
    if hasattr(samples, "set_epoch"):
        samples.set_epoch(epoch)
    return samples


def _checked_id(image_id):
    """The image_id as int32.  A text, as in annotation files, becomes 31 bits of its BLAKE2 hash: the same in
    every process, and two of the pictures in a batch of 1,000 get the same number once in 4,000 batches."""
    if isinstance(image_id, str):
        image_id = (
            int.from_bytes(blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big")
            >> 1
        )
    if not isinstance(image_id, (int, np.integer)) or not -1 <= image_id < 2**31:
        raise ValueError(
            f"image_id = {image_id!r}: expected a text, or a whole number from 0 to 2**31 - 1, the same for "
            "the same "
            "picture"
        )
    return np.int32(image_id)


def _name(sample, index):
    image = sample["image"]
    return str(image) if isinstance(image, (str, os.PathLike)) else f"sample {index}"


def _some(names):
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def _in_a_row(names):
    return f"{len(names)} pictures one after the other could not be read: {_some(names)}{ADVICE}"
