"""Is training on this GPU right, and how fast is it?

    PYTHONPATH=src python benchmarks/gpu.py [-o benchmarks/results/gpu.json] [--parts checks base ...]

It goes part by part, each in a process of its own with its own time limit, some eight minutes in all, eleven at most:

- checks: each compares two ways to the same numbers, within a bound that it states;
- tiny, base, big: training in bfloat16 on random ids with lengths like those of news translation, in several ways;
- baseline: the same with an older version of this project, whose tree is in a folder (--baseline):
  `mkdir -p build/baseline && git archive d149bbf src benchmarks/gpu.py | tar x -C build/baseline`;
- huggingface, nn.Transformer: a plain loop of theirs over the same pairs, in padded batches of similar lengths;
- decoding, baseline decoding, huggingface decoding: random sentences with random weights of tiny, from ids to ids.

It needs torch, triton, jaxtyping and tokenizers, and for Hugging Face transformers; nothing is installed. What fails is
written down in one line, and the rest goes on; the file is written after each part, so that nothing is lost if the time
is up. At the end it prints a table. `--rehearse` goes the same way on a CPU with tiny sizes, as far as that is possible
there: to try the script itself.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from transduce.cli.benchmark import usage
from transduce.cli.benchmark.matrix_products import synchronize
from transduce.data.batches import EncodedPairs, bucket_batches, collate, plan_epoch
from transduce.data.packed_batches import collate_packed, pack_batches
from transduce.devices import machine
from transduce.model import Transformer
from transduce.model.config import PRESETS, TransformerConfig, VocabularySizes
from transduce.model.packing import Segments
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.loss import cross_entropy_sum
from transduce.training.step import TrainStep

HERE = Path(__file__).resolve().parent
# Products of bfloat16 that the makers promise, without sparsity, in operations a second.
PEAKS = {"H200": 989.4e12, "H100": 989.4e12, "A100": 312e12}
MODES: dict[str, dict[str, Any]] = {
    "bucketed": {},
    "packed": {"batching": "packed"},
    "packed compiled": {"batching": "packed", "compile": True},
    "packed graphed": {"batching": "packed", "cuda_graph": True},
    "weights in bfloat16": {"batching": "packed", "precision": "bfloat16_weights"},
    "own kernels": {"batching": "packed", "kernels": "triton"},
    "both": {"batching": "packed", "precision": "bfloat16_weights", "kernels": "triton"},
    "both graphed": {
        "batching": "packed", "precision": "bfloat16_weights", "kernels": "triton", "cuda_graph": True,
    },
}  # fmt: skip
PEERS = ("huggingface", "nn.Transformer")
DECODING = {"decoding": ("plain", "graphed", "bfloat16"), "huggingface decoding": ("huggingface",)}
# Seconds that a part may take.
LIMITS = {
    "checks": 120, "base": 90, "baseline": 100, "decoding": 60, "baseline decoding": 50, "tiny": 45, "big": 75,
    "huggingface": 45, "nn.Transformer": 45, "huggingface decoding": 60,
}  # fmt: skip
LEN_SPREAD, SIDE_SPREAD, MOST_TOKENS = 0.6, 0.15, 250  # spreads: of logarithms
SEED = 1


@dataclass(frozen=True)
class Work:
    """A model and what it is trained on."""

    model: TransformerConfig
    vocabulary: int
    batch_tokens: int
    num_batches: int = 16  # each block goes through all of them
    num_blocks: int = 5
    num_pairs: int = 20_000
    mean_len: float = 27.0


WORK = {
    "tiny": Work(PRESETS["tiny"], 8_000, 4_096, num_batches=64),
    "base": Work(PRESETS["base"], 37_000, 25_000),
    "big": Work(PRESETS["big"], 37_000, 25_000),
}
_SMALL = TransformerConfig(d_model=16, d_ff=24, num_heads=2, num_encoder_layers=1, num_decoder_layers=1)
REHEARSAL = {"tiny": Work(_SMALL, 101, 100, num_batches=3, num_blocks=2, num_pairs=60, mean_len=9.0)}
CHECKED = Work(replace(PRESETS["tiny"], dropout=0.0), 8_000, 4_096, num_batches=12, num_pairs=3_000)
CHECKED_IN_REHEARSAL = Work(replace(_SMALL, dropout=0.0), 101, 100, num_batches=3, num_pairs=30, mean_len=9.0)


def random_pairs(work: Work) -> EncodedPairs:
    """Log-normal lengths, those of a pair much alike; the ids are uniform."""
    random = np.random.default_rng(SEED)
    common = random.normal(np.log(work.mean_len) - (LEN_SPREAD**2 + SIDE_SPREAD**2) / 2, LEN_SPREAD, work.num_pairs)
    sides = []
    for _ in range(2):
        lens = np.exp(common + random.normal(0, SIDE_SPREAD, work.num_pairs)).round().clip(1, MOST_TOKENS).astype(int)
        sides.append([[*random.integers(3, work.vocabulary, length - 1).tolist(), 2] for length in lens])
    return EncodedPairs(*sides)


def new_model(work: Work, device: torch.device) -> Transformer:
    torch.manual_seed(SEED)
    return Transformer(work.model, VocabularySizes.joint(work.vocabulary)).to(device)


def new_step(work: Work, device: torch.device, *, optim: OptimConfig | None = None, **settings: Any) -> TrainStep:
    training = TrainingConfig(steps=100_000, batch_tokens=work.batch_tokens, seed=SEED, **settings)
    return TrainStep(new_model(work, device), config=training, optim=optim or OptimConfig())


def planned(work: Work, pairs: EncodedPairs, batching: str, num: int) -> list[list[NDArray[np.intp]]]:
    """The first steps of an epoch, of one batch each."""
    cut = pack_batches if batching == "packed" else bucket_batches
    steps = plan_epoch(pairs, batch_tokens=work.batch_tokens, micro_batches=1, seed=SEED, epoch=0, cut=cut)
    return steps[:num]


# --- checks ----------------------------------------------------------------------------------------------------------


def distance(actual: Tensor, expected: Tensor) -> float:
    """Length of the difference over the length of what is expected, in float64."""
    actual, expected = (x.detach().to("cpu", torch.float64) for x in (actual, expected))
    return ((actual - expected).norm() / expected.norm()).item()


Bounded = dict[str, tuple[float, float]]  # what was measured -> the number, and the most that it may be


def check_attention(work: Work, device: torch.device) -> Bounded:
    """The kernel against attention by way of padding, in bfloat16 and in float32, on the same rounded numbers."""
    found: Bounded = {}
    pairs = random_pairs(work)
    ((rows,),) = planned(work, pairs, "packed", 1)
    batch = collate_packed(pairs, rows, num_tokens=work.batch_tokens).to(device)
    for num_heads, head_dim in ((4, 32), (8, 64)):
        for kind, keys in (("cross", batch.src_packing), ("causal", batch.tgt_packing)):
            segments = Segments(batch.tgt_packing, keys)
            generator = torch.Generator().manual_seed(SEED)
            q, k, v, weights = (
                torch.randn(1, num_heads, len(packing.sentences), head_dim, generator=generator).bfloat16().to(device)
                for packing in (segments.queries, keys, keys, segments.queries)
            )
            num_real = int((batch.tgt_out != 0).sum())
            weights[:, :, num_real:] = 0  # fillers differ, and nobody asks

            def results(
                attend: Callable[..., Tensor], *inputs: Tensor, causal: bool, weights: Tensor = weights
            ) -> list[Tensor]:
                leaves = [x.detach().clone().requires_grad_() for x in inputs]
                out = attend(*leaves, causal)
                return [out * (weights != 0), *torch.autograd.grad((out * weights).sum(), leaves)]

            causal = kind == "causal"
            kernel = results(segments._attend_packed, q, k, v, causal=causal)
            for dtype in (torch.bfloat16, torch.float32):
                padded = results(segments._attend_padded, *(x.to(dtype) for x in (q, k, v)), causal=causal)
                for name, ours, theirs in zip(("out", "dq", "dk", "dv"), kernel, padded, strict=True):
                    found[f"{kind} {head_dim} {str(dtype)[6:]} {name}"] = (distance(ours, theirs), 0.02)
    return found


def check_kernels(work: Work, device: torch.device) -> Bounded:
    """Attention and loss of our own against their plain forms, in bfloat16 on a GPU and float32 on a CPU."""
    from transduce.model.kernels import attend
    from transduce.training.kernels import loss_and_gradient
    from transduce.training.loss import _loss_and_gradient

    found: Bounded = {}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ((rows,),) = planned(work, pairs := random_pairs(work), "packed", 1)
    batch = collate_packed(pairs, rows, num_tokens=work.batch_tokens).to(device)
    for head_dim in (32, 64):
        for kind, keys in (("cross", batch.src_packing), ("causal", batch.tgt_packing)):
            segments = Segments(batch.tgt_packing, keys)
            generator = torch.Generator().manual_seed(SEED)
            q, k, v, weights = (
                torch.randn(len(packing.sentences), 4, head_dim, generator=generator).to(device, dtype)
                for packing in (segments.queries, keys, keys, segments.queries)
            )
            weights[int((batch.tgt_out != 0).sum()) :] = 0  # fillers differ, and nobody asks
            offsets, max_lens = (segments.queries.offsets, keys.offsets), (segments.queries.max_len, keys.max_len)
            results = []
            for is_ours in (True, False):
                leaves = [x.detach().to(dtype if is_ours else torch.float32).requires_grad_() for x in (q, k, v)]
                if is_ours:
                    out = attend(*leaves, offsets, max_lens, is_causal=kind == "causal")
                else:
                    rows_of_heads = (x.transpose(0, 1)[None] for x in leaves)
                    out = segments._attend_padded(*rows_of_heads, kind == "causal")[0].transpose(0, 1)
                results.append([out * (weights != 0), *torch.autograd.grad((out * weights).sum(), leaves)])
            for name, ours, theirs in zip(("out", "dq", "dk", "dv"), *results, strict=True):
                found[f"attention, {kind} {head_dim} {name}"] = (distance(ours, theirs), 0.02)
    logits = 3 * torch.randn(64, work.vocabulary, generator=torch.Generator().manual_seed(SEED)).to(device, dtype)
    targets = torch.arange(64, device=device)
    theirs = _loss_and_gradient(logits.float(), targets, 0.1, torch.empty_like(logits, dtype=torch.float32))
    for name, ours, expected in zip(("", ", gradient"), loss_and_gradient(logits, targets, 0.1), theirs, strict=True):
        found[f"loss{name}"] = (distance(ours, expected), 0.01)
    return found


def check_learning(work: Work, device: torch.device) -> Bounded:
    """The mean loss of 200 small steps with bfloat16 weights and kernels of our own, against float32 on the CPU."""
    work = replace(work, batch_tokens=min(512, work.batch_tokens), num_batches=10)
    pairs, num_steps = random_pairs(work), 200 if device.type == "cuda" else 5
    optim = OptimConfig(schedule="constant", learning_rate=0.001, warmup_steps=1, epsilon=1e-6)
    plan = planned(work, pairs, "packed", work.num_batches)
    losses = []
    ours = {"precision": "bfloat16_weights", "kernels": "triton", "cuda_graph": device.type == "cuda"}
    theirs = {"precision": "float32", "batching": "bucketed"}
    for where, settings in ((device, {"batching": "packed"} | ours), (torch.device("cpu"), theirs)):
        update = new_step(work, where, optim=optim, **settings)
        losses.append(torch.tensor([update(pairs, plan[n % len(plan)], n + 1).read().loss for n in range(num_steps)]))
    return {"mean loss": (distance(losses[0].mean(), losses[1].mean()), 0.01)}


def numbers_of(
    model: Transformer, work: Work, device: torch.device, batching: str, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden vectors at real targets, loss and gradients of the same batch either way; under autocast to `dtype`."""
    pairs = random_pairs(work)
    ((rows,),) = planned(work, pairs, "packed", 1)
    is_packed = batching == "packed"
    batch = collate_packed(pairs, rows, num_tokens=work.batch_tokens) if is_packed else collate(pairs, rows)
    batch = batch.to(device)
    with torch.autocast(device.type, dtype) if dtype else nullcontext():
        hidden = model.forward_packed(*batch.inputs) if is_packed else model(*batch.inputs)
        weight, bias = model.output_weight, model.output_bias
        loss, _ = cross_entropy_sum(hidden, weight, batch.tgt_out, pad_id=0, label_smoothing=0.1, bias=bias)
    real = hidden.detach()[batch.tgt_out != 0].float()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return real, loss, torch.cat([gradient.flatten() for gradient in gradients])


