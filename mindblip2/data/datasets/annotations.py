"""Annotation files to pictures with their captions: COCO Karpathy, Flickr30k, Visual Genome and plain lists,
by one reader.

Most of them are JSON lists of ``{"image": file, "caption": text or list of texts, "image_id"?: text or
number}``: COCO's training file has one row per caption, its val and test files and Flickr30k's one row per
picture with 5 to 7 captions, Visual Genome many rows per picture without an id.  Other keys are left alone.
COCO's own files (``captions_val2014.json``) are mappings, ``{"images": [{"id", "file_name"}], "annotations":
[{"image_id", "caption"}]}``, and are read as one row per picture.

The same rows may be JSON Lines (a row per line) or a CSV or TSV table whose first line names the columns, and
the two keys may be ``file_name`` and ``text``, as in Hugging Face's ``metadata.jsonl``.  Text is UTF-8,
UTF-16 or UTF-32.
"""

import contextlib
import csv
import io
import json
import os
import re
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

from mindblip2.data.images.file_signatures import HEAD, looks_like
from mindblip2.file_io import MAX_TEXT_BYTES, FileError, parse_json, regular_file

KEYS = {"file_name": "image", "text": "caption"}  # Hugging Face's name → LAVIS's
EXPECTED = 'a list of {"image", "caption", "image_id"?}'
LEGACY_ENCODINGS = ("gb18030", "shift_jis", "cp1252")  # tried in this order only to name what a file may be
FEW = 3  # places that are not UTF-8, fewer of which may be damage
DELIMITERS = {",": "CSV", "\t": "TSV", ";": "CSV with semicolons", "|": "table with bars"}
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


class Picture(NamedTuple):
    """One picture and what is said of it.

    ``image_id``: 0, 1, 2 … over the pictures of all files in order of appearance.  The same file, or the same
    "image_id" under the same image folder, has one number; nothing else has."""

    path: str
    captions: tuple
    image_id: int
    file: str  # the annotation file …
    row: int  # … and the picture's first row in it, from 0

    @property
    def source(self):
        """Where the picture is written, for messages."""
        return f"{self.file}, row {self.row}"


class AnnotationError(FileError):
    """An annotation file that cannot be used; the message says file, row, what, and what was expected."""


def read_annotations(files, image_dirs):
    """The pictures of ``files``, each with its captions in file order; the pictures of ``files[i]`` lie under
    ``image_dirs[i]``.

    Pictures stand in the order of their first rows, and rows of one file that show the same picture become
    one :class:`Picture`; a picture in two files is two of them with the same ``image_id``.  No picture is
    opened (``run_mode check`` does).  Raises FileNotFoundError for a file, AnnotationError, naming file and
    row, for what it holds."""
    files, image_dirs = _listed(files), _listed(image_dirs)
    if not files or len(files) != len(image_dirs):
        raise AnnotationError(
            f"{len(files)} annotation_files and {len(image_dirs)} image_dirs: expected at least one file, "
            "and "
            "for each the folder of its pictures (the same folder may be named twice)"
        )
    ids = {}
    return [
        picture
        for file, folder in zip(files, image_dirs)
        for picture in _pictures(str(file), str(folder), ids)
    ]


def _pictures(file, folder, ids):
    found = {}
    for row, entry in enumerate(rows_of(file)):
        image, captions, given = _checked(entry, file, row, folder)
        path = os.path.normpath(os.path.join(folder, image))
        key = (path, _number(ids, path, folder, given))
        found.setdefault(key, (row, []))[1].extend(captions)
    return [
        Picture(path, tuple(captions), number, file, row) for (path, number), (row, captions) in found.items()
    ]


def _number(ids, path, folder, given):
    """The picture's number: that of its path, else that of its given id in this folder, else a new one."""
    keys = [path] if given is None else [path, (os.path.normpath(folder), given)]
    number = next((ids[key] for key in keys if key in ids), None)
    if number is None:
        number = ids[None] = ids.get(None, -1) + 1  # the last number given out
    for key in keys:
        ids.setdefault(key, number)
    return number


