"""Samples to batches: pictures through the processor, captions cleaned and tokenized, made ahead in a thread.

B batch · T text
"""
import queue
import threading

import numpy as np

from mindblip2.data.captions import BlipCaption

LENGTHS = 4  # texts of a batch are padded to a quarter, half, … of the full length: the same numbers, less work, few shapes to compile


def batches(samples, processor, batch_size, prompt="", max_words=50):
    """Dicts ``{"image", "caption", "image_id"?}`` → dicts of arrays: image (B, 3, S, S) float32, input_ids (B, T) int32, and
    image_id (B,) int32 where the samples have one.  A last batch that is not full is dropped: its losses would weigh more."""
    clean = BlipCaption(prompt, max_words)
    rows = []
    for sample in samples:
        rows.append(_checked(sample))
        if len(rows) == batch_size:
            yield _batch(rows, processor, clean)
            rows = []


def ahead(iterator, depth=4):
    """The same items, made in a thread up to ``depth`` ahead of their use; its exceptions are raised here."""
    items, stop = queue.Queue(depth), threading.Event()

    def make():
        try:
            for item in iterator:
                if stop.is_set():
                    return
                items.put((item, None))
            items.put((None, None))
        except BaseException as error:  # noqa: BLE001  handed on to the consumer
            items.put((None, error))

    threading.Thread(target=make, daemon=True).start()
    try:
        while True:
            item, error = items.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        while not items.empty():
            items.get_nowait()


def _checked(sample):
    missing = [key for key in ("image", "caption") if key not in sample]
    if missing:
        raise ValueError(f"a training sample needs 'image' and 'caption', this one has {sorted(sample)}")
    return sample


def _batch(rows, processor, clean):
    batch = processor([row["image"] for row in rows], [clean(row["caption"]) for row in rows], return_tensors="np")
    longest = int(batch["attention_mask"].sum(1).max())
    quarter = -(-batch["input_ids"].shape[1] // LENGTHS)
    made = {"image": batch["image"], "input_ids": batch["input_ids"][:, :-(-longest // quarter) * quarter]}
    if "image_id" in rows[0]:
        made["image_id"] = np.array([row["image_id"] for row in rows], np.int32)
    return made
