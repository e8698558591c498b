"""The number of processes that `train` chooses, on machines that are made up."""

from dataclasses import replace

import pytest
import torch

from transduce.config.settings import ExperimentConfig
from transduce.data.config import DataConfig
from transduce.data.pairs import Pairs
from transduce.devices import machine
from transduce.model.config import PRESETS
from transduce.runs.parallelism import choose_processes, processes_of
from transduce.training.config import TrainingConfig

CPU, GIB = torch.device("cpu"), 2**30
CONFIG = ExperimentConfig(
    data=DataConfig(train=("pairs.tsv",)), training=TrainingConfig(steps=1000), model=PRESETS["tiny"]
)


@pytest.mark.parametrize(
    ("cores", "free", "training", "expected", "reason"),
    [
        (1, 64, {}, 1, "limited by 1 usable core"),
        (2, 64, {}, 2, "limited by 2 usable cores"),
        (3, 64, {}, 2, "limited by 3 usable cores"),
        (64, 64, {}, 4, "the maximum"),
        (64, 3, {}, 2, "limited by 3.0 GiB of free memory"),
        (64, 0.5, {}, 1, "limited by 0.5 GiB of free memory"),
        (64, 64, {"batch_tokens": 1024}, 1, "limited by a batch of 1,024 tokens (training.part_tokens = 1,024)"),
        (64, 64, {"batch_tokens": 1024, "part_tokens": 512}, 2, "limited by a batch of 1,024 tokens"),
        (64, 64, {"batch_tokens": 1024, "micro_batches": 2}, 2, "limited by a batch of 2,048 tokens"),
        (
            64,
            64,
            {"batch_tokens": 512, "micro_batches": 2},
            2,
            "limited by a batch of 1,024 tokens",
        ),  # two parts of 512
        (64, 64, {"steps": 20}, 1, "limited by the short run"),
        (64, 64, {"steps": 0, "minutes": 0.2}, 1, "limited by the short run"),
        (64, 64, {"steps": 0, "minutes": 5.0}, 4, "the maximum"),
    ],
)
def test_as_many_processes_as_there_are_cores_work_and_memory_for(cores, free, training, expected, reason):
    config = replace(CONFIG, training=replace(CONFIG.training, **training))
    num, why = choose_processes(config, CPU, cores=cores, free_bytes=int(free * GIB))
    assert (num, why.startswith(reason)) == (expected, True), why


def test_large_models_leave_memory_to_others():
    config = replace(CONFIG, model=PRESETS["big"])  # 180 million weights and more: some 5 GB for each process
    assert choose_processes(config, CPU, cores=8, free_bytes=24 * GIB)[0] == 2


def test_every_process_has_the_ids_of_a_large_text():
    def num(num_characters: int) -> int:
        text = Pairs(["a" * num_characters], ["b"], {}, [], {})
        return choose_processes(CONFIG, CPU, text=text, cores=4, free_bytes=8 * GIB)[0]

    assert (num(10**6), num(300 * 10**6)) == (4, 2)


def test_few_epochs_of_a_short_text_are_a_short_run():
    text = Pairs(["a" * 20] * 1000, ["b" * 20] * 1000, {}, [], {})  # some 10,000 tokens of subwords

    def num(epochs: float) -> int:
        config = replace(CONFIG, training=replace(CONFIG.training, steps=0, epochs=epochs))
        return choose_processes(config, CPU, text=text, cores=4, free_bytes=64 * GIB)[0]

    assert (num(2.0), num(200.0)) == (1, 4)


def test_a_run_has_no_more_processes_than_threads_were_set(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    for threads, expected in ((1, 1), (2, 2), (8, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert choose_processes(CONFIG, CPU, free_bytes=64 * GIB)[0] == expected


def test_a_gpu_has_one_process():
    assert choose_processes(CONFIG, torch.device("cuda", 0), cores=64, free_bytes=64 * GIB)[0] == 1


def test_the_limit_of_a_container_is_the_memory_there_is(monkeypatch, tmp_path):
    for name, value in (("max", "3000"), ("current", "1000"), ("none", "max")):
        (tmp_path / name).write_text(f"{value}\n")
    files = [(tmp_path / "none", tmp_path / "current"), (tmp_path / "max", tmp_path / "current")]
    monkeypatch.setattr(machine, "_MEMORY_LIMITS", files)
    assert machine.free_memory() == 2000


@pytest.mark.parametrize("lines", ["inactive_file 400", "inactive_file 7\ntotal_inactive_file 400"], ids=["v2", "v1"])
def test_files_that_can_be_dropped_from_memory_are_free(monkeypatch, tmp_path, lines):
    for name, value in (("max", "3000"), ("current", "1000"), ("memory.stat", f"anon 5\n{lines}\nactive_file 9")):
        (tmp_path / name).write_text(f"{value}\n")
    monkeypatch.setattr(machine, "_MEMORY_LIMITS", [(tmp_path / "max", tmp_path / "current")])
    assert machine.free_memory() == 2400


@pytest.mark.parametrize(
    ("started", "resumed", "expected"), [({}, [], 1), ({"processes": 2}, [], 2), ({}, [3], 3), ({}, [9], 4)]
)
def test_a_run_goes_on_with_the_processes_of_its_last_session_or_what_there_are(
    monkeypatch, started, resumed, expected
):
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    facts = {"started": started, "resumed": [{"machine": {"processes": num}} for num in resumed]}
    assert processes_of(facts, CPU) == expected
