"""Captions of a folder's images: a metadata.jsonl or metadata.csv, or a .txt file beside each image.

``metadata.jsonl``: one object a line, ``{"file_name": "a/1.png", "text": "a red heart"}``; ``text`` may be a list of
texts. ``metadata.csv``: the same two columns. ``file_name`` is relative to the metadata file. Side-car files: ``1.txt``
beside ``1.png``, one text a line. The first text is the caption itself, the others are variants to train with; where
rows also have ``keywords``, ``group``, ``subgroup`` or ``short_names``, variants are made of these (:func:`variants`).
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.core.errors import InputError
from sfumato.data.decode import SUFFIXES, hashed
from sfumato.data.listing import relative, some

NAMES = ("metadata.jsonl", "metadata.csv")  # of two in one folder the first is used
MOST = 1000  # characters of a text; more is no caption
VARIANTS = 16  # texts an image at most, where they are made of its row
_NEAR_STEMS = ("metadata", "meta_data", "meta-data", "captions", "caption")
_NEAR_ENDINGS = ("json", "jsonl", "jsonlines", "ndjson", "csv", "tsv", "txt", "xlsx", "parquet")
_NEAR_SIDECARS = (".caption", ".captions", ".text")
_SHAPE = '{"file_name": "1.png", "text": "a red heart"}'
_LARGEST_SIDECAR = 1_000_000  # bytes
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


@dataclass
class Captions:
    """The texts of each image that has some, the images that have none, each with the reason, and other remarks."""

    texts: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    without: list[tuple[Path, str]] = field(default_factory=list)


@dataclass
class _Found:
    """What a source holds about one image before it is looked at: its texts as they stand, and the rest of its first row."""

    texts: list[str] = field(default_factory=list)
    row: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = "no caption"


def find_captions(root: Path, files: Sequence[Path], remarks: list[str]) -> Captions | None:
    """The captions of the images among ``files`` (all files below ``root``); None where the folder has none.

    What is not used is said in ``remarks``. Raises InputError for a metadata file that cannot be read or that names
    only missing files, for one whose name is nearly right, and when no image has a usable caption.
    """
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not images:
        return None
    metadata = _metadata(root, files, remarks)
    sidecars = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    beside = {image: sidecars[image.with_suffix("")] for image in images if image.with_suffix("") in sidecars}
    folders = {file.relative_to(root).parts[0] for file in images if file.parent != root}
    labelled = len(folders) > 1 and not any(file.parent == root for file in images)
    if metadata:
        if beside:
            remarks.append(f"{len(beside)} side-car .txt files are not used: {relative(metadata[0], root)!r} is")
        found = _from_metadata(root, metadata, images, remarks)
    else:
        _refuse_near_misses(root, files, images, labelled, bool(beside), remarks)
        if labelled and 2 * len(beside) < len(images):
            if beside:
                remarks.append(f"only {len(beside)} of {len(images)} images have a side-car .txt: none is used")
            return None
        if not beside:
            return None
        found = {image: _from_sidecar(file) for image, file in beside.items()}
    return _usable(root, images, found, remarks)


def variants(text: str, row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """``text`` and what else its row says of the image ``name``, in up to 16 texts to draw from in training.

    Without the columns ``keywords``, ``group``, ``subgroup`` and ``short_names``: ``text`` alone.
    Half of them are ``text`` itself; the others its words in plain order ("flag: Chad" is also "Chad flag"), its
    ``short_names``, itself with keywords, ``group`` or ``subgroup``, and ``keywords`` alone in varied order, so that
    single words come to carry meaning. No word is in them that is not in the row. Chosen by ``name``: always the same.
    """
    keywords, short = _listed(row.get("keywords")), [_plain(s) for s in _listed(row.get("short_names"))]
    group, subgroup = _listed(row.get("group")), [_plain(s) for s in _listed(row.get("subgroup"))]
    if not (keywords or short or group or subgroup):
        return (text,)
    others = sorted((k for k in keywords if k.lower() != text.lower()), key=lambda k: hashed(f"keyword {k}", name))
    orders = [sorted(keywords, key=lambda k: hashed(f"order {i} {k}", name)) for i in range(4)]
    made = [_plain_order(text), *sorted(short, key=lambda s: hashed(f"short {s}", name))[:2]]
    made += [f"{text}, {word}" for word in others[:1]] + [f"{text}, {', '.join(others[1:3])}"] * (len(others) > 1)
    made += [", ".join(order[: 1 + (i + hashed("length", name)) % 3]) for i, order in enumerate(orders) if order]
    made += [f"{text}, {word}" for word in group + subgroup]
    different = [t for t in dict.fromkeys(made) if t.lower() != text.lower() and 0 < len(t) <= MOST]
    chosen = sorted(different, key=lambda t: hashed(f"variant {t}", name))[: VARIANTS // 2]
    return (text,) * max(1, len(chosen)) + tuple(chosen)


def captioned(texts: Mapping[str, list[str]], what: str) -> tuple[dict[str, tuple[str, ...]], list[tuple[str, str]]]:
    """The texts that can be used of each image by its name, and the images left without any, each with the reason.

    InputError naming ``what`` when all are.
    """
    tidy = {name: _tidied(lines) for name, lines in texts.items()}
    kept = {name: tuple(lines) for name, (lines, _) in tidy.items() if lines}
    without = [(name, why) for name, (lines, why) in tidy.items() if not lines]
    if not kept:
        raise _nothing(what, without)
    return kept, without


def _nothing(what: str, without: Sequence[tuple[str, str]]) -> InputError:
    first = f" (the first, {without[0][0]}: {without[0][1]})" if without else ""
    problem = f"none of its {len(without)} images has a caption that can be used{first}"
    return InputError(f"data {what!r}: {problem}; give each a short text")


def _tidied(texts: Sequence[str]) -> tuple[list[str], str]:
    """The texts that can be used, each on one line, none twice; and why others, or all, cannot ("" where all can)."""
    # A lone surrogate, which JSON can express, has no place in a file or a tokenizer.
    clean = [_BLANK.sub(" ", text.encode("utf-8", "replace").decode()).strip() for text in texts]
    long = [len(text) for text in clean if len(text) > MOST]
    kept = list(dict.fromkeys(text for text in clean if 0 < len(text) <= MOST))
    if long:
        return kept, f"its caption has {max(long):,} characters ({MOST:,} are the most)"
    return kept, "" if kept else "its caption is empty"


def _metadata(root: Path, files: Sequence[Path], remarks: list[str]) -> list[Path]:
    """The metadata file of each folder that has one."""
    chosen: dict[Path, Path] = {}
    for file in sorted((f for f in files if f.name in NAMES), key=lambda f: NAMES.index(f.name)):
        if file.parent in chosen:
            used = chosen[file.parent]
            remarks.append(f"of {relative(used, root)!r} and {relative(file, root)!r} only the first is used")
        else:
            chosen[file.parent] = file
    return sorted(chosen.values())


def _refuse_near_misses(
    root: Path, files: Sequence[Path], images: Sequence[Path], labelled: bool, captioned: bool, remarks: list[str]
) -> None:
    """InputError for a file that was meant to hold captions; a remark where the folder is of use without it."""
    stems = {image.with_suffix("") for image in images}
    for file in files:
        if file.suffix.lower() in _NEAR_SIDECARS and file.with_suffix("") in stems:
            right = f"{file.stem}.txt"
        elif (best := _near_miss(file.name)) and not (file.suffix.lower() == ".txt" and file.with_suffix("") in stems):
            right = best
        else:
            continue
        name = relative(file, root)
        # A labelled folder may well have a metadata.json about something else.
        if captioned or (labelled and b"file_name" not in _head(file)):
            remarks.append(f"{name!r} is not used (captions are read from {NAMES[0]!r}, {NAMES[1]!r} or side-car .txt)")
            continue
        way = f", with one {_SHAPE} a line" if right == NAMES[0] else ""
        cure = f"name it {right!r}{way}, or take it out of the folder"
        raise InputError(f"data {str(root)!r}: captions are not read from a file named {name!r}; {cure}")


def _near_miss(name: str) -> str | None:
    """The name that ``name`` was probably meant to be."""
    lower = name.lower()
    scores = {known: difflib.SequenceMatcher(None, lower, known).ratio() for known in NAMES}
    stem, _, ending = lower.partition(".")
    if max(scores.values()) < 0.85 and not (stem in _NEAR_STEMS and ending in _NEAR_ENDINGS):
        return None
    return NAMES[1] if ending in ("csv", "tsv", "xlsx") or scores[NAMES[1]] > scores[NAMES[0]] else NAMES[0]


def _head(file: Path) -> bytes:
    try:
        if not file.is_file():  # opening a pipe would wait for ever
            return b""
        with open(file, "rb") as opened:
            return opened.read(65_536)
    except OSError:
        return b""


def _from_metadata(root: Path, metadata: list[Path], images: list[Path], remarks: list[str]) -> dict[Path, _Found]:
    by_name = {unicodedata.normalize("NFC", relative(image, root)): image for image in images}
    found: dict[Path, _Found] = {}
    missing: list[str] = []
    repeated: dict[str, None] = {}
    for file in metadata:
        folder = relative(file.parent, root)
        for row, texts in _rows(root, file):
            name = str(row["file_name"])
            plain = unicodedata.normalize("NFC", name).replace("\\", "/")
            keys = [posixpath.normpath(posixpath.join(folder, plain)), posixpath.normpath(plain)]
            image = next((by_name[key] for key in keys if key in by_name), None)
            if image is None:
                missing.append(name)
                continue
            if image in found:
                repeated[name] = None
            found.setdefault(image, _Found(row=row)).texts.extend(texts)
    which = some([repr(relative(file, root)) for file in metadata])
    if missing and not found:
        problem = f"none of the {len(missing)} images that {which} names is there: {some(missing)}"
        cure = f"an image that is there is {relative(images[0], root)!r}; give file names relative to the metadata file"
        raise InputError(f"data {str(root)!r}: {problem}; {cure}")
    if missing:
        remarks.append(f"{len(missing)} images that {which} names are missing: {some(missing)}")
    if repeated:
        remarks.append(f"{which} names {len(repeated)} images more than once, all texts are used: {some([*repeated])}")
    return found


def _rows(root: Path, file: Path) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
    """(row, its texts) of each line that says something. Raises InputError."""
    name = relative(file, root)
    where = f"data {str(root)!r}: {name!r}"
    try:
        if not file.is_file():
            raise InputError(f"{where} is not an ordinary file: put the file itself there")
        content = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{where} cannot be opened ({error.strerror}): make it readable, or take it away") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{where} is not UTF-8 (line {line}): save it as UTF-8") from error
    rows = list(_json_lines(where, content) if file.suffix == ".jsonl" else _csv_lines(where, content))
    if not rows:
        raise InputError(f"{where} is empty: give one {_SHAPE} a line, or take it away")
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    for column in ("file_name", "text"):
        if column not in columns:
            raise InputError(f"{where} has no {column!r} (it has {', '.join(columns)}): name the column {column!r}")
    for line, row in rows:
        if not isinstance(row.get("file_name"), str):
            raise InputError(f"{where}, line {line} has no 'file_name': give one {_SHAPE} a line")
        text = row.get("text")
        texts = [] if text is None else text if isinstance(text, list) else [text]
        if not all(isinstance(t, str) for t in texts):
            raise InputError(f"{where}, line {line}: 'text' must be a text in quotes, or a list of them")
        yield row, texts


def _json_lines(where: str, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(content.split("\n"), 1):  # splitlines() would also part at characters inside texts
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too large"
            raise InputError(f"{where}, line {line} is not JSON ({reason}): give one {_SHAPE} a line") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}, line {line} is not a JSON object: give one {_SHAPE} a line")
        yield line, row


def _csv_lines(where: str, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    limit = csv.field_size_limit(max(len(content), 1))  # an overlong text is dealt with later, by its length
    try:
        reader = csv.reader(io.StringIO(content, newline=""), strict=True)
        columns = [column.strip() for column in next(reader, [])]
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                problem = f"line {reader.line_num} has {len(cells)} columns, the first line {len(columns)}"
                raise InputError(f'{where}, {problem}: put texts that hold a comma into quotes ("a, b")')
            yield reader.line_num, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{where} cannot be read as CSV ({error}): save it as comma-separated values") from error
    finally:
        csv.field_size_limit(limit)


def _from_sidecar(file: Path) -> _Found:
    try:
        status = file.stat()
        if not file.is_file():  # opening a pipe would wait for ever
            return _Found(trouble="its .txt is not an ordinary file")
        if status.st_size > _LARGEST_SIDECAR:
            return _Found(trouble=f"its .txt is too large ({status.st_size:,} bytes)")
        content = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return _Found(trouble="its .txt is not UTF-8")
    except OSError as error:
        return _Found(trouble=f"its .txt cannot be opened ({error.strerror})")
    lines = [line for line in content.split("\n") if line.strip()]
    return _Found(lines or [""])


def _usable(root: Path, images: Sequence[Path], found: Mapping[Path, _Found], remarks: list[str]) -> Captions:
    captions = Captions()
    dropped: list[str] = []
    for image in images:
        caption = found.get(image, _Found())
        name = relative(image, root)
        texts, why = _tidied(caption.texts) if caption.texts else ([], caption.trouble)
        if not texts:
            captions.without.append((image, why))
            continue
        if why:
            dropped.append(name)
        captions.texts[image] = (*variants(texts[0], caption.row, name), *texts[1:])
    if dropped:
        remarks.append(f"texts of more than {MOST:,} characters are left out, of {some(dropped)}")
    if not captions.texts:
        raise _nothing(str(root), [(relative(image, root), why) for image, why in captions.without])
    return captions


def _listed(value: object) -> list[str]:
    """A column as words: a list of texts, or one text with commas, semicolons or bars between them."""
    parts = re.split(r"[,;|]", value) if isinstance(value, str) else value if isinstance(value, list) else []
    texts, _ = _tidied([part for part in parts if isinstance(part, str)])
    return texts


def _plain(name: str) -> str:
    """ "person_running" or "animal-mammal" with blanks between the words."""
    return _BLANK.sub(" ", name.replace("_", " ").replace("-", " ")).strip()


def _plain_order(text: str) -> str:
    """What stands before a colon last ("flag: Chad" is "Chad flag"), and no punctuation."""
    head, colon, tail = text.partition(": ")
    words = f"{tail} {head}" if colon else text
    return _BLANK.sub(" ", re.sub(r"""[,;:.!?"“”„()\[\]{}]""", " ", words)).strip()
