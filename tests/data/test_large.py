"""A prepared corpus holds what reading and encoding it in memory give, however the preparation went."""

import errno
import gzip
import json
import lzma
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from calling import content_of
from crashing import count_operations, is_killed_at, moments
from transduce.data import batches
from transduce.data.batches import EncodedPairs, PreparedPairs, StepOrder, encode_pairs, plan_epoch
from transduce.data.large import prepare as preparation
from transduce.data.large.jobs import Message, block_encoder
from transduce.data.large.prepare import LargePairs, Listener
from transduce.data.large.prepared_file import PreparedFile
from transduce.data.large.scan import scan, text_bytes
from transduce.data.large.workers import answers_in_order
from transduce.data.pairs import Pairs, count_overlap, iterate_blocks, read_pairs
from transduce.errors import DamagedFileError, DataError, RunFolderError, TransduceError
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

CONFIG = TokenizerConfig(vocab_size=300)
NORMALIZING = TokenizerConfig(vocab_size=300, normalize=("lower", "nfc", "strip"))
VALID = Pairs(["a", "B  x", "q"], ["ß", "a", "a b"], {}, [], {"valid": "1" * 64})
Row = tuple[list[int], list[int]]


@contextmanager
def answers_of_this_process(
    settings: dict[str, Any], questions: Iterable[Message], *, num: int
) -> Iterator[Iterator[Message]]:
    """Does the job here, through the JSON in which other processes are asked."""
    assert num > 0
    job = block_encoder(**json.loads(json.dumps(settings)))
    answers = (job(json.loads(json.dumps(question)), content) for question, content in questions)
    yield ((json.loads(json.dumps(answer)), content) for answer, content in answers)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks and windows, files mapped in small parts, and no other processes."""
    monkeypatch.setattr(preparation, "LINES_PER_BLOCK", 3)
    monkeypatch.setattr(preparation, "answers_in_order", answers_of_this_process)
    monkeypatch.setattr(batches, "PAIRS_PER_WINDOW", 4)
    monkeypatch.setattr(batches, "_MAPPED_BYTES", 400)


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(pairs: EncodedPairs) -> list[Row]:
    return [(pairs.src(k).tolist(), pairs.tgt(k).tolist()) for k in range(len(pairs))]


def window(pairs: PreparedPairs, epoch: int, number: int) -> list[Row]:
    return rows_of(pairs.window(number, np.random.default_rng(epoch)))


def in_order(file: PreparedFile) -> list[Row]:
    """All rows in the order of the files: what a corpus of one window is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "PAIRS_PER_WINDOW", 10**9)
        return window(PreparedPairs(file), 1, 0)


def found_in_memory(paths: list[Path], max_len: int) -> object:
    try:
        pairs = read_pairs(paths)
        tokenizer = Tokenizer.learn(NORMALIZING, pairs.src, pairs.tgt).to_json()
        encoded, num_long = encode_pairs(Tokenizer.from_json(tokenizer), pairs, max_len=max_len)
    except TransduceError as error:
        return type(error), str(error)
    overlap = count_overlap(pairs, VALID)
    rows = rows_of(encoded)
    seen = seen_by_hand(pairs, [len(ids) for ids, _ in rows], [ids for _, ids in rows])
    return tokenizer, rows_of(encoded), num_long, len(pairs), pairs.skipped, pairs.notes, pairs.sha256, overlap, seen


def seen_by_hand(pairs: Pairs, lens: list[int], targets_ids: list[list[int]]) -> dict[str, Any]:
    sources = "".join(normalize("NFC", line.lower()).strip() for line in pairs.src)
    targets = "".join(normalize("NFC", line) for line in pairs.tgt)
    # Of so few lines the longest is the first that 99.9 % are no longer than.
    return {
        "source_characters": "".join(sorted({*sources})),
        "target_characters": "".join(sorted({*targets})),
        "source_len": max(lens),
        "target_bytes": sorted({i - 3 for row in targets_ids for i in row if 3 <= i < 259}),
    }


def found_on_disk(paths: list[Path], max_len: int, folder: Path) -> object:
    large = LargePairs(paths, folder, valid=VALID)
    try:
        tokenizer, found = large.prepared(NORMALIZING, None, max_len=max_len)
    except TransduceError as error:
        assert not [*folder.glob(".*"), *folder.glob("*.safetensors")]
        return type(error), str(error)
    manifest = found.manifest
    counted = manifest.num_long, manifest.num_pairs, manifest.skipped, manifest.notes, large.sha256, manifest.overlap
    return tokenizer, in_order(found), *counted, manifest.seen


