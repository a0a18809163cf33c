"""What a stream of ids shows adds up to the decoded text, and nothing is taken back."""

import pytest

from mindblip2.generation.streamer import TextStream

TEXTS = [
    "a red cat on the table",
    "一只红色的猫坐在桌子上",
    "a dog, two birds !",
    "rock ' n ' roll isn't",
    "a 🐟 and 鱼 a",
    "a\nb  c",
    "word",
    "",
    "it's the dog 's ball . It is red .",
]


def shown(tokenizer, text):
    stream, parts = TextStream(tokenizer), []
    for one in tokenizer.encode(text):
        parts += stream.put([one])
    return parts + stream.end()


@pytest.mark.parametrize("text", TEXTS)
def test_parts_add_up_to_the_text(llama, opt, text):
    for tokenizer in (llama, opt):
        parts = shown(tokenizer, text)
        assert "".join(parts) == tokenizer.decode(tokenizer.encode(text))
        assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a5_an_end_token_ends_what_is_shown_and_padding_within_a_text_does_not(name, request):
    tokenizer = request.getfixturevalue(name)
    red, cat, end = (tokenizer.encode(text, add_special_tokens=False) for text in (" red", " cat", " table"))
    end = end[-1:]
    row = [*red, tokenizer.pad_token_id, *cat, *end, *red]
    stream, parts = TextStream(tokenizer, end), []
    for one in row:
        parts += stream.put([one])
    text = tokenizer.decode([*red, *cat])
    # all is shown as soon as the text has ended
    assert "".join(parts) == "".join(parts + stream.end()) == text
    other = TextStream(tokenizer)  # control: without the end token the rest is text
    assert "".join([other.put([one])[0] for one in row] + other.end()) == tokenizer.decode(row) != text


def test_words_come_one_by_one_and_chinese_at_once(llama):
    parts = [part for part in shown(llama, "a red cat on the table") if part]
    assert parts == ["a", " red", " cat", " on", " the", " table"]
    assert len([part for part in shown(llama, "一只红色的猫") if part]) > 1


def test_showing_everything_at_once_would_be_noticed(opt):
    """Negative control: what is decoded so far is not always the begin of the text, because of the joins."""
    ids = opt.encode("a dog , it")
    partial = [opt.decode(ids[:n]) for n in range(len(ids) + 1)]
    assert not all(partial[-1].startswith(one) for one in partial)


def test_rows_grow_for_themselves_and_padding_shows_nothing(llama):
    one, two = llama.encode("a cat"), llama.encode("a red cat on the table")
    stream, seen = TextStream(llama), ["", ""]
    for step in range(len(two)):
        new = stream.put([one[step] if step < len(one) else 0, two[step]])
        seen = [old + part for old, part in zip(seen, new)]
    assert [old + part for old, part in zip(seen, stream.end())] == ["a cat", "a red cat on the table"]
    with pytest.raises(ValueError, match="3 ids after steps of 2"):
        stream.put([1, 2, 3])


def test_it_takes_what_generation_gives(llama):
    import numpy as np

    from mindblip2.generation.generate import LanguageGenerationConfig, stream

    ids = [*llama.encode("a red cat", add_special_tokens=False), llama.eos_token_id]

    def step(tokens_N, position, order_N):
        return np.eye(len(llama))[[ids[position + 1]] * len(tokens_N)]

    tokens = stream(
        step,
        np.eye(len(llama))[[ids[0]]],
        LanguageGenerationConfig(num_beams=1, eos_token_id=llama.eos_token_id),
    )
    text = TextStream(llama)
    assert "".join([*(part for token_N in tokens for part in text.put(token_N)), *text.end()]) == "a red cat"
