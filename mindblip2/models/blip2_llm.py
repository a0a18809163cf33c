"""Stage 2 (paper section 3.3): what the queries have seen is projected, and is the beginning of a frozen
language model's text.

B batch · P image tokens · Q queries · T text · L = Q + T · W image width
D width of the language model · V vocab · N rows = batch × beams or captions
"""

import operator

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindblip2.checkpoint.pretrained import Pretrained
from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig
from mindblip2.data.text.prompting import check_language_vocabulary, prompt_ids
from mindblip2.generation.generate import LanguageGenerationConfig, complete
from mindblip2.lock import unlocked
from mindblip2.models import inputs, losses, rng
from mindblip2.models.layers import LayerNorm, Linear
from mindblip2.models.llama import Llama
from mindblip2.models.opt import OPT
from mindblip2.models.qformer import QFormer
from mindblip2.models.vit import ViT

LANGUAGE_MODELS = {LlamaConfig: Llama, OPTConfig: OPT}
PROMPT_STEP, SLOT_STEP = 8, 32  # prompts and buffers grow in steps, so that few shapes are compiled


class Blip2Llm(Pretrained):
    """BLIP-2 stage 2, to be trained: called with pictures and their texts it returns the loss of the language
    model.

    The frozen parts keep nothing for their own gradients: those of the language model only pass through it to
    the queries, and a frozen ViT runs outside of the graph (``trainer.step``).  Raises ValueError for a
    configuration without ``text_config``."""

    presets, task = ("blip2_stage2_*",), "image_to_text_generation"
    new_parts = ("llm_proj.*",)  # a training that starts from stage 1 begins with these …
    begins_training = True
    unused_parts = (
        "vision_proj.*",
        "text_proj.*",
        "itm_head.*",
        "temp",
        "qformer.embeddings.*",
        "qformer.lm_head.*",
        "qformer.encoder.layers.*.text_*",
    )  # … and leaves these out

    def __init__(self, config=None):
        super().__init__(config or Blip2Config(text_config={}))
        vision, qformer, text, dtype = (
            self.config.vision_config,
            self.config.qformer_config,
            self.config.text_config,
            self.config.compute_dtype,
        )
        if text is None:
            raise ValueError(
                f"{type(self).__name__} needs model_config.text_config, the language model: take a preset of "
                "stage 2, or "
                "give a section of type LlamaConfig or OPTConfig"
            )
        with self.building():
            self.vit = ViT(vision, dtype)
            self.ln_vision = LayerNorm(vision.hidden_size, self.config.ln_vision_eps)
            self.qformer = QFormer(qformer, dtype, text=False)
            self.llm_proj = Linear(qformer.hidden_size, text.hidden_size, dtype)
            self.llm = LANGUAGE_MODELS[type(text)](
                text, dtype, dtype if self.config.freeze_text else "float32"
            )
        self.queries, self.most = qformer.query_length, text.positions
        self.noise = rng.bind(self)
        self._words = self.noise.given
        if self.config.freeze_vision:
            self.freeze("vit.*")
        if self.config.freeze_text:
            self.freeze("llm.*")
        self.freeze(*self.config.frozen)
        self.load_named()

    def __call__(self, image, input_ids, *rest, **named):
        """``construct`` of Tensors, or of arrays of NumPy or torch."""
        if inputs.texts(input_ids):
            raise ValueError(
                "input_ids is text: expected token ids (B, T) int32, prompt first and the end token last, "
                "padded on the right"
            )
        return super().__call__(
            inputs.pictures(self, image),
            inputs.token_ids(self, input_ids),
            *map(inputs.tensor, rest),
            **{name: inputs.tensor(value) for name, value in named.items()},
        )

    def construct(self, image, input_ids, prompt_length=None, length=None):
        """The mean loss of the tokens that follow the prompt.

        image (B, 3, S, S) float32, normalised · input_ids (B, T) int32: what the language model reads after
        the queries, prompt first, padded on the right · prompt_length, length (B,) int32: tokens of the
        prompt, which are not learnt, and of the whole. Without ``length`` all that is not ``pad_token_id``
        counts; without ``prompt_length`` the configuration's, if it has a prompt."""
        _check_batch(image, input_ids, self.queries, self.most)
        return self.stage2(self.vit(image), input_ids, prompt_length, length)[0]

    def stage2(self, vit_BPW, input_ids, prompt_length=None, length=None):
        """(loss, share of tokens that the language model would have chosen) from the ViT's output (B, P,
        W)."""
        read_BT, learnt_BT = self._masks(input_ids, prompt_length, length)
        hidden_BLD = self.read(self.see(vit_BPW), input_ids, read_BT)
        # the last query predicts the first token
        logits_BTV = self.llm.head(hidden_BLD[:, self.queries - 1 : -1])
        if self.training and self._words[0] is not None:
            rng.advance(self._words[0])
        of_words = (logits_BTV, input_ids, learnt_BT)
        return losses.next_token_loss(*of_words, vocab=self.llm.vocab), losses.token_accuracy(
            *of_words, vocab=self.llm.vocab
        )

    def see(self, vit_BPW):
        """The ViT's output → what the language model reads of the pictures (B, Q, D)."""
        vit_BPW = ops.stop_gradient(vit_BPW) if self.config.freeze_vision else vit_BPW
        query_BQD, _ = self.qformer.see(self.qformer.memory(self.ln_vision(vit_BPW)))
        return self.llm_proj(query_BQD)

    def read(self, query_BQD, input_ids, read_BT):
        """Queries first, then the text, of which the mask says what is no padding → hidden states (B, L,
        D)."""
        seen_BQ = ops.ones(query_BQD.shape[:2], ms.float32)
        text_BTD = self.llm.embed(input_ids)
        return self.llm(
            ops.cat((query_BQD.astype(text_BTD.dtype), text_BTD), 1), ops.cat((seen_BQ, read_BT), 1)
        )

    def _masks(self, input_ids, prompt_length, length):
        """What is read, and what of it is learnt: (B, T) float32 each."""
        place_1T = ops.arange(input_ids.shape[1])[None]
        read_BT = (
            input_ids != self.config.text_config.pad_token_id
            if length is None
            else place_1T < length[:, None]
        )
        given = self.config.prompt_length if self.config.prompt else 0
        after_BT = place_1T >= (given if prompt_length is None else prompt_length[:, None])
        return read_BT.astype(ms.float32), ops.logical_and(read_BT, after_BT).astype(ms.float32)


