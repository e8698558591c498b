"""Batches, precision and CUDA graph that a run gets where its settings leave them to the device, on GPUs made up."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from transduce.config.settings import ExperimentConfig, carry_over
from transduce.data.batches import EncodedPairs
from transduce.data.config import DataConfig
from transduce.data.pairs import Pairs
from transduce.devices import machine
from transduce.errors import ConfigMismatchError, TransduceError
from transduce.model import Transformer
from transduce.model.config import TransformerConfig, VocabularySizes
from transduce.runs import device_choice
from transduce.runs import train as experiment
from transduce.runs.device_choice import check_kernels, settled, suit_device
from transduce.runs.folder import RunFolder
from transduce.runs.sizing import choose_settings
from transduce.runs.tasks import find_task
from transduce.runs.train import train
from transduce.text.config import TokenizerConfig
from transduce.training.config import TrainingConfig
from transduce.training.step import TrainStep

MODEL = TransformerConfig(d_model=16, d_ff=24, num_heads=2, num_encoder_layers=1, num_decoder_layers=1)
CONFIG = ExperimentConfig(
    data=DataConfig(train=("pairs.tsv",), max_len=20),
    model=MODEL,
    tokenizer=TokenizerConfig(source="characters", target="characters"),
    training=TrainingConfig(steps=2, batch_tokens=100, micro_batches=3),
)
SHORT, UNRECORDED = device_choice._SHORT, device_choice._UNRECORDED
FAST, SLOW = ("packed", "bfloat16", True), ("bucketed", "float32", False)
H100, A100, T4 = (9, 0), (8, 0), (7, 5)


def asking(**training: Any) -> ExperimentConfig:
    return replace(CONFIG, training=replace(CONFIG.training, **training))


def choice_of(training: TrainingConfig) -> tuple[str, str, object]:
    return training.batching, training.precision, training.cuda_graph


@pytest.mark.parametrize(
    ("capability", "expected"), [(H100, FAST), (A100, FAST), (T4, SLOW), ((7, 0), SLOW), (None, SLOW)]
)
def test_what_is_left_open_is_chosen_by_compute_capability(capability, expected):
    assert choice_of(settled(CONFIG, capability)) == expected


@pytest.mark.parametrize(
    ("capability", "asked", "expected"),
    [
        (H100, {"batching": "bucketed"}, ("bucketed", "bfloat16", False)),
        (H100, {"batching": "packed"}, FAST),
        (H100, {"precision": "float32"}, ("bucketed", "float32", False)),  # packed batches have no kernel for it
        (H100, {"precision": "float32", "batching": "packed"}, ("packed", "float32", False)),
        (H100, {"cuda_graph": False}, ("packed", "bfloat16", False)),
        (H100, {"compile": True}, ("packed", "bfloat16", False)),
        (T4, {"batching": "packed", "cuda_graph": True}, ("packed", "float32", True)),
        (T4, {"precision": "bfloat16"}, ("bucketed", "bfloat16", False)),
        (None, {"batching": "packed", "cuda_graph": True}, ("packed", "float32", True)),
        (None, {"precision": "bfloat16"}, ("bucketed", "bfloat16", False)),
    ],
)
def test_what_is_set_is_not_chosen(capability, asked, expected):
    assert choice_of(settled(asking(**asked), capability)) == expected


def test_several_gpus_get_packed_batches_without_a_graph():
    assert choice_of(settled(CONFIG, H100, num_gpus=2)) == ("packed", "bfloat16", False)


@pytest.mark.parametrize("head_dim", [12, 264])
def test_heads_that_the_kernel_does_not_take_get_bucketed_batches(head_dim):
    config = replace(CONFIG, model=replace(MODEL, d_model=2 * head_dim))
    assert choice_of(settled(config, H100)) == ("bucketed", "bfloat16", False)


# The trial


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[TrainingConfig], list[str], Any]]:
    """Lets `suit_device` choose for a GPU whose trials have problems given in order, then none.

    Gives the settings tried, the lines reported, and the result.
    """

    def suit(*problems: str, config: ExperimentConfig = CONFIG, capability: Any = H100, num_gpus: int = 1) -> Any:
        tried: list[TrainingConfig] = []
        lines: list[str] = []
        coming = iter(problems)

        def problem_of(config: ExperimentConfig, _model: object, _pairs: object) -> str:
            tried.append(config.training)
            return next(coming, "")

        monkeypatch.setattr(device_choice, "_problem_of", problem_of)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
        monkeypatch.setattr(machine, "device_name", lambda _device: "NVIDIA H100")
        model: Any = SimpleNamespace(output_weight=SimpleNamespace(device=torch.device("cuda", 0)))
        return tried, lines, suit_device(config, model, EncodedPairs([[3, 2]], [[3, 2]]), num_gpus, lines.append)

    return suit


def test_the_choice_and_its_reason_are_one_line_that_is_recorded(on_gpu):
    tried, lines, (config, facts) = on_gpu()
    (line,) = lines
    choice, _, reason = line.partition(": ")
    assert choice == "packed batches of 100 tokens, recorded as a CUDA graph, in bfloat16"
    assert reason == "the NVIDIA H100 has compute capability 9.0"
    assert facts == {"chosen": line, "configured_batch": [100, 3]}
    assert tried == [config.training]
    assert choice_of(config.training) == FAST


def test_a_graph_that_cannot_be_recorded_is_left_out(on_gpu):
    tried, (line,), (config, _) = on_gpu(UNRECORDED)
    assert [training.cuda_graph for training in tried] == [True, False]
    assert config == replace(CONFIG, training=replace(settled(CONFIG, H100), cuda_graph=False))
    assert "without a CUDA graph" in line
    assert line.endswith("; a CUDA graph cannot be recorded")


def test_where_memory_is_short_batches_are_halved_with_twice_as_many_in_a_step(on_gpu):
    _, (line,), (config, facts) = on_gpu(SHORT, SHORT)
    assert (config.training.batch_tokens, config.training.micro_batches) == (25, 12)
    assert choice_of(config.training) == FAST
    assert facts["configured_batch"] == [100, 3]
    assert line.startswith("packed batches of 25 tokens, ")
    assert line.count("out of memory") == 1


def test_where_memory_never_suffices_a_line_says_what_to_set(on_gpu):
    with pytest.raises(
        TransduceError, match=r"^training\.batch_tokens = 25 does not work .*out of memory.* lower it or"
    ):
        on_gpu(*[SHORT] * 9)


def test_batches_are_not_made_too_small_for_the_longest_pair_but_go_without_a_graph(on_gpu):
    tried, _, (config, _) = on_gpu(SHORT, SHORT, SHORT)
    assert [training.batch_tokens for training in tried] == [100, 50, 25, 25]  # of data.max_len = 20
    assert config.training.cuda_graph is False


def test_batches_that_were_asked_for_are_not_split(on_gpu):
    tried, _, (config, _) = on_gpu(SHORT, config=asking(batching="packed"))
    assert [(training.batch_tokens, training.cuda_graph) for training in tried] == [(100, True), (100, False)]
    assert config.training.batching == "packed"
    with pytest.raises(TransduceError, match="batch_tokens = 100"):
        on_gpu(SHORT, SHORT, config=asking(batching="packed"))


def test_a_graph_that_was_asked_for_is_not_left_out(on_gpu):
    with pytest.raises(TransduceError, match=r"cannot be recorded.*training\.cuda_graph to false"):
        on_gpu(UNRECORDED, config=asking(batching="packed", cuda_graph=True))


def test_an_older_gpu_is_told_its_batches_too(on_gpu):
    _, (line,), (config, _) = on_gpu(SHORT, capability=T4)
    assert choice_of(config.training) == SLOW
    assert line.startswith("bucketed batches of 50 tokens, without a CUDA graph, in float32: ")
    assert "compute capability 7.5" in line


def test_of_several_gpus_the_line_says_why_there_is_no_graph(on_gpu):
    _, (line,), _ = on_gpu(num_gpus=2)
    assert "without a CUDA graph" in line
    assert "untested on several GPUs" in line


def test_where_all_is_set_nothing_is_tried_or_said(on_gpu):
    config = asking(batching="bucketed", precision="float32", cuda_graph=False)
    assert on_gpu(SHORT, config=config) == ([], [], (config, {}))


PAIRS = EncodedPairs([[*[5] * length, 2] for length in range(1, 9)], [[*[6] * length, 2] for length in range(1, 9)])


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(1)
    return Transformer(MODEL, VocabularySizes.joint(13))


def test_on_a_cpu_nothing_is_tried_or_said(model, monkeypatch):
    monkeypatch.setattr(device_choice, "_problem_of", lambda *_: pytest.fail("a trial"))
    config, facts = suit_device(CONFIG, model, PAIRS, 1, pytest.fail)
    assert (choice_of(config.training), facts) == (SLOW, {})
    assert config == replace(CONFIG, training=config.training)


@pytest.mark.parametrize("batching", ["bucketed", "packed"])
def test_a_trial_changes_neither_the_weights_nor_the_random_state(model, batching):
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    config = asking(batching=batching, precision="float32", cuda_graph=False, steps=0, epochs=1.0)
    assert device_choice._problem_of(config, model, PAIRS) == ""
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trial_takes_the_batches_of_the_longest_and_of_the_most_pairs(model, monkeypatch):
    steps = []
    ordinary = TrainStep.__call__

    def step(self: TrainStep, pairs: EncodedPairs, micro_batches: Any, number: int) -> Any:
        steps.append([(len(rows), int(pairs.src_lens[rows].max())) for rows in micro_batches])
        return ordinary(self, pairs, micro_batches, number)

    monkeypatch.setattr(TrainStep, "__call__", step)
    device_choice._problem_of(asking(batching="bucketed", precision="float32", batch_tokens=20), model, PAIRS)
    assert steps == [[(2, 9), (4, 5)]] * 2  # 2 to 5 tokens: four pairs; 6, 7: two; 8, 9: two


class FakeGenerator:
    """A generator of random numbers of a GPU, which is given another state."""

    def __init__(self, _device: str = "") -> None:
        self.states: list[object] = []

    def graphsafe_set_state(self, state: object) -> None:
        self.states.append(state)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> FakeGenerator:
    of_gpu = FakeGenerator()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", (of_gpu,))
    monkeypatch.setattr(torch, "Generator", FakeGenerator)
    return of_gpu


@pytest.mark.parametrize(
    ("error", "cuda_graph", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True, SHORT),
        (torch.OutOfMemoryError("CUDA out of memory."), False, SHORT),
        (RuntimeError("operation not permitted when stream is capturing"), True, UNRECORDED),
    ],
)
def test_a_trial_tells_too_little_memory_from_a_graph_that_fails(
    model, generator, monkeypatch, error, cuda_graph, expected
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(TrainStep, "__call__", fail)
    config = asking(batching="packed", precision="bfloat16", cuda_graph=cuda_graph)
    assert device_choice._problem_of(config, model, PAIRS) == expected
    assert len(generator.states) == (expected == UNRECORDED)


def test_another_error_of_a_trial_is_not_hidden(model, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(TrainStep, "__call__", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        device_choice._problem_of(asking(batching="bucketed", cuda_graph=False), model, PAIRS)


# What a run records, and resumes with


@pytest.fixture
def files(tmp_path: Path) -> ExperimentConfig:
    lines = [f"{'ab' * (number % 4 + 1)}\t{'ba' * (number % 4 + 1)}\n" for number in range(40)]
    (tmp_path / "pairs.tsv").write_text("".join(lines))
    return replace(CONFIG, data=replace(CONFIG.data, train=(str(tmp_path / "pairs.tsv"),)))


@pytest.fixture
def gpu(on_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Runs choose as on a GPU whose out of memory once, though they compute on this CPU; the problems to come."""
    problems = [SHORT]

    def choose(config: ExperimentConfig, _model: object, _pairs: object, _num: int, report: Any) -> Any:
        _, lines, result = on_gpu(*problems, config=config)
        for line in lines:
            report(line)
        return result

    monkeypatch.setattr(experiment, "suit_device", choose)
    monkeypatch.setattr(experiment, "_draw_learning_curve", lambda *_: None)
    yield problems


