"""Corpora that are too large for memory: turned into shards of ids once, by several processes, and found again.

Nothing here holds the text. The files are read as a stream, once to check and to measure them and once to encode them.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transduce.data.large.folder import (
    Manifest,
    PreparedFolder,
    building,
    key_of,
    locked,
    publish,
    remove,
    write_manifest,
)
from transduce.data.large.scan import ScannedFile, changed
from transduce.data.large.workers import worker_processes
from transduce.data.pairs import Pairs
from transduce.data.parsing import (
    normalised,
    refuse_all_too_long,
    refuse_no_pairs,
    refuse_number_of_paths,
    refuse_unequal,
    row_reader,
)
from transduce.devices.machine import usable_cores
from transduce.files import atomic as files
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

LARGE_BYTES = 256_000_000  # training files with more text than this are prepared on disk, not held in memory
SAMPLED_ROWS = 250_000  # at most, spread evenly over the corpus: what the tokenizer is learnt from
PAIRS_PER_SHARD = 250_000  # about
LINES_PER_BLOCK = 25_000  # of each file, encoded by one process at a time

Ask = Callable[[Iterable[dict[str, Any]]], Iterator[Any]]


def _silence(_text: str, _done: int = 0, _total: int = 0) -> None:
    pass


@dataclass(frozen=True)
class Listener:
    """Who is told how a preparation goes on."""

    report: Callable[[str], None] = _silence
    progress: Callable[[str, int, int], None] = _silence  # what is being done, how much of how much


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
        return {name: files.sha256_of_file(Path(name)) for name in self.names}

    @property
    def _identity(self) -> list[str]:
        """What the text is: how it is read, and its bytes."""
        kind = "two files" if len(self.names) == 2 else "".join(Path(self.names[0]).suffixes)
        return [kind, *(self.sha256[name] for name in self.names)]

    def prepared(
        self,
        config: TokenizerConfig,
        learnt: str | None,
        *,
        max_len: int,
        listener: Listener = Listener(),
    ) -> tuple[str, PreparedFolder]:
        """The tokenizer and the folder of shards, both made only if they are not there.

        The tokenizer is `learnt`, if given, else learnt by `config` from an even sample. Raises as `read_pairs` and
        `encode_pairs` do.
        """
        known = self.folder / f"learnt-{key_of(self._identity, asdict(config), SAMPLED_ROWS)}.json"
        learnt = learnt or _intact(known)
        if learnt is not None and (path := self.path_for(learnt, max_len)).exists():
            return learnt, PreparedFolder.open(path)
        with locked(self.folder, key_of(self._identity), listener.report):
            learnt = learnt or _intact(known)  # another process may have been faster
            if learnt is not None and (path := self.path_for(learnt, max_len)).exists():
                return learnt, PreparedFolder.open(path)
            return self._prepare(config, learnt, known, max_len, listener)

    def find(self, key: str) -> PreparedFolder | None:
        """The prepared folder of that name, which `prepared` told, if it is on this machine."""
        path = self.folder / key
        return PreparedFolder.open(path) if path.exists() else None

    def path_for(self, tokenizer: str, max_len: int) -> Path:
        """Where the shards are that this tokenizer makes of these files."""
        return self.folder / key_of(self._identity, files.sha256_of(tokenizer.encode()), max_len, PAIRS_PER_SHARD)

    def _prepare(
        self, config: TokenizerConfig, learnt: str | None, known: Path, max_len: int, listener: Listener
    ) -> tuple[str, PreparedFolder]:
        started = time.perf_counter()
        key = key_of(self._identity)
        size = sum(Path(name).stat().st_size for name in self.names)
        listener.report(f"preparing {' and '.join(self.names)} ({size / 1e6:,.0f} MB), once, in {self.folder}")
        with (
            building(self.folder, key) as made,
            worker_processes(usable_cores(), "transduce.data.large.jobs") as ask,
        ):
            scanned = self._scan(ask, made, listener)
            if learnt is None:
                listener.progress("learning the tokenizer", 0, 0)
                learnt = _learn(ask, scanned, config)
                self._refuse_if_changed()
                files.write_atomically(made / known.name, learnt.encode())
                publish(made / known.name, known)
                if (path := self.path_for(learnt, max_len)).exists():  # made with this very tokenizer before
                    return learnt, PreparedFolder.open(path)
            files.write_atomically(made / "tokenizer.json", learnt.encode())
            manifest = self._encode(ask, scanned, made, max_len, listener)
            path = self.path_for(learnt, max_len)
            write_manifest(made, manifest)
            publish(made, path)
        seconds = time.perf_counter() - started
        listener.report(
            f"prepared {manifest.num_pairs:,} pairs in {seconds:.1f} s ({manifest.num_pairs / seconds:,.0f} pairs/s)"
        )
        return learnt, PreparedFolder.open(path)

    def _scan(self, ask: Ask, made: Path, listener: Listener) -> list[ScannedFile]:
        listener.progress("reading", 0, 0)
        jobs = [
            {"do": "scan_file", "name": name, "lines_per_block": LINES_PER_BLOCK, "unpacked": str(made / f"text-{k}")}
            for k, name in enumerate(self.names)
        ]
        scanned = [ScannedFile(**found) for found in ask(jobs)]
        for file in scanned:
            if file.sha256 != self.sha256[file.name]:
                raise changed(file.name)
        if len(scanned) == 2:
            refuse_unequal(self.names, [file.num_lines for file in scanned])
        refuse_no_pairs(scanned[0].num_rows, {}, self.names)
        return scanned

    def _encode(self, ask: Ask, scanned: list[ScannedFile], made: Path, max_len: int, listener: Listener) -> Manifest:
        """Writes the shards into `made`; returns what was counted."""
        num_rows = scanned[0].num_rows if len(scanned) == 1 else scanned[0].num_lines
        num_shards = max(1, round(num_rows / PAIRS_PER_SHARD))
        tokenizer, layout, written = (str(made / f"{name}.json") for name in ("tokenizer", "layout", "written"))
        files.write_atomically(Path(layout), json.dumps([vars(file) for file in scanned]).encode())
        common = {
            "do": "encode_block",
            "layout": layout,
            "lines_per_block": LINES_PER_BLOCK,
            "num_groups": num_shards,
            "max_len": max_len,
            "tokenizer": tokenizer,
            "valid": self._write_validation(made),
        }
        blocks = [str(made / f"block-{k}") for k in range(len(scanned[0].starts) - 1)]
        counts = _Counts()
        for found in ask(common | {"block": k, "output": path} for k, path in enumerate(blocks)):
            counts.add(found)
            listener.progress("encoding", min(num_rows, len(counts.num_kept) * LINES_PER_BLOCK), num_rows)
        refuse_no_pairs(counts.num_pairs, counts.skipped, self.names)
        refuse_all_too_long(counts.num_pairs, max_len=max_len, shortest=counts.shortest)
        num_shards_filled = min(num_shards, sum(counts.num_kept))
        files.write_atomically(Path(written), json.dumps([*zip(blocks, counts.num_kept, strict=True)]).encode())
        jobs = [
            {
                "do": "write_one_shard",
                "shard": k,
                "written": written,
                "num_groups": num_shards,
                "tokenizer": tokenizer,
                "output": str(made / f"shard-{k:05d}.safetensors"),
                "metadata": {"shard": f"{k + 1} of {num_shards_filled}"},
            }
            for k in range(num_shards_filled)
        ]
        shards = []
        for shard in ask(jobs):
            shards.append(shard)
            listener.progress("writing shards", len(shards), len(jobs))
        self._refuse_if_changed()
        self._remove_all_but_the_shards(made)
        return self._manifest(scanned, counts, shards, max_len, files.sha256_of_file(Path(tokenizer)))

    def _write_validation(self, made: Path) -> str:
        """A file of the validation's lines, source and target in turn, for the processes that look for them."""
        if self.valid is None:
            return ""
        lines = (normalised(line) for pair in zip(self.valid.src, self.valid.tgt, strict=True) for line in pair)
        path = made / "valid"
        files.write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        return str(path)

    def _remove_all_but_the_shards(self, made: Path) -> None:
        remove(
            [*made.glob("block-*"), *made.glob("text-*"), made / "valid", made / "layout.json", made / "written.json"]
        )

    def _refuse_if_changed(self) -> None:
        for name in self.names:
            if files.sha256_of_file(Path(name)) != self.sha256[name]:
                raise changed(name)

    def _manifest(
        self, scanned: list[ScannedFile], counts: "_Counts", shards: list[dict[str, Any]], max_len: int, tokenizer: str
    ) -> Manifest:
        told = {file.name: [f"{file.name}: {what}" for what in file.mendings] for file in scanned}
        return Manifest(
            data=list(self.sha256.values()),
            tokenizer=tokenizer,
            num_pairs=counts.num_pairs,
            num_long=counts.num_pairs - sum(counts.num_kept),
            max_len=max_len,
            skipped=dict(counts.skipped),
            notes=[note for notes in told.values() for note in notes],
            valid=list(self.valid.sha256.values()) if self.valid else [],
            overlap={name: len(rows) for name, rows in counts.seen.items()} if self.valid else {},
            shards=shards,
        )


