import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import transduce.inference.forced_decoding
from transduce.inference.attention_maps import record_attention
from transduce.inference.forced_decoding import Calibration, annotate, token_log_probs
from transduce.inference.predictor import Predictor
from transduce.runs.run import load

pytest_plugins = ["small_run"]

TEXTS = ["abc", "zyxwvu", "q", "abcdefghijkl"]


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return load(run, device="cpu")


@pytest.fixture
def sources(predictor: Predictor) -> list[list[int]]:
    return predictor.tokenizer.encode_source(TEXTS)


@pytest.fixture
def answers(predictor: Predictor) -> list[list[int]]:
    return [ids[:-1] for ids in predictor.tokenizer.encode_target(["cba", "", "qq", "lkjihgfedcba"])]


@pytest.mark.parametrize("tokens_at_once", [1, 2_048])
def test_log_probabilities_are_those_of_one_pair_at_a_time(tokens_at_once, predictor, sources, answers, monkeypatch):
    monkeypatch.setattr(transduce.inference.forced_decoding, "_TOKENS_AT_ONCE", tokens_at_once)
    found = token_log_probs(predictor.model, sources, answers)
    for source, answer, log_probs in zip(sources, answers, found, strict=True):
        tgt_out = torch.tensor([*answer, 2])
        with torch.no_grad():
            logits = predictor.model.logits(predictor.model(torch.tensor([source]), torch.tensor([[1, *answer]])))[0]
        expected = -F.cross_entropy(logits, tgt_out, reduction="none")
        assert log_probs == pytest.approx(expected.tolist(), abs=1e-5)


def test_an_annotation_names_every_token_and_its_end(predictor, sources, answers):
    for source, answer, found in zip(
        sources, answers, annotate(predictor.model, predictor.tokenizer, sources, answers), strict=True
    ):
        assert found.source_tokens == tuple(predictor.tokenizer.source_tokens(source))
        assert found.tokens == (*predictor.tokenizer.target_tokens(answer), "</s>")
        assert len(found.alignment) == len(found.log_probs) == len(answer) + 1
        assert found.as_rows()[0] == {
            "token": found.tokens[0],
            "log_prob": found.log_probs[0],
            "confidence": found.confidences[0],
            "source": found.alignment[0],
        }


def test_confidences_are_the_softmax_of_the_logits_at_the_temperature_of_the_calibration(predictor, sources, answers):
    calibration = Calibration(temperature=0.7, num_pairs=500)
    own = annotate(predictor.model, predictor.tokenizer, sources, answers)
    calibrated = annotate(predictor.model, predictor.tokenizer, sources, answers, calibration)
    for source, answer, before, found in zip(sources, answers, own, calibrated, strict=True):
        with torch.no_grad():
            logits = predictor.model.logits(predictor.model(torch.tensor([source]), torch.tensor([[1, *answer]])))[0]
        exponentials = (logits.double() / 0.7).exp()
        expected = (exponentials / exponentials.sum(dim=1, keepdim=True))[range(len(answer) + 1), [*answer, 2]].tolist()
        assert found.confidences == pytest.approx(expected, abs=1e-6)
        assert found.confidence == pytest.approx(math.prod(expected), rel=1e-4)
        assert (found.log_probs, found.is_rough, before.is_rough) == (before.log_probs, False, True)
        assert before.confidence == pytest.approx(math.exp(sum(before.log_probs)), rel=1e-6)


def test_a_token_is_aligned_to_the_source_token_it_looked_at_most(predictor, sources, answers):
    together = annotate(predictor.model, predictor.tokenizer, sources, answers)
    for source, answer, found in zip(sources, answers, together, strict=True):
        with torch.no_grad(), record_attention(predictor.model) as maps:
            predictor.model(torch.tensor([source]), torch.tensor([[1, *answer]]))
        heads = [heads[0, head] for name, heads in maps.items() if "cross" in name for head in range(heads.size(1))]
        for place in range(len(answer) + 1):
            looked = [sum(weights[place, k].item() for weights in heads) for k in range(len(source))]
            candidates = range(len(source)) if place == len(answer) else range(len(source) - 1)
            assert found.alignment[place] == max(candidates, key=lambda k: looked[k])


def test_the_predictor_annotates_its_own_outputs(predictor):
    answers = [best[0] for best in predictor.predict_n_best(TEXTS, 1)]
    for answer, found in zip(answers, predictor.annotate(TEXTS, answers), strict=True):
        assert sum(found.log_probs) == pytest.approx(answer.log_prob, abs=1e-4)
