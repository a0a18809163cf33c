"""Where a run first goes wrong, and what that usually is: from the names of the rows that fail and from what
their errors look like.

The place is the narrowest case that fails: one that fails on the truth's own input, while nothing that it is
made of fails. Only if every isolated case passes is the place one in the chain: then what enters between two
parts is wrong, not a part.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mindblip2.parity.compare import LOOK, PASS, Row

GROWTH = 3.0  # the last ratios of a chain over its first
MANY = 5  # places that fail at once
HALF = r"rounded to|as large as half"


@dataclass(frozen=True)
class Diagnosis:
    """``place``: name of the case. ``facts``: what is seen. ``causes``: what it usually is, likeliest
    first."""

    place: str
    facts: tuple[str, ...]
    causes: tuple[str, ...]
    others: tuple[str, ...] = ()  # further narrowest cases that fail
    title: str = "First divergence"


WHOLES = {  # what a case is made of, by patterns of names; {1} is the whole's first group
    r"vit": (r"vit\..*",),
    r"(vit\.blocks\.\d+)": (r"{1}\..*",),
    r"(vit\.blocks\.\d+\.(attn|mlp))": (r"{1}\..*",),
    r"(see|read|match|caption)\.layers\.(\d+)": (r"qformer\.encoder\.layers\.{2}\..*", r"memory"),
    r"(qformer\.encoder\.layers\.\d+\.\w+)": (r"{1}\..*",),
    r"memory": (r"qformer\.memory\..*",),
    r"see": (r"see\.layers\.\d+", r"embed\.queries", r"memory"),
    r"read": (r"read\.layers\.\d+", r"embed\.text"),
    r"match": (r"match\.layers\.\d+", r"embed\..*", r"memory"),
    r"caption": (r"caption\.layers\.\d+", r"see", r"embed\.text", r"lm_head"),
    r"next_token": (r"caption", r"embed\.text", r"lm_head", r"caption\.layers\.\d+"),
    r"lm_head": (r"qformer\.lm_head\..*",),
    r"image_feats": (r"vision_proj",),
    r"text_feats": (r"text_proj",),
    r"itm_logits": (r"match", r"itm_head"),
    r"stage1.*": (
        r"itc",
        r"itm",
        r"lm",
        r"see",
        r"read",
        r"match",
        r"caption",
        r"memory",
        r"lm_head",
        r"ln_vision",
        r"(image|text)_feats",
        r"itm_logits",
    ),
    r"(\w+ layers\.\d+)": (r"{1}\..*",),
    r"(\w+) (hidden|logits|decode|beams)": (r"{1} layers\..*", r"{1} norm", r"{1} embed", r"{1} head"),
    r"(\w+) (decode|beams)": (r"{1} (hidden|logits)",),
}
USUAL = (  # what a place usually is: pattern of the name, what the name of a gradient row adds, causes
    (
        r"vit\.blocks\.\d+\.mlp|.* layers\.\d+\.ffn|.*_ffn",
        "another activation: tanh GELU for the exact one, or GELU for SiLU or ReLU; "
        "up, gate and down exchanged",
    ),
    (
        r".*norm\d?|ln_vision|.*\.norm|embed\.queries",
        "another epsilon: 1e-6 in ViT blocks, 1e-5 in ln_vision and OPT, 1e-12 in the "
        "Q-Former; gamma or beta of another layer",
    ),
    (r"adamw", "which parameters decay, the bias corrections, where epsilon stands"),
    (r"schedule", "the warm-up's first and last step; a cosine per step or per epoch"),
    (r"picture", "a resize that is not PIL's bicubic; mean and std"),
    (r"tokens", "another vocabulary, accents or case kept, where a long text is cut"),
    (
        r"vit\.blocks\.\d+\.attn",
        "scores not scaled, the zero of the k bias elsewhere than in [q, 0, v], heads in another order",
    ),
    (
        r".* layers\.\d+\.attention",
        "rotary pairs, their direction or frequencies; the causal or padding mask; ALiBi's slopes; "
        "the scale of scores; which heads of keys belong to which of queries",
    ),
    (r"vit\.patch_embed", "the kernel's axes: colours, rows, columns; the order of colours"),
    (r"vit", "position embeddings shifted or resized otherwise, or the class token: each block passes alone"),
    (r"see\.layers\.\d+", "cross-attention lost or with another layer's keys; the queries' own feed-forward"),
    (
        r"read\.layers\.\d+|match\.layers\.\d+|read|match",
        "the padding mask, or the text's feed-forward; "
        "if only read or match fails, what enters the first layer",
    ),
    (r"caption\.layers\.\d+", "the mask: a caption sees all queries and its own past, nothing else"),
    (r"caption", "what the queries hand on: detached, or of another layer"),
    (r"see", "the query tokens and their norm; which layers see the image"),
    (r"memory|qformer\.memory\..*", "keys and values of another layer, or exchanged"),
    (
        r"embed\.text",
        "positions shifted by one, another row of a table, or another epsilon than 1e-12 in the norm behind "
        "them",
    ),
    (r"next_token", "the position of a new word, or the cache"),
    (r"lm_head", "the head is not tied to the word table, or its bias or norm"),
    (r"itm_logits", "logits of one query instead of the mean over all"),
    (r"image_feats|text_feats", "features not normalised"),
    (
        r"itc.*",
        "the best query counts, not the mean; gradient through the gather; label smoothing 0.1; sim / temp; "
        "image ids",
    ),
    (r"negatives.*", "a sample's own pair, or one of the same picture, may be drawn"),
    (r"itm", "the order of the two classes"),
    (r"lm", "label smoothing over pads; the shift by one; pads counted as words"),
    (r"classifier", "the best query counts, not the mean; features normalised; sim / temp"),
    (r"fused\..*", "the fused form that graph kernels use (mindblip2/models/kernels/cpu.py)"),
    (
        r"stage1.*",
        "where the gradient is cut: the frozen ViT ends before ln_vision; ITM's wrong pictures and wrong "
        "texts exchanged",
    ),
    (r"\w+ embed", "another row of the word table"),
    (r"\w+ head", "tied or not, normalised or not (Baichuan2)"),
    (r"\w+ hidden|\w+ logits", "positions: padding counted, OPT's offset of 2; the gradient to the input"),
    (r"\w+ decode|\w+ beams", "the cache: its slot, its mask, the turn of new keys, the order of beams"),
    (r".*", "its weights (python -m parity weights a b), its dtype"),
)
LOOKS = (  # what an error that looks so usually is
    (
        r"a dtype, not a place",
        "everything computes in half precision: compute_dtype, or a device that rounds products by itself",
    ),
    (r"all zeros", "a gradient that is cut, or a part that does not run"),
    (HALF, "a cast to half precision before this place, or weights stored in half"),
    (r"constant offset", "a bias lost or added twice"),
    (r"constant factor", "a scale: 1/sqrt(width) lost or applied twice, temperature, mean instead of sum"),
    (r"shifted by|another order", "a table or the heads in another order, a position off by one"),
    (r"\(positions", "a mask or the positions: only some places are wrong"),
    (r"\(heads\)|\(channels", "one head or one slice of a matrix: the order of q, k, v or of heads"),
    (r"not finite", "overflow in half precision, or a row whose every place is masked"),
)


def diagnose(rows: Iterable[Row]) -> Diagnosis | None:
    """The place of the first divergence and what it may be, or None if all rows pass."""
    rows = list(rows)
    looks = sorted((row for row in rows if row.verdict == "look"), key=lambda row: -row.ratio)
    bad = [row for row in rows if row.verdict == "fail"] or looks
    isolated = [row for row in bad if not row.name.startswith("chained")]
    if not bad:
        return None
    if bad[0].verdict == "look":
        return Diagnosis(
            bad[0].name,
            (f"no row fails; {len(bad)} lie between {PASS:g} and {LOOK:g} times torch's rounding",),
            (
                "chance, where few numbers decide, as in the contrastive loss of two pairs: see if it stays "
                "with another --seed, or in "
                "float32 of another host",
                "sums that add one number after the other",
            ),
            tuple(row.name for row in bad[1:]),
            "Look first at",
        )
    narrow = narrowest([case_of(row.name) for row in isolated])
    place = narrow[0] if narrow else bad[0].name
    here = [row for row in bad if case_of(row.name) == place or row.name == place]
    alike = like_it(place, [row.name for row in isolated], [row.name for row in rows])
    facts = (*everywhere(narrow, isolated), *only_backward(here, rows), *alike, *growth(rows), *seen(here))
    return Diagnosis(place, facts, causes(place, facts), tuple(narrow[1:]))


def everywhere(narrow: list[str], bad: list[Row]) -> tuple[str, ...]:
    """Do the narrowest cases have one thing in common, which is no place?"""
    half = {case_of(row.name) for row in bad if any(re.search(HALF, fact) for fact in row.signature)} & set(
        narrow
    )
    if len(narrow) >= MANY and len(half) > len(narrow) / 2:
        return (
            f"{len(half)} of {len(narrow)} places that share no part are off by half-precision rounding: a "
            "dtype, not a place",
        )
    return ()


def case_of(row_name: str) -> str:
    """The case to which a row belongs: without the gradient and the number of an output."""
    name = row_name.partition(" d ")[0]
    return re.sub(r"(?<!chained) +\d+( +\d+)*$", "", name).strip()


def narrowest(names: Iterable[str]) -> list[str]:
    """Cases of which no part is among them, in their order."""
    names = list(dict.fromkeys(names))
    return [name for name in names if not any(is_part(other, name) for other in names if other != name)]


def is_part(part: str, whole: str) -> bool:
    """Is one case made of the other?"""
    for pattern, parts in WHOLES.items():
        if found := re.fullmatch(pattern, whole):
            groups = (whole, *map(re.escape, found.groups()))
            if any(re.fullmatch(one.format(*groups), part) for one in parts):
                return True
    return False


def only_backward(here: list[Row], rows: list[Row]) -> tuple[str, ...]:
    """Values pass, gradients fail?"""
    place = {case_of(row.name) for row in here}
    values = [row for row in rows if case_of(row.name) in place and " d " not in row.name]
    gradients = bool(here) and all(" d " in row.name for row in here)
    if gradients and all(row.verdict != "fail" for row in values):
        by = ", ".join(row.name.partition(" d ")[2] for row in here[:3])
        return (f"only in the backward pass: by {by}",)
    return ()


def like_it(place: str, bad: list[str], names: list[str]) -> tuple[str, ...]:
    """Do all layers fail there, which is code or a constant, or one, which is its weights?"""
    pattern = re.sub(r"\\\.\d+", r"\\.\\d+", re.escape(place))
    alike = {case_of(name) for name in names if re.fullmatch(pattern, case_of(name))}
    failing = alike & set(map(case_of, bad))
    if len(alike) < 2 or place.startswith("chained"):
        return ()
    return (
        f"in {len(failing)} of {len(alike)} layers"
        + (": code or a constant" if failing == alike else ": weights rather than code"),
    )


def growth(rows: list[Row]) -> tuple[str, ...]:
    """Does the error grow with the depth of a chain?"""
    for start in ("chained vit.blocks.", "chained llama layers.", "chained opt layers."):
        ratios = [row.ratio for row in rows if re.fullmatch(re.escape(start) + r"\d+", row.name)]
        if len(ratios) > 2 and ratios[-1] > GROWTH * ratios[0] and ratios == sorted(ratios):
            return (
                f"grows with depth: ratio {ratios[0]:.3g} behind the first of {len(ratios)}, "
                f"{ratios[-1]:.3g} behind the last",
            )
    return ()


def seen(here: list[Row]) -> tuple[str, ...]:
    """What the errors look like, those of values first."""
    rows = sorted(here, key=lambda row: " d " in row.name)
    return tuple(dict.fromkeys(fact for row in rows[:4] for fact in row.signature))


def causes(place: str, facts: Iterable[str]) -> tuple[str, ...]:
    """What such errors at such a place usually are."""
    looks = [cause for fact in facts for pattern, cause in LOOKS if re.search(pattern, fact)]
    name = re.sub(r"^chained ", "", place)
    usual = next(cause for pattern, cause in USUAL if re.fullmatch(pattern, name))
    return tuple(
        dict.fromkeys([*looks, usual] if "a dtype, not a place" in " ".join(facts) else [usual, *looks])
    )


def said(found: Diagnosis | None) -> str:
    """A few lines for the terminal."""
    if found is None:
        return ""
    lines = [
        f"{found.title.lower()}: {found.place}",
        *(f"  seen: {fact}" for fact in found.facts),
        *(f"  likely: {cause}" for cause in found.causes),
    ]
    if found.others:
        lines.append(
            f"  also without a failing part: {', '.join(found.others[:8])}"
            + (", …" if len(found.others) > 8 else "")
        )
    return "\n".join(lines)