def _intact(tokenizer: Path) -> str | None:
    """The tokenizer in a file, if there is one that is as it was written; else it can be learnt again."""
    try:
        text = files.read_bytes(tokenizer).decode()
        Tokenizer.from_json(text)
    except ValueError:  # ours are, too
        return None
    return text


def _learn(ask: Ask, scanned: list[ScannedFile], config: TokenizerConfig) -> str:
    job = {
        "do": "learn_tokenizer",
        "scanned": [vars(file) for file in scanned],
        "lines_per_block": LINES_PER_BLOCK,
        "most_rows": SAMPLED_ROWS,
        "config": asdict(config),
    }
    return str(next(ask([job])))


class _Counts:
    """What the blocks have in them, added up in their order."""

    def __init__(self) -> None:
        self.num_pairs = 0
        self.num_kept: list[int] = []
        self.skipped: Counter[str] = Counter()
        self.shortest = 0
        self.seen: dict[str, set[int]] = {"pairs": set(), "source": set(), "target": set()}

    def add(self, found: dict[str, Any]) -> None:
        """Adds what was found in one block."""
        self.num_pairs += found["num_pairs"]
        self.num_kept.append(found["num_kept"])
        self.skipped.update(found["skipped"])
        if found["shortest"] is not None:
            self.shortest = min(self.shortest or found["shortest"], found["shortest"])
        for rows, more in zip(self.seen.values(), found["seen"], strict=True):
            rows.update(more)
