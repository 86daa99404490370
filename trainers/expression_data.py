"""Labelled pictures of five expressions: the union of four public sets, or class folders; checked and split."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.errors import MienError, UsageError
from engines.spec import EXPRESSIONS
from trainers.zips import SEED, ImageZip

PARTS = ("train", "val", "test")
TEST_SHARE, VAL_SHARE = 0.20, 0.16
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LABEL_OF = {
    "angry": 0,
    "anger": 0,
    "fear": 1,
    "happy": 2,
    "sad": 3,
    "sadness": 3,
    "surprise": 4,
    "surprised": 4,
}
OTHERS = ("contempt", "disgust", "neutral", "")  # labels of the sets that are none of the five
FER_VOTES = ("v_anger", "v_fear", "v_happiness", "v_sadness", "v_surprise")
VOTERS = 10  # of each FER picture
SHOWN_PROBLEMS = 8


@dataclass(frozen=True, slots=True)
class DataOptions:
    path: str = "data"
    kind: str = "zips"  # zips: the union of the public sets; folders: one folder a class
    limit: int = 0  # pictures of each set and class; 0 is all
    min_votes: int = 3  # of VOTERS, for the original label of a FER picture


@dataclass(frozen=True, slots=True)
class Picture:
    """One labelled picture. Pictures of one group (a person, near-duplicates) stay in one part of the split."""

    source: str
    name: str
    label: int  # into EXPRESSIONS
    group: str
    votes: int = 0  # for the label, where people voted
    shares: tuple[float, ...] = ()  # of the votes for each of the five, where people voted


def labelled_pictures(options: DataOptions) -> tuple[list[Picture], np.ndarray]:
    """All pictures and the part (train, val or test) of each. Raises MienError that names what is wrong."""
    if options.kind not in ("zips", "folders"):
        raise MienError(f"data.kind={options.kind}: is neither zips nor folders")
    if not 1 <= options.min_votes <= VOTERS:
        raise UsageError(
            f"data.min_votes={options.min_votes}: 1 to {VOTERS}, as many as looked at each FER picture"
        )
    found, problems = _folders(options) if options.kind == "folders" else _union(options)
    found = _limited(found, options.limit)
    parts = split(found)
    labels = np.array([picture.label for picture in found], int)
    for label, name in enumerate(EXPRESSIONS):
        counts = {part: int(((parts == part) & (labels == label)).sum()) for part in PARTS}
        if not sum(counts.values()):
            problems.append(f"class {name} is empty")
        elif not all(counts.values()):
            problems.append(f"class {name} has {sum(counts.values())} pictures, too few for a 64/16/20 split")
    refuse(options.path, problems)
    return found, parts


def refuse(where: str, problems: Sequence[str]) -> None:
    """Raise MienError with all problems, the first of them by name; nothing where there are none."""
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = "; ".join(problems[:SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise MienError(f"{where}: {shown}; mend the data or take the files out")


def split(pictures: Sequence[Picture]) -> np.ndarray:
    """train, val or test of each: 64/16/20 in every set and class, seed 281, whole groups."""
    members = defaultdict(list)
    for i, picture in enumerate(pictures):
        members[picture.source, picture.group].append(i)
    strata = defaultdict(list)
    for (source, _), group in members.items():
        labels = {pictures[i].label for i in group}
        strata[source, labels.pop() if len(labels) == 1 else -1].append(group)
    parts = np.full(len(pictures), "train")
    rng = np.random.default_rng(SEED)
    for _, groups in sorted(strata.items()):
        total, seen = sum(len(group) for group in groups), 0
        for k in rng.permutation(len(groups)):
            if seen < total * TEST_SHARE:
                parts[groups[k]] = "test"
            elif seen < total * (TEST_SHARE + VAL_SHARE):
                parts[groups[k]] = "val"
            seen += len(groups[k])
    return parts


def _limited(pictures: Iterable[Picture], limit: int) -> list[Picture]:
    taken: defaultdict[tuple[str, int], int] = defaultdict(int)
    kept = []
    for picture in pictures:
        taken[picture.source, picture.label] += 1
        if not limit or taken[picture.source, picture.label] <= limit:
            kept.append(picture)
    return kept


def _union(options: DataOptions) -> tuple[list[Picture], list[str]]:
    found, problems = [], []
    for source in ("emotion_masked", "ferplus", "expw", "ckplus"):
        with ImageZip(options.path, source) as data:
            there = set(data.names())
            rows = _fer_rows(data.rows()) if source == "ferplus" else data.rows()
        key, name = ("fer2013_label", "path") if source == "ferplus" else ("emotion", "file")
        for row in rows:
            word = row[key].lower()
            if word not in LABEL_OF:
                if word not in OTHERS:
                    problems.append(f"{source}/{row[name]}: label {row[key]!r} is not known")
                continue
            label = LABEL_OF[word]
            given = [int(row[vote]) for vote in FER_VOTES] if source == "ferplus" else []
            votes = given[label] if given else 0
            if given and votes < options.min_votes:
                continue
            if row[name] not in there:
                problems.append(f"{source}/{row[name]}: is missing")
                continue
            shares = tuple(count / sum(given) for count in given)
            found.append(Picture(source, row[name], label, _group(source, row, row[name]), votes, shares))
    return found, problems


def _group(source: str, row: dict[str, str], name: str) -> str:
    return row["subject"] if source == "ckplus" else row.get("first_copy") or name


def _fer_rows(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The first row of each path, with the end of its chain of `dup_of` as `first_copy`."""
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        first.setdefault(row["path"], row)
    for path, row in first.items():
        end, seen = path, {path}
        while (following := first[end]["dup_of"]) in first and following not in seen:
            end = following
            seen.add(end)
        row["first_copy"] = end
    return list(first.values())


def _folders(options: DataOptions) -> tuple[list[Picture], list[str]]:
    root = Path(options.path)
    if not root.is_dir():
        raise MienError(f"{root}: no such folder; set data.path to one with {', '.join(EXPRESSIONS)} in it")
    found, problems = [], []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != "."):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if folder.name.lower() not in LABEL_OF:
            problems.append(f"folder {folder.name}: is none of {', '.join(EXPRESSIONS)}")
            continue
        label = LABEL_OF[folder.name.lower()]
        for path in files:
            name = str(path.relative_to(root))
            found.append(Picture("folders", name, label, name))
    return found, problems
