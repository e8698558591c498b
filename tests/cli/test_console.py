import fcntl
import gzip
import io
import json
import os
import pty
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

from calling import command, content_of, forked
from transduce.cli.console import groups_of_lines, open_output, refuse_output, write_now
from transduce.config.toml import build, parse_toml
from transduce.data.pairs import read_lines
from transduce.data.seen import Seen
from transduce.errors import DataError, MissingInputError, RunFolderError, TransduceError
from transduce.model import Transformer
from transduce.model.config import TransformerConfig
from transduce.runs.folder import RunFolder
from transduce.text.config import NUM_FIXED_IDS, TokenizerConfig
from transduce.text.tokenizer import Tokenizer

MOST_IDS = 40
CONFIG = f"""
[data]
train = ["pairs.tsv"]
max_len = {MOST_IDS}
[training]
steps = 1
[model]
d_model = 16
d_ff = 24
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 1
max_len = {MOST_IDS}
[decoding]
beam_size = 1
max_len_ratio = 0.0
max_len_extra = 6
"""
HANGS = 120  # seconds after which nothing will come any more
COMMAND = [sys.executable, "-m", "transduce"]
TELL_PEAK = """
import re, sys
from pathlib import Path
from transduce.cli.main import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never trained, reads `MOST_IDS` ids and writes at most 6."""
    lines = [f"{a}{b} {b}{a}{a}" for a in "abcdefghijk" for b in "lmnopqrst"]
    tokenizer = Tokenizer.learn(TokenizerConfig(vocab_size=310), lines, lines)
    seen = Seen.of(lines, lines, np.array([MOST_IDS]), np.arange(NUM_FIXED_IDS))
    return untrained(tmp_path_factory.mktemp("runs") / "tiny", tokenizer, {"seen": seen.as_dict()})


def untrained(path: Path, tokenizer: Tokenizer, facts: dict[str, Any]) -> Path:
    folder = RunFolder.create(path, config=CONFIG, tokenizer=tokenizer.to_json(), facts=facts)
    torch.manual_seed(5)
    model = Transformer(build(TransformerConfig, parse_toml(CONFIG, "")["model"]), tokenizer.vocabulary_sizes)
    folder.write_model(dict(model.named_parameters()), {"step": 0, "validation": {}})
    return path


def test_a_run_without_a_record_of_its_characters_says_so_once(tiny: Path, tmp_path: Path) -> None:
    old = untrained(tmp_path / "old", RunFolder.open(tiny).tokenizer, {})
    assert command("predict", old, stdin=b"a\nb\n").err.count("no record of the characters") == 1


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, to read from and to write to."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue  # closed by the test