class Blip2ImageToTextGeneration(Blip2Llm):
    """The same model, to be asked: ``generate`` writes after a picture and a prompt."""

    presets, begins_training = ("itt_*",), False

    def __init__(self, config=None):
        super().__init__(config)
        self._see = (_See(self),)  # in a tuple: it is no child

    def generate(self, image, prompt_ids=None, on_token=None, **decoding):
        """What the language model writes: ids (B × captions, at most max_new_tokens) int32 without the
        prompt, with the end token.

        image (B, 3, S, S), or one picture for all prompts · prompt_ids: what follows the queries, one row of
        ids for all pictures or one for each, as lists of any length or as an array padded on either side;
        None: bos, where texts of this model begin with it. Arrays may be MindSpore's, NumPy's or torch's.
        Where the configuration was read from a preset or file, image may also be what its processor takes,
        and prompt_ids a text or a list of texts.  A dict ``{"image", "prompt"}`` (LAVIS's samples) or of
        ``Blip2Processor`` may stand for both. ``on_token``: called with the (N,) ids of every step as they
        come, not with beams.  Keywords are the fields of
        :class:`mindblip2.generation.generation_config.LanguageGenerationConfig` and its aliases; all lengths count
        new tokens only.

        Raises TypeError for an unknown keyword; ValueError for values out of range, ids outside the
        vocabulary, and a prompt that leaves no room."""
        generation_config = self.decoding(decoding)
        image, prompt_ids = self._asked(image, prompt_ids)
        rows = self._prompts(prompt_ids, image.shape[0])
        room = self.room(max(map(len, rows)), generation_config.max_new_tokens)
        x_BLD, mask_BL = self._prompted(self.queries_of(image), rows)
        logits_BV, state = self.llm.prefill(
            x_BLD, mask_BL, _up(x_BLD.shape[1] + room, SLOT_STEP) - x_BLD.shape[1]
        )
        return complete(
            _Step(self.llm, state),
            logits_BV.asnumpy(),
            generation_config,
            self._counted(rows, generation_config),
            unlocked(on_token),
        )

    def generate_text_for_image(self, image, prompt_ids=None, **decoding):
        """MindFormers' name of ``generate``, with the prompts before the new ids: (B × captions, T + new)
        int32."""
        image, prompt_ids = self._asked(image, prompt_ids)
        ids_NT = self.generate(image, prompt_ids, **decoding)
        rows = self._prompts(prompt_ids, image.shape[0])
        prompt_BT = _padded(rows, self.config.text_config.pad_token_id, left=True)
        return np.concatenate([np.repeat(prompt_BT, len(ids_NT) // len(rows), 0), ids_NT], 1)

    def decoding(self, keywords):
        """How to generate: ``keywords`` over what ``text_config`` says, over LAVIS's defaults."""
        text = self.config.text_config
        said = {
            "repetition_penalty": text.repetition_penalty,
            "eos_token_id": text.eos_token_id,
            "pad_token_id": text.pad_token_id,
        }
        if text.do_sample:  # only then: MindFormers' files hold top_k 1 everywhere
            said |= {
                "do_sample": True,
                "top_k": text.top_k,
                "top_p": text.top_p,
                "temperature": text.temperature,
            }
        return LanguageGenerationConfig.of(keywords, **said)

    def queries_of(self, image):
        """What the language model reads of pictures (B, 3, S, S): (B, Q, D).  Called from outside of a
        graph."""
        return self._see[0](self.vit.by_blocks(image))

    def _asked(self, image, prompt):
        """(image (B, 3, S, S), prompts as ids) from what a user may give for them."""
        if isinstance(image, dict):
            found = inputs.unpacked(
                image,
                {
                    "image": "image",
                    "prompt": "prompt",
                    "prompt_ids": "prompt",
                    "input_ids": "prompt",
                    "attention_mask": "mask",
                },
            )
            if prompt is not None and "prompt" in found:
                raise ValueError("a prompt is in samples and another is an argument: give one of them")
            image, prompt = found["image"], found.get("prompt", prompt)
            if "mask" in found and not inputs.texts(prompt):
                mask, ids = (_numpy(one) for one in (found["mask"], prompt))
                prompt = [row[own != 0].tolist() for row, own in zip(np.atleast_2d(ids), np.atleast_2d(mask))]
        if inputs.texts(prompt):
            tokenizer = inputs.processor(self, "texts").tokenizer
            check_language_vocabulary(self.config, tokenizer)
            prompt = [
                prompt_ids(self.config, tokenizer, one)
                for one in ([prompt] if isinstance(prompt, str) else prompt)
            ]
        return inputs.pictures(self, image), prompt

    def _prompts(self, prompt_ids, batch):
        """One list of ids per picture, or per prompt where there is one picture."""
        text = self.config.text_config
        if prompt_ids is None:
            prompt_ids = [text.bos_token_id] if self.config.begins_with_bos else []
        rows = [
            [one for one in row if one != text.image_token_id]
            for row in _listed(prompt_ids, text.pad_token_id)
        ]
        rows = rows * batch if len(rows) == 1 else rows
        if batch not in (1, len(rows)):
            raise ValueError(
                f"{batch} pictures and {len(rows)} prompts: give one prompt for all pictures, one for each, "
                "or one picture "
                "for all prompts"
            )
        wrong = [one for row in rows for one in row if not 0 <= one < text.vocab_size]
        if wrong:
            raise ValueError(
                f"prompt id {wrong[0]} lies outside the language model's vocabulary of {text.vocab_size}: "
                "was the prompt "
                "made with the tokenizer of another model?"
            )
        return rows

    def room(self, prompt, new):
        """``new``, if there is room for so many tokens behind the queries and a prompt of ``prompt`` tokens;
        else ValueError."""
        if self.queries + prompt + new > self.most:
            left = max(self.most - self.queries - prompt, 0)
            raise ValueError(
                f"{self.queries} queries and a prompt of {prompt} tokens leave room for {left} new tokens "
                f"of the language model's {self.most} positions, but max_new_tokens = {new}: shorten the "
                "prompt, or lower max_new_tokens"
                + (
                    ", or raise text_config.seq_length to what the model was trained for"
                    if isinstance(self.config.text_config, LlamaConfig)
                    else ""
                )
            )
        return new

    def _prompted(self, query_BQD, rows):
        """Queries and prompts (B, L, D), all padding before the queries, and the mask (B, L)."""
        if query_BQD.shape[0] != len(rows):
            query_BQD = ops.tile(query_BQD, (len(rows), 1, 1))
        width = _up(max(map(len, rows)), PROMPT_STEP)
        if width == 0:
            return query_BQD, ops.ones(query_BQD.shape[:2], ms.float32)
        ids_BT = _padded(rows, self.config.text_config.pad_token_id, width=width)
        text_BTD = self.llm.embed(Tensor(ids_BT))
        x_BLD = ops.cat((query_BQD.astype(text_BTD.dtype), text_BTD), 1)
        shift_B1 = width - np.array([len(row) for row in rows])[:, None]
        place_BL = np.arange(x_BLD.shape[1])[None] - shift_B1
        if not shift_B1.any():
            return x_BLD, ops.ones(x_BLD.shape[:2], ms.float32)
        flat = np.maximum(place_BL, 0) + np.arange(len(rows))[:, None] * x_BLD.shape[1]
        moved = ops.gather(x_BLD.reshape(-1, x_BLD.shape[2]), Tensor(flat.reshape(-1).astype(np.int32)), 0)
        return moved.reshape(x_BLD.shape), Tensor((place_BL >= 0).astype(np.float32))

    def _counted(self, rows, generation_config):
        """The ids before the new tokens that penalty, n-grams and LAVIS's length of a caption see: (B, L)
        int32, or None.

        ``transformers``: what its BLIP-2 gets from its processor, an image token for each query, then padding
        up to the longest prompt, then the prompt; padding counts as a token there.  ``lavis``: of an OPT the
        prompts alone, of a Llama nothing."""
        text = self.config.text_config
        if generation_config.scorer == "lavis":
            return _padded(rows, -1, left=True) if isinstance(text, OPTConfig) else None
        image_BQ = np.full(
            (len(rows), self.queries), -1 if text.image_token_id is None else text.image_token_id, np.int32
        )
        return np.concatenate([image_BQ, _padded(rows, text.pad_token_id, left=True)], 1)


class _See(nn.Cell):
    """One graph from the ViT's output to what the language model reads."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, vit_BPW):
        return self.model.see(vit_BPW)


class _Step:
    """Step function for ``complete``."""

    def __init__(self, llm, state):
        self.llm, self.state = llm, state

    def __call__(self, tokens_N, position, order_N):
        logits_NV, self.state = self.llm.decode(tokens_N, order_N, self.state)
        return logits_NV.asnumpy()


def _up(count, step):
    """``count`` rounded up to a multiple of ``step``."""
    return -(-count // step) * step


def _listed(prompt_ids, pad_id):
    """Rows of ids from a row, rows, an array or a Tensor; an array's padding, at either end, is taken off."""
    ids = _numpy(prompt_ids)
    is_array = isinstance(ids, np.ndarray)
    try:
        rows = [ids] if len(ids) == 0 or np.ndim(ids[0]) == 0 else ids
        rows = [[operator.index(one) for one in row] for row in rows]
    except (TypeError, ValueError):
        raise ValueError(
            f"prompt_ids is {prompt_ids!r}: expected token ids, one row or one for each picture, or a text "
            "or a list of "
            "texts"
        ) from None
    if is_array:
        real = [[i for i, one in enumerate(row) if one != pad_id] for row in rows]
        rows = [row[places[0] : places[-1] + 1] if places else [] for row, places in zip(rows, real)]
    return rows


def _numpy(ids):
    return ids.asnumpy() if isinstance(ids, Tensor) else inputs.array(ids)


def _padded(rows, fill, left=False, width=None):
    """Rows of ids as one array (B, T) int32."""
    width = max(map(len, rows)) if width is None else width
    rests = [[fill] * (width - len(row)) for row in rows]
    return np.array([rest + row if left else row + rest for row, rest in zip(rows, rests)], np.int32).reshape(
        len(rows), width
    )


def _check_batch(image, input_ids, queries, most):
    if image.ndim != 4 or input_ids.ndim != 2 or image.shape[0] != input_ids.shape[0]:
        raise ValueError(
            f"expected image (B, 3, S, S) and input_ids (B, T), one text for each picture, got {image.shape} "
            "and "
            f"{input_ids.shape}"
        )
    if queries + input_ids.shape[1] > most:
        raise ValueError(
            f"{queries} queries and texts of {input_ids.shape[1]} tokens, but the language model has {most} "
            "positions: "
            "shorten the texts"
        )
