"""Oracles: sacreBLEU's public interface, recursion written from the definition, the normal law, arithmetic by hand."""

import json
import math
import random
import subprocess
import sys
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

from transduce.errors import DataError, TransduceError
from transduce.evaluation import metrics
from transduce.evaluation.bleu import default_metrics, notes_on, tokenizer_for
from transduce.evaluation.config import BLEU_TOKENIZERS, METRICS
from transduce.evaluation.definitions import DEFINITIONS, edit_distance
from transduce.evaluation.metrics import Score, compare, evaluate, group_by_source

SACREBLEU = {"bleu": BLEU, "tokenized_bleu": partial(BLEU, tokenize="none", force=True), "chrf": CHRF, "ter": TER}
VOCABULARY = [f"w{number}" for number in range(53)]

repeatable = settings(derandomize=True, deadline=None, max_examples=40)
# Few words, so that n-grams meet; "" and one-word lines reach the special cases of every formula.
lines = st.lists(st.sampled_from(["a", "b", "cd", "Cd", "e.", "fgh"]), max_size=7).map(" ".join)
corpora = st.lists(st.tuples(lines, lines, lines, st.none() | lines), min_size=1, max_size=6)


def corpus_of(rows):
    """(hypotheses of A, hypotheses of B, two reference sets, the second with gaps)."""
    a, b, first, second = (list(column) for column in zip(*rows, strict=True))
    return a, b, [first, second]


def random_references(num_segments, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choices(VOCABULARY, k=rng.randint(5, 19))) for _ in range(num_segments)]


def corrupted(references, share, seed):
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(VOCABULARY) if rng.random() < share else word for word in line.split())
        for line in references
    ]


def coin_flips(num_segments, num_right):
    return ["right"] * num_right + ["wrong"] * (num_segments - num_right), [["right"] * num_segments]


def words_and_gaps(num_a_only, num_b_only, num_both):
    """Hypotheses of A and B of which each alone is right on some segments."""
    a = ["right"] * num_a_only + ["wrong"] * num_b_only + ["right"] * num_both
    b = ["wrong"] * num_a_only + ["right"] * num_b_only + ["right"] * num_both
    return a, b, [["right"] * len(a)]


@pytest.mark.parametrize("name", SACREBLEU)
@given(rows=corpora)
@repeatable
def test_the_score_is_that_of_sacrebleu(name, rows):
    hypotheses, _, references = corpus_of(rows)
    expected = SACREBLEU[name]().corpus_score(hypotheses, references).score
    assert evaluate([name], hypotheses, references, num_resamples=1)[0].value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", SACREBLEU)
@given(rows=corpora, seed=st.integers(0, 1000))
@repeatable
def test_a_resample_scores_what_sacrebleu_gives_its_segments(name, rows, seed):
    hypotheses, _, references = corpus_of(rows)
    picked = np.random.default_rng(seed).choice(len(rows), size=len(rows), replace=True)
    resampled = [hypotheses[i] for i in picked], [[of_set[i] for i in picked] for of_set in references]
    expected = SACREBLEU[name]().corpus_score(*resampled).score
    score = evaluate([name], hypotheses, references, num_resamples=1, seed=seed)[0]
    assert score.low == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", SACREBLEU)
@given(rows=corpora, seed=st.integers(0, 1000))
@repeatable
def test_both_systems_are_resampled_alike(name, rows, seed):
    a, b, references = corpus_of(rows)
    picked = np.random.default_rng(seed).choice(len(rows), size=len(rows), replace=True)
    picked_references = [[of_set[i] for i in picked] for of_set in references]
    score_a, score_b = (
        SACREBLEU[name]().corpus_score([side[i] for i in picked], picked_references).score for side in (a, b)
    )
    comparison = compare(name, a, b, references, num_resamples=1, seed=seed)
    assert comparison.low == pytest.approx(score_b - score_a, abs=1e-9)


