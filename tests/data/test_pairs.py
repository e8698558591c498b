import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from transduce.data.compression import decompressed
from transduce.data.pairs import Pairs, count_overlap, iterate_blocks, read_lines, read_pairs, split_pairs
from transduce.errors import DataError, MissingInputError, TransduceError

COMPRESSORS = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
# Every character besides "\n" at which str.splitlines or universal newlines would break a line.
LINE_BREAKS_OF_OTHERS = ["\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_pairs(rows: list[tuple[str, str]]) -> Pairs:
    return Pairs([source for source, _ in rows], [target for _, target in rows], {}, [], {})


def chunks_of(content: bytes, chunk_bytes: int) -> Iterator[bytes]:
    return (content[start : start + chunk_bytes] for start in range(0, len(content), chunk_bytes))


def rows_of(pairs: Pairs) -> list[tuple[str, str]]:
    return list(zip(pairs.src, pairs.tgt, strict=True))


def one_line_error(error: type[Exception], paths: list[Path]) -> str:
    with pytest.raises(error) as caught:
        read_pairs(paths)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- lines -----------------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=200)
@given(content=TEXT | st.text("a\r\n\t\ufeff\u2028 ", max_size=30))
def test_a_file_has_as_many_lines_as_line_feeds_plus_an_unfinished_one(tmp_path_factory, content):
    path = write(tmp_path_factory.mktemp("lines") / "text", content)
    unfinished = content.removeprefix("\ufeff") != "" and not content.endswith("\n")
    assert len(read_lines(path)) == content.encode().count(b"\n") + unfinished


@settings(derandomize=True, deadline=None, max_examples=200)
@given(content=TEXT | st.text("a\r\n\ufeff", max_size=12), chunk_bytes=st.integers(1, 5))
def test_a_text_that_comes_in_chunks_has_the_lines_of_the_same_file(tmp_path_factory, content, chunk_bytes):
    path = write(tmp_path_factory.mktemp("lines") / "text", content)
    assert list(chain(*iterate_blocks(chunks_of(content.encode(), chunk_bytes), "stream"))) == read_lines(path)


def test_each_chunk_gives_the_lines_that_end_in_it():
    chunks = [b"\xef", b"\xbb\xbfa\nb\nc", b"d", b"e\r", b"\n", b"\n", b"f"]
    assert list(iterate_blocks(iter(chunks), "stream")) == [[], ["a", "b"], [], [], ["cde"], [""], [], ["f"]]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000])
def test_bad_bytes_in_a_text_that_comes_in_chunks_are_named_by_line_and_byte(chunk_bytes):
    content = "ä\tb\nä\tb".encode() + b"\xff\n"
    with pytest.raises(DataError, match="stream, line 2, byte 5: 0xff"):
        list(iterate_blocks(chunks_of(content, chunk_bytes), "stream"))
    with pytest.raises(DataError, match="this is UTF-16 text"):
        list(iterate_blocks(chunks_of("a\nb\n".encode("utf-16"), chunk_bytes), "stream"))


def test_a_line_that_does_not_end_is_refused_by_its_number():
    chunks = chain([b"a\nb\nc"], repeat(b"c" * 1_000_000))
    with pytest.raises(DataError, match="stream, line 3: no line end"):
        list(iterate_blocks(chunks, "stream"))


@pytest.mark.parametrize("pack", [bytes, *COMPRESSORS.values()])
def test_a_line_that_is_too_long_is_refused_packed_or_not(pack, monkeypatch):
    monkeypatch.setattr("transduce.data.pairs.MOST_LINE_BYTES", 1_000_000)
    with pytest.raises(DataError, match="stream, line 2: no line end"):
        list(iterate_blocks(chunks_of(pack(b"a\n" + b"b" * 2_000_000 + b"\nc\n"), 4_096), "stream"))


@pytest.mark.parametrize("character", [*LINE_BREAKS_OF_OTHERS, "\0", "\x1f", "\x7f", "\ufeff", "\U0010ffff"])
def test_a_character_within_a_line_is_text(tmp_path, character):
    path = write(tmp_path / "text", f"a{character}b\n{character}{character}c\n")
    assert read_lines(path) == [f"a{character}b", f"{character}{character}c"]


