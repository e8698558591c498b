"""The run as a Python object: what it takes, what it gives, and that the command gives the same."""

import io
import json
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import transduce
from calling import command, content_of
from transduce import Constraints
from transduce.config.settings import load_config
from transduce.errors import DamagedFileError, MissingInputError, RunFolderError, TransduceError
from transduce.inference.predictor import Prediction
from transduce.learn.explained import explained
from transduce.runs.train import train as train_folder

pytest_plugins = ["small_run"]

TEXTS = ["hello", "world", "cat", "", "dog"]


class Column:
    """A column of a table, as pandas has it: a row is found by its label, and iterating is by position."""

    def __init__(self, labels: list[int], texts: list[str]) -> None:
        self._texts = dict(zip(labels, texts, strict=True))

    def __getitem__(self, label: int) -> str:
        return self._texts[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts.values())

    def __len__(self) -> int:
        return len(self._texts)

    def keys(self) -> list[int]:
        return list(self._texts)


class Table(dict):
    """A table, as pandas has it: iterating gives the names of its columns."""

    columns = ("source", "target")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.fixture(scope="module")
def loaded(run: Path) -> transduce.Run:
    return transduce.load(run, device="cpu")


@pytest.fixture(scope="module")
def expected(loaded: transduce.Run) -> list[str]:
    """The output for each of TEXTS, asked for alone."""
    return [loaded.predict([text])[0] for text in TEXTS]


# Texts


def test_a_text_gives_a_text_and_several_give_a_list(loaded: transduce.Run, expected: list[str]) -> None:
    assert [loaded(text) for text in TEXTS] == expected
    assert loaded(TEXTS) == expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize(
    "given",
    [
        tuple,
        iter,
        lambda texts: (text for text in texts),
        lambda texts: map(str, texts),
        np.array,
        lambda texts: io.StringIO("".join(f"{text}\n" for text in texts)),
        lambda texts: Column([3, 0, 4, 1, 2], texts),
    ],
    ids=["tuple", "iterator", "generator", "map", "array", "file", "column"],
)
def test_any_iterable_of_texts_is_predicted_in_its_order(
    given: Callable[[list[str]], Any], loaded: transduce.Run, expected: list[str]
) -> None:
    assert loaded.predict(given(TEXTS)) == expected
    assert [best.text for [best] in loaded.predict_n_best(given(TEXTS), 1)] == expected
    assert list(loaded.stream(given(TEXTS))) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("hello", r"'hello' is a single text where several are expected: .* run\('...'\) takes a single one"),
        (b"hello", r"b'hello' is a single text"),
        (None, "texts are given as NoneType: give a list of str"),
        (7, "texts are given as int"),
        (np.array("hello"), "texts are given as ndarray"),
        ({"hello": 1}, "texts are given as dict"),
        ({"hello"}, "texts are given as set"),
        (Table(source=["a"], target=["b"]), "texts are given as Table: .* a column of a table"),
        (["a", None], r"text 2 is None \(NoneType\): a str is needed"),
        (["a", "b", float("nan")], r"text 3 is nan \(float\): a str is needed"),
        ([1], r"text 1 is 1 \(int\)"),
        ([b"a"], r"text 1 is b'a' \(bytes\)"),
        ([["a"]], r"text 1 is \['a'\] \(list\)"),
    ],
)
def test_what_is_no_list_of_texts_is_refused_by_its_place(given: Any, message: str, loaded: transduce.Run) -> None:
    for call in (
        loaded.predict,
        lambda texts: loaded.predict_n_best(texts, 1),
        lambda texts: list(loaded.stream(texts)),
    ):
        with pytest.raises(TransduceError, match=message):
            call(given)
    if not isinstance(given, str):
        with pytest.raises(TransduceError, match=message):
            loaded(given)