@pytest.mark.parametrize("name", ["bleu", "tokenized_bleu", "chrf"])
def test_the_formula_gives_sacrebleus_score_on_a_long_corpus(name):
    references = [random_references(301, seed=1), random_references(301, seed=2)]
    hypotheses = corrupted(references[0], 0.3, seed=3)
    metric = DEFINITIONS[name]
    measured = metric.measure(hypotheses, references)
    assert float(metric.score(measured.rows.sum(0))) == pytest.approx(measured.value, abs=1e-9)


@pytest.mark.parametrize("name", SACREBLEU)
def test_the_interval_is_as_wide_as_sacrebleus(name):
    references = [random_references(101, seed=4)]
    hypotheses = corrupted(references[0], 0.3, seed=5)
    oracle = json.loads(
        SACREBLEU[name]().corpus_score(hypotheses, references, n_bootstrap=1000).format(is_json=True, signature="a:b")
    )
    score = evaluate([name], hypotheses, references)[0]
    assert (score.high - score.low) / 2 == pytest.approx(oracle["confidence_var"], abs=0.05)


def test_the_signature_is_sacrebleus_with_resamples_and_seed():
    metric = BLEU()
    metric.corpus_score(["a b"], [["a c"]], n_bootstrap=1000)
    assert evaluate(["bleu"], ["a b"], [["a c"]])[0].signature == str(metric.get_signature())


def test_tokenized_text_is_split_at_spaces_only():
    (found,) = evaluate(["tokenized_bleu"], ["a b c.d e"], [["a b c.d f"]])
    assert found.value == pytest.approx(BLEU(tokenize="none").corpus_score(["a b c.d e"], [["a b c.d f"]]).score)
    assert found.value != pytest.approx(evaluate(["bleu"], ["a b c.d e"], [["a b c.d f"]])[0].value)
    assert "tok:none" in found.signature


@pytest.mark.parametrize("name", METRICS)
def test_every_signature_names_references_resamples_and_seed(name):
    score = evaluate([name], ["a", "b"], [["a", "b"], ["c", None]], num_resamples=7, seed=29)[0]
    assert {"nrefs:var", "bs:7", "seed:29"} <= set(score.signature.split("|"))


def distance_by_definition(first, second):
    @cache
    def distance(i, j):
        if i == 0 or j == 0:
            return i + j
        substitution = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(substitution, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(first), len(second))


@given(first=st.text("abc", max_size=11), second=st.text("abc", max_size=11))
@settings(derandomize=True, deadline=None, max_examples=500)
def test_edit_distance_is_the_one_of_the_recursion(first, second):
    assert edit_distance(first, second) == distance_by_definition(first, second)


def test_edit_distance_is_exact_beyond_a_machine_word():
    rng = random.Random(6)
    first, second = ("".join(rng.choices("abcd", k=length)) for length in (167, 211))
    assert edit_distance(first, second) == distance_by_definition(first, second)


def test_wer_divides_all_edits_by_all_reference_words():
    hypotheses, references = ["the cat sat", "a dog"], [["the cat sat down", "the dog"]]  # 1 edit of 4, 1 of 2
    assert evaluate(["wer"], hypotheses, references)[0].value == pytest.approx(100 * 2 / 6)


def test_cer_counts_code_points_and_spaces():
    assert evaluate(["cer"], ["ab cd"], [["abcd"]])[0].value == pytest.approx(100 * 1 / 4)
    assert evaluate(["cer"], ["naïve"], [["naive"]])[0].value == pytest.approx(100 * 1 / 5)


def test_error_rates_of_one_reference_agree_with_ter_where_no_shift_helps():
    references = [random_references(41, seed=7)]
    hypotheses = corrupted(references[0], 0.1, seed=8)
    wer, ter = evaluate(["wer", "ter"], hypotheses, references)
    assert wer.value == pytest.approx(ter.value) and wer.low == pytest.approx(ter.low)


