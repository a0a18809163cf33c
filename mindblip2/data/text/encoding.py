"""What every tokenizer does around its vocabulary: texts in, rows of ids cut and padded, arrays out; and
decoded text mended."""

import numpy as np

from mindblip2.data.text.cleaning import text_of

# Undoing the splits at punctuation, in the order of transformers' clean_up_tokenization, which made LAVIS's
# captions.
JOINS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
SIDES = ("left", "right")


def joined(text):
    for split, together in JOINS:
        text = text.replace(split, together)
    return text


def texts_of(text):
    """A list of strings from a string, a list or an array; raises TypeError or ValueError."""
    if isinstance(text, np.ndarray):
        text = text.tolist()
    texts = list(text) if isinstance(text, (list, tuple)) else [text]
    if not texts:
        raise ValueError("no text: the list is empty; pass a string or a list of strings")
    # Lone halves of UTF-16 pairs occur in scraped JSON; BERT's cleaning drops them, the libraries cannot take
    # them.
    return [text_of(one).encode("utf-8", "ignore").decode("utf-8") for one in texts]


def encoding(rows, single, padding, length, pad_id, side="right", return_tensors=None):
    """``{"input_ids", "attention_mask"}`` of rows of ids; lists, of one row if ``single``, or arrays (B,
    T)."""
    width = _width(rows, padding, length)
    if side not in SIDES:
        raise ValueError(f"padding_side = {side!r}: expected 'left' or 'right'")
    both = {
        "input_ids": [_padded(row, width, pad_id, side) for row in rows],
        "attention_mask": [_padded([1] * len(row), width, 0, side) for row in rows],
    }
    if return_tensors is not None:
        return {key: _tensor(rows, return_tensors) for key, rows in both.items()}
    return {key: rows[0] for key, rows in both.items()} if single else both


def checked_length(length, least, what):
    if not isinstance(length, (int, np.integer)) or length < least:
        raise ValueError(f"max_length = {length!r}: expected a whole number of at least {least}, for {what}")
    return int(length)


def listed(ids):
    """Lists from a list, an array or a Tensor."""
    ids = ids.asnumpy() if hasattr(ids, "asnumpy") else ids
    return ids.tolist() if isinstance(ids, np.ndarray) else list(ids)


def _padded(row, width, fill, side):
    rest = [fill] * (width - len(row))
    return row + rest if side == "right" else rest + row


def _width(rows, padding, length):
    if padding == "max_length":
        return length
    if padding in (True, "longest"):
        return max(map(len, rows))
    if padding in (False, None, "do_not_pad"):
        return 0
    raise ValueError(f"padding = {padding!r}: expected 'max_length', 'longest', True or False")


def _tensor(rows, kind):
    if kind not in ("np", "ms"):
        raise ValueError(f"return_tensors = {kind!r}: expected None, 'np' or 'ms'")
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ValueError(
            f"rows of {min(lengths)} to {max(lengths)} tokens make no array; use padding='longest', or "
            "truncation=True with padding='max_length'"
        )
    array = np.array(rows, np.int32)
    if kind == "np":
        return array
    from mindspore import Tensor  # here, because importing MindSpore takes seconds

    return Tensor(array)