@pytest.mark.usefixtures("gpu")
def test_a_run_records_what_was_chosen_and_goes_on_with_it_on_any_device(files, tmp_path, monkeypatch):
    lines: list[str] = []
    train(files, tmp_path / "run", report=lines.append)
    folder = RunFolder.open(tmp_path / "run")
    saved = folder.settings.training
    assert choice_of(saved) == FAST
    assert (saved.batch_tokens, saved.micro_batches) == (50, 6)
    assert '"auto"' not in folder.config_text
    assert folder.facts["chosen"] in lines
    monkeypatch.setattr(experiment, "suit_device", lambda *_: pytest.fail("chosen again"))
    longer = replace(files, training=replace(files.training, steps=4))
    assert train(longer, tmp_path / "run", resume=True).step == 4
    assert folder.settings.training == replace(saved, steps=4)
    assert folder.facts["resumed"][0]["changes"] == {"training.steps": [2, 4]}


@pytest.mark.usefixtures("gpu")
def test_another_batch_than_at_the_start_is_a_change(files, tmp_path):
    train(files, tmp_path / "run")
    other = replace(files, training=replace(files.training, batch_tokens=99))
    with pytest.raises(ConfigMismatchError, match=r"training\.batch_tokens \(50 -> 99\)"):
        train(other, tmp_path / "run", resume=True)