def test_the_nearest_reference_has_the_fewest_edits_not_the_lowest_rate():
    references = [["a b c d e"], ["a b c d e f g h i j"]]  # 2 edits of 5 words, 3 edits of 10 words
    assert evaluate(["wer"], ["a b c d e f g"], references)[0].value == pytest.approx(100 * 2 / 5)


@pytest.mark.parametrize("order", [[["a b"], ["a b c d"]], [["a b c d"], ["a b"]]])
def test_of_equally_near_references_the_shortest_counts(order):
    assert evaluate(["wer"], ["a b c"], order)[0].value == pytest.approx(100 * 1 / 2)


def test_exact_match_counts_segments_equal_to_any_reference():
    score = evaluate(["exact_match"], ["a", "b", "c"], [["a", "x", "C"], ["y", "b", None]])[0]
    assert score.value == pytest.approx(100 * 2 / 3)


def test_word_error_and_exact_match_add_up_to_all_segments():
    hypotheses, references = coin_flips(7, 3)
    word_error, exact_match = evaluate(["word_error", "exact_match"], hypotheses, references)
    assert word_error.value + exact_match.value == pytest.approx(100)


def evaluate_pronunciation(sources, hypotheses, references, **more) -> list[Score]:
    """The scores of a lexicon, whose rows may repeat a source."""
    _, hypotheses, references = group_by_source(sources, hypotheses, references)
    return evaluate(("word_error", "per"), hypotheses, references, **more)


def test_a_double_space_is_no_phoneme_error():
    word_error, per = evaluate_pronunciation(["cat"], ["k ae  t "], [["k ae t"]])
    assert (word_error.value, per.value) == (0, 0)


def test_an_empty_reference_makes_any_output_a_full_error():
    assert evaluate(["wer"], ["a b"], [[""]])[0].value == 100
    assert evaluate(["wer"], [""], [[""]])[0].value == 0


def test_an_absent_reference_is_as_if_it_were_not_there():
    hypotheses, references = ["a b c", "d e f g"], ["a b x", "d e f h"]
    alone = evaluate(METRICS, hypotheses, [references])
    padded = evaluate(METRICS, hypotheses, [references, [None, None]])
    assert [score.value for score in padded] == [score.value for score in alone]


LEXICON = [  # source, hypothesis, reference: worked by hand below
    ("read", "r eh d", "r iy d"),
    ("cat", "k ae t", "k ae t"),
    ("read", "r eh d", "r eh d"),
    ("dog", "d ao", "d ao g"),
    ("either", "iy dh", "iy dh er"),
    ("either", "iy dh", "ay dh er r"),
]


def test_pronunciation_counts_each_source_once_against_its_nearest_reference():
    sources, hypotheses, targets = (list(column) for column in zip(*LEXICON, strict=True))
    word_error, per = evaluate_pronunciation(sources, hypotheses, [targets])
    assert (word_error.name, per.name) == ("word_error", "per")
    assert word_error.num_segments == per.num_segments == 4
    assert word_error.value == pytest.approx(100 * 2 / 4)  # read and cat are right, dog and either are not
    assert per.value == pytest.approx(100 * 2 / 12)  # 0 of 3, 0 of 3, 1 of 3, 1 of 3 (not 3 of 4)
    assert not word_error.is_higher_better and not per.is_higher_better


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("pqr"), st.lists(st.sampled_from("ab"), max_size=3).map(" ".join)), min_size=1
    )
)
@repeatable
def test_no_word_is_wrong_exactly_when_no_phoneme_is(rows):
    sources, targets = (list(column) for column in zip(*rows, strict=True))
    hypotheses = ["a b" for _ in rows]
    word_error, per = evaluate_pronunciation(sources, hypotheses, [targets], num_resamples=1)
    assert (word_error.value == 0) == (per.value == 0)
    wrong = {s for s in sources if "a b" not in [t for other, t in zip(sources, targets, strict=True) if other == s]}
    assert word_error.value == pytest.approx(100 * len(wrong) / len(set(sources)))


