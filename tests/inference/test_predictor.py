import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import transduce.inference.predictor
from transduce.data.seen import Seen
from transduce.devices.device import find_device
from transduce.errors import DamagedFileError, MissingInputError, TransduceError
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Constraints
from transduce.inference.engine import InferenceModel
from transduce.inference.predictor import Predictor
from transduce.inference.rules import rules_of
from transduce.model import Transformer
from transduce.model.config import TransformerConfig
from transduce.runs.run import load
from transduce.text.config import TokenizerConfig
from transduce.text.normal_form import Form
from transduce.text.tokenizer import Tokenizer

pytest_plugins = ["small_run"]

LINES = ["abc", "", "zyxwv", "   ", "a", "\u3000\t", "qrst", "longerword"]
DRAWING = DecodingConfig(temperature=1.3, seed=5)


@pytest.fixture
def predictor(run: Path) -> Predictor:
    return load(run, device="cpu")


@pytest.fixture(scope="module")
def lines(data: Path) -> list[str]:
    """500 short lines."""
    return (data / "test.source").read_text().split("\n")[:500]


def untrained(max_len: int, **settings: object) -> Predictor:
    """A random model over the letters a to e that reads and writes at most `max_len` ids."""
    tokenizer = Tokenizer.learn(TokenizerConfig(source="characters", target="characters"), ["abcde"], ["abcde"])
    config = TransformerConfig(
        d_model=16, d_ff=24, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, max_len=max_len
    )
    torch.manual_seed(3)
    return Predictor(
        Transformer(config, tokenizer.vocabulary_sizes), tokenizer, DecodingConfig(**settings), report=lambda _: None
    )


def test_output_k_is_that_of_line_k(predictor: Predictor) -> None:
    together = predictor.predict(LINES)
    assert together == [predictor.predict([line])[0] for line in LINES]
    assert len(set(together)) > 3


