"""A small trained run for all tests to share: a test module that needs it says `pytest_plugins = ["small_run"]`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from calling import Outcome, command, content_of
from transduce.data.datasets import load_split

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
