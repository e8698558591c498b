"""What the steps of a run take of its machine: how many processes, and on a GPU which batches, precision and graph."""

import copy
import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from transduce.config.settings import ExperimentConfig
from transduce.data.batches import TrainingPairs
from transduce.devices import machine
from transduce.errors import TransduceError
from transduce.model.packing import is_kernel_size
from transduce.model.transformer import Transformer
from transduce.text.config import NUM_FIXED_IDS
from transduce.training.config import TrainingConfig
from transduce.training.step import TrainStep
from transduce.training.trainer import step_order

_COUNTS = (4, 2, 1)  # powers of two, as a batch is cut into 1, 2, 4, ... equal parts
_LEAST_TOKENS = 400_000  # of a run: with fewer, it is over when the other processes have begun
_LEAST_MINUTES = 0.5
_BYTES_PER_WEIGHT = 24  # of a process: itself, gradient, two moments, average, and what is exchanged
_BYTES_OF_A_PROCESS = 600_000_000  # beside: libraries, and what the layers compute
_MOST_OF_MEMORY = 0.5  # of what is free, for all of them
_SHORT, _UNRECORDED = "its memory is short", "a CUDA graph cannot be recorded"


def choose_processes(
    config: ExperimentConfig, device: torch.device, *, cores: int | None = None, free_bytes: int | None = None
) -> tuple[int, str]:
    """How many processes share each step, and why; a function of the settings and the machine alone.

    On a CPU one for each core up to four: they are faster than threads, which wait for one another in every layer, and
    lose less where another program has a core. Fewer, where they had too little work, or would take too much memory.
    """
    if device.type != "cpu":
        return 1, "one process on a GPU"
    cores = machine.usable_cores() if cores is None else cores
    free_bytes = machine.free_memory() if free_bytes is None else free_bytes
    training = config.training
    num_parts = training.batch_tokens * training.micro_batches // training.part_tokens
    num_bytes = _BYTES_OF_A_PROCESS + _BYTES_PER_WEIGHT * _num_weights(config)
    limits = {
        f"{cores} usable cores": cores,
        f"a batch of {training.batch_tokens * training.micro_batches:,} tokens (training.part_tokens = "
        f"{training.part_tokens:,})": num_parts,
        f"{free_bytes / 2**30:.1f} GiB of free memory": int(_MOST_OF_MEMORY * free_bytes / num_bytes),
        "so short a run": 1 if _is_short(config) else _COUNTS[0],
    }
    reason = min(limits, key=lambda name: limits[name])
    num = next(count for count in _COUNTS if count <= max(1, limits[reason]))
    return num, f"for {reason}" if num < _COUNTS[0] else "the most"


def processes_of(facts: Mapping[str, Any], device: torch.device) -> int:
    """The number of processes that a run was last trained with, by the facts it has recorded; here it may be less."""
    sessions = [facts.get("started", {}), *(session["machine"] for session in facts.get("resumed", []))]
    most = machine.usable_cores() if device.type == "cpu" else torch.cuda.device_count()
    return min(int(sessions[-1].get("processes", 1)), max(1, most))


def _is_short(config: ExperimentConfig) -> bool:
    training = config.training
    num_tokens = training.steps * training.batch_tokens * training.micro_batches
    return 0 < num_tokens < _LEAST_TOKENS or 0 < training.minutes < _LEAST_MINUTES


def _num_weights(config: ExperimentConfig) -> int:
    """About, and at most, as a vocabulary may turn out smaller."""
    model, tokenizer = config.model, config.tokenizer
    size = max(NUM_FIXED_IDS, tokenizer.vocab_size)
    feed_forward = model.d_model * model.d_ff * (3 if model.feed_forward == "swiglu" else 2)
    encoder = model.num_encoder_layers * (4 * model.d_model**2 + feed_forward)
    decoder = model.num_decoder_layers * (8 * model.d_model**2 + feed_forward)
    return size * model.d_model * (1 if model.tie_embeddings else 3) + encoder + decoder


