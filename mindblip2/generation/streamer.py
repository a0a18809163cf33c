"""Text as it grows: from the ids of one step after the other to what can be shown already."""


class TextStream:
    """New text of each row of ids, as soon as later ids cannot change it.

    A word is shown when the next begins, since its end may still come, and so may the joins at punctuation;
    signs without spaces between them, as in Chinese, at once; halves of a sign never.

    ``tokenizer``: anything with ``decode(ids, skip_special_tokens)``.  ``ends``: the ids that end a text;
    neither they nor what a row gets after one of them is text."""

    def __init__(self, tokenizer, ends=()):
        self.tokenizer, self.ends, self.rows = tokenizer, frozenset(ends), []

    def put(self, token_N):
        """The ids of one step, one per row, to the new text of each row: a list of strings, empty where
        nothing is new."""
        token_N = [int(one) for one in token_N]
        self.rows = self.rows or [_Row() for _ in token_N]
        if len(token_N) != len(self.rows):
            raise ValueError(f"{len(token_N)} ids after steps of {len(self.rows)}: expected one for each row")
        return [row.put(one, self.tokenizer, self.ends) for row, one in zip(self.rows, token_N)]

    def end(self):
        """What was still held back, for each row."""
        return [row.rest(self.tokenizer) for row in self.rows]


class _Row:
    def __init__(self):
        self.ids, self.shown, self.ended = [], "", False

    def put(self, one, tokenizer, ends):
        if self.ended or one in ends:
            self.ended = True
            return self.rest(tokenizer)
        self.ids.append(one)
        text = tokenizer.decode(self.ids, True)
        text = text[: _settled(text)]
        return self._show(text) if text.startswith(self.shown) and len(text) > len(self.shown) else ""

    def rest(self, tokenizer):
        return self._show(tokenizer.decode(self.ids, True))

    def _show(self, text):
        new, self.shown = text[len(self.shown) :], text
        return new


def _settled(text):
    """How many signs at the begin of a text will stay."""
    if text.endswith("\ufffd"):
        return _settled(text.rstrip("\ufffd"))
    if text and _alone(text[-1]):
        return len(text)
    words = text.split(" ")
    # " ' " joins both its neighbours
    held = words[-1:] if len(words) < 2 or words[-2] != "'" else words[-2:]
    while len(held) < len(words) and words[-len(held) - 1] == "":
        held = words[-len(held) - 1 :]
    return max(len(text) - len(" ".join(held)) - 1, 0)


def _alone(sign):
    """Chinese, Japanese and full-width signs stand without spaces."""
    return (
        "\u2e80" <= sign <= "\u9fff"
        or "\uf900" <= sign <= "\ufaff"
        or "\uff00" <= sign <= "\uffef"
        or sign == "\n"
    )