def rows_of(file):
    """The rows of an annotation file: a list of at least one.  Raises FileNotFoundError, AnnotationError."""
    content = content_of(file)
    if isinstance(content, dict) and {"images", "annotations"} <= set(content) and not karpathy(content):
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
                raise AnnotationError(
                    f"{os.path.abspath(file)}, annotation {row}: image_id {shown(one['image_id'])} is none "
                    "of the "
                    f"{len(rows)} images; get the file again"
                )
            rows[one["image_id"]]["caption"].append(one["caption"])
    except (TypeError, KeyError) as error:
        raise AnnotationError(
            f'{os.path.abspath(file)}: expected {{"images": [{{"id", "file_name"}}], "annotations": [{{"image_id", '
            f'"caption"}}]}}, as captions_val2014.json: {type(error).__name__} {str(error)[:80]}'
        ) from None
    return [row for row in rows.values() if row["caption"]]


def content_of(file: str | os.PathLike) -> Any:
    """What an annotation file holds: JSON as it is; JSON Lines and tables as a list of rows.  Raises
    FileNotFoundError, AnnotationError."""
    path = Path(file)
    if not path.exists():
        folder = (
            "the folder exists, the file does not"
            if path.absolute().parent.is_dir()
            else f"there is no folder {path.absolute().parent}"
        )
        raise FileNotFoundError(
            f"no annotation file {path.absolute()}: {folder}; annotation_files and image_dirs are relative "
            "to "
            "dataset_dir (--train_dataset_dir, --eval_dataset_dir)"
        )
    name = str(path.absolute())
    try:
        data = regular_file(path.absolute(), MAX_TEXT_BYTES).read_bytes()
    except FileError as error:
        raise AnnotationError(f"{error}") from None
    text, suffix = _text(data, name), path.suffix.lower()
    try:
        rows = _table(text, name, suffix) or _json_lines(text, name, suffix)
        return parse_json(text, name) if rows is None else rows
    except AnnotationError:
        raise
    except FileError as error:
        other = "" if not text.strip() or text.lstrip()[0] in "[{" else f" (it is {looks_like(data[:HEAD])})"
        raise AnnotationError(f"{error}{other}") from None


def shown(value: Any) -> str:
    """A value in a message: short, however long or deeply nested it is."""
    return _short.repr(value)


