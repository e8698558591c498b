import time

import pytest

from transduce.errors import DamagedFileError, TransduceError, nearest, printable


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("bleuu", " Did you mean 'bleu'?"),
        ("BLEU", " Did you mean 'bleu'?"),
        ("xyz", " Available: bleu, chrf."),
    ],
)
def test_a_hint_names_the_nearest_or_all_when_none_is_near(word: str, told: str) -> None:
    assert nearest(word, iter(["bleu", "chrf"])) == told


def test_the_path_stands_before_the_name_that_is_near() -> None:
    assert nearest("raks", ["racks"], "oven.") == " Did you mean 'oven.racks'?"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("as it is: ä 字 😀 'q'", "as it is: ä 字 😀 'q'"),
        ("two\nlines\r\n", r"two\nlines\r\n"),
        ("\x1b[2Jgone\x07\x9b", r"\x1b[2Jgone\x07\x9b"),
        ("\u202eright to left\u2028", r"\u202eright to left\u2028"),
        ("no UTF-8: \udcff", r"no UTF-8: \udcff"),
    ],
)
def test_what_a_message_quotes_cannot_control_a_terminal(message: str, shown: str) -> None:
    assert str(DamagedFileError(message)) == printable(shown) == shown


def test_a_long_message_is_shown_with_its_beginning_and_its_end() -> None:
    told = str(TransduceError(f"the key {'x' * 5_000_000} is unknown: correct it."))
    assert told.startswith("the key xxx") and told.endswith("xxx is unknown: correct it.")
    assert len(told) < 2_100
    assert len(str(TransduceError("x" * 2_000))) == 2_000


def test_a_hint_on_a_long_word_takes_no_time() -> None:
    started = time.perf_counter()
    assert nearest("x" * 5_000_000, ["bleu"]) == " Available: bleu."
    assert time.perf_counter() - started < 1
