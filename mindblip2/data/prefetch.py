"""Making the rows of batches ahead of their use: in a thread, or in MindSpore's worker processes."""

import queue
import re
import threading

import numpy as np


def stacked(rows, batch_size, names):
    """An indexable of rows (tuples of arrays) → dicts of columns (``batch_size``, …); last rows that fill
    none are dropped."""
    for start in range(0, len(rows) - batch_size + 1, batch_size):
        yield columns([rows[i] for i in range(start, start + batch_size)], names)


def columns(rows, names):
    """Rows (tuples of arrays) → one array per name."""
    return {name: np.stack(column) for name, column in zip(names, zip(*rows))}


def from_workers(rows, batch_size, names, workers, processes, errors=()):
    """The same as :func:`stacked`, made by processes or threads of MindSpore.  An exception in a worker is
    raised here as one of ``errors``, if its name is among theirs, else as ValueError.

    A data set is made for each call, because its sampler has no cursor; that takes 0.15 s.  Its processes end
    when this generator is closed, and within seconds if this process is killed; if one of them is killed,
    MindSpore ends this process."""
    from mindspore import dataset  # here, because importing MindSpore takes seconds

    made = dataset.GeneratorDataset(
        rows, list(names), shuffle=False, num_parallel_workers=workers, python_multiprocessing=processes
    ).batch(batch_size, drop_remainder=True)
    try:
        yield from made.create_dict_iterator(num_epochs=1, output_numpy=True)
    except RuntimeError as error:
        raise _cause(error, errors) from error


def _cause(error, errors):
    """The error of a worker: MindSpore hands it on as text, in the middle of its own."""
    lines = re.findall(
        r"^([\w.]*(?:Error|Exception)): (.*)$",
        str(error).partition("- Dataset Pipeline Error")[0],
        re.MULTILINE,
    )
    kind, words = lines[-1] if lines else ("", str(error))
    return next((one for one in errors if one.__name__ == kind.rpartition(".")[2]), ValueError)(words)


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

    # a name that mindblip2.lock knows
    threading.Thread(target=make, name="mindblip2-data", daemon=True).start()
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
