"""A small trained run for all tests to share, the command called in this process, and a look at a folder's bytes."""

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from transduce import cli
from transduce.datasets import load_split

CONFIG = """
[data]
train = ["{data}/train.source", "{data}/train.target"]
valid = ["{data}/valid.source", "{data}/valid.target"]
[tokenizer]
source = "characters"
target = "characters"
[model]
d_model = 32
d_ff = 64
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 1
dropout = 0.0
[optim]
learning_rate = 0.01
warmup_steps = 20
[training]
steps = 60
validate_every = 20
batch_tokens = 1024
[validation]
metrics = ["exact_match", "cer"]
max_pairs = 10
[decoding]
beam_size = 3
"""


@dataclass(frozen=True)
class Outcome:
    """What a call of the command gave back."""

    status: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().removesuffix("\n").split("\n") if self.out else []


def command(*words: object, stdin: bytes = b"") -> Outcome:
    """Calls `transduce WORDS...` on one thread, with standard streams of its own."""
    out, err = io.BytesIO(), io.BytesIO()
    with ExitStack() as stack:
        streams = [stack.enter_context(io.TextIOWrapper(raw, "utf-8", newline="")) for raw in (out, err)]
        stack.enter_context(redirect_stdout(streams[0]))
        stack.enter_context(redirect_stderr(streams[1]))
        stack.enter_context(mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8")))
        stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        try:
            status = cli.main([*map(str, words), "--threads", "1"] if words else [])
        except SystemExit as stop:  # from argparse
            status = stop.code
        for stream in streams:
            stream.flush()
        return Outcome(status, out.getvalue(), err.getvalue().decode())


def content_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, valid and test files of the `copy` task, and a config that trains on them."""
    folder = tmp_path_factory.mktemp("data")
    for split, num_pairs in (("train", 600), ("valid", 40), ("test", 500)):
        pairs = load_split("copy", split)
        for side, lines in (("source", pairs.src), ("target", pairs.tgt)):
            (folder / f"{split}.{side}").write_text("".join(f"{line}\n" for line in lines[:num_pairs]))
    (folder / "config.toml").write_text(CONFIG.format(data=folder))
    return folder


@pytest.fixture(scope="session")
def training(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The folder of a run trained for a few seconds, and what the command said of it."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    return folder, command("train", data / "config.toml", "--run-dir", folder)


@pytest.fixture(scope="session")
def run(training: tuple[Path, Outcome]) -> Iterator[Path]:
    """The folder of the small run; no test may change it."""
    folder, outcome = training
    assert outcome.status == 0, outcome.err
    before = content_of(folder)
    yield folder
    assert content_of(folder) == before, "a test changed the run that all share"
