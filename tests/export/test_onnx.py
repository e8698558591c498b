import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import small_model
from transduce.errors import TransduceError
from transduce.export import onnx as onnx_export
from transduce.inference.config import DecodingConfig
from transduce.inference.forced_decoding import token_log_probs
from transduce.inference.predictor import Predictor
from transduce.model import Transformer
from transduce.model.config import TransformerConfig
from transduce.runs.run import load
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

pytest_plugins = ["small_run"]

GREEDY = DecodingConfig(beam_size=1)
SMALL = {"d_model": 12, "d_ff": 7, "num_heads": 3, "num_encoder_layers": 1, "num_decoder_layers": 2, "max_len": 29}
SWITCHES = {
    "as in the paper": {},
    "pre-norm": {"norm_first": True},
    "rms norm": {"norm": "rms"},
    "pre-norm, rms": {"norm_first": True, "norm": "rms"},
    "learned positions": {"positions": "learned"},
    "rotary positions": {"positions": "rotary"},
    "no positions": {"positions": "none"},
    "gelu": {"feed_forward": "gelu"},
    "silu": {"feed_forward": "silu"},
    "swiglu": {"feed_forward": "swiglu"},
    "untied": {"tie_embeddings": False},
    "output bias": {"output_bias": True},
    "one layer": {"num_decoder_layers": 1},
}
SOURCES, TARGETS = ["abc def", "bade", "face a bed"], ["egg fed", "gag", "a cab"]

# The program of the folder, where nothing but its own three packages can be had.
ALONE = """
import runpy, sys
sys.modules.update(torch=None, transduce=None)
runpy.run_path("greedy.py", run_name="__main__")
"""


def random_predictor(*, joint: bool = True, **settings: object) -> Predictor:
    """An untrained model in which no two weights are equal, norms and biases included."""
    kinds = {"source": "characters", "target": "characters" if joint else "words"}
    tokenizer = Tokenizer.learn(TokenizerConfig(**kinds, joint=joint), SOURCES, TARGETS)
    return small_model.random_predictor(TransformerConfig(**SMALL | settings), tokenizer, GREEDY, seed=3)


def random_ids(predictor: Predictor, lens: list[int], *, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, predictor.tokenizer.num_target_ids) for _ in range(length)] for length in lens]


def write(predictor: Predictor, folder: Path, *, int8: bool = False) -> Path:
    folder.mkdir()
    onnx_export.refuse(predictor, int8=int8)
    onnx_export.write(predictor, folder, int8=int8)
    return folder


def answers_alone(folder: Path, lines: bytes) -> bytes:
    """What the folder's program says to `lines`."""
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(
        command, cwd=folder, input=lines, capture_output=True, check=True, env=os.environ | {"LC_ALL": "C"}
    )
    assert not done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(run: Path) -> Predictor:
    return load(run, device="cpu", decoding=GREEDY)


