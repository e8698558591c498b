"""One line without spaces, or a corpus that takes minutes to learn from, holds nobody up."""

import random
import re
import signal
import time

import pytest

from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DRAW = random.Random(3)
LINES = [" ".join("".join(DRAW.choices(LETTERS, k=5)) for _ in range(6)) for _ in range(200)]


@pytest.mark.parametrize(
    "stretch", ["y" * 300_000, "=" * 300_000, " " * 300_000, "".join(DRAW.choices("ACGT", k=300_000))]
)
def test_a_line_without_spaces_does_not_hold_up_the_learning_of_subwords(stretch: str) -> None:
    started = time.perf_counter()  # it took 30 to 50 seconds
    tokenizer = Tokenizer.learn(TokenizerConfig(vocab_size=600), [*LINES, f"a{stretch}b"], LINES)
    assert time.perf_counter() - started < 5
    assert tokenizer.decode_source(tokenizer.encode_source([f"a{stretch}b"])[0]) == f"a{stretch}b"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_stretches_below_the_limit_are_learned_from_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [*LINES, "ab" * 490, f"{'x' * 999} {'y' * 1000} z{' ' * 1000}z"]
    config = TokenizerConfig(source=kind, target=kind, vocab_size=500)
    learned = Tokenizer.learn(config, lines, lines).to_json()
    monkeypatch.setattr("transduce.text.vocabulary._LONG_STRETCH", re.compile("(?!)"))
    assert learned == Tokenizer.learn(config, lines, lines).to_json()


class Alarm(BaseException):
    """Raised by the signal."""


def test_a_signal_stops_the_learning_of_subwords_at_once() -> None:
    lines = [" ".join("".join(DRAW.choices(LETTERS, k=9)) for _ in range(10)) for _ in range(15_000)]

    def stop(_signum: int, _frame: object) -> None:
        nonlocal heard
        heard = time.perf_counter()
        raise Alarm

    heard = 0.0
    before = signal.signal(signal.SIGALRM, stop)
    started = time.perf_counter()
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        with pytest.raises(Alarm):
            Tokenizer.learn(TokenizerConfig(vocab_size=16_000), lines, lines)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard - started < 2.5
    assert time.perf_counter() - heard < 1
