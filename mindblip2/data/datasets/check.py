"""Look at a data set before training on it: every file opened, every caption read, every oddity listed.

Needs no model and no MindSpore."""

import os
import statistics
from collections import Counter
from pathlib import Path

from mindblip2.config import RunConfig, load_config
from mindblip2.config.schema import ConfigError
from mindblip2.data.datasets.labelled_images import LabelledSet
from mindblip2.data.datasets.pairs import Pairs
from mindblip2.data.datasets.questions import asks, question, read_questions
from mindblip2.data.datasets.registry import CAPTIONED, LABELLED, captioned, labelled_sets
from mindblip2.data.images.load import sizes
from mindblip2.data.processor import Blip2Processor
from mindblip2.data.text.checks import MAX_UNKNOWN, check_labels, known
from mindblip2.data.text.cleaning import BlipCaption, BlipQuestion
from mindblip2.data.text.prompting import plain_ids
from mindblip2.file_io import write_json
from mindblip2.progress import progress

# What the exit code is for; the rest is for people
WRONG = (
    "missing",
    "unreadable",
    "empty_captions",
    "unknown_captions",
    "unknown_tokens_above_limit",
    "image_id_collisions",
    "labels_alike",
)
SHOWN = 5  # entries of each list that are printed; check.json has all
BAR = 40  # characters of the longest bar of the histogram


def check_data(config, train_dataset=None, eval_dataset=None):
    """Check the data sets of a RunConfig (or a preset's name, or a YAML file), or those given; print and
    return the report.

    Writes ``<output_dir>/check.json``: under "train_dataset" and "eval_dataset" the missing and unreadable
    pictures, captions that are empty after cleaning or hold unknown tokens only, the share of unknown tokens
    with examples, image_ids shared by different files, repeated rows, lengths of the captions in tokens, how
    many are cut, and the sizes of the pictures; under "ok" whether nothing is wrong: no entry under a key of
    ``WRONG``.  More than ``MAX_UNKNOWN`` (5 %) of unknown tokens are wrong.  Of stage 2 questions are checked
    as captions are.  Raises ConfigError if there is nothing to check."""
    config = config if isinstance(config, RunConfig) else load_config(config)
    report = {}
    for name, given in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
        section = getattr(config, name)
        data = (
            given
            if given is not None
            else _from_files(config, section.data_loader, "train" if name == "train_dataset" else "eval")
        )
        if data is not None:
            questions = isinstance(data, list) and asks(data)
            report[name] = (
                check_pairs(data, config, section)
                if isinstance(data, Pairs)
                else check_questions(data, config)
                if questions
                else check_labelled(data, config)
            )
            print(summary(name, report[name]))
    if not report:
        raise ConfigError(
            "nothing to check: neither train_dataset.data_loader nor eval_dataset.data_loader names files; "
            "pass "
            "--train_dataset_dir or --eval_dataset_dir, or set data_loader.annotation_files"
        )
    report["ok"] = not any(part.get(key) for part in report.values() for key in WRONG)
    path = Path(config.output_dir) / "check.json"
    write_json(path, report)
    print(
        f"check: {'all is well' if report['ok'] else 'something is wrong'}; the whole report is saved at: "
        f"{path}"
    )
    return report


def check_pairs(data, config, section):
    """The report on captioned pictures, as a dict."""
    by_id, text = {}, section.text_transforms
    for picture in data.pictures:
        by_id.setdefault(picture.image_id, {})[picture.path] = picture.source
    rows = Counter((picture.path, caption) for picture in data.pictures for caption in picture.captions)
    clean, tokenizer = BlipCaption("", text.max_words), Blip2Processor.from_config(config.processor).tokenizer
    texts = (
        (f"{picture.source}: {caption!r}", clean(caption))
        for picture in progress(data.pictures, desc="captions", unit="picture")
        for caption in picture.captions
    )
    return {
        "pictures": len(data.pictures),
        "captions": sum(rows.values()),
        **look(list(dict.fromkeys(picture.path for picture in data.pictures))),
        "empty_captions": [
            f"{picture.source}: {caption!r}"
            for picture in data.pictures
            for caption in picture.captions
            if not clean(caption)
        ],
        "image_id_collisions": [files for files in by_id.values() if len(files) > 1],
        "repeated_rows": [
            {"image": path, "caption": caption, "rows": count}
            for (path, caption), count in rows.items()
            if count > 1
        ],
        **check_texts(
            texts,
            _length_with(config, text.prompt, tokenizer),
            tokenizer,
            min(text.max_length, tokenizer.max_length),
        ),
    }


def check_questions(data, config):
    """The report on questions about pictures, as a dict."""
    clean, tokenizer = BlipQuestion(), Blip2Processor.from_config(config.processor).tokenizer
    data = [question(one, f"sample {i}") for i, one in enumerate(data)]
    texts = ((f"question {i}: {one.question!r}", clean(one.question)) for i, one in enumerate(data))
    paths = list(dict.fromkeys(one.image for one in data if isinstance(one.image, (str, os.PathLike))))
    return {
        "pictures": len(paths),
        "questions": len(data),
        "without_answers": sum(not one.answers for one in data),
        **look(paths),
        **check_texts(texts, _length_with(config, "", tokenizer), tokenizer, tokenizer.max_length),
    }


