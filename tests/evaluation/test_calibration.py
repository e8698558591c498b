"""Calibration: the temperature by brute force and in closed form, both measures by hand, tokens by forced decoding."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from transduce.data.batches import encode_pairs
from transduce.data.pairs import Pairs
from transduce.evaluation import calibration
from transduce.evaluation.calibration import (
    LEAST_TEMPERATURE,
    MOST_TEMPERATURE,
    brier_score,
    expected_calibration_error,
    fit_calibration,
    fit_temperature,
    predicted_tokens,
)
from transduce.inference.forced_decoding import token_log_probs
from transduce.runs.run import Run, load

pytest_plugins = ["small_run"]

PAIRS = Pairs(["abc", "fed", "a", "lkjihgfedcba"], ["cba", "def", "b", "abcdefghijkl"], {}, [], {})


@pytest.fixture(scope="module")
def predictor(run: Path) -> Run:
    return load(run, device="cpu")


def random_logits(num: int, num_ids: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(num, num_ids, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("true_temperature", [0.6, 1.0, 1.7])
def test_the_temperature_has_the_least_loss_of_all_in_a_fine_grid(true_temperature: float) -> None:
    logits = random_logits(1_500, 11, seed=7)
    probabilities = (logits / true_temperature).softmax(dim=1)
    targets = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(5))[:, 0]
    grid = np.geomspace(0.25, 4, 1_001)
    losses = [F.cross_entropy(logits / temperature, targets).item() for temperature in grid]
    found = fit_temperature(logits, targets, torch.nn.Identity())
    assert found == pytest.approx(grid[np.argmin(losses)], rel=0.006)
    assert found == pytest.approx(true_temperature, rel=0.1)


def test_the_temperature_of_two_ids_is_that_of_the_log_odds() -> None:
    """Three of four are right, so the right logit, 2 above the other, must become ln 3: T = 2 / ln 3."""
    logits, targets = torch.tensor([[2.0, 0.0]]).repeat(4, 1), torch.tensor([0, 0, 1, 0])
    assert fit_temperature(logits, targets, torch.nn.Identity()) == pytest.approx(2 / math.log(3), rel=0.003)


def test_where_all_tokens_are_right_or_wrong_the_temperature_stays_in_its_range() -> None:
    logits = random_logits(30, 5, seed=3)
    right, wrong = logits.argmax(dim=1), logits.argmin(dim=1)
    assert fit_temperature(logits, right, torch.nn.Identity()) == pytest.approx(LEAST_TEMPERATURE, rel=0.003)
    assert fit_temperature(logits, wrong, torch.nn.Identity()) == pytest.approx(MOST_TEMPERATURE, rel=0.003)


def test_the_rows_of_logits_in_memory_change_no_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(101, 7, seed=2)
    targets = logits.argmax(dim=1).roll(1)
    expected = fit_temperature(logits, targets, torch.nn.Identity())
    monkeypatch.setattr(calibration, "_ROWS_AT_ONCE", 3)
    assert fit_temperature(logits, targets, torch.nn.Identity()) == pytest.approx(expected, rel=1e-6)


def test_predicted_tokens_have_the_log_probabilities_of_forced_decoding(
    predictor: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_TOKENS_AT_ONCE", 20)  # several batches, one of them with padding
    encoded, _ = encode_pairs(predictor.tokenizer, PAIRS, max_len=64)
    found: list[float] = []
    with torch.inference_mode():
        for hidden, targets in predicted_tokens(predictor.model, encoded):
            found += (-F.cross_entropy(predictor.model.logits(hidden), targets, reduction="none")).tolist()
    sources, outputs = predictor.tokenizer.encode_source(PAIRS.src), predictor.tokenizer.encode_target(PAIRS.tgt)
    forced = token_log_probs(predictor.model, sources, [ids[:-1] for ids in outputs])
    assert sorted(found) == pytest.approx(sorted(each for row in forced for each in row), abs=1e-5)


def test_a_calibration_is_fitted_on_at_most_so_many_pairs_and_tokens(
    predictor: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, _ = encode_pairs(predictor.tokenizer, PAIRS, max_len=64)
    assert fit_calibration(predictor, encoded).num_pairs == 4
    monkeypatch.setattr(calibration, "_MOST_PAIRS", 3)
    monkeypatch.setattr(calibration, "_MOST_TOKENS", 5)
    monkeypatch.setattr(calibration, "fit_temperature", lambda hidden, targets, _: len(hidden) * len(targets) + 0.5)
    found = fit_calibration(predictor, encoded)
    assert (found.temperature, found.num_pairs) == (25.5, 3)


def test_the_calibration_error_is_that_of_bins_of_equal_count_by_hand() -> None:
    # Sorted: .1 wrong, .2 right, .3 wrong | .6 right, .9 right; gaps of the sums: .6 - 1 and 1.5 - 2.
    confidences, is_right = np.array([0.9, 0.1, 0.6, 0.3, 0.2]), np.array([True, False, True, False, True])
    assert expected_calibration_error(confidences, is_right, 2) == pytest.approx((0.4 + 0.5) / 5)


def test_the_calibration_error_of_true_probabilities_is_small_and_that_of_boasting_is_not() -> None:
    random = np.random.default_rng(11)
    confidences = random.random(30_000)
    is_right = random.random(30_000) < confidences
    assert expected_calibration_error(confidences, is_right) < 0.015
    assert expected_calibration_error(np.sqrt(confidences), is_right) == pytest.approx(2 / 3 - 1 / 2, abs=0.015)


def test_the_brier_score_by_hand_and_of_the_base_rate() -> None:
    is_right = np.array([True, False, True, True])
    assert brier_score(np.array([0.8, 0.4, 1.0, 0.5]), is_right) == pytest.approx((0.04 + 0.16 + 0.25) / 4)
    assert brier_score(np.full(4, 0.75), is_right) == pytest.approx(0.75 * 0.25)
