"""Whatever bytes a file holds, it is used or refused in one line; never is that an error of ours (exit status 70)."""

import gzip
import lzma
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from calling import command
from transduce.cli.console import groups_of_lines, read_references
from transduce.cli.settings import read_utf8
from transduce.config.settings import load_config
from transduce.data.large.scan import scan
from transduce.data.pairs import read_pairs
from transduce.errors import TransduceError
from transduce.runs.corpus import is_large

pytest_plugins = ["small_run"]

NUM_FILES, SAMPLE = 2_000, 240
FILES_PER_COMMAND = 40  # one of so many is given to the commands as well, which take longer
PIECES = [
    *"\t\n\0{}[]\"'\\=.,#:|",
    *("\r\n", "\r", "\ufeff", "\u2028", "\x1b[2J", "ä", "字", "😀", "abc", "src", "tgt", "null", "NaN"),
    *("data", "train", "valid", "training", "steps", "minutes", "model", "preset", "d_model", "max_len", "optim"),
    *("tokenizer", "source", "target", "normalize", "vocab_size", "decoding", "beam_size", "validation", "metrics"),
    *("true", "inf", "nan", "-1", "0", "1.5", "0x7f", "1e999", "9" * 30, "9" * 5_000, "[" * 2_000, "1979-05-27", '"""'),
]
VALID = [
    "abc\tdef\nghi\tjkl\n",
    '{"source": "a", "target": "b"}\n{"src": "c", "tgt": "d"}\n',
    '[data]\ntrain = ["x.tsv"]\nvalid = ["y.tsv"]\n[training]\nsteps = 3\n[model]\npreset = "tiny"\nmax_len = 64\n'
    '[tokenizer]\nsource = "characters"\nnormalize = ["nfc"]\n[decoding]\nbeam_size = 2\n[optim]\nwarmup_steps = 9\n',
]
PACKERS: list[Callable[[bytes], bytes]] = [bytes, bytes, bytes, gzip.compress, lzma.compress, zstandard.compress]
SUFFIXES = [".tsv", ".jsonl", ".tsv.gz", ".jsonl.zst", ".tsv.xz", ".txt", ".toml"]


def random_file(draw: random.Random) -> tuple[str, bytes]:
    """A suffix and bytes: noise, a soup of what formats are made of, or a good file with some changes; maybe packed."""
    kind = draw.randrange(5)
    if kind == 0:
        content = draw.randbytes(draw.choice([0, 1, 2, 7, 50, 300]))
    elif kind == 1:
        content = "".join(draw.choices(PIECES, k=draw.randint(1, 40))).encode()
    elif kind == 2:  # settings, of which one has another value or name
        place, new = draw.choice([*re.finditer(r"(?<= = ).*|\w+(?= = )", VALID[2])]).span(), draw.choice(PIECES)
        content = f"{VALID[2][: place[0]]}{new}{VALID[2][place[1] :]}".encode()
    else:
        content = draw.choice(VALID).encode()
        for _ in range(draw.randint(1, 4)):
            start, length = draw.randrange(len(content) + 1), draw.randrange(4)
            new = draw.choice([b"", draw.randbytes(1), draw.choice(PIECES).encode(), content[:length]])
            content = content[:start] + new + content[start + length :]
    packed = draw.choice(PACKERS)(content)
    if draw.randrange(4) == 0 and packed:  # damaged
        place = draw.randrange(len(packed))
        packed = draw.choice([packed[:place], packed[:place] + draw.randbytes(1) + packed[place + 1 :]])
    return draw.choice(SUFFIXES), packed


READERS: dict[str, Callable[[Path], object]] = {
    "pairs": lambda path: read_pairs([path]),
    "two sides": lambda path: read_pairs([path, path]),
    "sources": lambda path: list(groups_of_lines(str(path))),
    "references": lambda path: read_references(str(path), [str(path)]),
    "a large corpus": lambda path: (is_large([path]), scan(str(path), lines_per_block=3, most_sampled=10)),
    "settings": lambda path: load_config(read_utf8(path), str(path)),
    "an override": lambda path: load_config(VALID[2], "x", [f"--training.steps={path.read_bytes().decode('latin-1')}"]),
}
COMMANDS = [
    "predict {run} {file} --beam-size 1",
    "score {run} {file}",
    "evaluate {run} --source {file} --target {file}",
    "fit {file} --run-dir {new} --dry-run",
    "train {file} --run-dir {new}",
    "train {config} --data.train {file} --run-dir {new}",
    "export {run} --format onnx --source {file} -o {new}",
]  # fmt: skip


def check_files(seeds: range, run: Path, config: Path, folder: Path) -> None:
    """Gives a random file for each seed to all readers, and some to the commands."""
    for seed in seeds:
        suffix, content = random_file(random.Random(seed))
        path = folder / f"{seed}{suffix}"
        path.write_bytes(content)
        for name, read in READERS.items():
            try:
                read(path)
            except TransduceError as error:
                assert str(error).isprintable() and len(str(error)) < 2_100, (seed, name)
            except Exception as error:
                raise AssertionError(f"seed {seed}, read as {name}: {content[:200]!r}") from error
        for words in COMMANDS if seed % FILES_PER_COMMAND == 0 else []:
            places = {"run": run, "file": path, "config": config, "new": folder / f"{seed}-new"}
            found = command(*words.format(**places).split(), "--quiet")
            assert found.status in (0, 2, 65, 66, 73, 74), (seed, words, found.err)
            assert found.err.count("\n") <= 1 and (found.status == 0) == (not found.err), (seed, words, found.err)


def test_random_files_are_used_or_refused_in_one_line(run: Path, data: Path, tmp_path: Path) -> None:
    check_files(range(SAMPLE), run, data / "config.toml", tmp_path)


@pytest.mark.proof
@pytest.mark.parametrize("first", range(SAMPLE, NUM_FILES, SAMPLE))
def test_two_thousand_random_files_are_used_or_refused_in_one_line(
    first: int, run: Path, data: Path, tmp_path: Path
) -> None:
    check_files(range(first, min(first + SAMPLE, NUM_FILES)), run, data / "config.toml", tmp_path)


def test_a_file_that_unpacks_to_more_than_memory_is_meant_for_is_refused_by_all_that_would_hold_it(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("data.pairs", "runs.corpus", "runs.fit"):
        monkeypatch.setattr(f"transduce.{module}.LARGE_BYTES", 100_000)
    bomb = tmp_path / "bomb.tsv.gz"
    bomb.write_bytes(gzip.compress(b"a\tb\n" * 10_000_000))
    assert is_large([bomb]) and bomb.stat().st_size < 50_000
    for words in (
        f"evaluate {run} --source {bomb} --target {bomb}",
        f"score {run} --source {bomb} --target {bomb}",
        f"export {run} --format onnx --source {bomb} -o {tmp_path / 'new'}",
        f"fit {bomb} --run-dir {tmp_path / 'new'}",
        f"fit {data / 'train.source'} {data / 'train.target'} --valid {bomb} --run-dir {tmp_path / 'new'}",
        f"train {data / 'config.toml'} --data.valid {bomb} --run-dir {tmp_path / 'new'}",
    ):
        found = command(*words.split(), "--quiet")
        assert (found.status, found.err.count("\n")) == (65, 1), (words, found.err)
        assert f"{bomb}: more than " in found.err
