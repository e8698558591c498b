"""What is misspelled on the command line is met with what was meant."""

import pytest

from transduce.cli.main import main
from transduce.cli.parser import GROUPS, build_parser


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        ("frain my.toml", "did you mean train?"),
        ("predict --hlep", "did you mean --help?"),
        ("predict run --beam 5", "did you mean --beam-size?"),
        ("train my.toml --learning_rate 1", "did you mean --optim.learning_rate?"),
        ("train my.toml --learning-rate=1", "did you mean --optim.learning_rate?"),
        ("train my.toml --batch-size 32", "did you mean --training.batch_tokens?"),
        ("fit pairs.tsv --minuts 3", "did you mean --minutes?"),
        ("fit pairs.tsv --model.dropout 0.3", "then transduce train my.toml --model.dropout"),
        ("benchmark trane", "did you mean benchmark train?"),
        ("benchmark train --step 3", "did you mean --steps?"),
        ("predict run --zzzzzz", "see transduce predict --help"),
    ],
)
def test_a_word_that_is_misspelled_is_told_the_nearest(
    words: str, suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    error = capsys.readouterr().err
    assert suggestion in error
    assert error.count("\n") == 1


def test_the_command_alone_shows_the_overview_of_all_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([])
    overview = capsys.readouterr().out
    (action,) = (action for action in build_parser()._actions if action.dest == "subcommand")
    assert {name for group in GROUPS.values() for name in group} | {"translate"} == set(action.choices or ())
    assert all(f"  {name}" in overview for group in GROUPS.values() for name in group)
    assert max(map(len, overview.split("\n"))) <= 80


def test_what_follows_two_dashes_is_no_option() -> None:
    assert main(["explain", "no/run", "-o", "page.html", "--", "--text"]) == 66  # the run is missing


def test_a_file_that_is_not_there_is_met_with_the_one_of_nearly_this_name(tmp_path, capsys):
    (tmp_path / "pairs.tsv").write_text("a\tb\n")
    assert main(["fit", str(tmp_path / "pair.tsv")]) == 66
    assert f"no such file. Did you mean {tmp_path}/pairs.tsv?" in capsys.readouterr().err


def test_a_file_is_no_data_set_and_what_to_do_with_it_is_said(tmp_path, capsys):
    (tmp_path / "pairs.tsv").write_text("a\tb\n")
    assert main(["data", str(tmp_path / "pairs.tsv")]) == 2
    assert f"transduce fit {tmp_path}/pairs.tsv --dry-run" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["settings"], ["settings", "training"], ["settings", "data"]])
def test_settings_fit_80_columns(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(words) == 0
    assert max(map(len, capsys.readouterr().out.split("\n"))) <= 80


def test_a_run_without_validation_pairs_says_so_at_its_start_and_its_end(tmp_path, capsys):
    (tmp_path / "pairs.tsv").write_text("ab\tba\n" * 20)
    (tmp_path / "my.toml").write_text(
        f'data.train = ["{tmp_path}/pairs.tsv"]\ntokenizer.source = "characters"\ntokenizer.target = "characters"\n'
        "training.steps = 2\nmodel.d_model = 16\nmodel.d_ff = 16\nmodel.num_heads = 1\nmodel.num_encoder_layers = 1\n"
        "model.num_decoder_layers = 1\n"
    )
    assert main(["train", str(tmp_path / "my.toml"), "--run-dir", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().err
    assert "no validation pairs (data.valid): nothing will be scored, and the last weights are kept\n" in lines
    assert "the last weights were kept. Try:" in lines
