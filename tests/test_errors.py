import pytest

from transduce.errors import nearest


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("bleuu", " Did you mean 'bleu'?"),
        ("BLEU", " Did you mean 'bleu'?"),
        ("xyz", " There are: bleu, chrf."),
    ],
)
def test_a_hint_names_the_nearest_or_all_when_none_is_near(word: str, told: str) -> None:
    assert nearest(word, iter(["bleu", "chrf"])) == told


def test_the_path_stands_before_the_name_that_is_near() -> None:
    assert nearest("raks", ["racks"], "oven.") == " Did you mean 'oven.racks'?"
