"""Stage 1 (paper section 3.2): the frozen ViT, the Q-Former and its three losses; and the zero-shot
classifier made of them.

B batch · G batch over all cards · L labels · P image tokens · Q queries · T text · S buffer slots · W image
width · D width · E embed V vocab · N rows = batch × beams
"""

import logging
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindblip2.checkpoint.pretrained import Pretrained
from mindblip2.config import Blip2Config
from mindblip2.distributed import comm
from mindblip2.generation.generate import GenerationConfig, generate
from mindblip2.models import inputs, losses, rng
from mindblip2.models.layers import MASKED, LayerNorm, Linear, gather_vocabulary
from mindblip2.models.qformer import QFormer
from mindblip2.models.vit import ViT

logger = logging.getLogger("mindblip2")
LABELS = 32  # that are read at once


class Features(NamedTuple):
    """What ``extract_features`` returns; what a mode does not make is None.  The ``_proj`` are unit
    vectors."""

    image_embeds: Tensor = None  # (B, Q, D)
    image_embeds_proj: Tensor = None  # (B, Q, E)
    text_embeds: Tensor = None  # (B, T, D)
    text_embeds_proj: Tensor = None  # (B, T, E)
    multimodal_embeds: Tensor = None  # (B, Q, D)


class Blip2Qformer(Pretrained):
    """BLIP-2 stage 1.  Called with pictures and captions it returns its losses; see also
    ``extract_features``, ``itm_logits``, ``itc_similarity`` and ``generate``.

    All these calls take Tensors, or arrays of NumPy or torch; where the configuration was read from a preset
    or file, also pictures and texts as its processor takes them."""

    presets = ("blip2_stage1_*", "blip2_digits")

    def __init__(self, config=None):
        super().__init__(config or Blip2Config())
        if self.config.text_config is not None:
            logger.warning(
                "model.model_config.text_config has no effect: a %s has no language model",
                type(self).__name__,
            )
        vision, qformer, dtype = (
            self.config.vision_config,
            self.config.qformer_config,
            self.config.compute_dtype,
        )
        with self.building():
            self.vit = ViT(vision, dtype)
            self.ln_vision = LayerNorm(vision.hidden_size, self.config.ln_vision_eps)
            self.qformer = QFormer(qformer, dtype)
            self.vision_proj = Linear(qformer.hidden_size, qformer.head_embed_dim, dtype)
            self.text_proj = Linear(qformer.hidden_size, qformer.head_embed_dim, dtype)
            self.itm_head = Linear(qformer.hidden_size, 2, dtype)
        self.temp = Parameter(Tensor(self.config.temperature, ms.float32), name="temp")
        # kept, so that a graph is compiled once; in a tuple: it is no child
        self._caption_step = (_CaptionStep(self.qformer),)
        self.noise = rng.bind(self)
        self._words = self.noise.given
        if self.config.freeze_vision:
            self.freeze("vit.*")
        self.freeze(*self.config.frozen)
        self.load_named()

    def __call__(self, image, input_ids, *rest, **named):
        return super().__call__(
            inputs.pictures(self, image),
            inputs.token_ids(self, input_ids),
            *map(inputs.tensor, rest),
            **{name: inputs.tensor(value) for name, value in named.items()},
        )

    def construct(self, image, input_ids, image_id=None, negatives=None, return_tuple=False):
        """Stage-1 losses of matching pictures and captions.

        image (B, 3, S, S) float32, normalised · input_ids (B, T) int32, [CLS] … [SEP], padded with
        ``pad_token_id`` · image_id (B,) int32: samples with the same id are never each other's negatives ·
        negatives: (image_idx, text_idx), (B,) int32 each, indices into the global batch that are used instead
        of sampling.  Returns the sum of the losses, or with ``return_tuple`` (loss, loss_itc, loss_itm,
        loss_lm)."""
        _check_batch(image, input_ids, self.config.qformer_config.max_position_embeddings)
        # not unpacked: see docs/internals/mindspore_notes.md
        made = self.stage1(self.vit(image), input_ids, image_id, negatives)
        return (made[0], *made[1]) if return_tuple else made[0]

    def stage1(self, vit_BPW, input_ids, image_id=None, negatives=None):
        """Losses from the ViT's output (B, P, W): their sum, (itc, itm, lm), and the accuracies (i2t, t2i,
        itm) of the batch."""
        vit_BPW = ops.stop_gradient(vit_BPW) if self.config.freeze_vision else vit_BPW
        memory = self.qformer.memory(self.ln_vision(vit_BPW))
        query_BQD, cache = self.qformer.see(memory)
        self._advance()
        text_BTD = self.qformer.read(input_ids)
        self._advance()
        loss_itc, sim_i2t, sim_t2i = losses.itc(
            self._project(self.vision_proj, query_BQD),
            self._project(self.text_proj, text_BTD[:, 0]),
            self.temp,
            image_id,
            self.config.label_smoothing,
            self.config.gather_with_grad,
        )
        same_BG = losses.same_picture(sim_i2t.shape[0], sim_i2t.shape[1], image_id)
        if negatives is None:
            draws = self._draws(*sim_i2t.shape)
            negatives = (
                losses.hard_negatives(sim_t2i, same_BG, draws[0]),
                losses.hard_negatives(sim_i2t, same_BG, draws[1]),
            )
        logits_32 = self._match_three(input_ids, memory, vit_BPW, negatives)
        self._advance()
        logits_BTV = self.qformer.caption(self._decoder_input(input_ids), cache)
        self._advance()
        parts = (
            loss_itc,
            losses.itm(logits_32),
            losses.lm(
                logits_BTV,
                input_ids,
                self.config.qformer_config.pad_token_id,
                self.config.label_smoothing,
                self.qformer.vocab,
            ),
        )
        accuracies = (
            losses.retrieval_accuracy(sim_i2t, same_BG),
            losses.retrieval_accuracy(sim_t2i, same_BG),
            losses.itm_accuracy(logits_32),
        )
        return parts[0] + parts[1] + parts[2], parts, accuracies

    def _draws(self, batch, world_batch):
        """Uniform draws for the choice of two negatives per row, (2, B, G): this card's rows of what one card
        with all would draw."""
        draws_2GG = rng.uniform(self._words[0], 0, (2, world_batch, world_batch))
        return draws_2GG[:, comm.data_rank() * batch : (comm.data_rank() + 1) * batch]

    def _advance(self):
        if self.training and self._words[0] is not None:
            rng.advance(self._words[0])

    def embed_image(self, image):
        """Pictures (B, 3, S, S) → normalised image embeddings (B, P, D).  For use outside of a graph: see
        ``ViT.by_blocks``."""
        return self.ln_vision(self.vit.by_blocks(image))

    def extract_features(self, samples, mode="multimodal"):
        """Embeddings of ``{"image": (B, 3, S, S), "text_input": (B, T) ids}``, where the ids may also be
        called ``input_ids`` as those of ``Blip2Processor``; mode "image", "text" or "multimodal"."""
        if mode not in ("image", "text", "multimodal"):
            raise ValueError(f"mode = {mode!r}: expected 'image', 'text' or 'multimodal'")
        image, text = _needed(samples, mode, "image"), _needed(samples, mode, "text_input", "input_ids")
        ids = None if text is None else inputs.token_ids(self, text)
        if mode == "text":
            text_BTD = self.qformer.read(ids)
            return Features(text_embeds=text_BTD, text_embeds_proj=self._project(self.text_proj, text_BTD))
        memory = self.remember(image)
        if mode == "image":
            query_BQD, _ = self.qformer.see(memory)
            return Features(
                image_embeds=query_BQD, image_embeds_proj=self._project(self.vision_proj, query_BQD)
            )
        return Features(multimodal_embeds=self.qformer.match(ids, memory)[0])

    def itm_logits(self, image, input_ids):
        """Does picture b match text b?  (B, 2), the mean over queries; class 1 is "yes"."""
        image, input_ids = inputs.pictures(self, image), inputs.token_ids(self, input_ids)
        _check_batch(image, input_ids, self.config.qformer_config.max_position_embeddings)
        return self.match_logits(input_ids, self.remember(image))

    def remember(self, image):
        """The image memory of pictures (B, 3, S, S): keys and values of every cross-attention layer, made
        once and reused."""
        # mutable: values change, the graph stays
        return ms.mutable(self.qformer.memory(self.embed_image(inputs.pictures(self, image))))

    def match_logits(self, input_ids, memory):
        """``itm_logits`` from image memories that are there already; of one picture, it meets all texts
        without a copy."""
        return self.itm_head(self.qformer.match(input_ids, memory)[0]).astype(ms.float32).mean(1)

    def itc_similarity(self, image, input_ids):
        """Cosine of every picture with every text, the best query counts, not divided by temp: (B_image,
        B_text)."""
        return losses.similarity(
            self.image_features(self.remember(image)), self.text_features(inputs.token_ids(self, input_ids))
        )

    def image_features(self, memory):
        """Unit vectors of the queries that have seen pictures: image memories → (B, Q, E)."""
        return self._project(self.vision_proj, self.qformer.see(memory)[0])

    def text_features(self, input_ids):
        """Unit vectors of texts (B, T) → (B, E): the projected [CLS]."""
        return self._project(self.text_proj, self.qformer.read(input_ids)[:, 0])

    def generate(self, image, use_cache=True, **decoding):
        """Captions of pictures (B, 3, S, S) → ids (B, at most 1 + max_new_tokens) int32, [DEC] first, as
        LAVIS.

        ``image`` may also be LAVIS's ``{"image": …}``; stage 1 writes without a prompt.  Keywords are the
        fields of :class:`mindblip2.generation.generation_config.GenerationConfig` and its aliases.
        ``use_cache=False`` computes the whole prefix at every step: the same ids, slower."""
        config = self.config.qformer_config
        if not isinstance(use_cache, bool):
            raise ValueError(
                f"use_cache = {use_cache!r}: expected true or false; stage 1 writes captions without a "
                "prompt, a "
                "Blip2ImageToTextGeneration takes one"
            )
        image = inputs.pictures(
            self, inputs.unpacked(image, {"image": "image"})["image"] if isinstance(image, dict) else image
        )
        generation_config = GenerationConfig.of(
            decoding, eos_token_id=config.sep_token_id, pad_token_id=config.pad_token_id
        )
        if generation_config.max_new_tokens >= config.max_position_embeddings:
            raise ValueError(
                f"max_new_tokens = {generation_config.max_new_tokens}: the model has "
                f"{config.max_position_embeddings} positions, one of which is [DEC]"
            )
        _, cache = self.qformer.see(self.remember(image))
        step = (
            _CachedCaption(self._caption_step[0], cache, generation_config)
            if use_cache
            else _WholeCaption(self.qformer, cache)
        )
        return generate(step, np.full((image.shape[0], 1), config.bos_token_id), generation_config)

    def _project(self, head, x):
        return losses.normalise(head(x))

    def _decoder_input(self, input_ids):
        """[CLS] becomes [DEC]: the text is to be written, not read."""
        first = ops.full(
            (input_ids.shape[0], 1), self.config.qformer_config.bos_token_id, dtype=input_ids.dtype
        )
        return ops.cat((first, input_ids[:, 1:]), 1)

    def _match_three(self, input_ids, memory, vit_BPW, negatives):
        """ITM logits (3B, 2) of [own text, own picture], [own text, wrong picture], [wrong text, own
        picture].

        On one card the wrong pictures' memories are there; on a data group what the ViT made of them travels,
        which is less, and their memories are made here."""
        image_idx, text_idx = negatives
        ids_3BT = ops.cat((input_ids, input_ids, comm.all_gather_data(input_ids)[text_idx]))
        others, with_others = None, ()
        if comm.mesh.data > 1:
            others = self.qformer.memory(
                self.ln_vision(ops.gather(comm.all_gather_data(vit_BPW), image_idx, 0))
            )
        for layer, (key, value) in enumerate(memory):
            other = (
                (ops.gather(key, image_idx, 0), ops.gather(value, image_idx, 0))
                if others is None
                else others[layer]
            )
            with_others += ((key, value, *other),)
        return self.match_logits(ids_3BT, with_others)


