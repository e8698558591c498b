"""Training speed on this machine, and the share of the time spent multiplying matrices."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile

from transduce.cli.benchmark import usage
from transduce.cli.benchmark.blocks import had_by_others, shares_of_others, spread, where_timed
from transduce.cli.benchmark.matrix_products import RecordedProducts, synchronize
from transduce.data.batches import EncodedPairs, encode_pairs, plan_epoch
from transduce.data.datasets import load_split
from transduce.data.download import Places
from transduce.inference.predictor import ignore
from transduce.model.config import PRESETS, TransformerConfig, VocabularySizes
from transduce.model.transformer import Transformer
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.distributed import Process
from transduce.training.step import TrainStep

# Transformer-Tiny as it is trained on Multi30k; the other models are the presets as they are.
MODELS = PRESETS | {"tiny": replace(PRESETS["tiny"], dropout=0.3)}
MULTI30K, WMT_LIKE = "multi30k-en-de", "wmt-like"
DEFAULT_STEPS = {"tiny": 40, "small": 20, "base": 10, "big": 5}
PARTS = ("data", "forward", "loss", "backward", "exchange", "optimizer")  # as the trainer marks them

_MOST_BLOCKS = 5  # all of the same steps, so that they differ only by what else the machine does
_PROFILED_STEPS = 3
_WMT_VOCABULARY = 37_000  # subwords of both languages (section 5.1)
_WMT_PAIRS, _WMT_MEAN_LEN, _WMT_LEN_SPREAD, _WMT_SIDE_SPREAD = 20_000, 27.0, 0.6, 0.15  # spreads: of logarithms
_WMT_MOST_TOKENS = 250


@dataclass(frozen=True, kw_only=True)
class TrainingWork:
    """The workload: a model, data, and the number of steps."""

    model: str = "tiny"
    data: str = ""  # MULTI30K or WMT_LIKE; empty: the first for tiny and small, the second for base and big
    steps: int = 0  # timed ones; 0: DEFAULT_STEPS
    batch_tokens: int = 4096
    seed: int = 1

    @property
    def dataset(self) -> str:
        return self.data or (MULTI30K if self.model in ("tiny", "small") else WMT_LIKE)

    @property
    def blocks(self) -> tuple[int, int]:
        """Number of blocks, and of steps in each; the last steps, which fill no block, are left out."""
        steps = self.steps or DEFAULT_STEPS[self.model]
        num = min(_MOST_BLOCKS, steps)
        return num, steps // num


def measure_training(
    work: TrainingWork,
    device: torch.device,
    places: Places,
    report: Callable[[str], None] = ignore,
    process: Process = Process(),
) -> dict[str, Any] | None:
    """Train blocks of steps and measure their speed; None on every process but the first.

    Steps are those of `transduce train`: each is one update from one planned batch, shared by all processes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(work.seed)
        pairs, vocabulary = _read_pairs(work, MODELS[work.model], process, places, report)
        update = build_update(work, Transformer(MODELS[work.model], vocabulary).to(device), process)
        num_blocks, num_steps = work.blocks
        steps = planned_steps(update, pairs, work, num_steps)
        report(f"recording the matrix products of {num_steps} steps")
        products = record_products(update, pairs, steps)
        blocks, peak_memory = [], 0.0
        usage.forget_peak_memory(update.device)
        for number in range(num_blocks):
            report(f"block {number + 1} of {num_blocks}")
            blocks.append(_time_block(update, pairs, steps, first_step=1 + (number + 1) * num_steps))
            peak_memory = usage.peak_memory(update.device)  # now, as the products below hold their own
            blocks[-1] |= _time_products(products, process, update.device)
        parts = _time_parts(update, pairs, steps[:_PROFILED_STEPS], first_step=1 + (num_blocks + 1) * num_steps)
        facts = {"peak_memory_mib": _from_all(process, peak_memory, update.device), "parts_ms": parts}
        return _report(work, update, pairs, steps, blocks) | facts if process.is_main else None