def check_against_cpu(work: Work, device: torch.device) -> Bounded:
    """Hidden vectors, loss and gradients of tiny in float32 on this device and on the CPU."""
    found: Bounded = {}
    cpu = torch.device("cpu")
    for batching in ("bucketed", "packed"):
        theirs = numbers_of(new_model(work, cpu), work, cpu, batching, None)
        ours = numbers_of(new_model(work, device), work, device, batching, None)
        for name, a, b, most in zip(("hidden", "loss", "gradients"), ours, theirs, (1e-4, 1e-5, 1e-3), strict=True):
            found[f"{batching} {name}"] = (distance(a, b), most)
    return found


def check_bfloat16(work: Work, device: torch.device) -> Bounded:
    """The same in bfloat16 and in float32 on this device."""
    found: Bounded = {}
    model = new_model(work, device)
    for batching in ("bucketed", "packed"):
        ours = numbers_of(model, work, device, batching, torch.bfloat16)
        theirs = numbers_of(model, work, device, batching, None)
        for name, a, b, most in zip(("hidden", "loss", "gradients"), ours, theirs, (0.03, 0.005, 0.1), strict=True):
            found[f"{batching} {name}"] = (distance(a, b), most)
    return found


def run_steps(work: Work, device: torch.device, dropout: float, mode: str) -> tuple[Tensor, Tensor]:
    """The losses of some steps, and all weights after them."""
    work = replace(work, model=replace(work.model, dropout=dropout))
    pairs = random_pairs(work)
    # A large epsilon: where a gradient is nothing but rounding, Adam would make full steps of it.
    optim = OptimConfig(schedule="constant", learning_rate=0.001, warmup_steps=1, epsilon=1e-3)
    update = new_step(work, device, optim=optim, precision="bfloat16", **MODES[mode])
    plan = planned(work, pairs, "packed", work.num_batches)
    outcomes = [update(pairs, micro_batches, number + 1) for number, micro_batches in enumerate(plan)]
    return torch.tensor([outcome.read().loss for outcome in outcomes]), flat_weights(update.model)


