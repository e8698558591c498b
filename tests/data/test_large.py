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
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from transduce.data.batches import EncodedPairs, ShardedPairs, StepOrder, encode_pairs, plan_epoch
from transduce.data.large import folder as prepared_folder
from transduce.data.large import jobs as preparation_jobs
from transduce.data.large import prepare as preparation
from transduce.data.large.prepare import LargePairs, Listener
from transduce.data.large.scan import scan, text_bytes
from transduce.data.large.workers import worker_processes
from transduce.data.pairs import Pairs, count_overlap, iterate_blocks, read_pairs
from transduce.errors import DamagedFileError, DataError, RunFolderError, TransduceError
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

CONFIG = TokenizerConfig(vocab_size=300)
JOBS = {
    name: getattr(preparation_jobs, name)
    for name in ("scan_file", "learn_tokenizer", "encode_block", "write_one_shard")
}
VALID = Pairs(["a", "B  x", "q"], ["ß", "a", "a b"], {}, [], {"valid": "1" * 64})
Row = tuple[list[int], list[int]]


@contextmanager
def workers_of_this_process(_num: int, _module: str) -> Iterator[object]:
    """Does the jobs here, in their order, through the JSON in which real ones are asked."""

    def ask(jobs: object) -> Iterator[object]:
        for job in json.loads(json.dumps(list(jobs))):
            yield json.loads(json.dumps(JOBS[job.pop("do")](**job)))

    yield ask


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks and shards, and no other processes."""
    for name, value in (("LINES_PER_BLOCK", 3), ("PAIRS_PER_SHARD", 4)):
        monkeypatch.setattr(preparation, name, value)
    monkeypatch.setattr(preparation, "worker_processes", workers_of_this_process)


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(pairs: EncodedPairs) -> list[Row]:
    return [(pairs.src(k).tolist(), pairs.tgt(k).tolist()) for k in range(len(pairs))]


def in_order(pairs: ShardedPairs) -> list[Row]:
    """The rows by the rule: pair number i is in shard i mod the number of shards."""
    shards = [rows_of(pairs.shard(k)) for k in range(pairs.num_shards)]
    return [shards[i % len(shards)][i // len(shards)] for i in range(len(pairs))]


def found_in_memory(paths: list[Path], max_len: int) -> object:
    try:
        pairs = read_pairs(paths)
        tokenizer = Tokenizer.learn(CONFIG, pairs.src, pairs.tgt).to_json()
        encoded, num_long = encode_pairs(Tokenizer.from_json(tokenizer), pairs, max_len=max_len)
    except TransduceError as error:
        return type(error), str(error)
    overlap = count_overlap(pairs, VALID)
    return tokenizer, rows_of(encoded), num_long, len(pairs), pairs.skipped, pairs.notes, pairs.sha256, overlap


def found_on_disk(paths: list[Path], max_len: int, folder: Path) -> object:
    large = LargePairs(paths, folder, valid=VALID)
    try:
        tokenizer, found = large.prepared(CONFIG, None, max_len=max_len)
    except TransduceError as error:
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
        return type(error), str(error)
    manifest = found.manifest
    counted = manifest.num_long, manifest.num_pairs, manifest.skipped, manifest.notes, large.sha256, manifest.overlap
    return tokenizer, in_order(ShardedPairs(found)), *counted


SIDE = st.sampled_from(
    ["a", "b", "a b", "B X", " a", "a  b", "", " ", "\u3000", "ß", "ä\u2028b", "x" * 9, "a\r", "\ufeffb"]
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
        patch.setattr(preparation, "PAIRS_PER_SHARD", 4)
        patch.setattr(preparation, "worker_processes", workers_of_this_process)
        assert found_on_disk(paths, max_len, folder / "made") == found_in_memory(paths, max_len)


# --- shards ----------------------------------------------------------------------------------------------------------


def numbered(folder: Path, num_pairs: int) -> Path:
    """Pair k has the number k as its source."""
    return write(folder / "pairs.tsv", "".join(f"{k}\t{'x' * (k % 7 + 1)}\n" for k in range(num_pairs)))


def prepared_by(folder: Path, path: Path, max_len: int = 256) -> prepared_folder.PreparedFolder:
    return LargePairs([path], folder).prepared(CONFIG, None, max_len=max_len)[1]


@pytest.mark.usefixtures("quick")
def test_shards_are_even_samples_and_together_hold_every_pair_once(tmp_path: Path) -> None:
    pairs = ShardedPairs(prepared_by(tmp_path / "made", numbered(tmp_path, 29)))
    assert (pairs.num_shards, len(pairs)) == (7, 29)
    tokenizer = Tokenizer.from_json((next((tmp_path / "made").glob("*/tokenizer.json"))).read_text())
    numbers = [[int(tokenizer.decode_source(row)) for row, _ in rows_of(pairs.shard(k))] for k in range(7)]
    assert numbers == [list(range(k, 29, 7)) for k in range(7)]


@pytest.mark.usefixtures("quick")
def test_no_shard_is_empty_where_most_pairs_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tsv", "".join(f"{'a' if k % 9 == 4 else ''}\tb\n" for k in range(40)))
    pairs = ShardedPairs(prepared_by(tmp_path / "made", path))
    assert [len(pairs.shard(k)) for k in range(pairs.num_shards)] == [1, 1, 1, 1]


def test_a_vocabulary_above_65536_ids_is_stored_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "worker_processes", workers_of_this_process)
    config = TokenizerConfig(source="words", target="words")
    path = write(tmp_path / "p.tsv", "".join(f"s{k}\tt{k}\n" for k in range(35_000)))
    learnt, folder = LargePairs([path], tmp_path / "made").prepared(config, None, max_len=9)
    tokenizer, (shard,) = Tokenizer.from_json(learnt), (ShardedPairs(folder).shard(0),)
    last = max(range(35_000), key=lambda k: int(shard.src(k).max()))
    assert shard.src(last).max() > 1 << 16
    assert tokenizer.decode_source(shard.src(last).tolist()) == f"s{last}"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["shard-00001.safetensors", "manifest.json", "tokenizer.json"])
@pytest.mark.parametrize("change", ["a byte", "cut", "gone"])
def test_a_file_that_is_not_as_it_was_written_is_noticed_before_its_rows_are_used(
    tmp_path: Path, name: str, change: str
) -> None:
    path = numbered(tmp_path, 20)
    folder = prepared_by(tmp_path / "made", path)
    damaged = folder.path / name
    content = bytearray(damaged.read_bytes())
    content[-9] ^= 1
    if change == "gone":
        damaged.unlink()
    else:
        damaged.write_bytes(content if change == "a byte" else content[:-9])
    with pytest.raises(TransduceError, match=r"is damaged: .*Delete the folder|no such file") as caught:
        ShardedPairs(prepared_by(tmp_path / "made", path)).shard(1)
    assert str(folder.path) in str(caught.value)
    for file in folder.path.iterdir():
        file.unlink()
    folder.path.rmdir()
    assert len(ShardedPairs(prepared_by(tmp_path / "made", path)).shard(1)) == 4  # as the error advises


@pytest.mark.usefixtures("quick")
def test_a_shard_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    folder = prepared_by(tmp_path / "made", numbered(tmp_path, 20))
    one, two = (folder.path / f"shard-0000{k}.safetensors" for k in (1, 2))
    one.write_bytes(two.read_bytes())
    with pytest.raises(DamagedFileError, match="another shard"):
        ShardedPairs(folder).shard(1)


# --- the folder ------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_any_number_of_processes_and_any_blocks_make_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = numbered(tmp_path, 400)
    monkeypatch.setattr(preparation, "PAIRS_PER_SHARD", 70)
    made = []
    for name, lines in (("two", 37), ("here", 90)):
        monkeypatch.setattr(preparation, "LINES_PER_BLOCK", lines)
        with monkeypatch.context() as patch:
            if name == "here":
                patch.setattr(preparation, "worker_processes", workers_of_this_process)
            else:
                patch.setattr(preparation, "usable_cores", lambda: 2)
            made.append(files_of(prepared_by(tmp_path / name, path).path))
    assert made[0] == made[1]
    assert len(made[0]) == 2 + round(400 / 70)


@pytest.mark.usefixtures("quick")
def test_what_is_prepared_is_found_by_bytes_tokenizer_and_length_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, path = tmp_path / "made", numbered(tmp_path, 20)
    learnt, first = LargePairs([path], cache).prepared(CONFIG, None, max_len=9)
    same = write(tmp_path / "copy.tsv", path.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "worker_processes", None)  # nothing is done again
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
    assert len({folder.path for _, folder in others} | {first.path}) == 4


@pytest.mark.usefixtures("quick")
def test_the_tokenizer_is_learnt_from_an_even_sample_and_writes_all_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "SAMPLED_ROWS", 10)
    lines = [f"{'early' if k < 15 else 'later'}\tt{k}" for k in range(30)]
    path = write(tmp_path / "p.tsv", "\n".join(lines))
    config = TokenizerConfig(source="words", target="words", joint=False)
    learnt, folder = LargePairs([path], tmp_path / "made").prepared(config, None, max_len=99)
    tokenizer = Tokenizer.from_json(learnt)
    assert sorted(tokenizer._source.pieces[259:]) == [" early", " later"]
    assert tokenizer.target_vocab_size - 259 == 10
    targets = [tokenizer.decode_target(target) for _, target in in_order(ShardedPairs(folder))]
    assert targets == [f"t{k}" for k in range(30)]


@pytest.mark.usefixtures("quick")
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = numbered(tmp_path, 20)
    large = LargePairs([path], tmp_path / "made")

    def change(what: str, _done: int, _total: int) -> None:
        if what == "encoding":
            path.write_bytes(path.read_bytes().replace(b"7", b"8"))

    with pytest.raises(DataError, match="changed while it was read"):
        large.prepared(CONFIG, None, max_len=9, listener=Listener(progress=change))
    assert not list((tmp_path / "made").glob("*/manifest.json"))


@pytest.mark.usefixtures("quick")
def test_a_folder_that_cannot_be_written_is_a_one_line_error(tmp_path: Path) -> None:
    place = write(tmp_path / "file", "")
    with pytest.raises(RunFolderError, match="cannot be written"):
        prepared_by(place / "made", numbered(tmp_path, 20))


def test_a_full_disk_in_a_worker_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def limited(num: int, module: str) -> Iterator[object]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # what the started processes inherit
        with worker_processes(num, module) as ask:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            yield ask

    monkeypatch.setattr(preparation, "worker_processes", limited)
    monkeypatch.setattr(preparation, "usable_cores", lambda: 1)
    path = write(tmp_path / "p.tsv", "".join(f"{k} and so on\t{k} und so weiter\n" for k in range(9_000)))
    with pytest.raises(RunFolderError, match=r"[0-9] free\)"):
        prepared_by(tmp_path / "made", path)
    assert [p.name for p in (tmp_path / "made").iterdir() if p.is_dir()] == []


PREPARE = """
import sys, time
from pathlib import Path
from transduce.data.large import prepare as preparation
from transduce.data.large.prepare import LargePairs, Listener
from transduce.text.tokenizer import TokenizerConfig
preparation.LINES_PER_BLOCK = 50
def slowly(what, done, total):
    print(what, flush=True)
    while what == "encoding" and not Path(sys.argv[3]).exists():
        time.sleep(0.01)
