"""Preparation of corpora that do not fit in memory: several processes turn one into a file of ids, once.

Nothing here holds the text. The files are read as a stream, once to check them and to sample their lines, and
once to encode them.
"""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transduce.data.large.jobs import NO_LEN, Message
from transduce.data.large.prepared_file import Manifest, PreparedFile, alone_in, key_of, write_prepared
from transduce.data.large.scan import ScannedFile, line_blocks, scan
from transduce.data.large.workers import answers_in_order
from transduce.data.pairs import Pairs, overlap_keys, read_rows
from transduce.data.parsing import (
    Row,
    refuse_all_too_long,
    refuse_no_pairs,
    refuse_number_of_paths,
    refuse_two_of_pairs,
    refuse_unequal,
    row_reader,
    unquoted,
    without_empty,
)
from transduce.data.seen import Seen, nearly_longest
from transduce.devices.machine import usable_cores
from transduce.errors import DataError
from transduce.files.atomic import write_atomically
from transduce.files.content import read_regular, sha256_of, sha256_of_file
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

SAMPLED_ROWS = 250_000  # at most, spread evenly over the corpus: what the tokenizer is learned from
LINES_PER_BLOCK = 10_000  # of each file, encoded by one process at a time: what fits the processor's caches is faster

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Listener:
    """Receiver of the progress of a preparation."""

    report: Callable[[str], None] = lambda _line: None
    progress: Progress = lambda _stage, _done, _total: None  # what is being done, how much of how much


