"""Exercises of the notebook about a real translator."""

import math
from collections import Counter
from typing import Any

import sacrebleu

from transduce.learn.exercising import Wrong, choices_of, exercise, number_of

_ANSWERS = ["the cat sat on the mat today", "a dog runs in the green park now"]
_REFERENCES = ["the cat sat on the red mat today", "a dog runs in the park right now"]
_SHORT = ["the cat sat on the", "a dog runs in the green park"]


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def corpus_bleu(answers: list[str], references: list[str]) -> float:
    """BLEU in per cent: clipped n-gram precisions of the whole corpus, their geometric mean, the brevity penalty."""
    pairs = [(a.split(), b.split()) for a, b in zip(answers, references, strict=True)]
    log_precisions = []
    for n in range(1, 5):
        right = sum((_ngrams(a, n) & _ngrams(b, n)).total() for a, b in pairs)  # & takes the smaller count: clipping
        all_ = sum(max(0, len(a) - n + 1) for a, _ in pairs)
        log_precisions.append(math.log(right / all_))
    num_written, num_asked = sum(len(a) for a, _ in pairs), sum(len(b) for _, b in pairs)
    brevity = min(0.0, 1 - num_asked / num_written)
    return 100 * math.exp(sum(log_precisions) / 4 + brevity)


def _mean_of_sentences(answers: list[str], references: list[str]) -> float:
    return sum(corpus_bleu([a], [b]) for a, b in zip(answers, references, strict=True)) / len(answers)


def _without_brevity(answers: list[str], references: list[str]) -> float:
    words = [sum(len(text.split()) for text in texts) for texts in (answers, references)]
    return corpus_bleu(answers, references) / math.exp(min(0.0, 1 - words[1] / words[0]))


def _rewarding_length(answers: list[str], references: list[str]) -> float:
    words = [sum(len(text.split()) for text in texts) for texts in (answers, references)]
    return _without_brevity(answers, references) * math.exp(1 - words[1] / words[0])


def _as_share(answers: list[str], references: list[str]) -> float:
    return corpus_bleu(answers, references) / 100


def _unclipped(answers: list[str], references: list[str]) -> float:
    log_precisions = []
    for n in range(1, 5):
        right = all_ = 0
        for a, b in zip(answers, references, strict=True):
            there = _ngrams(b.split(), n)
            right += sum(count for gram, count in _ngrams(a.split(), n).items() if gram in there)
            all_ += max(0, len(a.split()) - n + 1)
        log_precisions.append(math.log(right / all_))
    return 100 * math.exp(sum(log_precisions) / 4)


@exercise(
    "translation-bleu",
    hints=(
        "For n = 1, 2, 3, 4, count over ALL sentences how many n-grams of the hypotheses are in their reference. Only "
        "then divide.",
        "An n-gram counts at most as often as it occurs in its reference: Counter(a) & Counter(b).",
        "Then take the geometric mean of the four precisions, times exp(1 - r / c) if the hypotheses have fewer words "
        "(c) than the references (r).",
    ),
    solution=corpus_bleu,
    wrong=(
        _mean_of_sentences,
        _without_brevity,
        _rewarding_length,
        _as_share,
        _unclipped,
        lambda _answers, _references: None,
    ),
)
def _check_bleu(answer: Any) -> None:
    repeated = (["the the the cat sat on the mat today"], ["the cat sat on the mat today, the old one"])
    for answers, references in ((_ANSWERS, _REFERENCES), (_SHORT, _REFERENCES), (_REFERENCES, _ANSWERS), repeated):
        expected = sacrebleu.corpus_bleu(answers, [references], tokenize="none", smooth_method="none").score
        found = number_of(answer(answers, references))
        if abs(found - expected / 100) < 1e-4:
            raise Wrong(
                f"For {answers} your function returns {found:.4f}, a share. BLEU goes from 0 to 100: {expected:.2f}."
            )
        if not abs(found - expected) <= 1e-4:
            raise Wrong(
                f"For the hypotheses {answers} and the references {references} sacreBLEU gives {expected:.2f}, but you "
                f"get {found:.2f}. Add up clipped counts over the corpus, and penalize a corpus that is too short."
            )


SIGNATURES = {
    "A": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
    "B": "nrefs:1|case:lc|eff:no|tok:13a|smooth:exp|version:2.6.0",
    "C": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1",
    "D": "nrefs:1|case:mixed|eff:no|tok:none|smooth:exp|version:2.6.0",
    "E": "nrefs:3|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
}


@exercise(
    "translation-signatures",
    hints=(
        "Some fields change what is counted: the case of letters, the tokenizer, the number of references.",
        "The version may differ if it computes the same number.",
    ),
    solution={"A", "C"},
    wrong=({"A", "B"}, {"A", "D"}, {"A", "C", "E"}, {"A"}),
)
def _check_signatures(answer: Any) -> None:
    letters = choices_of(answer, SIGNATURES)
    if len(letters) < 2:
        raise Wrong("You need at least two scores to compare, and two of them count the same.")
    reasons = {"B": "B scores lower-cased text", "D": "D does not tokenize", "E": "E has three references"}
    if told := [reason for letter, reason in reasons.items() if letter in letters]:
        raise Wrong(f"Not these: {'; '.join(told)}.")
