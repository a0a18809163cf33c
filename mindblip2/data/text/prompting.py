"""Texts of stage 2: what the language model reads behind the queries, in training and when it is asked.

    bos? prompt caption end        training: caption and end are learnt
    bos? prompt                    asked: the model goes on

T text
"""

import numpy as np

# transformers' placeholder of a query, of which its prompts begin with one for each
IMAGE_TOKEN = "<image>"


class PromptedText:
    """Captions and prompts to ids as the model of ``config`` (a ``Blip2Config``) reads them.

    The end token is ``text_config.eos_token_id``, of several the first, which for OPT is a line end, as in
    LAVIS; bos is there if ``begins_with_bos`` says so, whatever the tokenizer puts in front by itself.
    ``max_length`` in tokens, all included: a longer caption loses its end, and with it the end token, since
    it does not end there.

    Raises ValueError for a tokenizer of another model, a special id outside the vocabulary, and a prompt that
    leaves no room for a caption."""

    def __init__(self, tokenizer, config, prompt="", max_length=32):
        text = config.text_config
        check_language_vocabulary(config, tokenizer)
        self.tokenizer, self.prompt, self.max_length = tokenizer, prompt, max_length
        self.config = config
        self.end, self.pad = text.end_token_ids[0], text.pad_token_id
        for name, ids in (
            ("bos_token_id", [text.bos_token_id]),
            ("eos_token_id", text.end_token_ids),
            ("pad_token_id", [self.pad]),
        ):
            if not all(0 <= one < text.vocab_size for one in ids):
                raise ValueError(
                    f"text_config.{name} = {getattr(text, name)} lies outside the vocabulary of "
                    f"{text.vocab_size}: give the "
                    "language model's"
                )
        self._check_room(prompt)

    def ids(self, text):
        """The ids of a prompt, as a list."""
        return prompt_ids(self.config, self.tokenizer, text)

    def __call__(self, caption, prompt=None):
        """``{"input_ids": (T,) int32, padded on the right, "length", "prompt_length"}`` of a cleaned caption.

        ``prompt``: this caption's own, a question whose answer it is; a space comes between.  The prompt ends
        where the ids of prompt and caption together stop being those of the prompt: a tokenizer may join the
        prompt's last letters with the caption's first."""
        if prompt is None:
            prompt = self.prompt
        else:
            self._check_room(prompt)
            caption = f" {caption}"
        ids = (self.ids(prompt + caption) + [self.end])[: self.max_length]
        same = 0
        if prompt:
            alone = self.ids(prompt)
            same = next((i for i, (one, other) in enumerate(zip(ids, alone)) if one != other), len(alone))
        row = np.array(ids + [self.pad] * (self.max_length - len(ids)), np.int32)
        return {"input_ids": row, "length": np.int32(len(ids)), "prompt_length": np.int32(same)}

    def _check_room(self, prompt):
        taken = len(self.ids(prompt))
        if taken >= self.max_length:
            raise ValueError(
                f"the prompt {prompt!r} takes {taken} of text_transforms.max_length = {self.max_length} "
                "tokens and leaves no "
                "room for a caption: shorten it, or raise max_length (and processor.tokenizer.max_length)"
            )


def without_image_tokens(text):
    """A text without the placeholders of image tokens: the queries stand before every text here, without
    being named in it."""
    return text.replace(IMAGE_TOKEN, "")


def prompt_ids(config, tokenizer, prompt):
    """What follows the queries of the model of ``config``: bos, where the model has one there, and the ids of
    a prompt; a list."""
    return [config.text_config.bos_token_id] * config.begins_with_bos + plain_ids(tokenizer, prompt)


def plain_ids(tokenizer, text):
    """The ids of a text without special tokens and without the placeholders of image tokens."""
    text = without_image_tokens(text)
    if hasattr(tokenizer, "encode"):
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer(text, padding=False, truncation=False)["input_ids"][1:-1]  # BERT's puts two around


def check_language_vocabulary(config, tokenizer):
    """Raises ValueError where the tokenizer's ids are not the language model's words."""
    size = config.text_config.vocab_size
    if hasattr(tokenizer, "check_vocabulary"):
        tokenizer.check_vocabulary(size)
    elif len(tokenizer) != size:
        raise ValueError(
            f"the tokenizer {tokenizer!r} knows {len(tokenizer)} tokens, the language model {size}: set "
            "processor.tokenizer "
            "to the language model's own (type and vocab_file)"
        )