def _text(data, name):
    """The text of a file in UTF-8, UTF-16 or UTF-32; AnnotationError that says in which encoding another may
    be."""
    try:
        return data.decode("utf-8-sig" if (encoding := json.detect_encoding(data)) == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        at = error.start
    for encoding in LEGACY_ENCODINGS if b"\0" not in data[:HEAD] else ():
        with contextlib.suppress(UnicodeDecodeError):
            if all(sign.isprintable() or sign.isspace() for sign in data.decode(encoding)[:4096]):
                few = data.decode("utf-8", "replace").count("\ufffd") < FEW
                raise AnnotationError(
                    f"{name} is text, but not in UTF-8 (byte {at}); it can be read as {encoding.upper()}.  "
                    "Convert it: "
                    f"iconv -f {encoding.upper()} -t UTF-8 FILE > NEW"
                    + (", or correct that byte" if few else "")
                )
    raise AnnotationError(f"{name} is no text: it is {looks_like(data[:HEAD])}; expected {EXPECTED}")


def _json_lines(text, name, suffix):
    """The rows of JSON Lines, or None for another text: its first line is an object by itself, and more
    follows."""
    lines = text.split("\n")
    first = next((line for line in lines if line.strip()), "")
    if not first.lstrip().startswith("{") or not (
        suffix in (".jsonl", ".ndjson") or sum(bool(line.strip()) for line in lines) > 1
    ):
        return None
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return None
    return [
        parse_json(line, f"{name}, line {i}", dict, "a row of JSON Lines", "correct the line")
        for i, line in enumerate(lines, 1)
        if line.strip()
    ]


def _table(text, name, suffix):
    """The rows of a table, or None for another text.  Raises AnnotationError for a table without the columns
    that are needed."""
    head = text.lstrip().partition("\n")[0]
    if head[:1] in ("{", "[", "<") or "\0" in head:
        return None
    for delimiter, kind in DELIMITERS.items():
        columns = [column.strip().strip('"') for column in head.rstrip("\r").split(delimiter)]
        if len(columns) < 2 or not (
            suffix in (".csv", ".tsv") or {"image", "file_name", "image_name"} & set(columns)
        ):
            continue
        if not ({"image", "file_name"} & set(columns) and {"caption", "text", "question"} & set(columns)):
            raise AnnotationError(
                f"{name} is a {kind} whose first line is {shown(head)}: expected there the names of its "
                "columns, image "
                "and caption (or file_name and text)"
            )
        try:
            rows = list(csv.DictReader(io.StringIO(text.lstrip(), newline=""), columns, delimiter=delimiter))[
                1:
            ]
        except csv.Error as error:
            raise AnnotationError(f"{name} is a {kind} that cannot be read: {error}; correct it") from None
        wrong = next((i for i, row in enumerate(rows, 1) if None in row or None in row.values()), None)
        if wrong:
            raise AnnotationError(
                f"{name}, row {wrong - 1}: expected {len(columns)} columns, {', '.join(columns)}; put a text "
                "that holds "
                f"{delimiter!r} into quotes"
            )
        return [{key: value for key, value in row.items() if value != ""} for row in rows]
    return None


def karpathy(content: Any) -> bool:
    """Whether a file's content is Karpathy's own (``dataset_coco.json``), with all parts and the sentences in
    one file."""
    images = content.get("images") if isinstance(content, dict) else None
    return (
        isinstance(images, list) and bool(images) and isinstance(images[0], dict) and "sentences" in images[0]
    )


def checked_rows(rows, file, expected=EXPECTED):
    """``rows``, if they are a list of at least one; else AnnotationError."""
    if karpathy(rows):
        raise AnnotationError(
            f"{os.path.abspath(file)} is Karpathy's own file of all parts (as dataset_coco.json): name those "
            "of LAVIS, "
            "coco_karpathy_train.json, coco_karpathy_val.json or coco_karpathy_test.json, or write for the "
            "images "
            'of one "split" a list of {"image": filepath/filename, "caption": ["raw" of its "sentences"]}'
        )
    if not isinstance(rows, list) or not rows:
        got = (
            f"a mapping with the keys {sorted(rows)[:6]}"
            if isinstance(rows, dict)
            else f"a {type(rows).__name__} of length 0"
            if rows == []
            else f"a {type(rows).__name__}"
        )
        raise AnnotationError(f"{os.path.abspath(file)} holds {got}; expected {expected}")
    return rows


def _checked(entry, file, row, folder):
    """(image, captions, given id or None) of one row."""
    where = f"{os.path.abspath(file)}, row {row}"
    if isinstance(entry, dict) and set(KEYS) <= set(entry):
        entry = {**entry, **{name: entry[key] for key, name in KEYS.items()}}
    if not isinstance(entry, dict) or "image" not in entry or "caption" not in entry:
        got = f"the keys {shown(sorted(entry))}" if isinstance(entry, dict) else shown(entry)
        asked = (
            ": these are questions, which stage 2 is evaluated with"
            if isinstance(entry, dict) and "question" in entry
            else ""
        )
        raise AnnotationError(f'{where}: expected {{"image", "caption", "image_id"?}}, got {got}{asked}')
    image, captions, given = entry["image"], entry["caption"], entry.get("image_id")
    captions = [captions] if isinstance(captions, str) else captions
    if (
        not isinstance(captions, list)
        or not captions
        or not all(isinstance(caption, str) for caption in captions)
    ):
        raise AnnotationError(
            f"{where}: caption = {shown(captions)}: expected a text or a list of texts, at least one"
        )
    if isinstance(given, bool) or not isinstance(given, (str, int, type(None))):
        raise AnnotationError(
            f"{where}: image_id = {shown(given)}: expected a text or a whole number, or leave it out"
        )
    return picture_name(image, where, folder), captions, given


def picture_name(image: Any, where: str, folder: str) -> str:
    """The picture's file name of a row.  Backslashes of Windows become slashes where no file has them in its
    name.

    Raises AnnotationError, which begins with ``where``, for what is no name, and for a path that begins with
    a drive."""
    if not isinstance(image, str) or not image or "\0" in image:
        raise AnnotationError(f"{where}: image = {shown(image)}: expected the picture's file name")
    if os.sep == "\\" or "\\" not in image or os.path.exists(os.path.join(folder, image)):
        return image
    if re.match(r"[A-Za-z]:\\|\\\\", image):
        raise AnnotationError(
            f"{where}: image = {shown(image)} is a path of a Windows host: write it relative to the folder "
            "in image_dirs"
        )
    return image.replace("\\", "/")


def _listed(value):
    return [value] if isinstance(value, (str, os.PathLike)) else list(value or ())