class LargePairs:
    """Training text that stays on disk, and the folder in which its prepared form is, or will be."""

    def __init__(self, paths: Sequence[str | Path], folder: Path, *, valid: Pairs | None = None) -> None:
        """`folder` holds all prepared corpora; the overlap with `valid` is counted on the way."""
        refuse_number_of_paths(paths)
        self.names = [str(path) for path in paths]
        if len(paths) == 1:
            row_reader(self.names[0])
        self.folder = folder.expanduser()
        self.valid = valid

    @cached_property
    def sha256(self) -> dict[str, str]:
        """File, as given -> SHA-256 of its bytes on disk: reads all of them."""
        return {name: sha256_of_file(Path(name)) for name in self.names}

    @property
    def _identity(self) -> list[str]:
        """Identity of the text: how it is read, and the hashes of its bytes."""
        kind = "two files" if len(self.names) == 2 else "".join(Path(self.names[0]).suffixes)
        return [kind, *(self.sha256[name] for name in self.names)]

    def prepared(
        self, config: TokenizerConfig, learned: str | None, *, max_len: int, listener: Listener = Listener()
    ) -> tuple[str, PreparedFile]:
        """The tokenizer and the file of ids, both made only if they are not there.

        The tokenizer is `learned`, if given, else learned by `config` from an even sample. Raises as `read_pairs` and
        `encode_pairs` do.
        """
        known = self.folder / f"learnt-{key_of(self._identity, asdict(config), SAMPLED_ROWS)}.json"

        def find() -> tuple[str, PreparedFile] | None:
            tokenizer = learned or _intact(known)
            file = self.find(self.name_for(tokenizer, max_len)) if tokenizer else None
            return (tokenizer, file) if tokenizer and file else None

        if found := find():
            return found
        with alone_in(self.folder, listener.report):
            if found := find():  # another process was faster
                return found
            return self._prepare(config, learned or _intact(known), known, max_len, listener)

    def find(self, name: str) -> PreparedFile | None:
        """The prepared file of that name, if it is on this machine."""
        path = self.folder / name
        return PreparedFile.open(path) if path.exists() else None

    def name_for(self, tokenizer: str, max_len: int) -> str:
        """The name of the file that this tokenizer makes of these."""
        return f"{key_of(self._identity, sha256_of(tokenizer.encode()), max_len)}.safetensors"

    def _prepare(
        self, config: TokenizerConfig, learned: str | None, known: Path, max_len: int, listener: Listener
    ) -> tuple[str, PreparedFile]:
        started = time.perf_counter()
        size = sum(Path(name).stat().st_size for name in self.names)
        listener.report(f"preparing {' and '.join(self.names)} ({size / 1e6:,.0f} MB), once, in {self.folder}")
        listener.progress("reading", 0, 0)
        scanned = self._scan()
        src, tgt = self._sample(scanned)
        if learned is None:
            listener.progress("learning the tokenizer", 0, 0)
            learned = Tokenizer.learn(config, src, tgt).to_json()
            write_atomically(known, learned.encode())
            if file := self.find(self.name_for(learned, max_len)):  # made with this very tokenizer before
                return learned, file
        path = self.folder / self.name_for(learned, max_len)
        self._encode(path, learned, scanned, max_len, listener.progress)
        seconds, file = time.perf_counter() - started, PreparedFile.open(path)
        num_pairs = file.manifest.num_pairs
        listener.report(f"prepared {num_pairs:,} pairs in {seconds:.1f} s ({num_pairs / seconds:,.0f} pairs/s)")
        return learned, file

    def _scan(self) -> list[ScannedFile]:
        scanned = [scan(name, lines_per_block=LINES_PER_BLOCK, most_sampled=SAMPLED_ROWS) for name in self.names]
        self._refuse_if_changed([file.sha256 for file in scanned])
        if len(scanned) == 2:
            refuse_two_of_pairs(self.names, [file.sample for file in scanned])
            refuse_unequal(self.names, [file.num_lines for file in scanned])
        refuse_no_pairs(_num_rows(scanned), {}, self.names)
        return scanned

    def _sample(self, scanned: Sequence[ScannedFile]) -> tuple[list[str], list[str]]:
        """Both sides of some rows; those that cannot be read are reported when all are encoded."""
        rows: list[Row] = []
        for lines in zip(*(file.sample for file in scanned), strict=True):
            with suppress(DataError):
                rows.extend(read_rows(self.names[0], [[line] for line in lines], 0))
        if len(scanned) == 1 and unquoted(rows) is not rows:
            raise DataError(f"{self.names[0]}: its fields are quoted as in CSV. Write them without quotes, or .jsonl.")
        src, tgt, _ = without_empty(rows)
        return src, tgt

    def _encode(
        self, path: Path, tokenizer: str, scanned: Sequence[ScannedFile], max_len: int, progress: Progress
    ) -> None:
        """Writes the file of ids."""
        learned, num_rows = Tokenizer.from_json(tokenizer), _num_rows(scanned)
        dtype = "U16" if max(learned.source_vocab_size, learned.target_vocab_size) <= 1 << 16 else "I32"
        valid = overlap_keys(self.valid.src, self.valid.tgt) if self.valid else {}
        settings = {"names": self.names, "tokenizer": tokenizer, "dtype": dtype, "max_len": max_len}
        settings |= {"num_rows": num_rows, "valid": valid}
        digests = [hashlib.sha256() for _ in self.names]
        texts = [line_blocks(*file, num_lines=LINES_PER_BLOCK) for file in zip(self.names, digests, strict=True)]
        blocks = enumerate(zip_longest(*texts, fillvalue=b""))
        questions = (({"num_before": number * LINES_PER_BLOCK}, block) for number, block in blocks)
        shortest = [NO_LEN]
        counts = {kind: Counter[str]() for kind in ("num", "skipped", "num_of_len")}
        sets = {kind: defaultdict[str, set[Any]](set) for kind in ("seen", "overlap")}

        def encoded(answers: Iterable[Message]) -> Iterator[Sequence[bytes]]:
            for done, (found, arrays) in enumerate(answers, start=1):
                shortest.append(found["shortest"])
                for kind, counter in counts.items():
                    counter.update(found[kind])
                for kind, by_name in sets.items():
                    for name, values in found[kind].items():
                        by_name[name].update(values)
                progress("encoding", min(num_rows, done * LINES_PER_BLOCK), num_rows)
                yield arrays

        def manifest() -> Manifest:
            self._refuse_if_changed([digest.hexdigest() for digest in digests])
            num, skipped, overlap = counts["num"], counts["skipped"], sets["overlap"]
            refuse_no_pairs(num["pairs"], skipped, self.names)
            refuse_all_too_long(num["pairs"], max_len=max_len, shortest=min(shortest))
            source_len = nearly_longest([counts["num_of_len"][str(length)] for length in range(max_len + 1)])
            return Manifest(
                data=list(self.sha256.values()),
                num_pairs=num["pairs"],
                num_long=num["pairs"] - num["kept"],
                max_len=max_len,
                skipped=dict(skipped),
                notes=list(
                    dict.fromkeys(note for file in scanned for note in file.repairs)
                ),  # each once, though a file may be both sides
                valid=list(self.valid.sha256.values()) if self.valid else [],
                seen=Seen.from_dict(sets["seen"] | {"source_len": source_len}).as_dict(),
                overlap={name: sum(map(overlap[name].__contains__, texts)) for name, texts in valid.items()},
            )

        # One more process than cores: each waits while its answer is fetched.
        with answers_in_order(settings, questions, num=usable_cores() + 1) as answers:
            write_prepared(path, encoded(answers), dtype=dtype, manifest=manifest)

    def _refuse_if_changed(self, sha256: Sequence[str]) -> None:
        for name, digest in zip(self.names, sha256, strict=True):
            if digest != self.sha256[name]:
                raise DataError(f"{name} changed while it was read: start again once nothing writes to it.")


def _intact(tokenizer: Path) -> str | None:
    """The tokenizer in a file, if there is one that is as it was written; else it can be learned again."""
    try:
        text = read_regular(tokenizer).decode()
        Tokenizer.from_json(text)
    except ValueError:  # ours are, too
        return None
    return text


def _num_rows(scanned: Sequence[ScannedFile]) -> int:
    # Empty lines at the end of a file of pairs are a habit of editors.
    return scanned[0].num_rows if len(scanned) == 1 else scanned[0].num_lines