class Blip2Classifier(Blip2Qformer):
    """Zero-shot classification with the stage-1 model: which label's text is nearest to the picture?"""

    task = "zero_shot_image_classification"

    def __call__(self, image, label_ids):
        return super().__call__(image, label_ids)

    def construct(self, image, label_ids):
        """Pictures (B, 3, S, S) and label texts (L, T) → probabilities (B, L)."""
        memory = self.qformer.memory(self.ln_vision(self.vit(image)))
        return self.probabilities(self.image_features(memory), self.text_features(label_ids))

    def probabilities(self, image_BQE, label_LE, temperature=None):
        """softmax over labels of similarity / temp, or / ``temperature`` where that is given.  The best query
        counts, or with ``query_reduce: first`` the first, as MindFormers did."""
        if self.config.query_reduce == "first":
            image_BQE = image_BQE[:, :1]
        return ops.softmax(
            losses.similarity(image_BQE, label_LE) / (self.temp if temperature is None else temperature), -1
        )

    def label_features(self, label_ids):
        """``text_features`` of any number of labels (L, T) → (L, E).  Called from outside of a graph."""
        return self._some_at_once(self.text_features, inputs.token_ids(self, label_ids))

    def match_probabilities(self, image, label_ids):
        """The same question to the ITM head: softmax over labels of the log-odds that picture and label
        match, (B, L).  Called from outside of a graph."""
        image, label_ids = inputs.pictures(self, image), inputs.token_ids(self, label_ids)
        memory, batch = self.remember(image), image.shape[0]

        def odds_LB(ids_LT):
            logits_N2 = self.match_logits(ops.tile(ids_LT, (batch, 1)), memory)
            return (logits_N2[:, 1] - logits_N2[:, 0]).reshape(batch, -1).swapaxes(0, 1)

        return ops.softmax(self._some_at_once(odds_LB, label_ids).swapaxes(0, 1), -1)

    def _some_at_once(self, make, label_ids):
        """Rows of ``make`` for all labels, at most ``LABELS`` at a time: the activations of a thousand in one
        graph would fill tens of GB. The last ones go together with some that were there, so that one graph
        serves all."""
        size, rows = min(LABELS, label_ids.shape[0]), []
        for start in range(0, label_ids.shape[0], size):
            first = min(start, label_ids.shape[0] - size)
            rows.append(make(label_ids[first : first + size].contiguous())[start - first :])
        return ops.cat(rows)


