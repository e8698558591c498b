"""Maps in bytes, held to sums of whole numbers by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from calling import command
from small_model import SOURCES, small_model
from transduce.errors import TransduceError
from transduce.inference import linear as linear_maps
from transduce.inference.engine import InferenceModel
from transduce.inference.linear import float_map, int8_map
from transduce.inference.predictor import Predictor
from transduce.runs.run import load

pytest_plugins = ["small_run"]


@pytest.fixture(autouse=True)
def every_matrix_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_maps, "_SMALLEST_INT8", 0)


def by_hand(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Codes of -127 to 127 a row, whole numbers multiplied and added up, and the units again."""
    x_units, units = np.abs(x).max(1, keepdims=True) / 127, np.abs(weight).max(1, keepdims=True) / 127
    x_codes, codes = np.rint(x / x_units).astype(np.int64), np.rint(weight / units).astype(np.int64)
    return (x_codes @ codes.T) * x_units * units.T + bias


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_an_int8_map_is_the_arithmetic_of_codes(rows):
    generator = np.random.default_rng(3)
    x, weight, bias = (generator.normal(size=shape).astype(np.float32) for shape in ((rows, 48), (80, 48), 80))
    found = int8_map(torch.from_numpy(weight), torch.from_numpy(bias))(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), by_hand(x, weight, bias), rtol=0, atol=1e-4)


def test_an_int8_map_is_near_the_exact_one():
    torch.manual_seed(5)
    x, weight = torch.randn(32, 256), torch.randn(64, 256)
    exact = x @ weight.t()
    # A code is off by at most half a unit; 256 such errors in x and in the matrix add up like a random walk.
    assert (int8_map(weight, None)(x) - exact).abs().max() < 0.05 * exact.std()


def test_a_row_does_not_depend_on_its_mates():
    torch.manual_seed(7)
    x, weight, bias = torch.randn(33, 128), torch.randn(96, 128), torch.randn(96)
    x[5] *= 1e4
    multiply = int8_map(weight, bias)
    assert torch.equal(multiply(x), torch.cat([multiply(row[None]) for row in x]))


def test_rows_of_zeros_give_the_bias():
    weight = torch.randn(16, 32)
    weight[3] = 0
    bias = torch.randn(16)
    found = int8_map(weight, bias)(torch.stack([torch.zeros(32), torch.ones(32)]))
    assert torch.equal(found[0], bias)
    assert found[1, 3] == bias[3]


def test_small_matrices_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(linear_maps, "_SMALLEST_INT8", 32 * 16 + 1)
    weight, bias, x = torch.randn(16, 32), torch.randn(16), torch.randn(4, 32)
    assert torch.equal(int8_map(weight, bias)(x), float_map(weight, bias)(x))


@torch.inference_mode()
def test_a_network_in_int8_predicts_nearly_the_same():
    model = small_model().float()
    tokens, parents = torch.ones(3, 1, dtype=torch.long), torch.zeros(3, 1, dtype=torch.long)
    exact, found = (
        flat.step(tokens, parents, flat.start(SOURCES))[0].log_softmax(dim=-1)
        for flat in (InferenceModel(model), InferenceModel(model, int8=True))
    )
    is_one = exact.isfinite()
    gap = (found - exact)[is_one].abs().max()
    assert 0 < gap < 0.2


def test_int8_is_for_cpus():
    with pytest.raises(TransduceError, match="int8 is for prediction on a CPU"):
        Predictor(small_model().to("meta"), tokenizer=None, int8=True)  # type: ignore[arg-type]


def test_where_no_matrix_gains_by_int8_that_is_said_and_no_int8_is_claimed(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", run, "--source", data / "valid.source", "--target", data / "valid.target", "--json", "--int8"]
    told = "int8 changes nothing here: no matrix of this model is large enough to benefit"
    for smallest in (0, 2**18):
        monkeypatch.setattr(linear_maps, "_SMALLEST_INT8", smallest)
        found = command(*words)
        assert found.status == 0, found.err
        assert json.loads(found.out)["int8"] is (smallest == 0)
        assert found.err.count(told) == (smallest > 0)
        reports: list[str] = []
        loaded = load(run, device="cpu", int8=True, report=reports.append)
        assert (loaded.is_int8, told in reports) == (smallest == 0, smallest > 0)
