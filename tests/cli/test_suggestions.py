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
