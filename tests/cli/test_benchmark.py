"""What `transduce benchmark` counts and how it shares the work out; how fast anything is, no test asks."""

import json
import os
import runpy
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import transduce
from calling import command
from transduce.cli.benchmark import usage
from transduce.cli.benchmark.matrix_products import RecordedProducts
from transduce.cli.benchmark.training import PARTS, padding_shares, record_products, wmt_like_pairs
from transduce.data.batches import EncodedPairs
from transduce.devices import machine
from transduce.model import Transformer
from transduce.model.config import TransformerConfig, VocabularySizes
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.step import TrainStep

D_MODEL, D_FF, NUM_ENCODER_LAYERS, NUM_DECODER_LAYERS, VOCAB_SIZE = 8, 22, 3, 2, 41
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KEYS = {
    "benchmark", "settings", "machine", "versions", "commit", "tokens_per_second", "tokens_per_cpu_second",
    "product_share", "gflops", "gflops_of_products_alone", "padding", "others_share", "stolen_share", "blocks",
    "peak_memory_mib", "parts_ms",
}  # fmt: skip


def pairs_of(src_lens: list[int], tgt_lens: list[int]) -> EncodedPairs:
    """Pairs of these lengths, end included."""
    return EncodedPairs(*[[[*range(3, 2 + length), 2] for length in lens] for lens in (src_lens, tgt_lens)])


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What the command says of three small steps, as JSON."""
    found = command(
        "benchmark", "train", "--data", "wmt-like", "--batch-tokens", "60", "--steps", "3", "--json", "--quiet"
    )
    assert (found.status, found.err) == (0, "")
    return json.loads(found.out)


def test_the_products_of_a_step_are_those_of_the_paper() -> None:
    src_len, tgt_len, num_pairs = 7, 5, 4  # no padding: then it does not matter what is done about it
    config = TransformerConfig(
        d_model=D_MODEL, d_ff=D_FF, num_heads=2, num_encoder_layers=NUM_ENCODER_LAYERS,
        num_decoder_layers=NUM_DECODER_LAYERS,
    )  # fmt: skip
    model = Transformer(config, VocabularySizes.joint(VOCAB_SIZE))
    update = TrainStep(model, config=TrainingConfig(steps=9), optim=OptimConfig())
    pairs = pairs_of([src_len] * num_pairs, [tgt_len] * num_pairs)
    found = record_products(update, pairs, [[np.arange(num_pairs)]])
    # Weights that a token meets: W^Q, W^K, W^V and W^O (3.2.2), W_1 and W_2 (3.3), the output's (3.4).
    attention, feed_forward = 4 * D_MODEL**2, 2 * D_MODEL * D_FF
    per_src = NUM_ENCODER_LAYERS * (attention + feed_forward) + NUM_DECODER_LAYERS * 2 * D_MODEL**2
    per_tgt = NUM_DECODER_LAYERS * (attention + 2 * D_MODEL**2 + feed_forward) + D_MODEL * VOCAB_SIZE
    multiplications = num_pairs * (src_len * per_src + tgt_len * per_tgt)
    # Backward, each product gives two: the gradient of the weights, and that of what went in.
    assert found.flops == 3 * 2 * multiplications


def test_a_product_is_told_by_its_sizes_and_strides() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    with RecordedProducts() as found:
        a @ b
        a @ b
        a @ torch.ones(7, 5).T
        torch.ones(2, 3, 5) @ torch.ones(2, 5, 7)
        a + a
    assert sorted(found.counts.values()) == [1, 1, 2]
    assert found.flops == 2 * 3 * 5 * 7 * (2 + 1 + 2)
    assert found.seconds_alone(torch.device("cpu")) > 0


def test_padding_is_what_is_left_of_the_rectangles() -> None:
    pairs = pairs_of([2, 5, 3, 4], [6, 6, 1, 2])
    # sources: 2 x 5 and 2 x 4 places for 7 and 7 ids; targets: 2 x 6 and 2 x 2 places for 12 and 3
    found = padding_shares(pairs, [np.array([0, 1]), np.array([2, 3])])
    assert found == {"source": round(4 / 18, 4), "target": round(1 / 16, 4)}


def test_random_pairs_are_about_as_long_as_news_and_the_same_each_time() -> None:
    pairs = wmt_like_pairs(1)
    for lens in (pairs.src_lens, pairs.tgt_lens):
        assert 26 < lens.mean() < 28
    assert np.corrcoef(pairs.src_lens, pairs.tgt_lens)[0, 1] > 0.8
    assert pairs.tgt(5)[-1] == 2
    assert all((pairs.src(row)[:-1] > 2).all() and pairs.src(row).max() < 37_000 for row in range(50))
    assert (wmt_like_pairs(1).tgt(17) == pairs.tgt(17)).all()


def test_the_json_object_has_the_documented_keys(report: dict[str, Any]) -> None:
    assert set(report) == KEYS
    assert set(report["parts_ms"]) == {*PARTS, "rest"}
    assert (report["settings"]["blocks"], report["settings"]["steps_per_block"]) == (3, 1)
    assert (report["settings"]["model"], report["settings"]["dropout"]) == ("tiny", 0.3)
    assert len(report["peak_memory_mib"]) == report["settings"]["processes"] == 1


def test_every_block_makes_the_same_steps(report: dict[str, Any]) -> None:
    assert len({(block["tokens"], block["product_flops"]) for block in report["blocks"]}) == 1


def test_a_spread_is_in_order_and_follows_from_the_blocks(report: dict[str, Any]) -> None:
    for key in ("tokens_per_second", "tokens_per_cpu_second", "product_share", "gflops"):
        spread = report[key]
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    speeds = sorted(block["tokens"] / block["seconds"] for block in report["blocks"])
    assert report["tokens_per_second"]["median"] == pytest.approx(speeds[1], abs=0.06)


def test_the_table_goes_to_standard_output_and_the_object_to_a_file(tmp_path: Path) -> None:
    words = ["benchmark", "train", "--data", "wmt-like", "--batch-tokens", "60", "--steps", "1"]
    found = command(*words, "-o", tmp_path / "found.json")
    assert found.status == 0, found.err
    assert "target tokens / second" in found.out.decode()
    assert "block 1 of 1" in found.err
    assert set(json.loads((tmp_path / "found.json").read_text())) == KEYS


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["fly"], 2, "there is no command 'benchmark fly'"),
        (["train", "--steps", "0"], 2, "a whole number of at least 1"),
        (["train", "--model", "huge"], 2, "invalid choice: 'huge'"),
        (["train", "--data", "novels"], 2, "invalid choice: 'novels'"),
        (["train", "-o", "no/such/folder/x.json"], 2, "there is no such folder"),
        (["train", "--device", "abacus"], 2, "no device 'abacus' is available here"),
    ],
)
def test_bad_input_is_one_line(words: list[str], status: int, told: str) -> None:
    found = command("benchmark", *words)
    assert (found.status, found.out) == (status, b"")
    assert told in found.err
    assert found.err.count("\n") == 1


def test_missing_data_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSDUCE_DATA", str(tmp_path))
    found = command("benchmark", "train", "--quiet")
    assert found.status == 66
    assert found.err.count("\n") == 1


@pytest.mark.parametrize("renderer", ["render.py", "render_results.py"])
def test_the_tables_are_those_of_the_results(renderer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [renderer, "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / renderer), run_name="__main__")
    assert ended.value.code in (None, 0)


def test_the_table_takes_each_toolkit_at_its_best() -> None:
    entries = {
        "transduce/1x2": ("ours", 900, 500),
        "transduce/2x1": ("ours-2", 990, 550),
        "rival/1": ("rival", 400, 410),
        "rival/2": ("rival", 600, 310),
    }
    result = {
        "entries": {
            name: {
                "peer": peer,
                "tokens_per_second": [speed, speed - 1, speed + 1],
                "tokens_per_cpu_second": [cpu_speed, cpu_speed - 1, cpu_speed + 1],
                "ratio": {"tokens_per_second": speed / 990, "tokens_per_cpu_second": cpu_speed / 550},
            }
            for name, (peer, speed, cpu_speed) in entries.items()
        },
        "peers": {"ours": {"title": "Ours"}, "ours-2": {"title": "Ours"}, "rival": {"title": "Rival"}},
    }
    best_of = runpy.run_path(str(BENCHMARKS / "render.py"))["best_of"]
    assert best_of(result, ["rival/1", "rival/2"]) == (
        410,
        ["Rival", "600 (599 to 601), `rival/2`", "0.61", "410 (409 to 411), `rival/1`", "0.75"],
    )
    assert best_of(result, ["transduce/1x2", "transduce/2x1"])[1][2::2] == ["1.00", "1.00"]


def test_the_clock_of_a_rival_counts_training_alone(tmp_path: Path) -> None:
    """Steps of 30 s in ten minutes; keeping weights takes 100 s each time, preparing took 50 s."""
    seconds = 0.0
    clock = runpy.run_path(str(BENCHMARKS / "peers/minutes.py"))["Clock"](
        tmp_path, 10.0, 0.3, now=lambda: seconds, cpu_now=lambda: 2 * seconds
    )
    seconds += 50.0
    clock.start()
    rates = []

    def save(path: Path) -> None:
        nonlocal seconds
        path.touch()
        seconds += 100.0

    is_over = False
    while not is_over:
        rates.append(clock.learning_rate)
        seconds += 30.0
        is_over = clock.tick(save)
    assert len(rates) == 20
    assert rates[:2] == pytest.approx([0.3 / 300, 0.3 * 2 / 300 * 0.95])
    kept = json.loads((tmp_path / "snapshots.json").read_text())
    assert [row["step"] for row in kept] == [1, 2, 4, 7, 10, 14, 17, 20]  # of 20: 1/24, 1/12, 1/6, 1/3, ... rounded up
    assert [row["seconds"] for row in kept] == [30.0 * row["step"] for row in kept]
    assert [row["cpu_seconds"] for row in kept] == [60.0 * row["step"] for row in kept]
    assert all(Path(row["path"]).exists() for row in kept)
    assert [row["is_last"] for row in kept] == [False] * 7 + [True]


def test_two_versions_are_compared_block_by_block() -> None:
    """The machine slows down threefold from block to block, which no ratio sees; B takes a tenth more of the work."""
    compare = runpy.run_path(str(BENCHMARKS / "compare_checkouts.py"))
    again = [1.01, 0.98, 1.0, 1.04]  # times what A takes
    rows = [
        {"measure": "greedy", "block": block, "name": name, "cpu_seconds": 3**block * share, "seconds": 5.0}
        | {"result": "other" if (block, name) == (2, "B") else "same"}
        for block in range(4)
        for name, share in (("B", 1.1), ("A'", again[block]), ("A", 1.0))
    ]
    found = compare["summarise"](rows)["greedy"]
    assert (found["blocks"], found["equal_results"], found["cpu_seconds_of_a_block"]) == (4, 3, 6.0)
    assert found["cpu_seconds"]["B"] == pytest.approx(
        {"median": 1.1, "half_within": 0.1, "nine_of_ten_within": 0.1, "all_within": 0.1}
    )
    assert found["cpu_seconds"]["A'"] == pytest.approx(
        {"median": 1.005, "half_within": 0.015, "nine_of_ten_within": 0.04, "all_within": 0.04}
    )
    assert found["seconds"]["B"]["median"] == 1.0


def test_the_machine_knows_itself() -> None:
    cpu = torch.device("cpu")
    assert machine.cpu_model()
    assert machine.device_name(cpu) == machine.cpu_model()
    assert 10 < usage.peak_memory(cpu) < 1e6
    busy, stolen = usage.cpu_seconds() or (1.0, 0.0)
    assert busy > 0 <= stolen


@pytest.mark.parametrize(
    ("contents", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "900000 100000\n"}, 6),
        ({"quota": "300000\n", "period": "100000\n"}, 3),
        ({"quota": "-1\n", "period": "100000\n"}, 6),
        ({}, 6),
    ],
)
def test_a_container_has_the_cores_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: dict[str, str], cores: int
) -> None:
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(machine, "_QUOTAS", [[tmp_path / "cpu.max"], [tmp_path / "quota", tmp_path / "period"]])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(6)), raising=False)
    assert machine.usable_cores() == cores


def test_code_that_is_not_installed_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    assert transduce.__version__ == metadata.version("transduce")
    monkeypatch.setattr(metadata, "version", missing)
    assert transduce.__version__ == "0+unknown"
