"""Retrieval as LAVIS evaluates it: cosines of all pictures with all texts, then the ITM head on the best
pairs; and the recalls.

LAVIS (blip2.py, compute_sim_matrix) walks through the k best texts of every picture, then through the k best
pictures of every text, and every pair makes the keys and values of its picture anew.  But the ITM logit of a
pair does not depend on who asked for it.  So here the pairs of both walks are united, and scored picture by
picture: each pair once, with keys and values made once per picture, for all its texts.  The numbers are the
same.

I pictures · T texts · L tokens · B pictures of one batch · N texts of one chunk · Q queries · E embed
"""

import time
from dataclasses import asdict, dataclass
from typing import Annotated, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindblip2.config.schema import Count, NonNegative, Range, argument
from mindblip2.distributed import comm
from mindblip2.evaluation.zero_shot import check_finite
from mindblip2.models import losses
from mindblip2.progress import progress

FILL = -100.0  # the score of a pair that the ITM head has not seen, as LAVIS
CHUNK = 32  # texts that meet a picture in one call
TEXT_BATCH = 256  # texts read in one call, as LAVIS
# texts are cut to a quarter, half, … of the longest: the same numbers, less work, few shapes to compile
LENGTHS = 4
RERANK = ("itm+itc", "itm", "none")


@dataclass(frozen=True)
class RetrievalConfig:
    """How to evaluate.  Raises ValueError on values that mean nothing."""

    k_test: int = 128  # candidates per picture and per text that the ITM head ranks again
    # LAVIS: the ITM logit of "yes" plus the cosine; "itm": without it; "none": the cosine alone
    rerank: str = "itm+itc"
    # tokens, [CLS] and [SEP] included; LAVIS evaluates with 35, and trains with 32
    text_length: int = 35
    batch_size: int = 8  # pictures per call of the ViT
    memory_budget: float = 8.0  # GB for what is kept of the pictures between their two visits, see ``Kept``

    def __post_init__(self):
        if self.rerank not in RERANK:
            raise ValueError(f"rerank = {self.rerank!r}: expected one of {', '.join(map(repr, RERANK))}")
        for name, hint in (
            ("k_test", Count),
            ("text_length", Annotated[int, Range(2)]),
            ("batch_size", Count),
            ("memory_budget", NonNegative),
        ):  # gigabytes
            object.__setattr__(self, name, argument(hint, getattr(self, name), name))

    @classmethod
    def of(cls, data, **changes):
        """That of a ``DatasetConfig``, with ``changes``."""
        return cls(
            **{
                "k_test": data.k_test,
                "rerank": data.rerank if data.add_extra_itm_score else "none",
                "text_length": data.text_transforms.max_length,
                "batch_size": max(data.batch_size, 1),
                "memory_budget": data.memory_budget,
                **changes,
            }
        )


class Scores(NamedTuple):
    """What ``score`` returns."""

    itc: np.ndarray  # (I, T) float32: cosines, the best query counts
    # (I, T) float32: scores of the recipe, FILL where a text is not among the picture's k best
    i2t: np.ndarray
    t2i: np.ndarray  # (T, I) float32: the same for texts
    pairs: int  # scored by the ITM head
    seconds: float  # for everything
    itm_seconds: float  # for these pairs, making keys and values included


# ------------------------------------------------------------------------------------------------ scores
def score(model, image_processor, pictures, ids_TL, recipe, net=None):
    """:class:`Scores` of pictures (what ``image_processor`` takes) and texts (T, L) int32, padded with the
    model's pad id.

    ``net``: a :class:`Match` of the model that is there already, so that its graphs are not compiled
    again."""
    model.set_train(False)
    start = time.perf_counter()
    ids_TL = np.asarray(ids_TL, np.int32)
    lengths_T = (ids_TL != model.config.qformer_config.pad_token_id).sum(1)
    text_TE = text_features(model, ids_TL, lengths_T)
    # of this process; each fills in its own, and the sum is everybody's
    rows = comm.data_shard(np.arange(len(pictures)))
    kept = Kept(
        model,
        image_processor,
        [pictures[i] for i in rows],
        recipe.memory_budget * 1e9 if recipe.rerank != "none" else 0,
    )
    itc_IT = np.zeros((len(pictures), len(ids_TL)), np.float32)
    if len(rows):
        itc_IT[rows] = np.concatenate(
            [
                losses.similarity(model.image_features(memory), text_TE).asnumpy()[:count]
                for memory, count in kept.first_visit(recipe.batch_size)
            ]
        )
    itc_IT = check_finite(comm.host_all_reduce_data(itc_IT), "the cosines of pictures and texts")
    if recipe.rerank == "none":
        return Scores(itc_IT, itc_IT, itc_IT.T, 0, time.perf_counter() - start, 0.0)
    again = time.perf_counter()
    best_IT, best_TI = candidates(itc_IT, recipe.k_test), candidates(itc_IT.T, recipe.k_test)
    wanted_IT = best_IT | best_TI.T
    itm_IT = np.zeros_like(itc_IT)
    if len(rows):
        itm_IT[rows] = match(net or Match(model), kept, wanted_IT[rows], ids_TL, lengths_T)
    itm_IT = comm.host_all_reduce_data(itm_IT)
    if recipe.rerank == "itm+itc":
        itm_IT += itc_IT
    i2t, t2i = np.where(best_IT, itm_IT, np.float32(FILL)), np.where(best_TI, itm_IT.T, np.float32(FILL))
    now = time.perf_counter()
    return Scores(itc_IT, i2t, t2i, int(wanted_IT.sum()), now - start, now - again)