def test_crlf_lines_are_the_lines_of_the_same_file_with_lf(tmp_path):
    lf = b"a\tb\n\tx\ny\tz\n"
    with_lf = read_pairs([write(tmp_path / "lf.tsv", lf)])
    with_crlf = read_pairs([write(tmp_path / "crlf.tsv", lf.replace(b"\n", b"\r\n"))])
    assert (with_crlf.src, with_crlf.tgt, with_crlf.skipped) == (with_lf.src, with_lf.tgt, with_lf.skipped)
    assert with_lf.notes == []
    assert with_crlf.notes == [f"{tmp_path / 'crlf.tsv'}: CRLF line ends removed"]


def test_a_file_of_both_line_ends_is_read_and_the_note_says_how_many(tmp_path):
    path = write(tmp_path / "p.tsv", "a\tb\r\nc\td\ne\tf\n")
    pairs = read_pairs([path])
    assert pairs.tgt == ["b", "d", "f"]
    assert pairs.notes == [f"{path}: CRLF line ends removed (1 of 3 lines)"]


def test_one_carriage_return_is_removed_and_the_one_before_it_is_text(tmp_path):
    assert read_lines(write(tmp_path / "text", "a\r\r\nb\r")) == ["a\r", "b\r"]


def test_a_byte_order_mark_is_removed_at_the_start_and_kept_elsewhere(tmp_path):
    path = write(tmp_path / "p.tsv", b"\xef\xbb\xbfa\tb\n\xef\xbb\xbfc\td\n")
    pairs = read_pairs([path])
    assert pairs.src == ["a", "\ufeffc"]
    assert pairs.notes == [f"{path}: byte-order mark removed"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_and_utf_32_are_recognised_and_refused_with_advice(tmp_path, encoding):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path = write(tmp_path / "p.tsv", f"{mark}a\tb\n".encode(encoding))
    message = one_line_error(DataError, [path])
    assert encoding[:6].upper() in message
    assert "iconv" in message


def test_an_office_document_and_a_bzip2_file_are_called_by_their_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "p.tsv", "w") as archive:
        archive.writestr("sheet.xml", "<a/>")
    assert "zip archive" in one_line_error(DataError, [tmp_path / "p.tsv"])
    assert "bzip2" in one_line_error(DataError, [write(tmp_path / "q.tsv", bz2.compress(b"a\tb\n"))])


@pytest.mark.parametrize("lead", [b"", b"\xef\xbb\xbf"])
def test_bytes_that_are_not_utf_8_are_named_by_line_and_byte(tmp_path, lead):
    path = write(tmp_path / "p.tsv", lead + "ä\tb\nä\tb".encode() + b"\xff\n")
    assert f"{path}, line 2, byte 5: 0xff" in one_line_error(DataError, [path])
    first = write(tmp_path / "q.tsv", lead + b"ab\xc3(\tc\n")
    assert f"{first}, line 1, byte {len(lead) + 3}: 0xc3" in one_line_error(DataError, [first])


