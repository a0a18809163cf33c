"""Annotation files to pictures with their captions: COCO Karpathy, Flickr30k, Visual Genome and plain lists, by one reader.

All of them are JSON lists of ``{"image": file, "caption": text or list of texts, "image_id"?: text or number}``: COCO's training
file has one row per caption, its val and test files and Flickr30k's one row per picture with 5 to 7 captions, Visual Genome many
rows per picture without an id.  Other keys are left alone.  COCO's own files (``captions_val2014.json``) are mappings,
``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``, and are read as one row per picture.
"""
import json
import os
from pathlib import Path
from typing import NamedTuple


class Picture(NamedTuple):
    """One picture and what is said of it.

    ``image_id``: 0, 1, 2 … over the pictures of all files in order of appearance.  The same file, or the same "image_id" under
    the same image folder, has one number; nothing else has."""
    path: str
    captions: tuple
    image_id: int
    file: str           # the annotation file …
    row: int            # … and the picture's first row in it, from 0

    @property
    def source(self):
        """Where the picture is written, for messages."""
        return f"{self.file}, row {self.row}"


class AnnotationError(ValueError):
    """An annotation file that cannot be used; the message says file, row, what, and what was expected."""


def read_annotations(files, image_dirs):
    """The pictures of ``files``, each with its captions in file order; the pictures of ``files[i]`` lie under ``image_dirs[i]``.

    Pictures stand in the order of their first rows, and rows of one file that show the same picture become one
    :class:`Picture`; a picture in two files is two of them with the same ``image_id``.  No picture is opened (``run_mode check``
    does).  Raises FileNotFoundError for a file, AnnotationError, naming file and row, for what it holds."""
    files, image_dirs = _listed(files), _listed(image_dirs)
    if not files or len(files) != len(image_dirs):
        raise AnnotationError(f"{len(files)} annotation_files and {len(image_dirs)} image_dirs: expected at least one file, and "
                              "for each the folder of its pictures (the same folder may be named twice)")
    ids = {}
    return [picture for file, folder in zip(files, image_dirs) for picture in _pictures(str(file), str(folder), ids)]


def _pictures(file, folder, ids):
    found = {}
    for row, entry in enumerate(rows_of(file)):
        image, captions, given = _checked(entry, file, row)
        path = os.path.normpath(os.path.join(folder, image))
        key = (path, _number(ids, path, folder, given))
        found.setdefault(key, (row, []))[1].extend(captions)
    return [Picture(path, tuple(captions), number, file, row) for (path, number), (row, captions) in found.items()]


def _number(ids, path, folder, given):
    """The picture's number: that of its path, else that of its given id in this folder, else a new one."""
    keys = [path] if given is None else [path, (os.path.normpath(folder), given)]
    number = next((ids[key] for key in keys if key in ids), None)
    if number is None:
        number = ids[None] = ids.get(None, -1) + 1      # the last number given out
    for key in keys:
        ids.setdefault(key, number)
    return number


def rows_of(file):
    """The rows of an annotation file: a list of at least one.  Raises FileNotFoundError, AnnotationError."""
    content = content_of(file)
    if isinstance(content, dict) and {"images", "annotations"} <= set(content):
        content = _joined(content, file)
    return checked_rows(content, file)


def _joined(content, file):
    """COCO's two lists as rows of pictures with their captions; pictures without one are left out."""
    rows = {}
    try:
        for image in content["images"]:
            rows[image["id"]] = {"image": image["file_name"], "caption": [], "image_id": image["id"]}
        for row, one in enumerate(content["annotations"]):
            if one["image_id"] not in rows:
                raise AnnotationError(f"{os.path.abspath(file)}, annotation {row}: image_id {one['image_id']!r} is none of the "
                                      f"{len(rows)} images; get the file again")
            rows[one["image_id"]]["caption"].append(one["caption"])
    except (TypeError, KeyError) as error:
        raise AnnotationError(f'{os.path.abspath(file)}: expected {{"images": [{{"id", "file_name"}}], "annotations": [{{"image_id", '
                              f'"caption"}}]}}, as captions_val2014.json: {type(error).__name__} {error}') from None
    return [row for row in rows.values() if row["caption"]]


def content_of(file):
    """What a JSON file holds.  Raises FileNotFoundError, AnnotationError."""
    path = Path(file)
    if not path.is_file():
        folder = "the folder exists, the file does not" if path.absolute().parent.is_dir() else \
            f"there is no folder {path.absolute().parent}"
        raise FileNotFoundError(f"no annotation file {path.absolute()}: {folder}; annotation_files and image_dirs are relative to "
                                "dataset_dir (--train_dataset_dir, --eval_dataset_dir)")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise AnnotationError(f"{path.absolute()} is not a JSON file: {error}; get it again") from None


def checked_rows(rows, file, expected='a list of {"image", "caption", "image_id"?}'):
    """``rows``, if they are a list of at least one; else AnnotationError."""
    if not isinstance(rows, list) or not rows:
        got = f"a mapping with the keys {sorted(rows)[:6]}" if isinstance(rows, dict) else f"a {type(rows).__name__} of length 0" \
            if rows == [] else f"a {type(rows).__name__}"
        raise AnnotationError(f"{os.path.abspath(file)} holds {got}; expected {expected}")
    return rows


def _checked(entry, file, row):
    """(image, captions, given id or None) of one row."""
    where = f"{os.path.abspath(file)}, row {row}"
    if not isinstance(entry, dict) or "image" not in entry or "caption" not in entry:
        got = f"the keys {sorted(entry)}" if isinstance(entry, dict) else repr(entry)[:60]
        raise AnnotationError(f"{where}: expected" ' {"image", "caption", "image_id"?}, ' f"got {got}")
    image, captions, given = entry["image"], entry["caption"], entry.get("image_id")
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(image, str) or not image:
        raise AnnotationError(f"{where}: image = {image!r}: expected the picture's file name")
    if not isinstance(captions, list) or not captions or not all(isinstance(caption, str) for caption in captions):
        raise AnnotationError(f"{where}: caption = {repr(captions)[:80]}: expected a text or a list of texts, at least one")
    if isinstance(given, bool) or not isinstance(given, (str, int, type(None))):
        raise AnnotationError(f"{where}: image_id = {given!r}: expected a text or a whole number, or leave it out")
    return image, captions, given


def _listed(value):
    return [value] if isinstance(value, (str, os.PathLike)) else list(value or ())