def candidates(scores_AB, k):
    """Which entries are among the k best of their row: (A, B) bool.  All that equal the k-th are in, so no
    order decides."""
    k = min(k, scores_AB.shape[1])
    return scores_AB >= np.partition(scores_AB, -k, axis=1)[:, -k, None]


def text_features(model, ids_TL, lengths_T):
    """Unit vectors (T, E) of texts, each read once."""
    size = min(TEXT_BATCH, len(ids_TL))
    features = [
        model.text_features(Tensor(ids_TL[rows, :width])).asnumpy()[:count]
        for rows, count, width in chunks(np.arange(len(ids_TL)), lengths_T, size)
    ]
    order = np.argsort(lengths_T, kind="stable")
    text_TE = np.empty((len(ids_TL), features[0].shape[1]), np.float32)
    text_TE[order] = np.concatenate(features)
    return Tensor(text_TE)


def match(net, kept, wanted_IT, ids_TL, lengths_T):
    """ITM logits of "yes" of the wanted pairs: (I, T) float32, 0 for all other pairs.

    ``net``: a :class:`Match`; ``kept[i]``: the memory of picture i."""
    itm_IT = np.zeros(wanted_IT.shape, np.float32)
    size = min(CHUNK, int(wanted_IT.sum(1).max()))
    with progress(total=int(wanted_IT.sum()), desc="match", unit="pair", leave=None) as bar:
        for i in range(len(wanted_IT)):
            texts, memory = np.flatnonzero(wanted_IT[i]), kept[i]
            made = [
                (part[:count], net(Tensor(ids_TL[part, :width]), memory))
                for part, count, width in chunks(texts, lengths_T, size)
            ]
            # fetched here, so that a device works through a picture without waiting
            for part, logits in made:
                itm_IT[i, part] = logits.asnumpy()[: len(part)]
            bar.update(len(texts))
    check_finite(itm_IT, "the ITM logits of pictures and texts")
    return itm_IT