@pytest.mark.parametrize("bad", [b"\x80", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_overlong_surrogate_and_cut_sequences_are_refused(tmp_path, bad):
    assert "line 1, byte 3" in one_line_error(DataError, [write(tmp_path / "p.tsv", b"a\t" + bad + b"\n")])


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_the_same_pairs_are_read_from_every_format(tmp_path):
    rows = [("Ein Hund.", "A dog."), ("  é ", "„q“\u2028"), ("\u202eabc", "d\re")]
    tsv = write(tmp_path / "p.tsv", "".join(f"{s}\t{t}\n" for s, t in rows))
    long_keys = write(tmp_path / "p.jsonl", "".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in rows))
    short_keys = write(tmp_path / "q.JSONL", "\n".join(json.dumps({"id": 1, "tgt": t, "src": s}) for s, t in rows))
    src = write(tmp_path / "p.de", "".join(f"{s}\n" for s, _ in rows))
    tgt = write(tmp_path / "p.en", "\n".join(t for _, t in rows))
    for paths in ([tsv], [str(tsv)], [long_keys], [short_keys], [src, tgt]):
        assert rows_of(read_pairs(paths)) == rows


def test_the_hash_is_that_of_the_bytes_on_disk_under_the_name_as_given(tmp_path):
    raw = gzip.compress(b"a\tb\n")
    path = write(tmp_path / "p.tsv.gz", raw)
    assert read_pairs([path]).sha256 == {str(path): hashlib.sha256(raw).hexdigest()}


def test_pairs_with_an_empty_or_blank_side_are_skipped_and_counted(tmp_path):
    pairs = read_pairs([write(tmp_path / "p.tsv", "a\tb\n\tb\n \u3000\tb\na\t\n\t\nc\td\n")])
    assert rows_of(pairs) == [("a", "b"), ("c", "d")]
    assert pairs.skipped == {"empty source": 3, "empty target": 1}
    assert len(pairs) == 2


def test_a_parallel_file_may_end_with_or_without_a_line_feed_but_an_empty_line_counts(tmp_path):
    src = write(tmp_path / "src", "a\nb\n")
    assert len(read_pairs([src, write(tmp_path / "tgt", "c\nd")])) == 2
    message = one_line_error(DataError, [src, write(tmp_path / "longer", "c\nd\n\n")])
    assert "has 2 lines" in message
    assert "has 3:" in message


@pytest.mark.parametrize(("suffix", "row"), [(".tsv", "a\tb"), (".jsonl", '{"src": "a", "tgt": "b"}')])
def test_an_empty_line_is_skipped_and_counted_in_the_middle_and_forgiven_at_the_end(tmp_path, suffix, row):
    pairs = read_pairs([write(tmp_path / f"p{suffix}", f"{row}\n\n{row}\n  \n{row}\n\n\n")])
    assert rows_of(pairs) == [("a", "b")] * 3
    assert pairs.skipped == {"empty source": 2}


@pytest.mark.parametrize(
    ("suffix", "bad", "other"),
    [(".tsv", "one column", "a\tb\tc"), (".tsv", "a\tb\tc\td", "a"), (".jsonl", "# note", '{"src": "a", "tgt": null}')],
)
def test_a_bad_line_says_what_it_holds_and_how_many_more_are_like_it(tmp_path, suffix, bad, other):
    good = "a\tb" if suffix == ".tsv" else '{"src": "a", "tgt": "b"}'
    lines = [good, bad, good, other, bad, bad, ""]
    path = write(tmp_path / f"p{suffix}", "\n".join(lines))
    message = one_line_error(DataError, [path])
    assert message.startswith(f"{path}, line 2 (and 2 more like it): ")
    assert message.endswith(f"It holds {bad!r}.")
    lonely = one_line_error(DataError, [write(path, "\n".join(lines[:4]))])
    assert lonely.startswith(f"{path}, line 2: ")


@pytest.mark.parametrize("header", ["source\ttarget", "SRC\tTgt", '"source"\t"target"'])
def test_a_row_of_names_at_the_top_is_no_pair(tmp_path, header):
    pairs = read_pairs([write(tmp_path / "p.tsv", f"{header}\na\tb\nsource\ttarget\n")])
    assert rows_of(pairs) == [("a", "b"), ("source", "target")]
    assert pairs.skipped == {"header": 1}


PAIR_LINES = "".join(f"a {k}\tb {k}\n" for k in range(60))


@pytest.mark.parametrize(
    "names", [("train.tsv", "valid.tsv"), ("a.jsonl", "b.JSONL.gz"), ("train.txt", "valid.txt"), ("a.json", "b.tsv.xz")]
)
def test_two_files_of_pairs_are_not_taken_for_two_sides(tmp_path, names):
    as_json = "".join(f'{{"src": "a {k}", "tgt": "b", "id": {k}}}\n' for k in range(60))
    contents = [as_json if "json" in name else PAIR_LINES * 2 for name in names]
    paths = [
        write(tmp_path / name, COMPRESSORS.get(Path(name).suffix, bytes)(content.encode()))
        for name, content in zip(names, contents, strict=True)
    ]
    message = one_line_error(DataError, paths)
    assert "each of these holds pairs already" in message
    assert "`cat`" in message
    assert "--valid" in message


def test_one_file_of_pairs_by_name_and_content_is_no_side(tmp_path):
    paths = [write(tmp_path / "a.tsv", PAIR_LINES), write(tmp_path / "b.txt", "a line\n" * 60)]
    assert f"{paths[0]} holds pairs already" in one_line_error(DataError, paths)
    assert len(read_pairs([write(tmp_path / "c.tsv", "a line\n" * 60), paths[1]])) == 60


def test_two_sides_may_hold_tabs_and_one_of_them_many(tmp_path):
    src = write(tmp_path / "src", PAIR_LINES)
    tgt = write(tmp_path / "tgt", PAIR_LINES.replace("\t", " "))
    assert len(read_pairs([src, tgt])) == len(read_pairs([tgt, src])) == 60
    with pytest.raises(DataError, match="no pair"):
        read_pairs([write(tmp_path / "no", ""), write(tmp_path / "nothing", "")])


def csv_lines(rows: list[tuple[str, str]], quoting: int) -> str:
    with io.StringIO(newline="") as file:
        csv.writer(file, delimiter="\t", quoting=quoting, lineterminator="\n").writerows(rows)
        return file.getvalue()


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
def test_the_quotes_of_csv_are_removed_and_a_note_says_so(tmp_path, quoting):
    rows = [(f"a {k}", f"b, {k}") for k in range(60)] + [('He said "yes".', 'Er sagte "ja".')]
    path = write(tmp_path / "p.tsv", csv_lines(rows, quoting))
    assert path.read_text() != "".join(f"{s}\t{t}\n" for s, t in rows)
    pairs = read_pairs([path])
    assert rows_of(pairs) == rows
    assert pairs.notes == [f"{path}: the quotes of CSV removed (.jsonl would keep quotes)"]


def test_a_spreadsheet_that_quotes_what_holds_a_comma_is_recognized(tmp_path):
    rows = [(f"a {k}", f"b, {k}") for k in range(60)]
    path = write(tmp_path / "p.tsv", "".join(f'{source}\t"{target}"\n' for source, target in rows))
    assert rows_of(read_pairs([path])) == rows


@pytest.mark.parametrize("rows", [[('"Hi!"', '"Hallo!"'), ("a, b", "c")], [('He said "yes".', '"Ja"')], [("x", '"x"')]])
def test_quotes_that_belong_to_the_text_stay(tmp_path, rows):
    rows = rows + [(f"a {k}", f"b {k}") for k in range(9)]
    assert rows_of(read_pairs([write(tmp_path / "p.tsv", "".join(f"{s}\t{t}\n" for s, t in rows))])) == rows


def test_lines_that_end_with_cr_alone_and_a_file_that_is_one_array_are_told_what_to_do(tmp_path):
    assert "`tr '\\r' '\\n'`" in one_line_error(DataError, [write(tmp_path / "p.tsv", "a\tb\rc\td\r")])
    for array in ('[{"src": "a", "tgt": "b"}]', '[\n{"src": "a", "tgt": "b"}\n]'):
        assert "`jq -c '.[]'`" in one_line_error(DataError, [write(tmp_path / "p.jsonl", array)])


def test_a_cell_of_csv_with_a_tab_or_a_line_end_is_not_cut(tmp_path):
    for content in ('a\t"b\tc"\n', 'a\t"b\nc"\n'):
        message = one_line_error(DataError, [write(tmp_path / "p.tsv", content)])
        assert "write .jsonl" in message
        assert "cut -f" not in message


def test_a_folder_in_place_of_a_file_is_called_one(tmp_path):
    assert "this is a folder" in one_line_error(MissingInputError, [tmp_path])


def test_a_third_column_is_refused_with_the_command_that_cuts_it_off(tmp_path):
    path = write(tmp_path / "p.tsv", "a\tb\nc\td\t\n")
    message = one_line_error(DataError, [path])
    assert f"{path}, line 2: 3 columns found" in message
    assert "cut -f1,2" in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"source": "a"}', '"source"'),
        ("{}", "no keys"),
        ('{"source": "a", "tgt": "b"}', '"source", "tgt"'),
        ('["a", "b"]', "an array"),
        ('{"source": 1, "target": "b"}', "a number"),
        ('{"source": "a", "target": null}', "null"),
        ('{"source": "a", "target": "b"', "not JSON"),
        ("[" * 100_000, "RecursionError"),
        ("9" * 5_000, "ValueError"),
        ('{"source": "a", "target": "b\\ud800"}', "\\ud800) as character 2"),
        ('{"source": "a\\nb", "target": "b"}', "line feed"),
        (json.dumps(dict.fromkeys(map(str, range(1000)))), "..."),
    ],
)
def test_a_json_line_that_is_no_pair_is_refused_by_line_and_reason(tmp_path, line, expected):
    good = '{"source": "a", "target": "b"}\n'
    path = write(tmp_path / "p.jsonl", f"{good}{line}\n{good}")
    message = one_line_error(DataError, [path])
    assert f"{path}, line 2" in message
    assert expected in message
    assert len(message) < 500