def test_a_stream_takes_no_more_than_a_block_ahead_and_gives_what_predict_gives(
    loaded: transduce.Run, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transduce.runs.run.MOST_TEXTS", 2)
    taken: list[str] = []

    def texts() -> Iterator[str]:
        for text in TEXTS:
            taken.append(text)
            yield text

    stream = loaded.stream(texts())
    assert next(stream) == expected[0] and taken == TEXTS[:2]
    assert [*stream] == expected[1:]
    sampling = {"temperature": 1.3, "seed": 5}
    assert list(loaded.stream(TEXTS, **sampling)) == loaded(TEXTS, **sampling)  # type: ignore[arg-type]


# Options and constraints


def test_an_option_holds_for_one_call_as_in_a_run_loaded_with_it(run: Path, loaded: transduce.Run) -> None:
    before = loaded(TEXTS)
    greedy = transduce.load(run, device="cpu", decoding=replace(loaded.decoding, beam_size=1))
    assert loaded(TEXTS, beam_size=1) == greedy(TEXTS) != before
    assert loaded(TEXTS) == before
    with pytest.raises(TransduceError, match=r"unknown setting 'beamsize'\. Did you mean 'beam_size'"):
        loaded("a", beamsize=1)
    with pytest.raises(TransduceError, match="beam_size is 'wide': it must be a whole number"):
        loaded.n_best("a", 1, beam_size="wide")
    with pytest.raises(TransduceError, match="beam_size is 0"):
        loaded("a", beam_size=0)


def test_constraints_are_one_for_each_text_or_one_for_all(loaded: transduce.Run, expected: list[str]) -> None:
    q = Constraints(prefix="q")
    assert all(output.startswith("q") for output in loaded(["hello", "cat"], constraints=q))
    assert loaded("hello", constraints=q) == loaded("hello", constraints=[q]) == loaded(["hello"], constraints=q)[0]
    assert loaded(["hello", "cat"], constraints=[q, None]) == [loaded("hello", constraints=q), expected[2]]
    assert loaded(["hello", "cat"], constraints=iter([None, None])) == [expected[0], expected[2]]
    for wrong, message in (
        ([q, q], "2 constraints for 1 texts"),
        (["q"], r"constraint 1 is 'q' \(str\): a Constraints is needed"),
    ):
        with pytest.raises(TransduceError, match=message):
            loaded(["hello"], constraints=wrong)


def test_texts_of_constraints_are_never_taken_apart() -> None:
    assert Constraints(required=["ab", "c"], forbidden=["d"]) == Constraints(required=("ab", "c"), forbidden=("d",))
    assert hash(Constraints(required=["ab"])) == hash(Constraints(required=("ab",)))
    for name in ("required", "forbidden"):
        with pytest.raises(TransduceError, match=f"'Auto' is a single {name} text where several are expected"):
            Constraints(**{name: "Auto"})
        with pytest.raises(TransduceError, match=f"{name} text 2 is None"):
            Constraints(**{name: ("Auto", None)})
    with pytest.raises(TransduceError, match="the prefix is None: a str is needed"):
        Constraints(prefix=None)


# Outputs and their probabilities


def test_n_best_outputs_are_annotated_and_the_best_is_the_output(loaded: transduce.Run) -> None:
    [first, second], empty = loaded.n_best(["hello", ""], 2)
    assert [first, second] == loaded.predict_n_best(["hello"], 2)[0] == loaded.n_best("hello", 2)
    assert first.text == loaded("hello") and first.score >= second.score
    assert first.tokens == (*first.text, "</s>") and first.source_tokens == (*"hello", "</s>")
    assert len(first.alignment) == len(first.tokens) and max(first.alignment) < 6
    assert sum(first.log_probs) == pytest.approx(first.log_prob, abs=1e-5 * len(first.tokens))
    assert first.confidence == pytest.approx(math.prod(first.confidences)) and 0 < first.confidence < 1
    assert [(output.text, output.confidence) for output in empty] == [("", None)] * 2
    assert loaded.predict_n_best(["hello"], 1)[0][0].confidence is None  # it was not asked for
    assert loaded.n_best([], 2) == []


def test_the_log_probability_of_an_output_is_the_one_that_the_search_found(loaded: transduce.Run) -> None:
    outputs = [best for n_best in loaded.n_best(TEXTS, 3) for best in n_best]
    sources = [text for text in TEXTS for _ in range(3)]
    found = loaded.log_prob(sources, outputs)
    for output, log_prob in zip(outputs, found, strict=True):
        assert log_prob == pytest.approx(output.log_prob, abs=1e-5 * (1 + len(output.ids)))
    best = loaded.n_best("hello", 1)[0]
    assert loaded.log_prob("hello", best.text) == pytest.approx(best.log_prob, abs=1e-4)
    assert loaded.log_prob("hello", "zzz") < best.log_prob


def test_a_prediction_is_scored_by_the_ids_that_it_has(loaded: transduce.Run) -> None:
    in_bytes = tuple(3 + byte for byte in b"ab")  # which the tokenizer would write as two characters
    assert loaded.tokenizer.decode_target(in_bytes) == "ab"
    own = loaded.log_prob("hello", Prediction("ab", 0.0, 0.0, in_bytes))
    assert own != pytest.approx(loaded.log_prob("hello", "ab"), abs=1e-3)


def test_given_outputs_that_cannot_be_scored_are_refused_or_impossible(loaded: transduce.Run) -> None:
    assert loaded.log_prob(["", " ", "a"], ["", "b", ""])[:2] == [0.0, -float("inf")]
    for sources, targets, message in (
        (["a"], ["a", "b"], "1 sources but 2 targets"),
        (["a"], [None], "target 1 is None"),
        ([None], ["a"], "source 1 is None"),
        (["a"], ["x" * 5000], "target 1 has 5,000 tokens: it must have fewer than 1,024"),
        (["a"], {"a": 1}, "targets are given as dict"),
    ):
        with pytest.raises(TransduceError, match=message):
            loaded.log_prob(sources, targets)


# The same as the command's


def test_scores_and_comparisons_are_those_of_the_command(run: Path, data: Path, loaded: transduce.Run) -> None:
    files = {side: data / f"valid.{side}" for side in ("source", "target")}
    words = ["--source", files["source"], "--target", files["target"], "--device", "cpu", "--json"]
    sources, targets = (path.read_text().split("\n")[:-1] for path in files.values())
    own = json.loads(command("evaluate", run, *words).out)["scores"]
    assert {score.name: score.as_dict() for score in loaded.evaluate(sources, targets)} == own
    chosen = json.loads(command("evaluate", run, *words, "--metric", "chrf,wer").out)["scores"]
    scores = loaded.evaluate(iter(sources), [targets], ("chrf", "wer"))
    assert {score.name: score.as_dict() for score in scores} == chosen
    assert loaded.evaluate(sources, targets, "chrf")[0] == scores[0]
    greedy = transduce.load(run, device="cpu", decoding=replace(loaded.decoding, beam_size=1))
    same = json.loads(command("compare", run, run, *words, "--metric", "chrf").out)
    [comparison] = transduce.compare(run, loaded, sources, targets, ["chrf"])
    assert comparison.as_dict() == {name: value for name, value in same.items() if not name.startswith("run_")}
    assert transduce.compare(loaded, greedy, sources, targets, "cer", method="randomization")[0].difference != 0


@pytest.mark.parametrize(
    ("references", "metrics", "message"),
    [
        (["a"], None, "2 hypotheses but 1 references"),
        ("ab", None, "'ab' is a single reference"),
        (["a", None], None, "reference 2 is None"),
        (["a", "b"], "blue", "metrics: there is no metric 'blue'. Did you mean 'bleu'"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_predicted(
    references: Any, metrics: Any, message: str, loaded: transduce.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "search", None)
    with pytest.raises(TransduceError, match=message):
        loaded.evaluate(["a", "b"], references, metrics)


def test_an_export_has_the_certificate_of_the_command(run: Path, loaded: transduce.Run, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    certificate = loaded.export("ctranslate2", tmp_path / "python")
    assert command("export", run, "--format", "ctranslate2", "-o", tmp_path / "command", "--device", "cpu").status == 0
    saved = [json.loads((tmp_path / name / "certificate.json").read_text()) for name in ("python", "command")]
    assert saved[0] == saved[1] == json.loads(json.dumps(certificate.as_dict()))
    given = loaded.export("ctranslate2", tmp_path / "given", int8=True, sources=["abc", "d"], references=["abc", "d"])
    assert (given.num_lines, given.exported.precision) == (2, "int8")
    assert loaded.export("ctranslate2", tmp_path / "unscored", sources=["abc"]).num_lines == 1
    assert any("only characters of the training targets" in line for line in given.exported.unexpressed)
    with pytest.raises(TransduceError, match=r"no format 'onyx'\. Did you mean 'onnx'"):
        loaded.export("onyx", tmp_path / "none")
    with pytest.raises(RunFolderError, match="already exists"):
        loaded.export("ctranslate2", tmp_path / "given")


def test_an_explanation_shows_itself_as_the_one_of_the_notebooks_does(loaded: transduce.Run) -> None:
    frame = loaded.explain("hello")._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert explained(loaded, "hello", name=loaded.folder.path.name).html.startswith(frame)
    with pytest.raises(TransduceError, match="text 1 is None"):
        loaded.explain(None)


# The object itself


def test_a_copy_loads_and_predicts_alone_and_nothing_is_left_of_one_that_failed(
    run: Path, expected: list[str], tmp_path: Path
) -> None:
    original = Path(shutil.copytree(run, tmp_path / "original"))
    loaded = transduce.load(original, device="cpu")
    loaded.save(tmp_path / "copy")
    with pytest.raises(RunFolderError, match="copy already exists"):
        loaded.save(tmp_path / "copy")
    kept = {name: content for name, content in content_of(original).items() if not name.startswith(("check", "run.l"))}
    assert content_of(tmp_path / "copy") == kept
    weights = original / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(DamagedFileError, match=r"original/model\.safetensors is damaged"):
        loaded.save(tmp_path / "damaged")
    shutil.rmtree(original)
    with pytest.raises(MissingInputError, match="not a run folder"):
        loaded.save(tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    assert transduce.load(tmp_path / "copy", device="cpu")(TEXTS) == expected


def test_a_run_says_what_it_is(run: Path, loaded: transduce.Run, small: transduce.Run) -> None:
    num_parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    size = f"1 + 1 layers of width 32, {num_parameters:,} parameters on cpu"
    assert repr(loaded).startswith(f"<Run {run}: {size}; ") and "exact_match" in repr(loaded)
    assert repr(transduce.Predictor(loaded.model, loaded.tokenizer)) == f"<Predictor: {size}>"
    assert "step" not in vars(loaded) and small.step == 3
    with pytest.raises(AttributeError, match="this run has no 'step'"):
        _ = loaded.step


@pytest.fixture(scope="module")
def small(data: Path, tmp_path_factory: pytest.TempPathFactory) -> transduce.Run:
    """A run that `transduce.train` gave."""
    config = load_config((data / "config.toml").read_text(), "config.toml", ["--training.steps", "3"])
    return transduce.train(config, tmp_path_factory.mktemp("own") / "run", device="cpu")


def test_training_gives_the_run_that_loading_gives(small: transduce.Run) -> None:
    assert isinstance(small, transduce.Run)
    assert small.state is not None and small.state.best_step == small.best_step
    assert small(TEXTS) == transduce.load(small.folder.path, device="cpu")(TEXTS)
    assert train_folder(small.settings, small.folder.path, resume=True, device="cpu").step == 3


def test_a_run_moves_to_a_device_and_predicts_as_before(run: Path, expected: list[str]) -> None:
    loaded = transduce.load(run, device="cpu")
    assert loaded(TEXTS) == expected
    assert loaded.to("cpu") is loaded and loaded(TEXTS) == expected
    with pytest.raises(TransduceError, match="no device 'gpu'"):
        loaded.to("gpu")


def test_a_run_survives_pickling_used_or_not(run: Path, loaded: transduce.Run, expected: list[str]) -> None:
    for original in (transduce.load(run, device="cpu"), loaded):
        assert pickle.loads(pickle.dumps(original))(TEXTS) == expected


FORKED = """
import multiprocessing, sys
import torch, transduce
torch.set_num_threads(2)
run = transduce.load(sys.argv[1], device="cpu")
lines = open(sys.argv[2]).read().split("\\n")[:60]
def part(lines):
    return run(lines)
def in_children():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return [output for part in pool.map(part, [lines[:30], lines[30:]]) for output in part]
torch.randn(1000, 1000) @ torch.randn(1000, 1000)  # OpenMP has its threads
unused = in_children()
print("unused")
assert unused == run(lines) == in_children()
"""


def test_children_that_a_process_forks_predict_as_it_does_whether_it_has_predicted_or_not(
    run: Path, data: Path
) -> None:
    words = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, run, data / "test.source"]
    outcome = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert outcome.returncode == 0, outcome.stderr
    assert not outcome.stderr


# The package


def test_the_front_page_has_few_names_and_needs_no_torch() -> None:
    names = [name for name in dir(transduce) if not name.startswith("_")]
    assert names == ["Constraints", "DecodingConfig", "Predictor", "Run", "compare", "fit", "load", "train"]
    program = "import sys, transduce; dir(transduce); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(transduce.__file__).parent / "py.typed").is_file()