def check_texts(texts, length_of, tokenizer, limit):
    """What is to be said of texts, (where, cleaned text) each: their lengths by ``length_of`` (text, its
    tokens), how many are above ``limit``, and what the tokenizer does not know."""
    lengths, words, nothing, tokens, unknown = Counter(), Counter(), [], 0, 0
    for where, text in texts:
        found = known(tokenizer, text)
        lengths[length_of(text, found.tokens)] += 1
        tokens, unknown = tokens + found.tokens, unknown + found.unknown
        words.update(found.words)
        if found.unknown and found.unknown == found.tokens:
            nothing.append(where)
    share = unknown / max(tokens, 1)
    common = [word for word, _ in words.most_common(4 * SHOWN)]
    return {
        "caption_tokens": dict(sorted(lengths.items())),
        "max_length": limit,
        "truncated_captions": sum(count for length, count in lengths.items() if length > limit),
        "unknown_captions": nothing,
        "unknown_tokens": unknown,
        "unknown_share": share,
        "unknown_words": common,
        "unknown_tokens_above_limit": common if share > MAX_UNKNOWN else [],
    }


def check_labelled(data, config):
    """The report on pictures with labels, as a dict; pictures that are arrays already are taken as read."""
    if not isinstance(data, LabelledSet):
        raise ConfigError(
            f"a {type(data).__name__} cannot be checked: expected a loader of mindblip2, as "
            "MultiImgCapDataLoader"
        )
    paths = [picture for picture in data.pictures if isinstance(picture, (str, os.PathLike))]
    tokenizer = Blip2Processor.from_config(config.processor).tokenizer
    labels, alike = list(data.labels), []
    texts = [data.template.replace("{}", label) for label in labels]
    encoded = tokenizer(
        texts, max_length=config.model.model_config.max_txt_len, padding="max_length", return_tensors="np"
    )
    try:
        check_labels(tokenizer, labels, texts, encoded, data.template)
    except ValueError as error:
        alike = [str(error)]
    return {"pictures": len(data), "labels": dict(Counter(data.truths)), **look(paths), "labels_alike": alike}


def look(paths):
    """Open every picture: ``{"missing", "unreadable", "sizes"}``."""
    missing, unreadable, found = [], [], []
    for path, result in zip(paths, sizes(paths)):
        if isinstance(result, FileNotFoundError):
            missing.append(path)
        elif isinstance(result, Exception):
            unreadable.append({"image": path, "reason": str(result)})
        else:
            found.append(result)
    widths, heights = zip(*found) if found else ((), ())
    of = {"width": widths, "height": heights}
    return {
        "missing": missing,
        "unreadable": unreadable,
        "sizes": {
            key: {"min": min(side), "median": statistics.median(side)} for key, side in of.items() if side
        },
    }


def summary(name, report):
    """The report in words: counts, the first entries of each list, the histogram of caption lengths."""
    texts = "".join(f", {report[key]} {key}" for key in ("captions", "questions") if key in report)
    lines = [
        f"{name}: {report['pictures']} pictures{texts}"
        + "".join(
            f", {key} {side['min']} px at least, median {side['median']:g}"
            for key, side in report["sizes"].items()
        )
    ]
    for key in filter(report.get, (*WRONG, "repeated_rows")):
        entries = report[key]
        lines.append(f"  {key.replace('_', ' ')}: {len(entries)}")
        lines += [f"    {entry}" for entry in entries[:SHOWN]] + (["    …"] if len(entries) > SHOWN else [])
    if report.get("unknown_tokens"):
        lines.append(
            f"  unknown to the tokenizer: {report['unknown_tokens']} tokens, {report['unknown_share']:.1%} "
            "(limit "
            f"{MAX_UNKNOWN:.0%}), in words such as {', '.join(map(repr, report['unknown_words'][:SHOWN]))}"
        )
    if report.get("caption_tokens"):
        lines.append(
            "  tokens per text (special ones and the prompt included; "
            f"{report['truncated_captions']} are cut at {report['max_length']}):"
        )
        most = max(report["caption_tokens"].values())
        lines += [
            f"    {length:4d} {'#' * -(-count * BAR // most)} {count}"
            for length, count in report["caption_tokens"].items()
        ]
    return "\n".join(lines)


def _length_with(config, prompt, tokenizer):
    """How many tokens the model reads of a cleaned text that has ``tokens`` itself: the prompt, in stage 1
    [CLS] and [SEP], in stage 2 the end and perhaps bos."""
    model = config.model.model_config
    around = 2 if model.text_config is None else model.begins_with_bos + 1
    if model.text_config is not None and isinstance(model.prompt, str):
        prompt = prompt or model.prompt
    return lambda text, tokens: around + (len(plain_ids(tokenizer, prompt + text)) if prompt else tokens)


def _from_files(config, loader, stage):
    """The pictures or questions that a ``LoaderConfig`` names, as training or evaluation would read them;
    None where it names none, or draws its own."""
    if not (loader.dataset_dir or loader.annotation_files):
        return None
    if loader.type in LABELLED:
        return labelled_sets(loader, None)[0]
    if stage == "eval" and config.model.model_config.text_config is not None and loader.annotation_files:
        asked = read_questions(
            *(
                [Path(loader.dataset_dir) / name for name in names]
                for names in (loader.annotation_files, loader.image_dirs)
            )
        )
        if asked is not None:
            return asked
    return captioned(loader, stage) if loader.type in CAPTIONED else None
