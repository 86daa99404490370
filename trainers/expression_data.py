"""Labelled pictures of five expressions: the union of four public sets, or class folders; checked and split."""

import dataclasses
import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engines.errors import MienError, UsageError
from engines.spec import EXPRESSIONS
from trainers.zips import SEED, ImageZip, file_stamp

if TYPE_CHECKING:
    from trainers.label_checks import Check

FOLDERS = "folders"  # the source of pictures in class folders
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
CONFIRMED = 3  # votes for the original label: FER's pictures that are split
SHOWN_PROBLEMS = 8


@dataclass(frozen=True, slots=True)
class DataOptions:
    path: str = "data"
    kind: str = "zips"  # zips: the union of the public sets; folders: one folder a class
    limit: int = 0  # pictures of each set and class; 0 is all
    min_votes: int = CONFIRMED  # of VOTERS, for the original label of a FER picture


@dataclass(frozen=True, slots=True)
class Picture:
    """One labelled picture. Pictures of one group (a person) stay in one part of the split.

    like: the first of those that it nearly repeats. recurs: confirmed ones of these were in other parts, and are
    left out.
    """

    source: str
    name: str
    label: int  # into EXPRESSIONS
    group: str
    votes: int = 0  # for the label, where people voted
    shares: tuple[float, ...] = ()  # of the votes for each of the five, where people voted
    like: str = ""
    recurs: bool = False


def labelled_pictures(options: DataOptions) -> tuple[list[Picture], np.ndarray]:
    """All pictures and the part (train, val or test) of each; near-duplicates are in one part alone.

    Raises MienError that names what is wrong.
    """
    if options.kind not in ("zips", FOLDERS):
        raise MienError(f"data.kind={options.kind}: is neither zips nor folders")
    if not 1 <= options.min_votes <= VOTERS:
        raise UsageError(
            f"data.min_votes={options.min_votes}: 1 to {VOTERS}, as many as looked at each FER picture"
        )
    found, problems = _folders(Path(options.path)) if options.kind == FOLDERS else (_union(options.path), [])
    found, parts = apart(found, lasting_parts(found))
    rows = _chosen(found, parts, options)
    found, parts = [found[i] for i in rows], parts[rows]
    labels = np.array([picture.label for picture in found], int)
    limited = f" with limit={options.limit}" if options.limit else ""
    for label, name in enumerate(EXPRESSIONS):
        counts = {part: int(((parts == part) & (labels == label)).sum()) for part in PARTS}
        if not sum(counts.values()):
            problems.append(f"class {name} is empty")
        elif not all(counts.values()):
            few = f"class {name} has {sum(counts.values())} pictures{limited}"
            problems.append(f"{few}, too few for a 64/16/20 split")
    refuse(options.path, problems)
    return found, parts