SIDE = st.sampled_from(
    [
        "a",
        "b",
        "a b",
        "B X",
        " a",
        "a  b",
        "",
        " ",
        "\u3000",
        "ß",
        "ä\u2028b",
        "x" * 9,
        "a\r",
        "\ufeffb",
        "a\u0308",
    ]
)
END = st.sampled_from(["\n", "\n", "\n", "\r\n"])
PACKED = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["tsv", "jsonl", "parallel", "parallel of other lengths"]),
    rows=st.lists(st.tuples(SIDE, SIDE, END), max_size=17),
    start=st.sampled_from(["", "", "\ufeff"]),
    rest=st.sampled_from(["", "", "\n", "\r\n\n", "\tc", "a", "\r"]),
    bad=st.sampled_from([b""] * 6 + [b"\xff", b"\t\t", b"\n\n"]),
    place=st.integers(0, 200),
    packing=st.sampled_from(["", "", "", ".gz", ".xz", ".zst"]),
    max_len=st.sampled_from([2, 5, 256]),
)
def test_preparing_finds_what_reading_in_memory_finds(
    tmp_path_factory, kind, rows, start, rest, bad, place, packing, max_len
) -> None:
    folder = tmp_path_factory.mktemp("prepared")

    def saved(name: str, lines: list[str]) -> Path:
        content = (start + "".join(lines) + rest).encode()
        return write(folder / f"{name}{packing}", PACKED[packing](content[:place] + bad + content[place:]))

    if kind == "tsv":
        paths = [saved("p.tsv", [f"{source}\t{target}{end}" for source, target, end in rows])]
    elif kind == "jsonl":
        paths = [saved("p.jsonl", [json.dumps({"src": source, "tgt": target}) + end for source, target, end in rows])]
    else:
        paths = [saved("src", [source + end for source, _, end in rows])]
        more = [("a", "b", "\n")] if kind != "parallel" else []
        paths.append(saved("tgt", [target + end for _, target, end in rows + more]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "LINES_PER_BLOCK", 3)
        patch.setattr(preparation, "answers_in_order", answers_of_this_process)
        assert found_on_disk(paths, max_len, folder / "made") == found_in_memory(paths, max_len)


@pytest.mark.usefixtures("quick")
def test_nul_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tsv", "a\tb\n" * 7 + "a\0\tb\n")
    with pytest.raises(DataError, match=r"p\.tsv, line 8: NUL characters"):
        LargePairs([path], tmp_path / "made").prepared(CONFIG, None, max_len=99)


# --- the file --------------------------------------------------------------------------------------------------------


def numbered(folder: Path, num_pairs: int) -> Path:
    """Pair k has the number k as its source."""
    return write(folder / "pairs.tsv", "".join(f"{k}\t{'x' * (k % 7 + 1)}\n" for k in range(num_pairs)))


def prepared_by(folder: Path, path: Path, max_len: int = 256) -> PreparedFile:
    return LargePairs([path], folder).prepared(CONFIG, None, max_len=max_len)[1]


def test_a_vocabulary_above_65536_ids_is_stored_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "answers_in_order", answers_of_this_process)
    config = TokenizerConfig(source="words", target="words")
    path = write(tmp_path / "p.tsv", "".join(f"s{k}\tt{k}\n" for k in range(35_000)))
    learnt, file = LargePairs([path], tmp_path / "made").prepared(config, None, max_len=9)
    tokenizer, rows = Tokenizer.from_json(learnt), in_order(file)
    last = max(range(35_000), key=lambda k: max(rows[k][0]))
    assert max(rows[last][0]) > 1 << 16
    assert tokenizer.decode_source(rows[last][0]) == f"s{last}"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("change", ["first byte", "a byte", "last byte", "cut", "another corpus"])