def build_update(work: TrainingWork, model: Transformer, process: Process) -> TrainStep:
    """The training step, with the paper's optimizer settings."""
    config = TrainingConfig(steps=100_000, batch_tokens=work.batch_tokens, seed=work.seed)
    return TrainStep(model, config=config, optim=OptimConfig(), process=process)


def _read_pairs(
    work: TrainingWork, config: TransformerConfig, process: Process, places: Places, report: Callable[[str], None]
) -> tuple[EncodedPairs, VocabularySizes]:
    if work.dataset == WMT_LIKE:
        return wmt_like_pairs(work.seed), VocabularySizes.joint(_WMT_VOCABULARY)
    text = load_split(work.dataset, "train", places)
    report(f"{work.dataset}: {len(text):,} pairs; learning a vocabulary from them")
    tokenizer = process.decide(lambda: Tokenizer.learn(TokenizerConfig(), text.src, text.tgt))
    return encode_pairs(tokenizer, text, max_len=config.max_len)[0], tokenizer.vocabulary_sizes


def wmt_like_pairs(seed: int) -> EncodedPairs:
    """Random ids with lengths and frequencies like those of news translation: log-normal, and by Zipf's law."""
    random = np.random.default_rng(seed)
    mean = np.log(_WMT_MEAN_LEN) - (_WMT_LEN_SPREAD**2 + _WMT_SIDE_SPREAD**2) / 2  # of the logarithms
    common = random.normal(mean, _WMT_LEN_SPREAD, _WMT_PAIRS)
    first_id = Tokenizer.eos_id + 1
    shares = np.cumsum(1 / np.arange(1, _WMT_VOCABULARY - first_id + 1))
    sides = []
    for _ in range(2):
        lens = np.exp(common + random.normal(0, _WMT_SIDE_SPREAD, _WMT_PAIRS)).round().clip(1, _WMT_MOST_TOKENS)
        ends = np.cumsum(lens.astype(np.int64))
        ids = first_id + np.searchsorted(shares, random.random(ends[-1]) * shares[-1], side="right")
        ids[ends - 1] = Tokenizer.eos_id
        sides.append([row.tolist() for row in np.split(ids, ends[:-1])])
    return EncodedPairs(*sides)


def planned_steps(
    update: TrainStep, pairs: EncodedPairs, work: TrainingWork, num_steps: int
) -> list[list[NDArray[np.intp]]]:
    """The first steps of an epoch, repeated if it is short: a planned batch each, or one for each GPU."""
    num = 1 if update.device.type == "cpu" else update.process.world_size
    plan = plan_epoch(pairs, batch_tokens=work.batch_tokens, micro_batches=num, seed=work.seed, epoch=0)
    return [plan[number % len(plan)] for number in range(num_steps)]


def record_products(
    update: TrainStep, pairs: EncodedPairs, steps: Sequence[list[NDArray[np.intp]]]
) -> RecordedProducts:
    """The matrix products of these steps, which this process executes."""
    with RecordedProducts() as products:
        for number, micro_batches in enumerate(steps):
            update(pairs, micro_batches, number + 1)
    return products


def _time_block(
    update: TrainStep, pairs: EncodedPairs, steps: Sequence[list[NDArray[np.intp]]], first_step: int
) -> dict[str, Any]:
    """Target tokens, seconds of the slowest process, CPU seconds of all processes and of other programs."""
    process, device = update.process, update.device
    _from_all(process, 0.0, device)  # all begin together
    machine_before, cpu_seconds, started = usage.cpu_seconds(), time.process_time(), time.perf_counter()
    for number, micro_batches in enumerate(steps):
        update(pairs, micro_batches, first_step + number)
    synchronize(device)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_seconds
    machine_after = usage.cpu_seconds()
    block: dict[str, Any] = {
        "tokens": sum(int(pairs.tgt_lens[rows].sum()) for step in steps for rows in step),
        "seconds": max(_from_all(process, seconds, device)),
        "cpu_seconds": sum(_from_all(process, cpu_seconds, device)),
    }
    return block | had_by_others(machine_before, machine_after, block["cpu_seconds"])