@pytest.fixture(scope="module")
def exported(trained: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(trained, tmp_path_factory.mktemp("exports") / "onnx")


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_a_cached_step_gives_the_log_probabilities_of_the_model(
    switches: dict[str, object], joint: bool, tmp_path: Path
) -> None:
    predictor = random_predictor(joint=joint, **switches)
    folder = write(predictor, tmp_path / "onnx")
    sources, answers = random_ids(predictor, [5, 2, 11], seed=1), random_ids(predictor, [7, 9, 0], seed=2)
    found = onnx_export.open_engine(folder, predictor).log_probs(sources, answers)
    for ours, theirs in zip(token_log_probs(predictor.model, sources, answers), found, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_the_graphs_are_valid_by_the_checker_of_onnx(positions: str, int8: bool, tmp_path: Path) -> None:
    folder = write(random_predictor(positions=positions), tmp_path / "onnx", int8=int8)
    for name in ("encoder.onnx", "decoder_step.onnx"):
        onnx.checker.check_model(folder / name, full_check=True)


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_a_sentence_is_scored_alone_as_it_is_beside_longer_ones(int8: bool, tmp_path: Path) -> None:
    predictor = random_predictor(norm_first=True)  # no norm evens the vectors of long and short sentences out
    engine = onnx_export.open_engine(write(predictor, tmp_path / "onnx", int8=int8), predictor)
    sources, answers = random_ids(predictor, [4, 19, 1], seed=4), random_ids(predictor, [3, 8, 13], seed=5)
    together = engine.log_probs(sources, answers)
    for row in range(len(sources)):
        (alone,) = engine.log_probs([sources[row]], [answers[row]])
        np.testing.assert_allclose(together[row], alone, atol=1e-4, rtol=0)


def test_the_engine_finds_the_answers_that_the_run_finds(trained: Predictor, exported: Path, data: Path) -> None:
    lines = (data / "test.source").read_text().split("\n")[:200]
    sources = trained.tokenizer.encode_source(lines)
    max_lens = [GREEDY.max_len(len(source)) for source in sources]
    found = onnx_export.open_engine(exported, trained).search(sources, max_lens, GREEDY)
    assert found == [hypotheses[0].ids for hypotheses in trained.search(sources)]


def test_of_what_may_be_written_the_likeliest_is_chosen_up_to_each_longest_length(tmp_path: Path) -> None:
    predictor = random_predictor(norm_first=True, tie_embeddings=False)
    with torch.no_grad():  # every hidden vector is one of ones: an id's score is the sum of its row
        predictor.model.decoder.final_norm.weight.zero_()
        predictor.model.decoder.final_norm.bias.fill_(1.0)
        predictor.model.output_weight.zero_()
        for token, score in ((Tokenizer.pad_id, 3.0), (Tokenizer.bos_id, 2.0), (260, 1.0)):
            predictor.model.output_weight[token] = score
    engine = onnx_export.open_engine(write(predictor, tmp_path / "onnx"), predictor)
    assert engine.search([[5, 2], [6, 7, 2], [8, 2]], [4, 1, 3], GREEDY) == [[260, 260, 260], [], [260, 260]]


def test_the_program_answers_as_the_run_does_without_torch_and_this_package(
    trained: Predictor, exported: Path, data: Path
) -> None:
    lines = (data / "test.source").read_text().split("\n")[:100]
    text = "".join(f"{line}\n" for line in lines)
    assert answers_alone(exported, text.encode()).decode() == "".join(f"{line}\n" for line in trained.predict(lines))


def test_a_blank_line_is_answered_by_a_blank_one_in_its_place(trained: Predictor, exported: Path) -> None:
    found = answers_alone(exported, b"\xef\xbb\xbfab\r\n\n  \nc")
    first, last = trained.predict(["ab", "c"])
    assert found == f"{first}\n\n\n{last}\n".encode()


def test_a_carriage_return_is_a_line_end_only_before_a_line_feed(trained: Predictor, exported: Path) -> None:
    kept, alone = trained.predict(["a\rb", "ab\r"])
    assert alone != trained.predict(["ab"])[0]
    assert answers_alone(exported, b"a\rb\r\nab\r") == f"{kept}\n{alone}\n".encode()


def test_no_lines_are_answered_by_none(exported: Path) -> None:
    assert answers_alone(exported, b"") == b""


def test_a_line_too_long_for_the_model_is_cut_as_the_run_cuts_it(tmp_path: Path, trained: Predictor) -> None:
    config = TransformerConfig(**{**vars(trained.model.config), "max_len": 13})
    model = Transformer(config, trained.model.vocabulary)
    model.load_state_dict(trained.model.state_dict())
    short = Predictor(model, trained.tokenizer, GREEDY)
    lines = ["abcdefghijkl", "abcdefghijklm", "ab" * 20]
    expected = short.predict(lines)
    assert short.num_truncated_sources == 2
    found = answers_alone(write(short, tmp_path / "onnx"), "\n".join(lines).encode())
    assert found.decode() == "".join(f"{line}\n" for line in expected)


def test_int8_is_smaller_and_nearly_as_sure_of_the_same_answers(
    trained: Predictor, exported: Path, data: Path, tmp_path: Path
) -> None:
    folder = write(trained, tmp_path / "onnx", int8=True)
    sources = trained.tokenizer.encode_source((data / "test.source").read_text().split("\n")[:50])
    answers = [hypotheses[0].ids for hypotheses in trained.search(sources)]
    ours, theirs = (
        np.concatenate(onnx_export.open_engine(path, trained).log_probs(sources, answers))
        for path in (exported, folder)
    )
    assert 0 < np.abs(ours - theirs).mean() < 0.05
    for name in ("encoder.onnx", "decoder_step.onnx"):
        without_table = [(path / name).stat().st_size - 4 * 32 * 1024 for path in (exported, folder)]
        assert without_table[1] < 0.6 * without_table[0]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_how_to_get_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(TransduceError, match=rf"needs {package}: pip install 'transduce\[export\]'"):
        onnx_export.refuse(random_predictor(), int8=False)


def test_a_model_larger_than_a_file_may_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = random_predictor()
    num_weights = sum(parameter.numel() for parameter in predictor.model.parameters())
    monkeypatch.setattr(onnx_export, "_LARGEST_FILE", num_weights)
    onnx_export.refuse(predictor, int8=True)
    with pytest.raises(TransduceError, match=f"the weights have {4 * num_weights:,} bytes"):
        onnx_export.refuse(predictor, int8=False)


def test_what_greedy_search_is_not_is_told_and_only_that() -> None:
    assert onnx_export.unexpressed(GREEDY) == []
    decoding = DecodingConfig(temperature=0.5, beam_size=1, min_len=3, no_repeat_ngram_size=2)
    for name, line in zip(
        ("temperature = 0.5", "min_len = 3", "no_repeat_ngram_size = 2"), onnx_export.unexpressed(decoding), strict=True
    ):
        assert line.startswith(f"decoding.{name}: greedy.py ")


def test_the_example_of_use_runs_in_the_folder(exported: Path, trained: Predictor) -> None:
    done = subprocess.run(
        [sys.executable, "-c", onnx_export.usage(trained)], cwd=exported, capture_output=True, check=True
    )
    assert done.stdout.decode() == f"{trained.predict(['a text', 'another text'])}\n"