def flat_weights(model: Transformer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def check_graphs(work: Work, device: torch.device) -> Bounded:
    """Replayed steps against others of the same seeds, without dropout and with it.

    Kernels add up in no fixed order, so not even two runs alike agree in every bit: see "again". Weights are compared
    by how far they went from where they began.
    """
    found: Bounded = {}
    begin = flat_weights(new_model(work, device))
    for dropout in (0.0, 0.3):
        losses, weights = run_steps(work, device, dropout, "packed")
        for name, mode in (("graphed", "packed graphed"), ("again", "packed")):
            other_losses, other_weights = run_steps(work, device, dropout, mode)
            found[f"{name}, dropout {dropout}: losses"] = (distance(other_losses, losses), 0.001)
            found[f"{name}, dropout {dropout}: weights"] = (distance(other_weights - begin, weights - begin), 0.02)
    return found


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Whatever makes the program wait for the GPU raises an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_no_waiting(work: Work, device: torch.device) -> Bounded:
    """After the first steps, a step is handed to the GPU without waiting for it: an error says where not."""
    found: Bounded = {}
    pairs = random_pairs(work)
    for mode, settings in MODES.items():
        if settings.get("compile"):
            continue
        for ema_decay, max_grad_norm in ((0.0, 0.0), (0.999, 1.0)):
            optim = OptimConfig(ema_decay=ema_decay, max_grad_norm=max_grad_norm)
            update = new_step(work, device, optim=optim, **{"precision": "bfloat16"} | settings)
            (micro_batches,) = planned(work, pairs, settings.get("batching", "bucketed"), 1)
            for step in (1, 2, 3):
                update(pairs, micro_batches, step)
            with no_waiting(device):
                outcomes = [update(pairs, micro_batches, step) for step in (4, 5, 6)]
            found[f"{mode}, average {ema_decay}: losses that are not finite"] = (
                float(sum(not np.isfinite(outcome.read().loss) for outcome in outcomes)),
                0.0,
            )
    return found


CHECKS = {
    "kernels of our own against their plain forms": check_kernels,
    "bfloat16 weights and kernels of our own against float32 on the CPU": check_learning,
    "attention of packed batches: the kernel against padding": check_attention,
    "tiny in float32: this device against the CPU": check_against_cpu,
    "tiny: bfloat16 against float32": check_bfloat16,
    "steps replayed from graphs against others": check_graphs,
    "a step does not wait for the device": check_no_waiting,
}


def run_check(name: str, work: Work, device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "holds": False, "error": None, "numbers": {}}
    try:
        bounded = CHECKS[name](work, device)
        found["numbers"] = {key: {"found": number, "most": most} for key, (number, most) in bounded.items()}
        found["holds"] = all(number <= most for number, most in bounded.values())
    except Exception as error:  # whatever it is, the rest is to be known, too
        found["error"] = in_a_line(error)
    free_memory(device)
    return found


def in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:300]