class _CaptionStep(nn.Cell):
    """One decoding step with buffers of fixed size, so graph mode compiles once per (rows, length).

    token (N, 1) at ``position`` (0-d tensor) with buffers reordered by order (N,) → logits (N, V), new
    buffers."""

    def __init__(self, qformer):
        super().__init__(auto_prefix=False)
        self.qformer = qformer

    def construct(self, token_N1, position, order_N, buffers):
        past = ()
        for key, value in buffers:
            past += ((key[order_N], value[order_N]),)
        slots = past[0][0].shape[2]
        queries = self.qformer.query_tokens.shape[1]
        place_S = ops.arange(slots)
        empty_S = (place_S >= queries + position).astype(ms.float32)
        bias = (ops.cat((empty_S, ops.zeros((1,), ms.float32))) * MASKED)[None, None, None]
        logits_NV, own = self.qformer.next_token(token_N1, position, past, bias)
        here = (place_S == queries + position)[None, None, :, None]
        written = ()
        for (key, value), (own_key, own_value) in zip(past, own):
            written += ((ops.where(here, own_key, key), ops.where(here, own_value, value)),)
        return logits_NV, written


class _CachedCaption:
    """Step function for ``generate`` that keeps the keys and values of what was seen and written."""

    def __init__(self, step, cache, generation_config):
        self.step = step
        room = generation_config.max_new_tokens
        self.buffers = ms.mutable(
            tuple(
                tuple(ops.cat((x, ops.zeros((*x.shape[:2], room, x.shape[3]), x.dtype)), 2) for x in pair)
                for pair in cache
            )
        )

    def __call__(self, tokens_N, position, order_N):
        batch = self.buffers[0][0].shape[0]
        if position == 0 and len(order_N) != batch:  # the first step of beam search: one row per beam
            order_N = np.arange(len(order_N)) // (len(order_N) // batch)
        logits, buffers = self.step(
            Tensor(tokens_N[:, None].astype(np.int32)),
            Tensor(position, ms.int32),
            Tensor(order_N.astype(np.int32)),
            self.buffers,
        )
        self.buffers = ms.mutable(buffers)
        return logits.asnumpy()


