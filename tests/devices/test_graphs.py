"""CUDA graphs by a fake that keeps to their rules: recording computes nothing, and a replay computes on the tensors of
the recording, whatever names they are known by since."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import transduce.devices.graphs
from transduce.data.batches import EncodedPairs
from transduce.devices.graphs import GraphedWork
from transduce.model import Transformer
from transduce.model.config import TransformerConfig, VocabularySizes
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.step import TrainStep


@dataclass(frozen=True)
class Inner:
    numbers: Tensor
    max_len: int


@dataclass(frozen=True)
class Batch:
    ids: Tensor
    inner: Inner


class FakeGraph:
    recording: "FakeGraph | None" = None
    all: list["FakeGraph"] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self) -> None:
        self.replay: Callable[[], object] = lambda: None
        self.num_replays, self.given_pool, self.own_pool = 0, None, object()
        self.all.append(self)

    def pool(self) -> object:
        return self.given_pool or self.own_pool

    @classmethod
    @contextmanager
    def capture(cls, graph: "FakeGraph", pool: object = None, capture_error_mode: str = "") -> Iterator[None]:
        assert capture_error_mode in ("", "global", "thread_local", "relaxed")
        cls.recording, graph.given_pool = graph, pool
        yield
        cls.recording = None


class FakeStream:
    def wait_stream(self, _other: object) -> None:
        pass


@pytest.fixture(autouse=True)
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGraph.all.clear()
    fakes = {"Stream": FakeStream, "current_stream": FakeStream, "stream": lambda _stream: nullcontext()}
    for name, fake in (fakes | {"CUDAGraph": FakeGraph, "graph": FakeGraph.capture}).items():
        monkeypatch.setattr(torch.cuda, name, fake)


def recordable(compute: Callable[[Any], tuple[Tensor, ...]], parameters: list[nn.Parameter]) -> Callable[[Any], Any]:
    """`compute`, that adds to gradients, but while a graph is recorded: then it is done by every replay instead."""

    def work(batch: Any) -> tuple[Tensor, ...]:
        graph = FakeGraph.recording
        if graph is None:
            return compute(batch)
        with torch.no_grad():
            results = tuple(torch.full((), torch.nan) for _ in range(2))  # of what type, the work says
        gradients = [parameter.grad for parameter in parameters]
        assert all(gradient is not None for gradient in gradients), "allocated while recording"

        def replay() -> None:
            graph.num_replays += 1
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            for result, computed in zip(results, compute(batch), strict=True):
                result.copy_(computed)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                gradient += parameter.grad
                parameter.grad = gradient

        graph.replay = replay
        return results

    return work


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.tensor([2.0, 3.0, 5.0]))


@pytest.fixture
def ran() -> list[tuple[int, int]]:
    """Of each computation: the length of the batch, and the number that it was given."""
    return []


@pytest.fixture
def work(weight: nn.Parameter, ran: list[tuple[int, int]]) -> GraphedWork[Batch]:
    def compute(batch: Batch) -> tuple[Tensor, ...]:
        ran.append((len(batch.ids), batch.inner.max_len))
        loss = (weight[batch.ids] * batch.inner.numbers).sum() * batch.inner.max_len
        loss.backward()
        return loss.detach(), batch.inner.numbers.sum()

    return GraphedWork(recordable(compute, [weight]), [weight])


def batch_of(ids: list[int], numbers: list[float], max_len: int = 1) -> Batch:
    return Batch(torch.tensor(ids), Inner(torch.tensor(numbers), max_len))


def test_after_recording_the_gradient_is_that_of_one_computation(work, weight):
    assert [float(x) for x in work(batch_of([0, 2], [7.0, 11.0]))] == [2 * 7 + 5 * 11, 18]
    assert weight.grad.tolist() == [7, 0, 11]
    assert [graph.num_replays for graph in FakeGraph.all] == [1]


def test_recording_leaves_the_gradient_of_what_came_before_it(work, weight):
    weight.grad = torch.tensor([100.0, 200.0, 300.0])
    before = weight.grad
    work(batch_of([0, 2], [7.0, 11.0]))
    assert weight.grad is before
    assert weight.grad.tolist() == [107, 200, 311]


def test_a_second_batch_of_the_same_shape_is_copied_in_and_adds_to_the_gradient(work, weight):
    first, second = batch_of([0, 2], [7.0, 11.0]), batch_of([1, 1], [13.0, 17.0])
    work(first)
    assert [float(x) for x in work(second)] == [3 * 30, 30]
    assert weight.grad.tolist() == [7, 30, 11]
    assert second.ids.tolist() == [1, 1]
    assert [graph.num_replays for graph in FakeGraph.all] == [2]


def test_a_gradient_that_is_zeroed_between_is_that_of_the_second_batch_alone(work, weight):
    work(batch_of([0, 2], [7.0, 11.0]))
    weight.grad.zero_()
    work(batch_of([1, 1], [13.0, 17.0]))
    assert weight.grad.tolist() == [0, 30, 0]


def test_another_shape_is_recorded_apart_and_the_first_is_found_again(work, weight):
    for ids, numbers in (([0, 2], [7.0, 11.0]), ([1], [13.0]), ([2, 2], [17.0, 19.0]), ([0], [23.0])):
        work(batch_of(ids, numbers))
    assert weight.grad.tolist() == [7 + 23, 13, 11 + 17 + 19]
    assert [graph.num_replays for graph in FakeGraph.all] == [2, 2]


def test_a_number_is_part_of_the_shape(work, weight):
    work(batch_of([0], [7.0], max_len=3))
    work(batch_of([0], [7.0], max_len=5))
    assert weight.grad.tolist() == [7 * 3 + 7 * 5, 0, 0]
    assert len(FakeGraph.all) == 2


def test_beyond_so_many_shapes_work_is_done_without_a_graph(work, weight, ran, monkeypatch):
    monkeypatch.setattr(transduce.devices.graphs, "_MOST_GRAPHS", 2)
    for length in (1, 2, 3):
        work(batch_of([0] * length, [1.0] * length))
    assert len(FakeGraph.all) == 2
    ran.clear()
    work(batch_of([0] * 3, [1.0] * 3))
    assert ran == [(3, 1)]
    assert [graph.num_replays for graph in FakeGraph.all] == [1, 1]
    work(batch_of([0], [1.0]))
    assert [graph.num_replays for graph in FakeGraph.all] == [2, 1]
    assert weight.grad.tolist() == [1 + 2 + 3 + 3 + 1, 0, 0]


def test_all_recordings_share_one_pool_of_memory(work):
    for length in (1, 2, 3):
        work(batch_of([0] * length, [1.0] * length))
    first, *others = FakeGraph.all
    assert first.given_pool is None
    assert [graph.given_pool for graph in others] == [first.own_pool] * 2


def test_where_recording_fails_work_goes_on_where_it_was(work, monkeypatch):
    stack = ["default"]  # of streams; torch leaves that of the recording only if it succeeds

    @contextmanager
    def on(stream: object) -> Iterator[None]:
        before = [*stack]
        stack.append(str(stream))
        try:
            yield
        finally:
            stack[:] = before

    @contextmanager
    def capture(*_: object, **_settings: object) -> Iterator[None]:
        stack.append("of the recording")
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    with pytest.raises(RuntimeError, match="not permitted"):
        work(batch_of([0, 2], [7.0, 11.0]))
    assert stack == ["default"]


def test_steps_that_are_replayed_equal_others_in_every_bit_dropout_too():
    config = TransformerConfig(d_model=8, d_ff=11, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, dropout=0.3)
    random = np.random.default_rng(1)
    lens = [3, 4, 4, 3, 5, 2, 4, 3]
    pairs = EncodedPairs(*([[*random.integers(3, 13, length).tolist(), 2] for length in lens] for _ in range(2)))
    steps = [[np.array([0, 1]), np.array([4, 5])], [np.array([2, 3])], [np.array([6, 7, 0])], [np.array([1, 3])]]
    found = []
    for is_graphed in (False, True):
        torch.manual_seed(2)
        model = Transformer(config, VocabularySizes.joint(13))
        training = TrainingConfig(steps=9, batching="packed", cuda_graph=True)
        update = TrainStep(model, config=training, optim=OptimConfig(learning_rate=0.01, warmup_steps=1))
        if is_graphed:  # as on a GPU
            parameters = list(model.parameters())
            update._is_graphed = True
            update._work = GraphedWork(recordable(update._accumulate_gradients, parameters), parameters)
        results = [update(pairs, micro_batches, number).read() for number, micro_batches in enumerate(steps, start=1)]
        found.append((results, dict(model.named_parameters())))
    assert [graph.num_replays for graph in FakeGraph.all] == [4, 1]
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)