def test_grouping_keeps_the_order_and_drops_repeated_references():
    references = [["1", "2", "3", "1"], ["4", None, None, None]]
    grouped = group_by_source(["b", "a", "b", "b"], ["x", "y", "x", "x"], references)
    assert grouped == (["b", "a"], ["x", "y"], [["1", "2"], ["4", None], ["3", None]])


def test_a_source_with_two_hypotheses_is_refused():
    with pytest.raises(DataError, match=r"'read'.*'r eh d' \(row 1\).*'r iy d' \(row 3\)"):
        evaluate_pronunciation(["read", "cat", "read"], ["r eh d", "k", "r iy d"], [["a", "b", "c"]])


def test_the_interval_of_a_share_is_that_of_the_normal_law():
    score = evaluate(["exact_match"], *coin_flips(400, 280))[0]
    half_width = 1.96 * 100 * math.sqrt(0.7 * 0.3 / 400)
    assert score.low == pytest.approx(70 - half_width, abs=0.5)
    assert score.high == pytest.approx(70 + half_width, abs=0.5)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(9)
    num_covered = 0
    for seed, num_right in enumerate(rng.binomial(103, 0.7, size=300)):
        score = evaluate(["exact_match"], *coin_flips(103, num_right), num_resamples=300, seed=seed)[0]
        num_covered += score.low <= 70 <= score.high
    assert 0.91 < num_covered / 300 < 0.98


@pytest.mark.parametrize("method", ["bootstrap", "randomization"])
def test_equal_systems_are_called_different_about_5_times_in_100(method):
    rng = np.random.default_rng(10)
    num_significant = 0
    for seed in range(400):
        a, b = (["right" if right else "wrong" for right in rng.random(101) < 0.6] for _ in "ab")
        outcome = compare("exact_match", a, b, [["right"] * 101], num_resamples=300, seed=seed, method=method)
        num_significant += outcome.is_significant
    assert 0.02 < num_significant / 400 < 0.08


def test_the_bootstrap_p_value_of_a_share_is_that_of_the_normal_law():
    a, b, references = words_and_gaps(41, 62, 297)
    difference, variance = 21 / 400, (103 / 400 - (21 / 400) ** 2) / 400
    expected = math.erfc(difference / math.sqrt(2 * variance))  # both tails, 0.037
    outcome = compare("exact_match", a, b, references, num_resamples=10_000)
    assert outcome.p_value == pytest.approx(expected, abs=0.01)


def test_the_randomization_p_value_of_a_share_is_that_of_the_sign_test():
    a, b, references = words_and_gaps(41, 62, 297)
    expected = 2 * sum(math.comb(103, k) for k in range(62, 104)) / 2**103  # of 103 that differ, 62 or more one way
    outcome = compare("exact_match", a, b, references, num_resamples=10_000, method="randomization")
    assert outcome.p_value == pytest.approx(expected, abs=0.01)


def paired_test(name, a, b, references, test_type, num_resamples):
    test = PairedTest([("a", a), ("b", b)], {name: SACREBLEU[name]()}, references, test_type, num_resamples)
    _, results = test()
    return next(column for label, column in results.items() if label != "System")[1].p_value


@pytest.fixture
def close_systems(monkeypatch):
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    references = [random_references(151, seed=11)]
    return corrupted(references[0], 0.32, seed=12), corrupted(references[0], 0.26, seed=13), references


@pytest.mark.parametrize("name", ["bleu", "tokenized_bleu", "chrf"])
def test_the_p_value_of_randomization_is_sacrebleus(name, close_systems):
    p_value = compare(name, *close_systems, num_resamples=2000, method="randomization").p_value
    assert 0.01 < p_value < 0.2
    assert p_value == pytest.approx(paired_test(name, *close_systems, "ar", 2000), abs=0.02)