@pytest.mark.parametrize("content", ["", "\n", "\n\n", "\ufeff", "\t\n \t \n"])
def test_a_file_without_a_pair_is_refused(tmp_path, content):
    assert "no pair" in one_line_error(DataError, [write(tmp_path / "p.tsv", content)])


def test_a_missing_file_and_a_folder_are_missing_input(tmp_path):
    one_line_error(MissingInputError, [tmp_path / "none.tsv"])
    one_line_error(MissingInputError, [tmp_path])
    one_line_error(MissingInputError, [write(tmp_path / "a", "x\n"), tmp_path / "a" / "b"])


def test_a_loop_of_links_is_a_one_line_error(tmp_path):
    (tmp_path / "p.tsv").symlink_to(tmp_path / "p.tsv")
    one_line_error(MissingInputError, [tmp_path / "p.tsv"])


@pytest.mark.parametrize("count", [0, 3])
def test_other_numbers_of_files_than_one_and_two_are_refused(tmp_path, count):
    one_line_error(TransduceError, [tmp_path / "p.tsv"] * count)


def test_a_bare_string_is_not_taken_for_a_list_of_letters():
    with pytest.raises(TransduceError, match="a bare string"):
        read_pairs("pairs.tsv")


def test_one_file_of_another_kind_is_refused_with_the_kinds_there_are(tmp_path):
    message = one_line_error(TransduceError, [write(tmp_path / "p.txt", "a\tb\n")])
    assert ".tsv" in message
    assert ".jsonl" in message