def free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# --- measurements ----------------------------------------------------------------------------------------------------


def model_flops(config: TransformerConfig, vocabulary: int, src_lens: NDArray[Any], tgt_lens: NDArray[Any]) -> float:
    """Operations of forward and backward on these pairs: padding and what is computed twice are not counted.

    Forward, a multiplication with an addition counts 2, with S and T the numbers of source and target tokens:

        encoder  2 S (4 D^2 + 2 D F) + 4 D sum s^2                                                    for each layer
        decoder  2 T (6 D^2 + 2 D F) + 2 S (2 D^2) + 4 D sum t (t + 1) / 2 + 4 D sum s t              for each layer
        output   2 T D V

    (two thirds of 6 D^2 are of self-attention; keys and values of cross-attention are made of the source). The
    backward pass takes twice as many. With gated feed-forward networks 2 D F is 3 D F.
    """
    s, t = src_lens.astype(np.float64), tgt_lens.astype(np.float64)
    d, in_attention = config.d_model, 4 * config.d_model
    feed_forward = (3 if config.feed_forward == "swiglu" else 2) * d * config.d_ff
    encoder = 2 * s.sum() * (4 * d * d + feed_forward) + in_attention * (s * s).sum()
    decoder = 2 * t.sum() * (6 * d * d + feed_forward) + 2 * s.sum() * 2 * d * d
    decoder += in_attention * ((t * (t + 1) / 2).sum() + (s * t).sum())
    output = 2 * t.sum() * d * vocabulary
    return float(3 * (config.num_encoder_layers * encoder + config.num_decoder_layers * decoder + output))