def test_the_p_value_of_the_bootstrap_has_both_tails_where_sacrebleus_has_one(close_systems):
    p_value = compare("bleu", *close_systems).p_value
    assert 0.01 < p_value < 0.2
    assert p_value == pytest.approx(2 * paired_test("bleu", *close_systems, "bs", 1000), rel=0.3)


@pytest.mark.parametrize("method", ["bootstrap", "randomization"])
@pytest.mark.parametrize("name", METRICS)
def test_a_system_does_not_differ_from_itself(name, method):
    references = [random_references(11, seed=14)]
    hypotheses = corrupted(references[0], 0.3, seed=15)
    outcome = compare(name, hypotheses, hypotheses, references, method=method, num_resamples=50)
    assert (outcome.difference, outcome.low, outcome.high, outcome.p_value) == (0, 0, 0, 1)
    assert "no significant difference" in str(outcome)


@pytest.mark.parametrize("method", ["bootstrap", "randomization"])
@pytest.mark.parametrize("name", METRICS)
def test_exchanging_the_systems_changes_only_the_sign(name, method):
    references = [random_references(23, seed=16)]
    a, b = corrupted(references[0], 0.1, seed=17), corrupted(references[0], 0.5, seed=18)
    forth, back = (compare(name, *pair, references, method=method, num_resamples=200) for pair in ((a, b), (b, a)))
    assert forth.p_value == pytest.approx(back.p_value, abs=0.05)
    assert forth.difference == pytest.approx(-back.difference)
    assert (forth.low, forth.high) == (pytest.approx(-back.high), pytest.approx(-back.low))


@pytest.mark.parametrize("name", ["bleu", "wer"])
def test_the_sentence_names_the_better_system_whichever_way_the_metric_points(name):
    references = [random_references(47, seed=19)]
    good, bad = corrupted(references[0], 0.05, seed=20), corrupted(references[0], 0.6, seed=21)
    outcome = compare(name, bad, good, references)
    gain, (low, high) = abs(outcome.difference), sorted((abs(outcome.low), abs(outcome.high)))
    label = name.upper()
    assert str(outcome) == (
        f"{label}: B is better by {gain:.2f} [{low:.2f}, {high:.2f}], p = 0.001 (paired bootstrap, 1000 resamples)"
    )
    assert str(compare(name, good, bad, references)).startswith(f"{label}: A is better by {gain:.2f} [")


def test_a_score_prints_its_interval():
    score = evaluate(["bleu"], ["a b c d e"], [["a b c d f"]])[0]
    assert str(score) == "BLEU 66.87 [66.87, 66.87]"  # 100 (4/5 * 3/4 * 2/3 * 1/2) ** (1/4)


@pytest.mark.parametrize("name", METRICS)
def test_scores_and_comparisons_survive_json(name):
    score = evaluate([name], ["a b", "c"], [["a b", "d"]], num_resamples=20)[0].as_dict()
    outcome = compare(name, ["a b", "c"], ["a b", "d"], [["a b", "d"]], num_resamples=20).as_dict()
    assert json.loads(json.dumps(score)) == score and json.loads(json.dumps(outcome)) == outcome


def test_the_size_of_a_chunk_changes_nothing(monkeypatch):
    references = [random_references(37, seed=22)]
    a, b = corrupted(references[0], 0.2, seed=23), corrupted(references[0], 0.3, seed=24)
    whole = evaluate(["bleu"], a, references), compare("bleu", a, b, references, method="randomization")
    monkeypatch.setattr(metrics, "_CHUNK_CELLS", 37 * 7)
    assert whole == (evaluate(["bleu"], a, references), compare("bleu", a, b, references, method="randomization"))