def test_empty_texts_have_empty_outputs_without_the_model(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the model was called")

    monkeypatch.setattr(InferenceModel, "start", never)
    assert predictor.predict(["", " ", "\t", "\u2003", "\u2028"]) == [""] * 5
    assert predictor.predict([]) == []


@pytest.mark.parametrize("beam_size", [1, 5])
def test_batching_order_and_neighbors_change_no_output(
    beam_size: int, predictor: Predictor, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor.decoding = replace(predictor.decoding, beam_size=beam_size)
    lines = lines[:80]
    expected = predictor.predict(lines)
    assert predictor.predict(lines[::-1])[::-1] == expected
    neighbour = "x" * 200
    assert [predictor.predict([line, neighbour])[0] for line in lines[:10]] == expected[:10]
    for tokens_at_once in (beam_size, 200 * beam_size, 900 * beam_size):  # one line at a time, a few, many
        monkeypatch.setattr("transduce.inference.predictor._TOKENS_AT_ONCE", tokens_at_once)
        num_lines = 30 if tokens_at_once == beam_size else len(lines)
        assert predictor.predict(lines[:num_lines]) == expected[:num_lines]


def test_n_best_is_sorted_begins_with_the_best_and_repeats_no_ids(predictor: Predictor) -> None:
    texts = ["abc", "zyxwv", "q"]
    predictor.decoding = replace(predictor.decoding, beam_size=5)
    best = predictor.predict(texts)
    for text, answers in zip(best, predictor.predict_n_best(texts, 5), strict=True):
        scores = [answer.score for answer in answers]
        assert len(answers) == 5
        assert scores == sorted(scores, reverse=True)
        assert answers[0].text == text


@pytest.mark.parametrize("beam_size", [4, 1])
@pytest.mark.parametrize(("length_norm", "length_penalty"), [("wu", 0.6), ("power", 1.0), ("wu", 0.0)])
@torch.no_grad()
def test_scores_are_those_of_a_full_pass_over_the_output(
    length_norm: str, length_penalty: float, beam_size: int, predictor: Predictor
) -> None:
    predictor.decoding = DecodingConfig(beam_size=beam_size, length_norm=length_norm, length_penalty=length_penalty)
    model, tokenizer = predictor.model, predictor.tokenizer
    for text, answers in zip(["abc", "zyxwv"], predictor.predict_n_best(["abc", "zyxwv"], beam_size), strict=True):
        for answer in answers:
            (ids,) = tokenizer.encode_target([answer.text])
            src = torch.tensor(tokenizer.encode_source([text]))
            hidden = model(src, torch.tensor([[tokenizer.bos_id, *ids[:-1]]]))
            log_probs = torch.log_softmax(hidden[0] @ model.output_weight.T, dim=-1)
            total = sum(log_probs[place, i].item() for place, i in enumerate(ids))
            base = (5 + len(ids)) / 6 if length_norm == "wu" else len(ids)
            assert answer.log_prob == pytest.approx(total, abs=1e-4)
            assert answer.score == pytest.approx(total / base**length_penalty, abs=1e-4)


def test_a_beam_larger_than_the_vocabulary_finds_at_least_as_good_an_output() -> None:
    predictor = untrained(8, beam_size=1, length_penalty=0.0, max_len_ratio=0.0, max_len_extra=3)
    (greedy,) = predictor.predict_n_best(["abc"], 1)[0]
    size = predictor.tokenizer.target_vocab_size
    predictor.decoding = replace(predictor.decoding, beam_size=size + 7)
    answers = predictor.predict_n_best(["abc"], size + 7)[0]
    assert len(answers) > 5
    assert answers[0].score >= greedy.score - 1e-5


def test_a_source_too_long_is_truncated_counted_and_reported_once() -> None:
    predictor, reported = untrained(6), []
    predictor.report = reported.append
    texts = ["abcde", "abcdea", "abcdeabcde" * 20]  # 6 ids with their end, 7, 201
    answers = predictor.predict(texts)
    assert predictor.num_truncated_sources == 2
    assert len(reported) == 1
    assert "model.max_len = 6" in reported[0]
    assert answers[1] == answers[2] == answers[0]  # what is left of each is the same


def test_more_outputs_than_hypotheses_are_refused_before_any_work(predictor: Predictor) -> None:
    for num_best in (0, -1, predictor.decoding.beam_size + 1):
        with pytest.raises(TransduceError, match="beam size"):
            predictor.predict_n_best([], num_best)


def test_half_a_surrogate_pair_is_refused(predictor: Predictor) -> None:
    with pytest.raises(TransduceError):
        predictor.predict(["a\ud800"])


@pytest.mark.parametrize(
    "other",
    [
        DecodingConfig(beam_size=5, length_penalty=0.0),
        DecodingConfig(beam_size=1, max_len_ratio=0.0, max_len_extra=3),
        DecodingConfig(beam_size=2, min_len=9, no_repeat_ngram_size=1),
        DRAWING,
    ],
)
def test_settings_for_one_call_are_those_of_a_predictor_made_with_them(other, predictor, run) -> None:
    own = predictor.predict_n_best(LINES, 1)
    made = load(run, device="cpu", decoding=other)
    assert predictor.predict_n_best(LINES, 2 if other.beam_size > 1 else 1, decoding=other) == made.predict_n_best(
        LINES, 2 if other.beam_size > 1 else 1
    )
    assert predictor.predict(LINES, decoding=other) == made.predict(LINES) != [best.text for (best,) in own]
    assert predictor.predict_n_best(LINES, 1) == own


# Several workers


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.usefixtures("two_threads")
def test_workers_predict_as_one_does(beam_size, predictor, lines, monkeypatch) -> None:
    predictor.decoding = replace(predictor.decoding, beam_size=beam_size)
    monkeypatch.setattr("transduce.inference.predictor._TOKENS_AT_ONCE", 100 * beam_size)  # many batches
    seen = set()
    start = InferenceModel.start

    def recording(model: InferenceModel, src: torch.Tensor) -> object:
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return start(model, src)

    monkeypatch.setattr(InferenceModel, "start", recording)
    together = predictor.predict(lines[:100])
    assert len(seen) == 2
    assert {threads for _, threads in seen} == {1}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert predictor.predict(lines[:100]) == together


@pytest.mark.usefixtures("two_threads")
def test_a_thread_that_first_computes_during_a_prediction_has_as_many_threads_as_any(
    predictor, lines, monkeypatch
) -> None:
    torch.set_num_threads(4)
    monkeypatch.setattr("transduce.inference.predictor._TOKENS_AT_ONCE", 100)  # many batches
    own, born = [], []
    start = InferenceModel.start

    def giving_birth(model: InferenceModel, src: torch.Tensor) -> object:
        own.append(torch.get_num_threads())
        other = threading.Thread(target=lambda: born.append(torch.get_num_threads()))
        other.start()
        other.join()
        return start(model, src)

    monkeypatch.setattr(InferenceModel, "start", giving_birth)
    predictor.predict(lines[:60])
    assert len(born) > 4
    assert set(born) == {4}
    assert set(own) == {1}
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_a_worker_is_raised(predictor, lines, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise TransduceError("a worker failed")

    monkeypatch.setattr("transduce.inference.predictor._TOKENS_AT_ONCE", 100)
    monkeypatch.setattr(InferenceModel, "start", fail)
    with pytest.raises(TransduceError, match="a worker failed"):
        predictor.predict(lines[:50])
    assert torch.get_num_threads() == 2


def test_threads_that_ask_at_once_share_one_prepared_model(run, monkeypatch) -> None:
    predictor = load(run, device="cpu")
    expected = load(run, device="cpu").predict(LINES)
    made = []
    prepare = InferenceModel.__init__

    def slowly(model: InferenceModel, *arguments: object, **settings: object) -> None:
        made.append(model)
        time.sleep(0.05)
        prepare(model, *arguments, **settings)

    monkeypatch.setattr(InferenceModel, "__init__", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(predictor.predict, [LINES] * 4)) == [expected] * 4
    assert len(made) == 1


@pytest.mark.usefixtures("two_threads")
def test_no_worker_prepares_the_model_where_asserts_are_left_out(run, lines, monkeypatch) -> None:
    path = Path(transduce.inference.predictor.__file__)
    module = ModuleType("transduce.predictor_without_asserts")
    exec(compile(path.read_text(), path, "exec", optimize=1), vars(module))  # as `python -O` reads it
    preparing = []
    prepare = InferenceModel.__init__

    def recording(*arguments: object, **settings: object) -> None:
        preparing.append(threading.current_thread())
        prepare(*arguments, **settings)

    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 100)  # many batches
    monkeypatch.setattr(InferenceModel, "__init__", recording)
    predictor = load(run, device="cpu")
    module.Predictor(predictor.model, predictor.tokenizer, predictor.decoding).predict(lines[:50])
    assert preparing == [threading.current_thread()]


# Constraints


def test_each_text_has_constraints_of_its_own_and_mates_change_nothing(predictor, lines) -> None:
    predictor.decoding = replace(predictor.decoding, beam_size=3)
    texts = ["", *lines[:12]]
    free = predictor.predict(texts)
    asked = [Constraints(required=("qz",)) if row % 3 == 1 else Constraints() for row in range(len(texts))]
    found = predictor.predict(texts, asked)
    for row, answer in enumerate(found):
        if row % 3 == 1:
            assert "qz" in answer
        else:
            assert answer == free[row]


def test_a_letter_of_the_free_output_can_be_forbidden(predictor, lines) -> None:
    free = predictor.predict(lines[:20])
    found = predictor.predict(lines[:20], [Constraints(forbidden=(answer[0],)) for answer in free])
    assert not any(answer[0] in other for answer, other in zip(free, found, strict=True))


@pytest.mark.parametrize("number", [1, 3])
def test_another_number_of_constraints_than_of_texts_is_refused(number: int, predictor: Predictor) -> None:
    with pytest.raises(TransduceError, match="one for each"):
        predictor.predict(["abc", "de"], [Constraints()] * number)


@pytest.mark.parametrize("asked", [{"prefix": "ab"}, {"required": ("xx", "abc")}])
def test_a_required_text_cannot_be_forbidden(asked: dict[str, object]) -> None:
    with pytest.raises(TransduceError, match="drop one of them"):
        Constraints(forbidden=("b",), **asked)


# Drawing


def test_the_same_seed_samples_the_same_outputs_and_another_one_others(predictor: Predictor) -> None:
    predictor.decoding = DRAWING
    texts = ["abcdef", "ghijkl", "mnopqr"]
    drawn = predictor.predict(texts)
    assert predictor.predict(texts) == drawn
    predictor.decoding = replace(DRAWING, seed=6)
    assert predictor.predict(texts) != drawn


def test_samples_do_not_depend_on_the_lines_before(predictor: Predictor) -> None:
    predictor.decoding = DRAWING
    expected = [[answer.text for answer in answers] for answers in predictor.predict_n_best(LINES, 3)]
    last = predictor.predict_n_best(LINES[-1:], 3, first_row=len(LINES) - 1)
    assert [answer.text for answer in last[0]] == expected[-1]


def test_several_samples_for_one_line_differ(predictor: Predictor) -> None:
    predictor.decoding = DRAWING
    answers = predictor.predict_n_best(["abcdefgh"], 8)[0]
    assert len({answer.text for answer in answers}) > 1


def test_sampling_leaves_the_callers_random_numbers_alone(predictor: Predictor) -> None:
    predictor.decoding = DRAWING
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    predictor.predict(["abc"])
    assert torch.equal(torch.rand(3), expected)


# Loading


def test_a_moved_run_answers_as_before(run: Path, predictor: Predictor, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "a b" / "moved")
    shutil.rmtree(moved / "checkpoints")  # for resuming only
    assert load(moved, device="cpu").predict(LINES) == predictor.predict(LINES)


def test_loading_takes_no_random_number_of_the_caller(run: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load(run, device="cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.toml", "run.json"])
def test_a_damaged_file_is_not_loaded(name: str, run: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(run, tmp_path / "run")
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(DamagedFileError, match=name):
        load(damaged, device="cpu")


def test_a_run_without_a_model_or_no_run_is_missing(run: Path, tmp_path: Path) -> None:
    unfinished = shutil.copytree(run, tmp_path / "run")
    (unfinished / "model.safetensors").unlink()
    for folder in (unfinished, tmp_path / "none"):
        with pytest.raises(MissingInputError):
            load(folder, device="cpu")


def test_loading_is_silent_on_a_machine_with_several_gpus(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    load(run, device="cpu")


def test_a_device_that_may_lack_float64_is_refused_even_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.ones(1))
    with pytest.raises(TransduceError, match="no device 'mps' is available here"):
        find_device("mps")


@pytest.mark.parametrize("name", ["tpu", "", "meta", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(TransduceError, match=f"no device '{name}'"):
        find_device(name)


def test_auto_and_cpu_are_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_log_probabilities_are_at_most_zero(predictor: Predictor) -> None:
    for answers in predictor.predict_n_best(["abc", "z"], 3):
        assert all(-math.inf < answer.log_prob <= 0 for answer in answers)


# Outside of what was seen in training


def experienced(*, normalize: tuple[Form, ...] = (), report: Callable[[str], None] = lambda _line: None) -> Predictor:
    """An untrained model that has seen a to c, é, and sources of five letters."""
    plain, config = untrained(40), TokenizerConfig(source="characters", target="characters", normalize=normalize)
    tokenizer = Tokenizer.learn(config, ["abcde"], ["abcde"])
    seen = Seen(frozenset("abcé"), frozenset("abc"), 6)
    return Predictor(plain.model, tokenizer, DecodingConfig(beam_size=1), seen=seen, report=report)


def test_a_prediction_says_what_of_its_source_was_not_seen_in_training() -> None:
    found = [best for best, *_ in experienced().predict_n_best(["abcab", "dad", "", "abcabc", "eabcdc"], 1)]
    assert [(best.unseen, best.is_long) for best in found] == [
        ((), False), (("d",), False), ((), False), ((), True), (("e", "d"), True),
    ]  # fmt: skip


def test_a_word_that_is_spelled_in_bytes_is_not_told_as_a_long_source() -> None:
    plain = untrained(40)
    tokenizer = Tokenizer.learn(TokenizerConfig(source="words", target="words"), ["ab cd"], ["ab cd"])
    seen = Seen(frozenset("abcd "), frozenset("abcd "), 4)
    predictor = Predictor(plain.model, tokenizer, DecodingConfig(beam_size=1), seen=seen)
    found = [best.is_long for best, *_ in predictor.predict_n_best(["ab dcba cd", "ab cd ab cd"], 1)]
    assert found == [False, True]


def test_what_was_not_seen_is_reported_once() -> None:
    reported: list[str] = []
    predictor = experienced(report=reported.append)
    predictor.predict(["abc", "ed\u0301"])
    predictor.predict(["dd"])
    predictor.predict(["ad\x1b", "abcabc", "aaaaaa"])
    assert reported == [
        "characters never seen in training: d, e, U+0301.",
        "characters never seen in training: U+001B.",
        "some sources are longer than nearly all in training (at most 6 tokens).",
    ]


def test_what_is_seen_is_a_matter_of_normal_forms() -> None:
    predictor = experienced(normalize=("lower", "nfc", "strip"))
    ((best,),) = predictor.predict_n_best([" AbE\u0301 "], 1)
    assert (best.unseen, best.is_long) == ((), False)
    assert predictor.predict([" ABC\t", "abc"]) == predictor.predict(["abc"]) * 2


def test_a_predictor_that_does_not_know_what_was_seen_says_nothing() -> None:
    ((best,),) = untrained(40, beam_size=1).predict_n_best(["xyz" * 5], 1)
    assert (best.unseen, best.is_long) == ((), False)


def test_texts_of_constraints_have_the_normal_form_of_targets() -> None:
    predictor = experienced(normalize=("nfc",))
    decomposed, composed = (Constraints(prefix=text, forbidden=(f"b{text}",)) for text in ("e\u0301", "é"))
    assert predictor.predict(["abc"], [decomposed]) == predictor.predict(["abc"], [composed])
    assert predictor.predict(["abc"], [decomposed])[0].startswith("é")
    rules = [
        rules_of(each, predictor.decoding, predictor.tokenizer, predictor.alphabet) for each in (decomposed, composed)
    ]
    assert rules[0].forbidden[0]._text == rules[1].forbidden[0]._text