def _time_products(products: RecordedProducts, process: Process, device: torch.device) -> dict[str, float]:
    """Seconds of a block's products alone, in all processes at the same time: the mean over processes."""
    _from_all(process, 0.0, device)
    seconds = _from_all(process, products.seconds_alone(device), device)
    flops = _from_all(process, float(products.flops), device)
    return {"product_seconds": sum(seconds) / len(seconds), "product_flops": sum(flops)}


def _time_parts(
    update: TrainStep, pairs: EncodedPairs, steps: Sequence[list[NDArray[np.intp]]], first_step: int
) -> dict[str, float]:
    """Milliseconds of a step by part, in the first process; on a GPU, until its kernels are queued."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes lines of its own to standard error
    synchronize(update.device)
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for number, micro_batches in enumerate(steps):
            update(pairs, micro_batches, first_step + number)
        seconds = time.perf_counter() - started
    total = {event.key: event.cpu_time_total / 1e3 / len(steps) for event in profiled.key_averages()}
    parts = {part: total.get(part, 0.0) for part in PARTS}
    parts["optimizer"] -= parts["exchange"]  # which is inside it
    parts["rest"] = max(0.0, seconds * 1e3 / len(steps) - sum(parts.values()))
    return {part: round(value, 2) for part, value in parts.items()}


def _from_all(process: Process, value: float, device: torch.device) -> list[float]:
    """The values of all processes, by rank; each waits for the last."""
    values = torch.zeros(process.world_size, dtype=torch.float64, device=device)
    values[process.rank] = value
    process.sum_([values])
    return values.tolist()


def _report(
    work: TrainingWork,
    update: TrainStep,
    pairs: EncodedPairs,
    steps: Sequence[list[NDArray[np.intp]]],
    blocks: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    is_gpu = update.device.type == "cuda"
    gflops = [block["product_flops"] / block["seconds"] / 1e9 for block in blocks]
    gflops_alone = [block["product_flops"] / block["product_seconds"] / 1e9 for block in blocks]
    return {
        "benchmark": "train",
        "settings": _settings(work, update),
        **where_timed(update.device),
        "tokens_per_second": spread([block["tokens"] / block["seconds"] for block in blocks]),
        "tokens_per_cpu_second": (
            None if is_gpu else spread([block["tokens"] / block["cpu_seconds"] for block in blocks])
        ),
        "product_share": spread([block["product_seconds"] / block["seconds"] for block in blocks], digits=4),
        "gflops": spread(gflops),
        "gflops_of_products_alone": spread(gflops_alone),
        "padding": padding_shares(pairs, [part for step in steps for part in update.parts(pairs, step)]),
        **shares_of_others(blocks),
        "blocks": blocks,
    }


def _settings(work: TrainingWork, update: TrainStep) -> dict[str, Any]:
    num_blocks, num_steps = work.blocks
    model = update.model
    return {
        "model": work.model,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dropout": model.config.dropout,
        "data": work.dataset,
        "vocabulary": model.vocabulary.target,
        "target_ids": model.vocabulary.num_target_ids,  # what the softmax ranges over
        "batch_tokens": work.batch_tokens,
        "blocks": num_blocks,
        "steps_per_block": num_steps,
        "processes": update.process.world_size,
        "threads": torch.get_num_threads(),
        "device": str(update.device),
        "precision": "bfloat16" if update.device.type == "cuda" else "float32",  # what "auto" means
    }


def padding_shares(pairs: EncodedPairs, batches: Sequence[NDArray[np.intp]]) -> dict[str, float]:
    """The share of padding in the positions of rectangular batches, for each side."""
    shares = {}
    for side, lens in (("source", pairs.src_lens), ("target", pairs.tgt_lens)):
        num_real = sum(int(lens[rows].sum()) for rows in batches)
        num_positions = sum(len(rows) * int(lens[rows].max()) for rows in batches)
        shares[side] = round(1 - num_real / num_positions, 4)
    return shares