found = LargePairs([sys.argv[1]], Path(sys.argv[2])).prepared(
    TokenizerConfig(vocab_size=300), None, max_len=99, listener=Listener(lambda line: print(line, flush=True), slowly)
)
print("at last", found[1].path.name, flush=True)
"""


def start_preparing(path: Path, folder: Path, gate: Path) -> "subprocess.Popen[str]":
    """A process that prepares, and encodes nothing before there is a file `gate`."""
    command = [sys.executable, "-c", PREPARE, str(path), str(folder), str(gate)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(process: "subprocess.Popen[str]", start: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError(lines)


def test_after_a_kill_nothing_broken_is_left_and_of_two_at_once_one_prepares(tmp_path: Path) -> None:
    path, folder, gate = numbered(tmp_path, 200), tmp_path / "made", tmp_path / "gate"
    with start_preparing(path, folder, gate) as killed:
        wait_for(killed, "encoding")
        killed.send_signal(signal.SIGKILL)
    left = [p.name for p in folder.iterdir() if p.is_dir()]
    assert len(left) == 1 and left[0].startswith(".")

    with start_preparing(path, folder, gate) as first:
        before = wait_for(first, "encoding")
        assert "learning the tokenizer\n" not in before  # that was done and kept
        with start_preparing(path, folder, gate) as second:
            waited = wait_for(second, "waiting")
            gate.touch()
            waited += wait_for(second, "at last")
            assert waited[0].startswith(f"waiting for process {first.pid}, which ")
            assert len(waited) == 2
        assert wait_for(first, "at last")[-1] == waited[-1]
    assert [p.name for p in folder.iterdir() if p.is_dir()] == [waited[-1].split()[-1]]
    expected = preparation_in_this_process(path, tmp_path / "other")
    assert files_of(folder / waited[-1].split()[-1]) == expected


def preparation_in_this_process(path: Path, folder: Path) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "worker_processes", workers_of_this_process)
        return files_of(prepared_by(folder, path, max_len=99).path)


def test_leftovers_of_other_corpora_go_unless_they_are_being_written(tmp_path: Path) -> None:
    for key in ("dead", "alive"):
        (tmp_path / f".{key}.0123.tmp").mkdir()
    held = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    command = [sys.executable, "-c", f"{held}; time.sleep(60)", str(tmp_path / "alive.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        wait_for(other, "1")
        with prepared_folder.building(tmp_path, "mine"):
            names = {path.name for path in tmp_path.iterdir() if path.is_dir()}
        other.kill()
    assert ".alive.0123.tmp" in names
    assert ".dead.0123.tmp" not in names
    assert len(names) == 2


def test_processes_that_prepare_import_no_torch_and_end_with_the_one_they_work_for(tmp_path: Path) -> None:
    code = "import sys, transduce.data.large.jobs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with worker_processes(1, "transduce.data.large.jobs") as ask:
        (found,) = ask([{"do": "scan_file", "name": str(numbered(tmp_path, 7)), "lines_per_block": 2, "unpacked": ""}])
        children = [path.name for path in Path("/proc").glob("[0-9]*") if parent_of(path.name) == os.getpid()]
        assert found == vars(scan(str(tmp_path / "pairs.tsv"), lines_per_block=2, unpacked=tmp_path / "none"))
        assert children
    deadline = time.monotonic() + 5
    while any(Path("/proc", pid).exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [pid for pid in children if Path("/proc", pid).exists()]


def parent_of(pid: str) -> int:
    try:
        return int(Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_a_worker_that_dies_is_told_in_one_line() -> None:
    with worker_processes(1, "transduce.errors") as ask, pytest.raises(TransduceError, match="came to its end early"):
        list(ask([{"do": "nothing"}]))


# --- the order of steps ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_steps_of_shards_hold_every_pair_once_an_epoch_and_are_found_without_those_before(tmp_path: Path) -> None:
    pairs = ShardedPairs(prepared_by(tmp_path / "made", numbered(tmp_path, 29)))

    def steps(order: StepOrder, epoch: int, place: int) -> list[list[Row]]:
        order.open(epoch, place)
        return [[rows_of(order.pairs)[row] for batch in step for row in batch] for step in order.steps]

    def new_order() -> StepOrder:
        return StepOrder(pairs, batch_tokens=20, micro_batches=2, seed=3)

    order, epochs = new_order(), []
    for epoch in (0, 1):
        epochs.append([steps(order, epoch, place) for place in range(pairs.num_shards)])
        rows = [row for shard in epochs[-1] for step in shard for row in step]
        assert sorted(rows) == sorted(in_order(pairs))
    assert epochs[0] != epochs[1]
    assert steps(new_order(), 1, 4) == epochs[1][4]
    assert new_order().steps_of_epoch() == sum(map(len, epochs[0]))
    first, second = ([sorted(chain.from_iterable(shard)) for shard in found] for found in epochs)
    assert first != second  # the shards come in another order
    assert sorted(first) == sorted(second)


def test_pairs_in_memory_are_planned_as_their_only_shard() -> None:
    random = np.random.default_rng(1)
    pairs = EncodedPairs(*[[[3] * int(n) + [2] for n in random.integers(1, 9, 50)] for _ in range(2)])
    settings = {"batch_tokens": 40, "micro_batches": 2, "seed": 5}
    order = StepOrder(pairs, **settings)
    order.open(3, 0)
    expected = plan_epoch(pairs, epoch=3, **settings)
    assert [[rows.tolist() for rows in step] for step in order.steps] == [
        [rows.tolist() for rows in step] for step in expected
    ]
    assert order.depends_on == [5, 40, 2, 50]


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_a_line_without_an_end_is_refused_as_in_a_text_that_comes_in_chunks(
    packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transduce.data.parsing.MOST_LINE_BYTES", 1_500_000)
    content = PACKED[packing](b"a\tb\n" * 500_000 + b"c" * 2_000_000)
    path = write(tmp_path / f"pairs.tsv{packing}", content)
    with pytest.raises(DataError, match=r"line 500001: no line end in 1,5\d\d,\d\d\d bytes") as streamed:
        list(iterate_blocks(iter([content]), str(path)))
    with pytest.raises(DataError) as scanned:
        scan(str(path), lines_per_block=1000, unpacked=tmp_path / "unpacked")
    assert str(scanned.value) == str(streamed.value)


def test_asking_how_much_text_a_pipe_holds_takes_nothing_from_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tsv")
    assert text_bytes([tmp_path / "pipe.tsv"]) == 0  # opened, it would wait for a writer for ever


def test_a_file_read_as_both_sides_is_another_corpus_than_the_file_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", "a\tb\n")
    one, two = (LargePairs(paths, tmp_path).path_for("a tokenizer", 9) for paths in ([path], [path, path]))
    assert one != two


def test_a_disk_that_knows_no_locks_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(RunFolderError, match=r"cannot be locked here \(No locks available\): take"):
        LargePairs([write(tmp_path / "pairs.tsv", "a\tb\n")], tmp_path / "cache").prepared(CONFIG, None, max_len=9)