# --- compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("name", ["right", "wrong", "none"])
def test_compression_is_told_from_the_bytes_whatever_the_name(tmp_path, suffix, name):
    ending = {"right": suffix, "wrong": ".gz" if suffix != ".gz" else ".xz", "none": ""}[name]
    path = write(tmp_path / f"p.tsv{ending}", COMPRESSORS[suffix](b"a\tb\nc\td\n"))
    assert rows_of(read_pairs([path])) == [("a", "b"), ("c", "d")]
    assert rows_of(read_pairs([write(tmp_path / f"plain.tsv{suffix}", "a\tb\n")])) == [("a", "b")]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_file_cut_anywhere_is_refused(tmp_path, suffix):
    content = "".join(f"{hashlib.sha256(bytes([k])).hexdigest()}\t{k}\n" for k in range(40)).encode()
    raw = COMPRESSORS[suffix](content)
    path = tmp_path / f"p.tsv{suffix}"
    for length in [*range(12), *range(12, len(raw) - 12, 61), *range(len(raw) - 12, len(raw))]:
        assert str(path) in one_line_error(DataError, [write(path, raw[:length])]), length
    assert len(read_pairs([write(path, raw)])) == 40


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_second_stream_is_read_and_anything_else_after_the_first_is_refused(tmp_path, suffix):
    one, two = COMPRESSORS[suffix](b"a\tb\n"), COMPRESSORS[suffix](b"c\td\n")
    path = tmp_path / f"p.tsv{suffix}"
    assert rows_of(read_pairs([write(path, one + two)])) == [("a", "b"), ("c", "d")]
    for garbage in (b"c\td\n", b"\x1f", one[:3], two[:-1], b"\0\0\0\0x"):
        assert "damaged" in one_line_error(DataError, [write(path, one + garbage)]), garbage


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_changed_byte_is_noticed(tmp_path, suffix):
    raw = bytearray(COMPRESSORS[suffix](b"a\tb\n" * 50 + b"c\td\n"))
    raw[-1] ^= 0x10  # in the checksum or length that ends every format
    assert "damaged" in one_line_error(DataError, [write(tmp_path / f"p.tsv{suffix}", bytes(raw))])


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_streams_longer_than_the_chunks_they_are_read_in_are_whole(suffix):
    noise = hashlib.shake_256(b"noise").digest(1_500_000)  # does not compress: 1.5 chunks a stream
    small = b"".join(COMPRESSORS[suffix](b"%d\n" % k) for k in range(50))
    raw = COMPRESSORS[suffix](noise) + small + COMPRESSORS[suffix](noise)
    assert decompressed([raw], "noise", most=10**7) == noise + b"".join(b"%d\n" % k for k in range(50)) + noise


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_file_that_unpacks_to_more_than_is_held_in_memory_is_refused_when_it_has(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("transduce.data.pairs.LARGE_BYTES", 200_000)
    packed = COMPRESSORS[suffix](b"a\tb\n" * 500_000) * 32  # of 64 MB
    path = write(tmp_path / f"bomb.tsv{suffix}", packed)
    tracemalloc.start()
    try:
        for read in (lambda: read_pairs([path]), lambda: read_lines(path)):
            with pytest.raises(DataError, match=r"bomb\.tsv\S*: more than 200,000 bytes to read at once"):
                read()
        assert tracemalloc.get_traced_memory()[1] < 25_000_000  # of which two decompressors may have 8 each
    finally:
        tracemalloc.stop()
    path = write(tmp_path / f"most.tsv{suffix}", COMPRESSORS[suffix](b"a\tb\n" * 50_000))
    assert len(read_pairs([path])) == 50_000


def test_a_plain_file_may_have_any_size_and_a_pipe_may_not(tmp_path, monkeypatch):
    monkeypatch.setattr("transduce.data.pairs.LARGE_BYTES", 100)
    content = b"a\tb\n" * 26
    assert len(read_pairs([write(tmp_path / "p.tsv", content)])) == 26
    os.mkfifo(tmp_path / "pipe.tsv")
    for num_pairs in (25, 26):
        writer = threading.Thread(target=(tmp_path / "pipe.tsv").write_bytes, args=(content[: 4 * num_pairs],))
        writer.start()
        if num_pairs == 25:
            assert len(read_pairs([tmp_path / "pipe.tsv"])) == 25
        else:
            assert "more than 100 bytes" in one_line_error(DataError, [tmp_path / "pipe.tsv"])
        writer.join()


def test_a_file_of_a_parallel_zstandard_compressor_is_read(tmp_path):
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
    path = write(tmp_path / "p.tsv.zst", skippable + COMPRESSORS[".zst"](b"a\tb\n"))
    assert rows_of(read_pairs([path])) == [("a", "b")]


def test_zero_padding_after_a_gzip_or_xz_stream_is_passed_over():
    for suffix in (".gz", ".xz"):
        assert decompressed([COMPRESSORS[suffix](b"a") + bytes(512)], "a", most=1) == b"a"


def test_without_zstandard_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = write(tmp_path / "p.tsv.zst", COMPRESSORS[".zst"](b"a\tb\n"))
    assert "pip install 'transduce[zstd]'" in one_line_error(DataError, [path])


def test_reading_imports_neither_torch_nor_zstandard():
    code = "import sys, transduce.data.pairs; sys.exit(any(m in sys.modules for m in ('torch', 'zstandard')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- overlap and splits ----------------------------------------------------------------------------------------------


def test_overlap_counts_rows_whatever_their_case_and_blanks():
    train = as_pairs([("Ein  Hund", "a dog"), ("STRASSE", "street"), ("x", "y")])
    other = as_pairs([("ein hund ", "A Dog"), ("ein hund", "a cat"), ("Straße", "road"), ("q", "Y"), ("x", "dog")])
    assert count_overlap(train, other) == {"pairs": 1, "source": 4, "target": 2}


SMALL_TEXT = st.sampled_from(["a", "A ", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    rows=st.lists(st.tuples(SMALL_TEXT, st.integers(0, 40).map(str)), min_size=5, max_size=30),
    order=st.randoms(use_true_random=False),
)
def test_a_split_keeps_all_rows_shares_no_text_and_does_not_depend_on_the_order(rows, order):
    shuffled = rows[:]
    order.shuffle(shuffled)
    try:
        parts = split_pairs(as_pairs(rows), valid=2, test=2)
    except DataError:
        with pytest.raises(DataError):
            split_pairs(as_pairs(shuffled), valid=2, test=2)
        return
    assert parts == split_pairs(as_pairs(shuffled), valid=2, test=2)
    train, valid, test = parts
    assert sorted(rows) == sorted(rows_of(train) + rows_of(valid) + rows_of(test))
    for one, other in ((train, valid), (train, test), (valid, test)):
        assert count_overlap(one, other) == {"pairs": 0, "source": 0, "target": 0}
    assert len(train) > 0
    assert 0 < len(valid) <= 2
    assert 0 < len(test) <= 2


def test_a_split_of_distinct_pairs_has_exactly_the_rows_asked_for():
    pairs = as_pairs([(f"s{k}", f"t{k}") for k in range(101)])
    assert [len(part) for part in split_pairs(pairs, valid=7, test=13)] == [81, 7, 13]
    assert [len(part) for part in split_pairs(pairs, valid=0, test=100)] == [1, 0, 100]


@pytest.mark.parametrize("salt", range(10))
def test_the_giant_group_stays_in_train_even_where_it_would_fit(salt):
    # s0-t0, s0-t1, s1-t1, s1-t2, ...: one group.
    chain = [(f"{salt} s{k // 2}", f"{salt} t{(k + 1) // 2}") for k in range(60)]
    alone = [(f"{salt} u{k}", f"{salt} v{k}") for k in range(65)]
    train, _, test = split_pairs(as_pairs(chain + alone), valid=0, test=110)
    assert sorted(rows_of(train)) == sorted(chain)
    assert len(test) == 65


def test_large_groups_are_held_out_no_more_often_than_small_ones():
    linked = [(f"s{k // 10}", f"t{k}") for k in range(5_000)]  # 500 groups of ten
    alone = [(f"u{k}", f"v{k}") for k in range(500)]
    _, _, test = split_pairs(as_pairs(linked + alone), valid=0, test=1_100)
    # A fifth of either kind is expected: 100 groups and 100 rows, each with a standard deviation of about 9.
    assert 60 < sum(target.startswith("v") for target in test.tgt) < 140


def test_a_split_that_would_leave_a_part_empty_says_why():
    linked = as_pairs([("same", f"t{k}") for k in range(10)])
    with pytest.raises(DataError, match="10 pairs fall into 1 groups") as caught:
        split_pairs(linked, valid=2, test=0)
    assert "\n" not in str(caught.value)
    with pytest.raises(TransduceError, match="must leave some"):
        split_pairs(linked, valid=5, test=5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.tsv", b"a\tb\nc\0at\td\n", "line 2: the character NUL"),
        ("p.tsv", "cat\tK AE T\n".encode("utf-16-be"), "line 1: the character NUL.*iconv -f UTF-16BE"),
        ("p.tsv", "cat\tK AE T\n".encode("utf-16-le"), "line 1: the character NUL.* UTF-16LE"),
        ("p.jsonl", b'{"src": "c\\u0000at", "tgt": "d"}\n', 'line 1: "src" holds NUL'),
    ],
)
def test_nul_is_in_no_text_to_learn_from(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_pairs([tmp_path / name])