def chunks(texts, lengths_T, size):
    """Indices of texts, short ones first, in rows of exactly ``size``: (indices, how many of them count,
    tokens of the longest).

    The last row repeats a text, and tokens are rounded up, so that few shapes are compiled."""
    texts = texts[np.argsort(lengths_T[texts], kind="stable")]
    quarter = -(-int(lengths_T.max()) // LENGTHS)
    for start in range(0, len(texts), size):
        part = texts[start : start + size]
        width = min(-(-int(lengths_T[part].max()) // quarter) * quarter, int(lengths_T.max()))
        yield np.pad(part, (0, size - len(part)), mode="edge"), len(part), width


class Match(nn.Cell):
    """ITM logit of "yes" of N texts with the memory of one picture: (N, L) → (N,).  One graph per shape."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids_NL, memory):
        return self.model.match_logits(ids_NL, memory)[:, 1]


class Kept:
    """Every picture is visited twice: for its cosines, and, once all cosines are known, for the ITM head.  In
    between is kept

    - its memory (keys and values), if ``budget`` bytes hold those of all pictures: at the published size 9.5
      MB each (6 layers · 2 · 257 · 768 · 4 bytes);
    - else its embeddings (257 · 1408 · 4 bytes, 1.4 MB), of which the second visit makes the memory again;
    - else nothing: the second visit begins at the file."""

    def __init__(self, model, image_processor, pictures, budget):
        self.model, self.image_processor, self.pictures, self.budget = (
            model,
            image_processor,
            pictures,
            budget,
        )
        self.what, self.store = None, []

    def first_visit(self, batch_size):
        """Yields (memory of a batch, how many of its pictures count); every batch has the same size, the last
        is filled up."""
        size = min(batch_size, len(self.pictures))
        for start in progress(range(0, len(self.pictures), size), desc="see", unit="batch", leave=None):
            part = list(self.pictures[start : start + size])
            image_BPD = self.model.embed_image(self.image_processor(part + part[-1:] * (size - len(part))))
            memory = ms.mutable(self.model.qformer.memory(image_BPD))
            self._keep(image_BPD, memory, len(part))
            yield memory, len(part)

    def _keep(self, image_BPD, memory, count):
        if self.what is None:
            bytes_of = {
                "memory": sum(key.nbytes + value.nbytes for key, value in memory),
                "embeddings": image_BPD.nbytes,
            }
            fits = [
                what
                for what, each in bytes_of.items()
                if each / len(image_BPD) * len(self.pictures) <= self.budget
            ]
            self.what = (fits + ["nothing"])[0]
        if self.what == "memory":
            arrays = [(key.asnumpy(), value.asnumpy()) for key, value in memory]
            self.store += [
                [(key[b : b + 1].copy(), value[b : b + 1].copy()) for key, value in arrays]
                for b in range(count)
            ]
        elif self.what == "embeddings":
            self.store += [one[None].copy() for one in image_BPD.asnumpy()[:count]]

    def __getitem__(self, i):
        """The memory of picture i."""
        if self.what == "memory":
            return ms.mutable(tuple((Tensor(key), Tensor(value)) for key, value in self.store[i]))
        if self.what == "embeddings":
            return ms.mutable(self.model.qformer.memory(Tensor(self.store[i])))
        return self.model.remember(self.image_processor([self.pictures[i]]))


# ------------------------------------------------------------------------------------------------ recalls
def recalls(i2t_IT, t2i_TI, text_image_T):
    """LAVIS's figures (tasks/retrieval.py) in per cent; ``text_image_T`` is the index of each text's picture.

    ``txt_r1``: pictures with one of their own texts in the first place; ``img_r1``: texts with their picture
    in the first place. ``agg_metrics``, by which LAVIS chooses its best checkpoint, is ``txt_r_mean``.  A
    wrong answer with the same score as the right one counts as better (LAVIS leaves such ties to the sort),
    so a model that answers everything alike gets nothing.

    Raises ValueError for shapes that do not fit, for scores that are not finite, and for a picture without
    text."""
    i2t_IT, t2i_TI, text_image_T = np.asarray(i2t_IT), np.asarray(t2i_TI), np.asarray(text_image_T)
    images, texts = i2t_IT.shape
    if t2i_TI.shape != (texts, images) or text_image_T.shape != (texts,):
        raise ValueError(
            f"scores {i2t_IT.shape} and {t2i_TI.shape} and the pictures of {len(text_image_T)} texts: "
            "expected "
            "shapes (I, T), (T, I) and T"
        )
    if not (np.isfinite(i2t_IT).all() and np.isfinite(t2i_TI).all()):
        raise ValueError("scores hold NaN or infinity, so nothing can be ranked by them")
    textless = np.setdiff1d(np.arange(images), text_image_T)
    if textless.size or text_image_T.min() < 0 or text_image_T.max() >= images:
        raise ValueError(
            f"every text needs one of the {images} pictures and every picture a text; "
            f"without text: {textless[:5].tolist()}"
        )
    best_own_I = np.full(images, -np.inf, i2t_IT.dtype)
    np.maximum.at(best_own_I, text_image_T, i2t_IT[text_image_T, np.arange(texts)])
    better_IT = i2t_IT >= best_own_I[:, None]
    better_IT[text_image_T, np.arange(texts)] = False
    better_TI = t2i_TI >= t2i_TI[np.arange(texts), text_image_T][:, None]
    figures = {}
    for side, rank in (("txt", better_IT.sum(1)), ("img", better_TI.sum(1) - 1)):
        figures |= {f"{side}_r{k}": float(100.0 * (rank < k).mean()) for k in (1, 5, 10)}
        figures[f"{side}_r_mean"] = sum(figures[f"{side}_r{k}"] for k in (1, 5, 10)) / 3
    figures["r_mean"] = (figures["txt_r_mean"] + figures["img_r_mean"]) / 2
    figures["agg_metrics"] = figures["txt_r_mean"]
    return figures


def report(scores, text_image_T, recipe, **facts):
    """The figures, those of the cosines alone where something was ranked again, and the recipe: ready for
    JSON."""
    figures = recalls(scores.i2t, scores.t2i, text_image_T)
    if recipe.rerank != "none":
        figures["itc"] = recalls(scores.itc, scores.itc.T, text_image_T)
    images, texts = scores.itc.shape
    speed = {
        "pairs": scores.pairs,
        "seconds": round(scores.seconds, 3),
        "pairs_per_second": round(scores.pairs / scores.itm_seconds, 1) if scores.pairs else None,
    }
    return {**figures, "recipe": {**facts, "pictures": images, "texts": texts, **asdict(recipe), **speed}}


def best(scores, count=5):
    """The first hits of one row of scores: [(index, score), …], without those that were not ranked again."""
    return [
        (int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")[:count] if scores[i] > FILL
    ]


def table(figures):
    """The figures and their recipe for people to read."""
    lines = [f"{'':24}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'mean':>8}"]
    for title, part in (("", figures), (", ITC", figures.get("itc"))):
        for side, name in (("txt", "picture → text"), ("img", "text → picture")) if part else ():
            row = "".join(f"{part[f'{side}_{key}']:8.2f}" for key in ("r1", "r5", "r10", "r_mean"))
            lines.append(f"{name + title:24.24}{row}")
    recipe = figures["recipe"]
    lines += [
        f"mean of both {figures['r_mean']:.2f}",
        "recipe: " + ", ".join(f"{key} {value}" for key, value in recipe.items()),
    ]
    return "\n".join(lines)