def test_another_process_finds_the_same_scores():
    code = (
        "from transduce.evaluation.config import METRICS\nfrom transduce.evaluation.metrics import compare, evaluate\n"
        "a, b, r = ['a b c d', 'e f', 'g'], ['a b', 'e f', 'h'], [['a b c', 'e x', 'g']]\n"
        "print([each.as_dict() for each in evaluate(METRICS, a, r, num_resamples=99)])\n"
        "print([compare(name, a, b, r) for name in METRICS])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and "BLEU" not in runs[0] and "bleu" in runs[0]


def test_another_seed_gives_another_interval_and_the_same_score():
    references = [random_references(29, seed=25)]
    hypotheses = corrupted(references[0], 0.3, seed=26)
    first, second = (evaluate(["wer"], hypotheses, references, seed=seed)[0] for seed in (1, 2))
    assert first.value == second.value and (first.low, first.high) != (second.low, second.high)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate(["blue"], ["a"], [["a"]]), "no metric 'blue'. Did you mean 'bleu'"),
        (lambda: evaluate(["CHRF"], ["a"], [["a"]]), "Did you mean 'chrf'"),
        (
            lambda: evaluate(["rouge"], ["a"], [["a"]]),
            "Available: bleu, tokenized_bleu, chrf, ter, wer, cer, per, exact_match",
        ),
        (lambda: compare("bleu", ["a"], ["a"], [["a"]], method="random"), "Did you mean 'randomization'"),
        (lambda: evaluate(["bleu"], ["a", "b", "c"], [["a", "b"]]), "3 hypotheses but 2 references:"),
        (lambda: evaluate(["bleu"], ["a"], [["a"], ["a", "b"]]), "1 hypotheses but 2 references in reference set 2:"),
        (lambda: compare("bleu", ["a"], ["a", "b"], [["a"]]), "2 hypotheses but 1 references"),
        (lambda: evaluate(["bleu"], [], [[]]), "no segments"),
        (lambda: evaluate(["bleu"], ["a"], []), "list of reference sets"),
        (lambda: evaluate(["bleu"], ["a"], ["a"]), "list of reference sets"),
        (lambda: evaluate(["chrf"], ["a", "b"], [["a", None], ["a", None]]), "Segment 2 has no reference"),
        (lambda: evaluate(["bleu"], ["a"], [["a"]], num_resamples=0), r"num_resamples \(0\) must be at least 1"),
        (lambda: group_by_source(["a", "b"], ["a"], [["a"]]), "2 sources but 1 hypotheses"),
    ],
)
def test_a_wrong_call_is_explained_in_one_line(call, message):
    with pytest.raises(TransduceError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# Scripts without spaces, and texts without four words


def lines_of(letters, num_lines=50, length=9):
    rng = random.Random(letters)
    return ["".join(rng.choices(letters, k=rng.randint(length, 2 * length))) for _ in range(num_lines)]


UNSPACED = {
    "Chinese": (lines_of("我你他们汤姆每天散步打电话回家"), "zh"),
    "Chinese with Latin names": ([f"{line}Tom{line}。" for line in lines_of("我你他们每天散步")], "zh"),
    "Chinese with a space after a comma": ([f"{line}, {line}." for line in lines_of("我你他们每天散步")], "zh"),
    "Japanese": (lines_of("私は毎日犬と散歩をしますひらがなカタカナ"), "char"),
    "Thai with a space between phrases": ([f"{a} {a}" for a in lines_of("ฉันไปโรงเรียนทุกวันกับเพื่อน")], "char"),
    "Khmer": (lines_of("ខ្ញុំទៅសាលារៀន"), "char"),
    "Burmese": (lines_of("ကျွန်တော်ကျောင်းသွားတယ်"), "char"),
    "emoji": (lines_of("🙂🐶🚗🏠👩🏽🍎", length=4), "char"),
}


@pytest.mark.parametrize("script", UNSPACED)
def test_a_perfect_system_scores_100_in_any_script(script):
    references, tokenizer = UNSPACED[script]
    assert tokenizer_for([references]) == tokenizer
    (score,) = evaluate(["bleu"], references, [references])
    assert (score.value, score.low, score.high) == pytest.approx((100, 100, 100))
    assert f"|tok:{tokenizer}|" in score.signature
    worse = [line[1:] for line in references]
    assert (
        evaluate(["bleu"], worse, [references])[0].value
        == BLEU(tokenize=tokenizer).corpus_score(worse, [references]).score
    )
    assert compare("bleu", worse, references, [references]).is_significant


@pytest.mark.parametrize(
    "references",
    [
        ["Tom went home, of course.", "§ 3: 中文 is Chinese for Chinese."],
        ["我 每天 散步 。", "汤姆 打 电话 回家 。"],
        ["ฉัน ไป โรงเรียน ทุก วัน"],
        ["나는 매일 학교에 갑니다."],
        ["🙂 🐶 🚗 🏠 🍎"],
        [""],
        [None, "Один дом стоит там."],
    ],
)
def test_text_with_spaces_is_split_as_ever(references):
    hypotheses = ["Tom went home of course", "我 每天 散步 。"][: len(references)]
    references = [references, ["one more"] * len(references)]
    assert tokenizer_for(references[:1]) == "13a"
    assert evaluate(["bleu"], hypotheses, references)[0].value == BLEU().corpus_score(hypotheses, references).score


@pytest.mark.parametrize("tokenizer", BLEU_TOKENIZERS)
def test_a_tokenizer_can_be_named(tokenizer):
    references = ["Tom's dog, (€5.20) 我每天散步。", "the second line of it"]
    hypotheses = ["Tom's dog (€5.20), 我天天散步。", "the second line of them"]
    (score,) = evaluate([f"bleu:{tokenizer}"], hypotheses, [references])
    oracle = BLEU(tokenize=tokenizer, force=True)
    assert score.value == oracle.corpus_score(hypotheses, [references]).score
    assert str(score).startswith(f"BLEU ({tokenizer}) ")
    assert f"|tok:{oracle.get_signature().info['tok']}|" in score.signature
    assert compare(f"bleu:{tokenizer}", hypotheses, references, [references]).score_b == pytest.approx(100)


def test_where_no_reference_has_four_tokens_defaults_have_no_bleu_and_by_name_it_is_noted():
    names, phrases = [["dog", "old cat", None]], [["an old cat.", "dog"]]  # the full stop is a token
    assert default_metrics(("bleu", "chrf"), names) == ("exact_match", "chrf")
    assert default_metrics(("bleu", "exact_match"), names) == ("exact_match",)
    assert default_metrics(("bleu", "chrf"), phrases) == ("bleu", "chrf")
    one_long = [["dog"] * 30 + ["a line of four"]]  # which would decide the score alone
    assert default_metrics(("bleu", "chrf"), one_long) == ("exact_match", "chrf")
    assert default_metrics(("bleu:zh", "wer"), names) == ("bleu:zh", "wer")
    assert evaluate(["bleu"], ["dog"], [["dog"]])[0].value == 0
    assert notes_on(["bleu", "chrf", "bleu:none"], names) == [
        "hardly any reference has four tokens: bleu says little or is 0, so use exact_match",
        "hardly any reference has four tokens: bleu:none says little or is 0, so use exact_match",
    ]
    assert notes_on(["bleu", "bleu:char"], phrases) == []
    assert notes_on(["bleu:none"], phrases) != []


def test_tokenized_text_is_noted_once_and_not_by_sacrebleu(caplog):
    references = [[f"a line of {number} words ." for number in range(120)]]
    evaluate(["bleu"], references[0], references)
    assert not caplog.records
    (note,) = notes_on(["bleu", "chrf"], references)
    assert "tokenized_bleu" in note
    assert notes_on(["tokenized_bleu"], references) == []
