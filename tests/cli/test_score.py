"""`transduce score`: log-probabilities of given outputs."""

import json
from pathlib import Path

import pytest

import transduce
from calling import command

pytest_plugins = ["small_run"]

PAIRS = [("hello", "hl"), ("world", ""), ("cat", "tac"), ("", ""), ("dog", "ü")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    for name, lines in (
        ("pairs.tsv", [f"{source}\t{target}" for source, target in PAIRS]),
        ("source", [source for source, _ in PAIRS]),
        ("target", [target for _, target in PAIRS]),
    ):
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return {path.name: path for path in folder.iterdir()}


def test_line_k_is_the_log_probability_of_pair_k_from_wherever_it_comes(run: Path, files: dict[str, Path]) -> None:
    expected = transduce.load(run, device="cpu").log_prob(*map(list, zip(*PAIRS, strict=True)))
    outcome = command("score", run, files["pairs.tsv"])
    assert outcome.status == 0 and outcome.err == ""
    assert [float(line) for line in outcome.lines] == pytest.approx(expected, abs=1e-5)
    assert command("score", run, "--source", files["source"], "--target", files["target"]).out == outcome.out
    assert command("score", run, stdin=files["pairs.tsv"].read_bytes()).out == outcome.out


def test_predicted_outputs_have_the_log_probability_and_the_tokens_that_predict_says(
    run: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    predicted = [json.loads(line) for line in command("predict", run, "--json", files["source"]).lines]
    pairs = "".join(f"{row['source']}\t{row['predictions'][0]['text']}\n" for row in predicted)
    command("score", run, "--json", "-o", tmp_path / "scores", stdin=pairs.encode())
    for row, line in zip(predicted, (tmp_path / "scores").read_text().split("\n")[:-1], strict=True):
        [output], score = row["predictions"], json.loads(line)
        assert (score["source"], score["target"]) == (row["source"], output["text"])
        assert score["log_prob"] == pytest.approx(output["log_prob"], abs=1e-4)
        assert [token["token"] for token in score["tokens"]] == [token["token"] for token in output["tokens"]]


def test_per_token_is_the_mean_over_the_tokens_and_the_end(run: Path, files: dict[str, Path]) -> None:
    rows = [json.loads(line) for line in command("score", run, files["pairs.tsv"], "--json").lines]
    means = [float(line) for line in command("score", run, files["pairs.tsv"], "--per-token").lines]
    # The end symbol is among the tokens; to an empty source the empty output is certain.
    expected = [row["log_prob"] / max(1, len(row["tokens"])) for row in rows]
    assert means == pytest.approx(expected, abs=1e-5)


def test_an_impossible_output_is_null_in_json(run: Path) -> None:
    [line] = command("score", run, "--json", stdin=b"\tabc\n").lines
    assert json.loads(line)["log_prob"] is None
    assert command("score", run, stdin=b"\tabc\n").lines == ["-inf"]


@pytest.mark.parametrize(
    ("words", "stdin", "status", "message"),
    [
        ([], b"a\tb\nc\n", 65, "standard input, line 2: 1 column"),
        ([], b"a\tb\tc\n", 65, "standard input, line 1: 3 columns, 2 needed: source TAB target"),
        ([], b"a\tb\nc\t" + b"x" * 2000, 2, "target 2 has 2,000 tokens"),
        (["--source", "source"], b"", 2, "either one FILE of pairs"),
        (["pairs.tsv", "--source", "source", "--target", "target"], b"", 2, "either one FILE of pairs"),
        (
            ["--source", "source", "--target", "pairs.tsv", "-o", "source"],
            b"",
            2,
            "-o .*source is the file that is read",
        ),
        (["nothing.tsv"], b"", 66, "nothing.tsv: no such file"),
    ],
)
def test_what_cannot_be_scored_is_told_in_one_line(
    words: list[str], stdin: bytes, status: int, message: str, run: Path, files: dict[str, Path]
) -> None:
    outcome = command("score", run, *(files.get(word, word) for word in words), stdin=stdin)
    assert outcome.status == status
    assert outcome.err.count("\n") == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(outcome.err)


def test_lines_of_unequal_files_are_refused_before_any_is_scored(
    run: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "short").write_text("a\n")
    outcome = command("score", run, "--source", files["source"], "--target", tmp_path / "short")
    assert (outcome.status, outcome.out) == (65, b"") and "has 5 lines" in outcome.err