class _WholeCaption:
    """Step function without a cache of text: every step runs the whole prefix."""

    def __init__(self, qformer, cache):
        self.qformer, self.cache = qformer, cache
        self.ids_NT = None

    def __call__(self, tokens_N, position, order_N):
        batch = self.cache[0][0].shape[0]
        rows = np.arange(len(tokens_N)) // (len(tokens_N) // batch)
        column = tokens_N[:, None].astype(np.int32)
        self.ids_NT = column if position == 0 else np.concatenate([self.ids_NT[order_N], column], 1)
        cache = ms.mutable(
            tuple((key[Tensor(rows, ms.int32)], value[Tensor(rows, ms.int32)]) for key, value in self.cache)
        )
        return gather_vocabulary(
            self.qformer.caption(Tensor(self.ids_NT), cache)[:, -1], self.qformer.vocab
        ).asnumpy()


def _check_batch(image, input_ids, positions):
    if image.ndim != 4 or input_ids.ndim != 2:
        raise ValueError(
            f"expected image (B, 3, S, S) and input_ids (B, T), got {image.shape} and {input_ids.shape}"
        )
    if image.shape[0] != input_ids.shape[0]:
        raise ValueError(
            f"{image.shape[0]} images and {input_ids.shape[0]} texts: one text belongs to each image"
        )
    if input_ids.shape[1] > positions:
        raise ValueError(
            f"texts of {input_ids.shape[1]} tokens, but the model has {positions} positions: let the "
            "tokenizer "
            "truncate them"
        )


def _needed(samples, mode, *keys):
    """The value under one of ``keys``, the names of one input; None where the mode does not read it."""
    if not isinstance(samples, dict):
        raise ValueError(
            f"samples is a {type(samples).__name__}: expected a dict "
            f"{{'image': (B, 3, S, S), 'text_input': (B, T) ids}}"
        )
    if mode == ("text" if keys[0] == "image" else "image"):
        return None
    given = [key for key in keys if key in samples]
    if len(given) != 1:
        raise ValueError(f"extract_features(mode={mode!r}) needs samples[{keys[0]!r}], got {sorted(samples)}")
    return samples[given[0]]