def settled(config: ExperimentConfig, capability: tuple[int, int] | None, num_gpus: int = 1) -> TrainingConfig:
    """The settings of training without any "auto", for GPUs of this compute capability or a CPU (None).

    Packed batches need their attention kernel, which takes bfloat16 and heads of a certain size: without it, they would
    be padded. A graph holds no exchange between GPUs, but has never run beside one, nor with compiled steps.
    """
    asked, model = config.training, config.model
    is_ampere = capability is not None and capability >= (8, 0)  # the first with bfloat16, and with that kernel
    precision = asked.precision if asked.precision != "auto" else "bfloat16" if is_ampere else "float32"
    has_kernel = is_ampere and precision == "bfloat16" and is_kernel_size(model.d_model // model.num_heads)
    batching = asked.batching if asked.batching != "auto" else "packed" if has_kernel else "bucketed"
    can_graph = has_kernel and batching == "packed" and num_gpus == 1 and not asked.compile
    graph = asked.cuda_graph if asked.cuda_graph != "auto" else can_graph
    return replace(asked, precision=precision, batching=batching, cuda_graph=graph)


def suit_device(
    config: ExperimentConfig, model: Transformer, pairs: TrainingPairs, num_gpus: int, report: Callable[[str], None]
) -> tuple[ExperimentConfig, dict[str, Any]]:
    """`config` without any "auto", tried on the GPU of `model`, and what to record of the choice; on a CPU, nothing.

    Where memory is short, batches are halved, with twice as many in a step, as long as a pair of `data.max_len` fits
    into one. Raises TransduceError where it is too short even so.
    """
    asked, device = config.training, model.output_weight.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    new = settled(config, capability, num_gpus)
    if capability is None or new == asked:
        return replace(config, training=new), {}
    reasons = [f"the {machine.device_name(device)} has compute capability {capability[0]}.{capability[1]}"]
    reasons += ["a CUDA graph is untried on several GPUs"] * (num_gpus > 1)
    while problem := _problem_of(replace(config, training=new), model, pairs):
        reasons += [problem] * (problem not in reasons)
        if problem == _SHORT and asked.batching == "auto" and new.batch_tokens // 2 >= config.data.max_len:
            new = replace(new, batch_tokens=new.batch_tokens // 2, micro_batches=2 * new.micro_batches)
        elif new.cuda_graph and asked.cuda_graph == "auto":
            new = replace(new, cuda_graph=False)
        else:
            raise TransduceError(
                f"training.batch_tokens = {new.batch_tokens:,} does not work on the GPU ({problem}): set it or "
                "data.max_len lower, training.cuda_graph to false, or take a smaller model."
            )
    gc.collect()  # what the trial left on the GPU is in a reference cycle
    graph = "recorded as" if new.cuda_graph else "without"
    choice = f"{new.batching} batches of {new.batch_tokens:,} tokens, {graph} a CUDA graph, in {new.precision}: "
    report(choice := choice + "; ".join(reasons))
    return replace(config, training=new), {"chosen": choice, "asked_batch": [asked.batch_tokens, asked.micro_batches]}


def _problem_of(config: ExperimentConfig, model: Transformer, pairs: TrainingPairs) -> str:
    """The problem of steps with the batch of fewest pairs, which are long, and that of most; "" if there is none."""
    gc.collect()  # what the trial before left
    order = step_order(pairs, config.training)
    order.open(0, 0)
    by_size = sorted((rows for step in order.steps for rows in step), key=len)
    try:
        update = TrainStep(copy.deepcopy(model), config=config.training, optim=config.optim)
        with torch.random.fork_rng(devices=[]):
            for step in (1, 2):  # the optimizer takes memory from the second on
                outcome = update(order.pairs, [by_size[0], by_size[-1]], step)
        outcome.numbers.tolist()  # waits for the GPU
    except torch.OutOfMemoryError:
        return _SHORT
    except RuntimeError:
        if not config.training.cuda_graph:
            raise
        # Some versions of torch cannot go on with the random state of a recording that failed.
        torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(torch.Generator("cuda"))
        return _UNRECORDED
    return ""