def text_of(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def start(*words: object, **streams: object) -> subprocess.Popen[bytes]:
    """The command, on one thread, in a process of its own; it tells errors alone."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return forked([*COMMAND, "predict", *map(str, words), "--threads", "1", "--quiet"], **streams)


def next_line(file: BinaryIO) -> bytes:
    """The line that comes next; fails where none comes."""
    assert select.select([file], [], [], HANGS)[0], "no answer"
    return file.readline()


# Groups of lines


def test_a_group_ends_at_2000_lines_or_131072_characters(tmp_path: Path) -> None:
    lines = [str(number) for number in range(4_500)]
    (tmp_path / "short").write_bytes(text_of(lines))
    groups = list(groups_of_lines(str(tmp_path / "short")))
    assert [len(group) for group in groups] == [2_000, 2_000, 500]
    assert list(chain(*groups)) == lines
    (tmp_path / "long").write_bytes(text_of(["x" * 100_000] * 3))
    assert [len(group) for group in groups_of_lines(str(tmp_path / "long"))] == [2, 1]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n", b"\n\n", b"a\nb", b"a\r\nb\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbfa\n", b"x" * 10_000,
        "a\u2028b\u0085\rc\r\r\n".encode(), "é👩‍👩‍👧\n".encode() * 3_000,
    ],
)  # fmt: skip
def test_grouped_lines_are_those_of_the_file_plain_or_packed(content: bytes, tmp_path: Path) -> None:
    for name, written in (("plain", content), ("packed", gzip.compress(content))):
        (tmp_path / name).write_bytes(written)
        assert list(chain(*groups_of_lines(str(tmp_path / name)))) == read_lines(tmp_path / name)


def test_lines_that_have_come_are_a_group_and_half_a_line_is_waited_for(pipe: tuple[int, int]) -> None:
    read, write = pipe
    groups = groups_of_lines(f"/dev/fd/{read}")
    os.write(write, b"a\nb\nhal")
    assert next(groups) == ["a", "b"]
    os.write(write, b"f\n\n")
    assert next(groups) == ["half", ""]
    os.write(write, b"\xc3")
    os.write(write, b"\xa9\nend")
    assert next(groups) == ["é"]
    os.close(write)
    assert list(groups) == [["end"]]


def test_a_pipe_set_not_to_wait_is_waited_for(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = pipe
    os.set_blocking(read, False)
    with os.fdopen(read, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        groups = groups_of_lines("-")
        later = threading.Timer(0.2, lambda: os.write(write, b"late\n"))
        later.start()
        assert next(groups) == ["late"]
        later.join()
        os.close(write)
        assert list(groups) == []


def test_what_follows_a_packed_file_cut_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(random.Random(1).randbytes(50_000).hex().encode() + b"\n")[:-9])
    with pytest.raises(DataError, match=r"cut\.gz: damaged gzip"):
        list(groups_of_lines(str(tmp_path / "cut.gz")))


def test_text_without_line_ends_is_refused_and_not_gathered_for_ever() -> None:
    with pytest.raises(DataError, match="/dev/zero, line 1: no line end"):
        next(groups_of_lines("/dev/zero"))


def test_a_closed_standard_input_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(MissingInputError, match="closed"):
        next(groups_of_lines("-"))


# Where answers go


def test_answers_into_what_is_read_are_refused_by_whatever_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "lines", tmp_path / "other"
    path.write_text("a\n")
    (tmp_path / "link").symlink_to(path)
    with path.open() as stdin, path.open("a") as stdout:
        refuse_output(str(other), str(path), str(tmp_path))
        with pytest.raises(TransduceError, match="is the file that is read"):
            refuse_output(str(tmp_path / "link"), str(path), str(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", stdin)
            refuse_output(str(other), "-", str(tmp_path))
            with pytest.raises(TransduceError, match=f"-o {path} is the file that is read"):
                refuse_output(str(path), "-", str(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            refuse_output(None, "-", str(tmp_path))
            with pytest.raises(TransduceError, match="standard output is the file that is read"):
                refuse_output(None, str(path), str(tmp_path))


def test_a_terminal_may_be_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = pty.openpty()
    with os.fdopen(ends[0]), os.fdopen(ends[1], "r") as stdin, open(os.ttyname(ends[1]), "w") as stdout:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        refuse_output(None, "-", "no run")


def test_a_folder_is_no_place_for_answers(tmp_path: Path) -> None:
    with pytest.raises(TransduceError, match="is a folder"):
        refuse_output(str(tmp_path), "-", str(tmp_path))


def test_a_full_disk_leaves_the_old_answers_and_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(RunFolderError) as caught, open_output(str(tmp_path / "out")) as output:
            write_now(output, b"x" * 900)
            write_now(output, b"x" * 900)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert content_of(tmp_path) == {"out": b"old\n"}


def test_a_write_that_takes_a_part_is_followed_by_the_rest() -> None:
    class Slow(io.BytesIO):
        def write(self, content: memoryview) -> int:  # type: ignore[override]
            return super().write(content[:3])

    file = Slow()
    write_now(file, b"0123456789")
    assert file.getvalue() == b"0123456789"


def test_a_full_pipe_set_not_to_wait_is_waited_for(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.set_blocking(write, False)
    content = bytes(range(256)) * 1_000
    found = bytearray()
    reader = threading.Thread(target=lambda: found.extend(os.fdopen(read, "rb", closefd=False).read(len(content))))
    reader.start()
    with os.fdopen(write, "wb", buffering=0) as file:
        write_now(file, content)
    reader.join()
    assert found == content


# predict


def hostile_lines(num_lines: int) -> list[str]:
    """Lines of every kind of character that is not a line feed; one in 500 has 100,000 of them."""
    draw = random.Random(11)

    def some(*ranges: tuple[int, int]) -> str:
        first, last = draw.choice(ranges)
        return chr(draw.randint(first, last))

    planes = [(plane << 16, plane << 16 | 0xFFFF) for plane in range(1, 17)]
    kinds = [
        lambda: some((0, 9), (11, 0xD7FF), (0xE000, 0xFFFF), *planes),
        lambda: some((0, 9), (11, 31), (127, 159)),
        lambda: some((0x5D0, 0x5EA), (0x627, 0x64A), (0x202A, 0x202E), (0x2066, 0x2069)),
        lambda: draw.choice(["👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "\u200d", "\ufe0f"]),
        lambda: some((0x300, 0x36F), (0x20D0, 0x20F0), (0xE0100, 0xE01EF)),
        lambda: some((0xFDD0, 0xFDEF), *((last - 1, last) for _, last in planes)),
        lambda: draw.choice("\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e\r \u3000\ufeff\0"),
        lambda: some((0x4E00, 0x9FFF), (0xAC00, 0xD7A3)),
        lambda: some((0x10F000, 0x10F110)),  # what a vocabulary spells bytes by
        lambda: draw.choice(["<pad>", "</s>", "<0x0A>", "▁", "\t", '"', "\\n"]),
        lambda: draw.choice("abcdefgh"),
        lambda: " ",
    ]

    def line(number: int) -> str:
        kind = kinds[number % len(kinds)]
        if number % 500 == 250:
            return "".join(kind() for _ in range(100_000))[:100_000]
        length = draw.choice([0, 1, 2, 10, 30, 100]) if number % 40 else draw.randint(1_000, 5_000)
        return "".join(kind() for _ in range(length))

    return [line(number) for number in range(num_lines)]


def test_hostile_lines_are_answered_line_by_line(tiny: Path) -> None:
    lines = hostile_lines(500)
    found = command("predict", tiny, stdin=text_of(lines))
    assert found.status == 0, found.err
    assert found.out.count(b"\n") == len(lines)
    answers = found.out.decode().split("\n")
    assert all(answer == "" for line, answer in zip(lines, answers, strict=False) if not line.strip())
    assert len(set(answers)) > 5


def test_what_is_said_to_a_closed_standard_error_is_not_among_the_answers(tiny: Path) -> None:
    lines = text_of(["abc", "ab" * 400])  # one is cut, which is told

    words = ["bash", "-c", '"$@" 2>&-', "_", *COMMAND, "predict", str(tiny)]
    found = subprocess.run(words, input=lines, capture_output=True, check=True)
    expected = command("predict", tiny, stdin=lines)
    assert expected.err  # there was something to be told
    assert found.stdout == expected.out


def test_a_closed_standard_output_is_told(tiny: Path) -> None:
    words = ["bash", "-c", '"$@" >&-', "_", *COMMAND, "predict", str(tiny)]
    found = subprocess.run(words, input=b"abc\n", capture_output=True, check=False)
    assert found.returncode == 73
    assert found.stderr == b"transduce: error: standard output is closed: name a file with -o FILE.\n"


def test_a_reader_of_a_named_pipe_that_leaves_is_no_error_to_tell(tiny: Path) -> None:
    words = [
        "bash",
        "-c",
        '"$@" -o /dev/stdout | true; exit ${PIPESTATUS[0]}',
        "_",
        *COMMAND,
        "predict",
        str(tiny),
        "--quiet",
    ]
    found = subprocess.run(words, input=b"abc\n" * 50_000, capture_output=True, check=False)
    assert (found.returncode, found.stderr) == (141, b"")


@pytest.mark.proof
def test_10_000_hostile_lines_are_answered_line_by_line(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(text_of(hostile_lines(10_000)))
    with (tmp_path / "lines").open("rb") as lines:
        found = subprocess.run([*COMMAND, "predict", str(tiny)], stdin=lines, capture_output=True, check=False)
    assert (found.returncode, found.stdout.count(b"\n")) == (0, 10_000), found.stderr


@pytest.mark.proof
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its peak memory there")
@pytest.mark.parametrize("how", ["file", "pipe"])
def test_100_000_lines_take_at_most_50_mib_more_than_1_000(how: str, tiny: Path, tmp_path: Path) -> None:
    peaks = []
    for num_lines in (1_000, 100_000):
        lines = [f"{number:06} ab" for number in range(num_lines)]
        (tmp_path / "lines").write_bytes(text_of(lines))
        name, source = ("-", f"cat {tmp_path}/lines |") if how == "pipe" else (tmp_path / "lines", "")
        words = [sys.executable, "-c", TELL_PEAK, "predict", str(tiny), str(name), "--json", "--threads", "1"]
        found = subprocess.run(["bash", "-c", f'{source} "$@"', "_", *words], capture_output=True, check=False)
        assert found.returncode == 0, found.stderr
        assert [json.loads(row)["source"] for row in found.stdout.decode().split("\n")[:-1]] == lines
        peaks.append(int(found.stderr.split()[-1]) / 1024)
    print(f"peaks of {how}: {peaks} MiB")
    assert peaks[1] - peaks[0] <= 50


def test_a_typed_line_is_answered_before_the_next_is_typed(tiny: Path) -> None:
    keyboard, terminal = pty.openpty()
    with start(tiny, stdin=terminal) as process:
        os.close(terminal)
        for line in (b"abc\n", b"\n", "ü\n".encode()):
            os.write(keyboard, line)
            answer = next_line(process.stdout)
            assert answer.endswith(b"\n")
            assert (answer == b"\n") == (line == b"\n")
        os.write(keyboard, b"\x04")
        assert process.communicate(timeout=HANGS) == (b"", b"")
    os.close(keyboard)
    assert process.returncode == 0


def test_a_program_gets_its_answer_before_it_writes_the_next_line(tiny: Path) -> None:
    alone = [command("predict", tiny, stdin=f"{word}\n".encode()).out for word in ("ab", "bcd", "cde", "de", "e")]
    with start(tiny) as process:
        for number, word in enumerate((b"ab", b"bcd", b"cde", b"de", b"e")):
            for part in (word[:1], word[1:] + b"\n"):  # as a slow writer has it
                process.stdin.write(part)
                process.stdin.flush()
            assert next_line(process.stdout) == alone[number]
        assert process.communicate(timeout=HANGS) == (b"", b"")
    assert process.returncode == 0


def test_ctrl_c_ends_predict_at_once_though_nobody_reads_its_answers(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(text_of([f"{number} {'x' * 200}" for number in range(1_000)]))
    with start(tiny, tmp_path / "lines", "--json", "--quiet") as process:
        held = b"\0" * 4
        while struct.unpack("i", held)[0] < 50_000:  # until the pipe is full
            assert process.poll() is None
            select.select([], [], [], 0.1)
            held = fcntl.ioctl(process.stdout, termios.FIONREAD, b"\0" * 4)
        process.send_signal(signal.SIGINT)
        assert process.wait(HANGS) == 130
        assert process.stderr.read() == b"transduce: stopped.\n"


def test_lines_cut_off_are_marked_counted_and_named(tiny: Path) -> None:
    sources = ["a b"] * 12 + ["long " * 50, "a", "long " * 60]
    found = command("predict", tiny, "--json", stdin=text_of(sources))
    rows = [json.loads(line) for line in found.lines]
    assert [row["source"] for row in rows] == sources
    assert [row.get("truncated", False) for row in rows] == [False] * 12 + [True, False, True]
    told = found.err.split("\n")
    assert told[-3] == "sources truncated after model.max_len = 40 tokens: 2 of 15 lines (line 13, 15)"
    is_truncated = [row["predictions"][0].get("truncated", False) for row in rows]
    numbers = [str(number) for number, truncated in enumerate(is_truncated, 1) if truncated]
    assert (
        told[-2] == f"outputs truncated, as long as allowed (decoding.max_len_extra): {len(numbers)} of 15 lines "
        f"(line {', '.join(numbers[:10])} and {len(numbers) - 10} more)"
    )
    assert [len(row["predictions"][0]["tokens"]) == 6 for row in rows] == is_truncated


def test_of_many_lines_cut_off_the_first_ten_are_named(tiny: Path) -> None:
    found = command("predict", tiny, stdin=text_of(["long " * 50] * 5_000)[: 12 * 251])
    assert (
        found.err.split("\n")[-3] == "sources truncated after model.max_len = 40 tokens: 12 of 12 lines "
        "(line 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more)"
    )


@pytest.mark.parametrize("num_good", [3, 9_000])
def test_bytes_that_are_not_utf_8_after_good_lines_leave_no_output_file(
    num_good: int, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "lines").write_bytes(b"ab\n" * num_good + b"a\xff\n" + b"ab\n" * 9)
    for source, stdin in ((tmp_path / "lines", b""), ("-", (tmp_path / "lines").read_bytes())):
        found = command("predict", tiny, source, "-o", tmp_path / "out", stdin=stdin)
        assert found.status == 65
        assert f"line {num_good + 1}, byte 2: 0xff" in found.err
        assert found.err.count("\n") == 1
        assert content_of(tmp_path).keys() == {"lines"}


def test_a_packed_file_is_read_by_name_and_from_standard_input_and_cut_leaves_no_output(
    tiny: Path, tmp_path: Path
) -> None:
    lines = text_of([f"{number} ab" for number in range(2_100)])
    packed, path, output = gzip.compress(lines), tmp_path / "lines", tmp_path / "out"
    path.write_bytes(packed)
    expected = command("predict", tiny, stdin=lines).out
    assert command("predict", tiny, path).out == command("predict", tiny, stdin=packed).out == expected
    path.write_bytes(packed[:-1])
    found = command("predict", tiny, path, "-o", output)
    assert (found.status, found.err.count("\n"), output.exists()) == (65, 1, False)


def test_drawn_answers_do_not_depend_on_how_lines_come(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(text_of(["ab"] * 2_100))
    drawing = ["--temperature", "1", "--seed", "4"]
    from_file = command("predict", tiny, tmp_path / "lines", *drawing)
    from_input = command("predict", tiny, *drawing, stdin=(tmp_path / "lines").read_bytes())
    assert from_file == from_input
    assert len(set(from_file.lines)) > 100