def refuse(where: str, problems: Sequence[str]) -> None:
    """Raise MienError with all problems, the first of them by name; nothing where there are none."""
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = "; ".join(problems[:SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise MienError(f"{where}: {shown}; mend the data or take the files out")


def lasting_parts(pictures: Sequence[Picture]) -> np.ndarray:
    """train, val or test of each, whatever is chosen of them later: what was trained on is never in the test part.

    The confirmed are split; one that is not goes where its group is, or else to train.
    """
    confirmed = [picture for picture in pictures if _confirmed(picture, CONFIRMED)]
    part_of = {(p.source, p.group): part for p, part in zip(confirmed, split(confirmed), strict=True)}
    return np.array([part_of.get((picture.source, picture.group), "train") for picture in pictures], "U5")


def apart(pictures: Sequence[Picture], parts: np.ndarray) -> tuple[list[Picture], np.ndarray]:
    """Without those of which a near-duplicate is in the test part, or in val where they are in train."""
    parts_of, sure = defaultdict(set), defaultdict(set)
    of = [(picture.source, picture.like or picture.name) for picture in pictures]
    for picture, its, part in zip(pictures, of, parts.tolist(), strict=True):
        parts_of[its].add(part)
        if _confirmed(picture, CONFIRMED):
            sure[its].add(part)
    kept = [i for i, its in enumerate(of) if parts[i] == max(parts_of[its], key=PARTS.index)]
    return [dataclasses.replace(pictures[i], recurs=len(sure[of[i]]) > 1) for i in kept], parts[kept]


def _confirmed(picture: Picture, votes: int) -> bool:
    return not picture.shares or picture.votes >= votes


def split(pictures: Sequence[Picture]) -> np.ndarray:
    """train, val or test of each: 64/16/20 in every set and class, seed 281, whole groups.

    Those of class folders are in an order of their names' hashes: who adds some moves few of the others.
    """
    members = defaultdict(list)
    for i, picture in enumerate(pictures):
        members[picture.source, picture.group].append(i)
    strata = defaultdict(list)
    for (source, _), group in members.items():
        labels = {pictures[i].label for i in group}
        strata[source, labels.pop() if len(labels) == 1 else -1].append(group)
    parts = np.full(len(pictures), "train")
    rng = np.random.default_rng(SEED)
    for (source, _), groups in sorted(strata.items()):
        total, seen = sum(len(group) for group in groups), 0
        names = [pictures[group[0]].group for group in groups]
        by_hash = sorted(range(len(groups)), key=lambda k, names=names: _hashed(names[k]))
        for k in by_hash if source == FOLDERS else rng.permutation(len(groups)):
            if seen < total * TEST_SHARE:
                parts[groups[k]] = "test"
            elif seen < total * (TEST_SHARE + VAL_SHARE):
                parts[groups[k]] = "val"
            seen += len(groups[k])
    return parts


def _hashed(name: str) -> str:
    return hashlib.sha256(os.fsencode(f"{SEED} {name}")).hexdigest()


def _chosen(pictures: Sequence[Picture], parts: np.ndarray, options: DataOptions) -> list[int]:
    """Rows of those with votes enough; `limit` takes that many of each set and class, a share of every part."""
    strata: defaultdict[tuple[str, int], defaultdict[str, list[int]]]
    strata = defaultdict(lambda: defaultdict(list))
    for i, picture in enumerate(pictures):
        if _confirmed(picture, options.min_votes):
            strata[picture.source, picture.label][parts[i]].append(i)
    chosen = []
    for of_part in strata.values():
        ranked = sorted((k / len(rows), i) for rows in of_part.values() for k, i in enumerate(rows))
        chosen += [i for _, i in ranked[: options.limit or None]]
    return sorted(chosen)


def _union(folder: str) -> list[Picture]:
    """Those of the five classes in all four sets; of FER's, those whose label has a vote.

    Raises MienError naming the rows of a set that are wrong.
    """
    from trainers.label_checks import checked_rows, number  # which has `refuse` from here

    found = []
    for source in ("emotion_masked", "ferplus", "expw", "ckplus"):
        voted = source == "ferplus"
        key, name = ("fer2013_label", "path") if voted else ("emotion", "file")
        checks = [_known_label(key)]
        checks += [number(vote, 0, VOTERS, int) for vote in FER_VOTES] if voted else []
        checks += [_subject] if source == "ckplus" else []
        with ImageZip(folder, source) as data:
            rows = checked_rows(data, checks, name, suffix=".webp")
        for row in first_copies(rows) if voted else rows:
            label = LABEL_OF.get(row[key].lower())
            given = [int(row[vote]) for vote in FER_VOTES] if voted else []
            if label is None or (given and not given[label]):
                continue
            votes, shares = given[label] if given else 0, tuple(count / sum(given) for count in given)
            group = row["subject"] if source == "ckplus" else row[name]
            found.append(Picture(source, row[name], label, group, votes, shares, row.get("like", "")))
    return found


def _known_label(column: str) -> "Check":
    known = (*LABEL_OF, *OTHERS)

    def wrong(row: Mapping[str, str]) -> str:
        text = row.get(column)
        if text is None:
            return f"has no {column}"
        return "" if text.lower() in known else f"{column} {text!r} is none of {', '.join(known[:-1])}"

    return wrong


def _subject(row: Mapping[str, str]) -> str:
    return "" if row.get("subject") else "has no subject"


def first_copies(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The first row of each path, with the end of its chain of near-duplicates as `like`."""
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        first.setdefault(row["path"], row)
    repeats = repeated(first)
    for path, row in first.items():
        end, seen = path, {path}
        while (following := repeats.get(end)) and following not in seen:
            end = following
            seen.add(end)
        row["like"] = end
    return list(first.values())


def repeated(first: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The path of the picture that each nearly repeats, by `dup_of`, which may name it with another suffix."""
    paths = {Path(path).stem: path for path in first}
    named = {path: row.get("dup_of") for path, row in first.items()}
    return {
        path: paths[Path(other).stem] for path, other in named.items() if other and Path(other).stem in paths
    }


def folders_content(root: Path) -> str:
    """What tells the pictures in class folders from others: the start of a checksum of their names and sizes."""
    found, _ = _folders(root)
    told = "".join(f"{picture.name} {file_stamp(root / picture.name)[:1]}\n" for picture in found)
    return f"{root.name} {hashlib.sha256(os.fsencode(told)).hexdigest()[:12]}"


def _folders(root: Path) -> tuple[list[Picture], list[str]]:
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
            found.append(Picture(FOLDERS, name, label, name))
    return found, problems