def test_a_file_that_is_not_as_it_was_written_is_noticed_before_its_rows_are_used(tmp_path: Path, change: str) -> None:
    path = numbered(tmp_path, 20)
    file = prepared_by(tmp_path / "made", path)
    content = bytearray(file.path.read_bytes())
    if change == "another corpus":
        content = bytearray(prepared_by(tmp_path / "made", path, max_len=99).path.read_bytes())
    elif change == "cut":
        del content[-9:]
    else:
        content[{"first byte": 0, "a byte": len(content) // 2, "last byte": -1}[change]] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"is damaged: .*Delete ") as caught:
        prepared_by(tmp_path / "made", path)
    assert str(file.path) in str(caught.value)
    file.path.unlink()
    assert len(PreparedPairs(prepared_by(tmp_path / "made", path))) == 20  # as the error advises


# --- the folder ------------------------------------------------------------------------------------------------------


def test_any_number_of_processes_and_any_blocks_make_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = numbered(tmp_path, 400)
    made = []
    for name, lines in (("two", 37), ("here", 90)):
        monkeypatch.setattr(preparation, "LINES_PER_BLOCK", lines)
        monkeypatch.setattr(preparation, "usable_cores", lambda: 2)
        if name == "here":
            monkeypatch.setattr(preparation, "answers_in_order", answers_of_this_process)
        made.append(prepared_by(tmp_path / name, path).path)
    assert made[0].name == made[1].name
    assert made[0].read_bytes() == made[1].read_bytes()


@pytest.mark.usefixtures("quick")
def test_what_is_prepared_is_found_by_bytes_tokenizer_and_length_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, path = tmp_path / "made", numbered(tmp_path, 20)
    learnt, first = LargePairs([path], cache).prepared(CONFIG, None, max_len=9)
    same = write(tmp_path / "copy.tsv", path.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "answers_in_order", None)  # nothing is done again
        assert LargePairs([same], cache).prepared(CONFIG, None, max_len=9)[1] == first
        assert LargePairs([same], cache).prepared(TokenizerConfig(vocab_size=999), learnt, max_len=9)[1] == first
    (known,) = cache.glob("learnt-*.json")
    known.write_text(known.read_text()[:-1])  # what is damaged there is learnt again
    assert LargePairs([same], cache).prepared(CONFIG, None, max_len=9)[0] == learnt
    others = [
        LargePairs([path], cache).prepared(CONFIG, None, max_len=8),
        LargePairs([path], cache).prepared(TokenizerConfig(source="words", target="words"), None, max_len=9),
        LargePairs([numbered(tmp_path, 21)], cache).prepared(CONFIG, None, max_len=9),
    ]
    assert len({file.path for _, file in others} | {first.path}) == 4


@pytest.mark.usefixtures("quick")
def test_the_tokenizer_is_learnt_from_an_even_sample_and_writes_all_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "SAMPLED_ROWS", 10)
    lines = [f"{'early' if k < 15 else 'later'}\tt{k}" for k in range(30)]
    path = write(tmp_path / "p.tsv", "\n".join(lines))
    config = TokenizerConfig(source="words", target="words", joint=False)
    learnt, file = LargePairs([path], tmp_path / "made").prepared(config, None, max_len=99)
    tokenizer = Tokenizer.from_json(learnt)
    assert sorted(tokenizer._source.tokens[259:]) == [" early", " later"]
    assert sorted(tokenizer._target.tokens[259:]) == sorted(f" t{k}" for k in range(0, 30, 4))  # 8: with 15, too many
    targets = [tokenizer.decode_target(target) for _, target in in_order(file)]
    assert targets == [f"t{k}" for k in range(30)]


@pytest.mark.usefixtures("quick")
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = numbered(tmp_path, 20)
    large = LargePairs([path], tmp_path / "made")

    def change(what: str, _done: int, _total: int) -> None:
        if what == "learning the tokenizer":  # read once, and to be read again
            path.write_bytes(path.read_bytes().replace(b"7", b"8"))

    with pytest.raises(DataError, match="changed while it was read"):
        large.prepared(CONFIG, None, max_len=9, listener=Listener(progress=change))
    assert not list((tmp_path / "made").glob("*.safetensors"))


@pytest.mark.usefixtures("quick")
def test_a_folder_that_cannot_be_written_is_a_one_line_error(tmp_path: Path) -> None:
    place = write(tmp_path / "file", "")
    with pytest.raises(RunFolderError, match="cannot be written"):
        prepared_by(place / "made", numbered(tmp_path, 20))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("num_bytes", [5_000, 25_000])  # less than one of the arrays takes; than all of them
def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    monkeypatch.setattr(preparation, "LINES_PER_BLOCK", 500)
    path = write(tmp_path / "p.tsv", "".join(f"{k % 7}\t{k % 5}\n" for k in range(1_500)))
    with limited_files(num_bytes), pytest.raises(RunFolderError, match=r"safetensors: .*[0-9] free\)"):
        prepared_by(tmp_path / "made", path)
    assert sorted(p.name[:6] for p in (tmp_path / "made").iterdir()) == ["learnt", "prepar"]
    assert prepared_by(tmp_path / "made", path).num_bytes > 25_000


@contextmanager
def limited_files(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


PREPARE = """
import sys, time
from pathlib import Path
from transduce.data.large import prepare as preparation
from transduce.data.large.prepare import LargePairs, Listener
from transduce.text.tokenizer import TokenizerConfig
preparation.LINES_PER_BLOCK = 50
def slowly(what, done, total):
    print(what, flush=True)
    if what == "encoding":
        sys.stdin.read()
found = LargePairs([sys.argv[1]], Path(sys.argv[2])).prepared(
    TokenizerConfig(vocab_size=300), None, max_len=99, listener=Listener(lambda line: print(line, flush=True), slowly)
)
print("at last", found[1].path.name, flush=True)
"""


def start_preparing(path: Path, folder: Path) -> "subprocess.Popen[str]":
    """A process that waits in the middle of its work until its input ends."""
    command = [sys.executable, "-c", PREPARE, str(path), str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(process: "subprocess.Popen[str]", start: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError(lines)


def test_after_a_kill_nothing_is_left_and_of_two_at_once_one_prepares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = numbered(tmp_path, 200), tmp_path / "made"
    with start_preparing(path, folder) as killed:
        wait_for(killed, "encoding")
        children = children_of(killed.pid)
        killed.send_signal(signal.SIGKILL)
    assert len(children) > 1
    assert_gone(children)
    assert sorted(p.name[:6] for p in folder.iterdir()) == ["learnt", "prepar"]

    with start_preparing(path, folder) as first:
        before = wait_for(first, "encoding")
        assert "learning the tokenizer\n" not in before  # that was done and kept
        with start_preparing(path, folder) as second:
            second.stdin.close()
            wait_for(second, f"waiting for process {first.pid}, which ")
            first.stdin.close()
            waited = wait_for(second, "at last")
            assert len(waited) == 1  # it did nothing itself
        assert wait_for(first, "at last")[-1] == waited[-1]
    (made,) = folder.glob("*.safetensors")
    assert made.name == waited[-1].split()[-1]
    monkeypatch.setattr(preparation, "answers_in_order", answers_of_this_process)
    assert made.read_bytes() == prepared_by(tmp_path / "other", path, max_len=99).path.read_bytes()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("sample", [8, pytest.param(None, marks=pytest.mark.proof)])
def test_killed_at_any_moment_a_preparation_leaves_nothing_that_looks_like_one(
    tmp_path: Path, sample: int | None
) -> None:
    path = numbered(tmp_path, 20)
    total = count_operations(lambda: prepared_by(tmp_path / "whole", path))
    expected = content_of(tmp_path / "whole")
    for at, is_late in moments(total, sample):
        made = tmp_path / f"{at}-{is_late}"
        assert is_killed_at(at, partial(prepared_by, made, path), is_late=is_late)
        for name, content in (content_of(made) if made.exists() else {}).items():
            assert name.startswith(".") or name.endswith(".lock") or content == expected[name], (at, is_late)
        prepared_by(made, path)
        assert content_of(made).keys() == expected.keys()
        assert all(content == expected[name] or name.endswith(".lock") for name, content in content_of(made).items())


@pytest.mark.usefixtures("quick")
def test_what_killed_processes_left_is_removed_by_the_next_that_prepares(tmp_path: Path) -> None:
    (tmp_path / "made/.KEY.01234567.tmp").mkdir(parents=True)  # of format 1
    write(tmp_path / "made/.KEY.01234567.tmp/block-0", "a part")
    write(tmp_path / "made/.KEY.safetensors.01234567.tmp", "a part")
    prepared_by(tmp_path / "made", numbered(tmp_path, 20))
    assert not list((tmp_path / "made").glob(".*"))


def test_processes_that_prepare_import_no_torch_and_end_with_the_one_they_work_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys, transduce.data.large.workers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tokenizers.py", "raise ImportError('not the one that is meant')")
    settings = {"names": ["a.tsv"], "tokenizer": Tokenizer.learn(CONFIG, ["a"], ["b"]).to_json(), "dtype": "U16"}
    settings |= {"max_len": 9, "num_rows": 1, "valid": {}}
    with answers_in_order(settings, [({"num_before": 0}, [b"a\tb\n"])], num=1) as answers:
        found, arrays = next(answers)
        assert (found["num"], len(arrays)) == ({"pairs": 1, "kept": 1}, 4)
        children = children_of(os.getpid())
        assert children
        assert os.getsid(0) not in map(os.getsid, children)  # so that Ctrl-C does not reach them
    assert_gone(children)


def children_of(pid: int) -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if parent_of(path.name) == pid]


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(Path("/proc", str(pid)).exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def parent_of(pid: str) -> int:
    try:
        return int(Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_a_worker_that_dies_is_told_in_one_line() -> None:
    asked = answers_in_order({}, [({}, ())], num=1, module="transduce.errors")
    with asked as answers, pytest.raises(TransduceError, match="ended early: it was killed, or memory ran out"):
        next(answers)


# --- the order of steps ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_windows_are_even_samples_others_in_every_epoch_and_together_hold_every_pair_once(tmp_path: Path) -> None:
    file = prepared_by(tmp_path / "made", numbered(tmp_path, 29))
    pairs, rows = PreparedPairs(file), in_order(file)
    assert (pairs.num_windows, len(pairs)) == (7, 29)
    epochs = [[[rows.index(row) for row in window(pairs, epoch, k)] for k in range(7)] for epoch in (0, 1)]
    for epoch in epochs:
        assert sorted(chain.from_iterable(epoch)) == list(range(29))
        assert all([k // 7 for k in numbers[:4]] == [0, 1, 2, 3] for numbers in epoch)
    assert not {*map(tuple, epochs[0])} & {*map(tuple, epochs[1])}


@pytest.mark.usefixtures("quick")
def test_steps_of_windows_hold_every_pair_once_an_epoch_and_are_found_without_those_before(tmp_path: Path) -> None:
    file = prepared_by(tmp_path / "made", numbered(tmp_path, 29))

    def new_order() -> StepOrder:
        return StepOrder(PreparedPairs(file), batch_tokens=20, micro_batches=2, seed=3)

    def steps(order: StepOrder, epoch: int, number: int) -> list[list[Row]]:
        order.open(epoch, number)
        return [[rows_of(order.pairs)[row] for batch in step for row in batch] for step in order.steps]

    order = new_order()
    epochs = [[steps(order, epoch, number) for number in range(7)] for epoch in (0, 1)]
    for epoch in epochs:
        assert sorted(row for window in epoch for step in window for row in step) == sorted(in_order(file))
    assert steps(new_order(), 1, 4) == epochs[1][4] != epochs[0][4]
    assert new_order().steps_of_epoch() == sum(map(len, epochs[0]))


def test_a_corpus_of_one_window_is_planned_as_it_always_was_in_memory_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "answers_in_order", answers_of_this_process)
    file = prepared_by(tmp_path / "made", numbered(tmp_path, 50))
    pairs = EncodedPairs(*zip(*in_order(file), strict=True))
    settings = {"batch_tokens": 40, "micro_batches": 2, "seed": 5}
    expected = [[rows.tolist() for rows in step] for step in plan_epoch(pairs, epoch=3, **settings)]
    for corpus in (pairs, PreparedPairs(file)):
        order = StepOrder(corpus, **settings)
        order.open(3, 0)
        assert [[rows.tolist() for rows in step] for step in order.steps] == expected
        assert rows_of(order.pairs) == rows_of(pairs)
        assert order.depends_on == [5, 40, 2, 50]


@pytest.mark.parametrize("packing", PACKED)
def test_the_text_of_a_file_is_counted_as_it_is_when_unpacked_and_no_further_than_need_be(
    packing: str, tmp_path: Path
) -> None:
    content = b"a\tb\n" * 1_000_000
    path = write(tmp_path / f"p.tsv{packing}", PACKED[packing](content))
    assert text_bytes([path, path], most=10**9) == 2 * len(content)
    assert 1_000_000 < text_bytes([path, path], most=1_000_000) <= 2 * len(content)


def test_asking_how_much_text_a_pipe_holds_takes_nothing_from_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tsv")
    assert text_bytes([tmp_path / "pipe.tsv"]) == 0  # opened, it would wait for a writer for ever


def test_a_file_read_as_both_sides_is_another_corpus_than_the_file_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", "a\tb\n")
    one, two = (LargePairs(paths, tmp_path).name_for("a tokenizer", 9) for paths in ([path], [path, path]))
    assert one != two


def test_a_disk_that_knows_no_locks_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(RunFolderError, match=r"cannot be locked here \(No locks available\): choose"):
        LargePairs([write(tmp_path / "pairs.tsv", "a\tb\n")], tmp_path / "cache").prepared(CONFIG, None, max_len=9)


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_a_line_without_an_end_is_refused_as_in_a_text_that_comes_in_chunks(
    packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transduce.data.pairs.MOST_LINE_BYTES", 1_500_000)
    content = PACKED[packing](b"a\tb\n" * 500_000 + b"c" * 2_000_000)
    path = write(tmp_path / f"pairs.tsv{packing}", content)
    with pytest.raises(DataError, match=r"line 500001: no line end in 1,5\d\d,\d\d\d bytes") as streamed:
        list(iterate_blocks(iter([content]), str(path)))
    with pytest.raises(DataError) as scanned:
        scan(str(path), lines_per_block=1000, most_sampled=10)
    assert str(scanned.value) == str(streamed.value)
