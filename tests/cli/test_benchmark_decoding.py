import json
from pathlib import Path

import pytest

from calling import command
from transduce.cli.benchmark.decoding import measure_decoding
from transduce.inference.config import DecodingConfig
from transduce.runs.run import load

pytest_plugins = ["small_run"]

LINES = ["ab", "zyxw", "q"] * 22  # 66: a call with 64 of them, and one with 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lines") / "source"
    path.write_text("".join(f"{line}\n" for line in LINES))
    return path


def test_all_lines_are_answered_however_many_at_a_time(run: Path, source: Path, tmp_path: Path) -> None:
    found = command("benchmark", "decode", "--run", run, "--source", source, "-o", tmp_path / "o.json", "--json")
    assert found.status == 0, found.err
    result = json.loads(found.out)
    assert json.loads((tmp_path / "o.json").read_text()) == result
    assert list(result["modes"]) == [
        f"{search}/{batch}" for search in ("greedy", "beam5") for batch in ("all", "64", "1")
    ]
    predictor = load(run, device="cpu")
    for search, beam_size in (("greedy", 1), ("beam5", 5)):
        decoding = DecodingConfig(beam_size=beam_size, length_penalty=1.0, length_norm="power")
        answers = predictor.predict_n_best(LINES, 1, decoding=decoding)
        num_tokens = sum(len(best.ids) + 1 for (best,) in answers)
        for block in result["blocks"]:
            if block["mode"].startswith(search):
                assert (block["lines"], block["tokens"]) == (len(LINES), num_tokens)
    single = result["modes"]["greedy/1"]["latency_ms"]
    assert 0 < single["p50"] <= single["p90"] <= single["p99"]


def test_the_table_names_what_was_measured(run: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("abc\nzyxwv\nqrs\n")
    found = command("benchmark", "decode", "--run", run, "--source", tmp_path / "source")
    assert found.status == 0, found.err
    for word in ("greedy/all", "beam5/1", "first output", "3 lines"):
        assert word in found.out.decode()


def test_blank_lines_which_the_model_never_sees_are_not_counted(run: Path) -> None:
    texts = ["abc", "zyxwv"]
    found = measure_decoding(load(run, device="cpu"), ["", *texts, " "], lambda _line: None)
    counts = {mode: (block["lines"], block["tokens"]) for block in found["blocks"] for mode in [block["mode"]]}
    expected = measure_decoding(load(run, device="cpu"), texts, lambda _line: None)
    assert counts == {block["mode"]: (len(texts), block["tokens"]) for block in expected["blocks"]}


def test_a_measured_predictor_searches_as_before(run: Path) -> None:
    predictor = load(run, device="cpu")
    own = predictor.decoding
    measure_decoding(predictor, ["abc"], lambda _line: None)
    assert predictor.decoding == own


def test_a_percentile_is_a_latency_that_so_many_lines_stay_within(run: Path) -> None:
    found = measure_decoding(load(run, device="cpu"), ["abc", "zyxwv", "qrs"], lambda _line: None)
    for search in ("greedy", "beam5"):
        blocks = [block for block in found["blocks"] if block["mode"] == f"{search}/1"]
        latencies = [value for block in blocks for value in block["latencies_ms"]]
        for name, value in found["modes"][f"{search}/1"]["latency_ms"].items():
            share = int(name.removeprefix("p")) / 100
            assert sum(latency <= value for latency in latencies) / len(latencies) >= share
            assert sum(latency < value for latency in latencies) / len(latencies) < share


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["decode"], "required: --run"),
        (["train", "--run", "x"], "there is no option '--run'"),
        (["decode", "--run", "x", "--steps", "7"], "there is no option '--steps'"),
        (["decode", "--run", "/nowhere"], "not a run folder"),
    ],
)
def test_what_cannot_be_measured_is_explained(words: list[str], said: str) -> None:
    found = command("benchmark", *words)
    assert found.status in (2, 66)
    assert said in found.err
