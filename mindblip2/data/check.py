"""Look at a data set before training on it: every file opened, every caption read, every oddity listed.

Needs no model and no MindSpore."""
import json
import os
import statistics
from collections import Counter
from pathlib import Path

from mindblip2.config import RunConfig, load_config
from mindblip2.data.captions import BlipCaption
from mindblip2.data.image import sizes
from mindblip2.data.labelled import LabelledSet
from mindblip2.data.loaders import CAPTIONED, LABELLED, captioned, labelled_sets
from mindblip2.data.pairs import Pairs
from mindblip2.data.processor import Blip2Processor
from mindblip2.progress import progress
from mindblip2.sections import ConfigError

WRONG = ("missing", "unreadable", "empty_captions", "image_id_collisions")     # what the exit code is for; the rest is for people
SHOWN = 5               # entries of each list that are printed; check.json has all
BAR = 40                # characters of the longest bar of the histogram


def check_data(config, train_dataset=None, eval_dataset=None):
    """Check the data sets of a RunConfig (or a preset's name, or a YAML file), or those given; print and return the report.

    Writes ``<output_dir>/check.json``: under "train_dataset" and "eval_dataset" the missing and unreadable pictures, captions that
    are empty after cleaning, image_ids shared by different files, repeated rows, lengths of the captions in tokens, how many are
    cut, and the sizes of the pictures; under "ok" whether the first four are all empty.  Raises ConfigError if there is nothing
    to check."""
    config = config if isinstance(config, RunConfig) else load_config(config)
    report = {}
    for name, given in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
        section = getattr(config, name)
        data = given if given is not None else _from_files(section.data_loader, "train" if name == "train_dataset" else "eval")
        if data is not None:
            report[name] = check_pairs(data, config, section) if isinstance(data, Pairs) else check_labelled(data)
            print(summary(name, report[name]))
    if not report:
        raise ConfigError("nothing to check: neither train_dataset.data_loader nor eval_dataset.data_loader names files; pass "
                          "--train_dataset_dir or --eval_dataset_dir, or set data_loader.annotation_files")
    report["ok"] = not any(part.get(key) for part in report.values() for key in WRONG)
    path = Path(config.output_dir) / "check.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"check: {'all is well' if report['ok'] else 'something is wrong'}; the whole report is saved at: {path}")
    return report


def check_pairs(data, config, section):
    """The report on captioned pictures, as a dict."""
    by_id, text = {}, section.text_transforms
    for picture in data.pictures:
        by_id.setdefault(picture.image_id, {})[picture.path] = picture.source
    rows = Counter((picture.path, caption) for picture in data.pictures for caption in picture.captions)
    clean, tokenizer = BlipCaption("", text.max_words), Blip2Processor.from_config(config.processor).tokenizer
    lengths = Counter(len(tokenizer(text.prompt + clean(caption), padding=False, truncation=False)["input_ids"])
                      for picture in progress(data.pictures, desc="captions", unit="picture")
                      for caption in picture.captions)
    limit = min(text.max_length, tokenizer.max_length)
    return {
        "pictures": len(data.pictures), "captions": sum(rows.values()),
        **look(list(dict.fromkeys(picture.path for picture in data.pictures))),
        "empty_captions": [f"{picture.source}: {caption!r}" for picture in data.pictures for caption in picture.captions
                           if not clean(caption)],
        "image_id_collisions": [files for files in by_id.values() if len(files) > 1],
        "repeated_rows": [{"image": path, "caption": caption, "rows": count}
                          for (path, caption), count in rows.items() if count > 1],
        "caption_tokens": dict(sorted(lengths.items())), "max_length": limit,
        "truncated_captions": sum(count for length, count in lengths.items() if length > limit)}


def check_labelled(data):
    """The report on pictures with labels, as a dict; pictures that are arrays already are taken as read."""
    if not isinstance(data, LabelledSet):
        raise ConfigError(f"a {type(data).__name__} cannot be checked: expected a loader of mindblip2, as MultiImgCapDataLoader")
    paths = [picture for picture in data.pictures if isinstance(picture, (str, os.PathLike))]
    return {"pictures": len(data), "labels": dict(Counter(data.truths)), **look(paths)}


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
    return {"missing": missing, "unreadable": unreadable,
            "sizes": {key: {"min": min(side), "median": statistics.median(side)} for key, side in of.items() if side}}


def summary(name, report):
    """The report in words: counts, the first entries of each list, the histogram of caption lengths."""
    lines = [f"{name}: {report['pictures']} pictures" + (f", {report['captions']} captions" if "captions" in report else "")
             + "".join(f", {key} {side['min']} px at least, median {side['median']:g}" for key, side in report["sizes"].items())]
    for key in filter(report.get, (*WRONG, "repeated_rows")):
        entries = report[key]
        lines.append(f"  {key.replace('_', ' ')}: {len(entries)}")
        lines += [f"    {entry}" for entry in entries[:SHOWN]] + (["    …"] if len(entries) > SHOWN else [])
    if report.get("caption_tokens"):
        lines.append(f"  tokens per caption ([CLS] and [SEP] included; {report['truncated_captions']} are cut at {report['max_length']}):")
        most = max(report["caption_tokens"].values())
        lines += [f"    {length:4d} {'#' * -(-count * BAR // most)} {count}" for length, count in report["caption_tokens"].items()]
    return "\n".join(lines)


def _from_files(loader, stage):
    """The pictures that a ``LoaderConfig`` names; None where it names none, or draws its own."""
    if not (loader.dataset_dir or loader.annotation_files):
        return None
    if loader.type in LABELLED:
        return labelled_sets(loader, None)[0]
    return captioned(loader, stage) if loader.type in CAPTIONED else None