def test_memory_that_never_suffices_leaves_no_run_folder(files, gpu, tmp_path):
    gpu[:] = [SHORT] * 9
    with pytest.raises(TransduceError, match="out of memory"):
        train(files, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_on_a_cpu_records_its_choice_as_settings_alone(files, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "_draw_learning_curve", lambda *_: None)
    train(files, tmp_path / "run", device="cpu")
    folder = RunFolder.open(tmp_path / "run")
    assert choice_of(folder.settings.training) == SLOW
    assert not {"chosen", "configured_batch"} & set(folder.facts)


def test_fit_leaves_its_batches_to_the_device():
    pairs = Pairs(["a b"] * 9, ["c d"] * 9, {}, [], {})
    config = choose_settings(
        find_task("translation"), pairs, ["x.tsv"], minutes=1, seed=1, device=torch.device("cpu"), speed=lambda _: 1e4
    ).config
    assert choice_of(config.training) == ("auto", "auto", "auto")


@pytest.mark.parametrize(
    ("asked", "saved", "expected"),
    [
        ({}, {"batching": "packed", "precision": "auto", "cuda_graph": True}, ("packed", "auto", True)),  # before 0.2
        ({}, {"batching": "bucketed", "precision": "bfloat16", "cuda_graph": False}, ("bucketed", "bfloat16", False)),
        (
            {"batching": "bucketed"},
            {"batching": "packed", "precision": "bfloat16", "cuda_graph": True},
            ("bucketed", "bfloat16", False),
        ),
        (
            {"cuda_graph": False, "precision": "float32"},
            {"batching": "packed", "precision": "bfloat16", "cuda_graph": True},
            ("packed", "float32", False),
        ),
    ],
)
def test_a_resumed_run_keeps_what_is_left_open(asked, saved, expected):
    assert choice_of(carry_over(asking(**asked), asking(**saved)).training) == expected


@pytest.mark.parametrize(
    ("capability", "is_missing", "num_heads", "expected"),
    [
        (T4, False, 1, "needs a GPU of compute capability 8.0 or higher, and this one has 7.5: set it to 'torch'"),
        (H100, True, 1, r"pip install 'transduce\[gpu\]'"),
        (H100, False, 2, "not for heads of 8 channels"),
    ],
)
def test_kernels_that_cannot_be_used_are_refused_with_what_to_do(
    capability, is_missing, num_heads, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(device_choice, "find_spec", lambda _name: None if is_missing else object())
    config = replace(asking(kernels="triton"), model=replace(MODEL, num_heads=num_heads))
    with pytest.raises(TransduceError, match=expected):
        check_kernels(config, torch.device("cuda", 0), lambda _line: None)


def test_on_a_cpu_our_kernels_are_not_used_and_that_is_said_also_on_resume(files, tmp_path):
    lines: list[str] = []
    for kernels in ("torch", "triton"):
        config = replace(files, training=replace(files.training, kernels=kernels))
        train(config, tmp_path / "run", resume=kernels == "triton", accept_changes=True, report=lines.append)
    assert lines.count("training.kernels does nothing on a CPU") == 1