def peak_of(device: torch.device) -> float | None:
    """Operations a second in bfloat16 that the device is sold with; None if it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if name in machine.device_name(device)), None)


def measure(work: Work, mode: str, device: torch.device) -> dict[str, Any]:
    """Target tokens a second: the median over blocks, each of the same steps; the device has done them all."""
    pairs, settings = random_pairs(work), MODES[mode]
    plan = planned(work, pairs, settings.get("batching", "bucketed"), work.num_batches)
    rows = np.concatenate([batch for step in plan for batch in step])
    usage.forget_peak_memory(device)
    update = new_step(work, device, **{"precision": "bfloat16"} | settings)
    started = time.perf_counter()
    for number, micro_batches in enumerate(plan):  # every shape once: to compile it, to record it
        outcome = update(pairs, micro_batches, number + 1)
    first_loss = outcome.read().loss
    warm_up_seconds = time.perf_counter() - started
    seconds = []
    for block in range(1, work.num_blocks + 1):
        synchronize(device)
        started = time.perf_counter()
        for number, micro_batches in enumerate(plan):
            outcome = update(pairs, micro_batches, block * len(plan) + number + 1)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    flops = model_flops(work.model, work.vocabulary, pairs.src_lens[rows], pairs.tgt_lens[rows])
    num_tokens, peak = int(pairs.tgt_lens[rows].sum()), peak_of(device)
    speeds = sorted(num_tokens / each for each in seconds)
    return {
        "target_tokens_per_second": {"median": median(speeds), "min": speeds[0], "max": speeds[-1]},
        "steps_per_block": len(plan),
        "target_tokens_per_step": num_tokens / len(plan),
        "milliseconds_per_step": 1e3 * median(seconds) / len(plan),
        "model_tflops_per_second": flops / median(seconds) / 1e12,
        "model_flops_utilisation": flops / median(seconds) / peak if peak else None,
        "peak_memory_mib": usage.peak_memory(device),
        "reserved_memory_mib": torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else None,
        "warm_up_seconds": warm_up_seconds,
        "compiled_graphs": compiled_graphs() if settings.get("compile") else None,
        "loss": {"after_warm_up": first_loss, "last": outcome.read().loss},
    }


def compiled_graphs() -> dict[str, Any]:
    """How many graphs torch.compile made, and why it left a graph before its end: at best never."""
    from torch._dynamo.utils import counters

    reasons = {reason.splitlines()[0][:200]: count for reason, count in counters["graph_break"].items()}
    return {"made": counters["stats"]["unique_graphs"], "breaks": reasons}


def run_measurement(name: str, work: Work, mode: str, device: torch.device) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name, "mode": mode, "error": None}
    try:
        row |= measure(work, mode, device)
    except Exception as error:  # out of memory, or a kernel that is not there: the others may do
        row["error"] = in_a_line(error)
    if MODES[mode].get("compile"):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
    free_memory(device)
    return row


# --- all of it -------------------------------------------------------------------------------------------------------


def facts(device: torch.device, work: dict[str, Work]) -> dict[str, Any]:
    has_gpu = device.type == "cuda"
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "device": machine.device_name(device),
        "device_memory_mib": torch.cuda.get_device_properties(device).total_memory / 2**20 if has_gpu else None,
        "cpu": machine.cpu_model(),
        "cores": machine.num_cores(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if has_gpu else None,
        },
        "peak_flops": peak_of(device),
        "utilisation": "model_flops / seconds / peak_flops; " + " ".join((model_flops.__doc__ or "").split()),
        "work": {name: asdict(each) for name, each in work.items()},
    }


def peer_logits(name: str, work: Work, device: torch.device) -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    """A model of theirs of the same sizes, and its logits for source and target ids."""
    sizes = work.model
    if name == "huggingface":
        from transformers import MarianConfig, MarianMTModel

        sides = {}
        for side, num in (("encoder", sizes.num_encoder_layers), ("decoder", sizes.num_decoder_layers)):
            sides |= {f"{side}_layers": num, f"{side}_ffn_dim": sizes.d_ff, f"{side}_attention_heads": sizes.num_heads}
        config = MarianConfig(
            vocab_size=work.vocabulary, d_model=sizes.d_model, dropout=sizes.dropout, attention_dropout=0.0,
            activation_dropout=0.0, activation_function="relu", scale_embedding=True, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None, **sides,
        )  # fmt: skip
        marian = MarianMTModel(config).to(device).train()
        return (
            marian,
            lambda src, tgt: (
                marian(input_ids=src, attention_mask=(src != 0).long(), decoder_input_ids=tgt, use_cache=False).logits
            ),
        )
    embedding = torch.nn.Embedding(work.vocabulary, sizes.d_model)
    network = torch.nn.Transformer(
        sizes.d_model, sizes.num_heads, sizes.num_encoder_layers, sizes.num_decoder_layers, sizes.d_ff, sizes.dropout,
        batch_first=True,
    )  # fmt: skip
    both = torch.nn.ModuleList([embedding, network]).to(device).train()

    def logits(src: Tensor, tgt: Tensor) -> Tensor:
        causal = torch.ones(tgt.size(1), tgt.size(1), dtype=torch.bool, device=device).triu(1)
        x, y = (embedding(ids) * sizes.d_model**0.5 for ids in (src, tgt))
        masks = {"src_key_padding_mask": src == 0, "memory_key_padding_mask": src == 0}
        return network(x, y, tgt_mask=causal, tgt_key_padding_mask=tgt == 0, **masks) @ embedding.weight.T

    return both, logits


def measure_peer(name: str, work: Work, device: torch.device) -> dict[str, Any]:
    """Target tokens a second of a plain loop: padded batches, bfloat16 by autocast, a fused Adam."""
    pairs = random_pairs(work)
    plan = [batch for step in planned(work, pairs, "bucketed", work.num_batches) for batch in step]
    model, logits_of = peer_logits(name, work, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    seconds = []
    for _ in range(1 + work.num_blocks):  # the first warms up
        synchronize(device)
        started = time.perf_counter()
        for rows in plan:
            batch = collate(pairs, rows).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                logits = logits_of(*batch.inputs).flatten(0, 1)
                loss = cross_entropy(logits, batch.tgt_out.flatten(), ignore_index=0, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    speeds = sorted(int(pairs.tgt_lens[np.concatenate(plan)].sum()) / each for each in seconds[1:])
    return {"target_tokens_per_second": {"median": median(speeds), "min": speeds[0], "max": speeds[-1]}}


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results/gpu.json")
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--baseline", type=Path, default=HERE.parent / "build/baseline", help="an older version")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[m for m in MODES if m != "packed compiled"])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # one part, in this process
    parser.add_argument("--rehearse", action="store_true", help="the same on a CPU with tiny sizes")
    return parser.parse_args(words)


def run_here(part: str, arguments: argparse.Namespace) -> None:
    """One part, row after row into the output file."""
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    if arguments.rehearse:
        torch.set_num_threads(1)  # so little work is not worth two
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        temporary = arguments.output.with_suffix(".tmp")  # the time may be up while it is written
        temporary.write_text(json.dumps(rows))
        temporary.replace(arguments.output)

    if part == "checks":
        for name in CHECKS:
            add(run_check(name, CHECKED_IN_REHEARSAL if arguments.rehearse else CHECKED, device))
        return
    works = REHEARSAL if arguments.rehearse else WORK
    if part in PEERS:
        for name in ("tiny",) if arguments.rehearse else ("base", "tiny"):
            try:
                add({"model": name, "mode": part, "error": None} | measure_peer(part, works[name], device))
            except Exception as error:
                add({"model": name, "mode": part, "error": in_a_line(error)})
            free_memory(device)
        return
    for mode in arguments.modes:
        if part == "big" and mode not in ("packed", "both", "both graphed"):
            continue
        if not (arguments.rehearse and MODES[mode].get("compile")):  # compiling for a CPU takes a compiler and a minute
            add(run_measurement(part, works[part], mode, device))


def run_part(part: str, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """The rows of a part that ran in processes of its own, and what went wrong, in a line."""
    rows, problems, ends = [], [], time.monotonic() + LIMITS[part]
    rehearse = ["--rehearse"] * arguments.rehearse
    tree = arguments.baseline if part.startswith("baseline") else HERE.parent
    if part == "baseline":
        models = ["tiny"] if arguments.rehearse else ["base", "big", "tiny"]
        modes = ["packed", "packed graphed"]
        own = ["--no-checks", "--models", *models, "--modes", *modes, *rehearse, "-o"]
        commands = [[tree / "benchmarks/gpu.py", *own]]
    elif part.endswith("decoding"):
        script, lines = HERE / "peers/gpu_decoding.py", ["--lines", "20"] * arguments.rehearse
        ways = DECODING.get(part, ("plain",))
        commands = [[script, *rehearse, *lines, "--way", way, "--output"] for way in ways]
    else:
        own = ["--here", "--parts", part, "--modes", *arguments.modes, *rehearse, "-o"]
        commands = [[HERE / "gpu.py", *own]]
    for command in commands:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "rows.json"
            words = [sys.executable, "-P", *map(str, command), str(output)]
            environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
            try:
                done = subprocess.run(
                    words, env=environment, capture_output=True, text=True, timeout=max(1.0, ends - time.monotonic())
                )
                problem = done.stderr.strip().split("\n")[-1][:300] if done.returncode else ""
            except subprocess.TimeoutExpired:
                problem = f"stopped after {LIMITS[part]} seconds"
            problems += [problem] * bool(problem)
            written = json.loads(output.read_text()) if output.exists() else []
            rows += written["measurements"] if isinstance(written, dict) else written
    return rows, "; ".join(problems)


def line_of(part: str, row: dict[str, Any]) -> str:
    if part == "checks":
        return f"{row['name']}: {row['error'] or ('holds' if row['holds'] else 'DOES NOT HOLD')}"
    if part.endswith("decoding"):
        search = "greedy" if row["beam_size"] == 1 else f"beam {row['beam_size']}"
        numbers = f"{row['tokens_per_second']:,.0f} tokens/s; one line alone {row['milliseconds_alone']:.1f} ms"
        return f"{part}, {row['way']}, {search}: {numbers}"
    name = f"{row['model']}, {'' if part in WORK or part in PEERS else part + ', '}{row['mode']}"
    return f"{name}: {row['error'] or format(row['target_tokens_per_second']['median'], ',.0f') + ' target tokens/s'}"


def main(words: list[str]) -> int:
    arguments = parse(words)
    if not (torch.cuda.is_available() or arguments.rehearse):
        print(
            "no GPU is to be seen here: nothing was measured (--rehearse tries the script on a CPU).", file=sys.stderr
        )
        return 2
    if arguments.here:
        run_here(arguments.parts[0], arguments)
        return 0
    work = REHEARSAL if arguments.rehearse else WORK
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    report: dict[str, Any] = facts(device, work) | {"rehearsal": arguments.rehearse, "parts": {}}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        if arguments.rehearse and part in ("base", "big"):
            continue
        started = time.monotonic()
        rows, problem = run_part(part, arguments)
        report["parts"][part] = {"rows": rows, "error": problem or None, "seconds": time.monotonic() - started}
        for line in [*(line_of(part, row) for row in rows), *([f"{part}: {problem}"] if problem else [])]:
            print(line, flush=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    parts = report["parts"]
    rows = [row for part in parts.values() for row in part["rows"]]
    is_right = all(row.get("holds", True) and not row.get("error") for row in rows)
    return 0 if arguments.rehearse or (is_right and not any(part["error"] for part in parts.values())) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
