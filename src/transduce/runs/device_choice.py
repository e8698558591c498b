"""The choice of batches, precision and CUDA graph by what a GPU can do, tried before training."""

import copy
import gc
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from transduce.config.settings import ExperimentConfig
from transduce.data.batches import TrainingPairs
from transduce.devices import machine
from transduce.errors import OutOfMemoryError, TransduceError
from transduce.model.packing import is_kernel_size, is_tile_size
from transduce.model.transformer import Transformer
from transduce.training.config import TrainingConfig
from transduce.training.step import TrainStep
from transduce.training.trainer import step_order

_SHORT, _UNRECORDED = "out of memory", "a CUDA graph cannot be recorded"


def settled(config: ExperimentConfig, capability: tuple[int, int] | None, num_gpus: int = 1) -> TrainingConfig:
    """The settings of training without any "auto", for GPUs of this compute capability or a CPU (None).

    Packed batches need their attention kernel, which takes bfloat16 and heads of a certain size: without it, they would
    be padded. A graph holds no exchange between GPUs, but has never run beside one, nor with compiled steps.
    """
    asked, model = config.training, config.model
    is_ampere = capability is not None and capability >= (8, 0)  # the first with bfloat16, and with that kernel
    precision = asked.precision if asked.precision != "auto" else "bfloat16" if is_ampere else "float32"
    has_kernel = is_ampere and precision != "float32" and is_kernel_size(model.d_model // model.num_heads)
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
    check_kernels(config, device, report)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    new = settled(config, capability, num_gpus)
    if capability is None and new.cuda_graph:
        report("training.cuda_graph does nothing on a CPU")
    if capability is None or new == asked:
        return replace(config, training=new), {}
    reasons = [f"the {machine.device_name(device)} has compute capability {capability[0]}.{capability[1]}"]
    reasons += ["CUDA graphs are untested on several GPUs"] * (num_gpus > 1)
    while problem := _problem_of(replace(config, training=new), model, pairs):
        reasons += [problem] * (problem not in reasons)
        if problem == _SHORT and asked.batching == "auto" and new.batch_tokens // 2 >= config.data.max_len:
            new = replace(new, batch_tokens=new.batch_tokens // 2, micro_batches=2 * new.micro_batches)
        elif new.cuda_graph and asked.cuda_graph == "auto":
            new = replace(new, cuda_graph=False)
        else:
            raise TransduceError(
                f"training.batch_tokens = {new.batch_tokens:,} does not work on the GPU ({problem}): lower it "
                "or data.max_len, set training.cuda_graph to false, or use a smaller model."
            )
    gc.collect()  # what the trial left on the GPU is in a reference cycle
    graph = "recorded as" if new.cuda_graph else "without"
    choice = f"{new.batching} batches of {new.batch_tokens:,} tokens, {graph} a CUDA graph, in {new.precision}: "
    report(choice := choice + "; ".join(reasons))
    facts = {"chosen": choice, "configured_batch": [asked.batch_tokens, asked.micro_batches]}
    return replace(config, training=new), facts


def check_kernels(config: ExperimentConfig, device: torch.device, report: Callable[[str], None]) -> None:
    """Raises TransduceError if kernels of our own are set and cannot be used; reports that a CPU uses none."""
    head_dim = config.model.d_model // config.model.num_heads
    if config.training.kernels != "triton":
        return
    if device.type != "cuda":
        report("training.kernels does nothing on a CPU")
    elif (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        raise TransduceError(
            "training.kernels = 'triton' needs a GPU of compute capability 8.0 or higher, and this one has "
            f"{capability[0]}.{capability[1]}: set it to 'torch'."
        )
    elif find_spec("triton") is None:
        raise TransduceError("training.kernels = 'triton' needs triton: pip install 'transduce[gpu]'")
    elif config.training.compile:
        raise TransduceError("training.kernels = 'triton' cannot be compiled: set it to 'torch', or compile to false.")
    elif not is_tile_size(head_dim):
        raise TransduceError(
            f"training.kernels = 'triton' is not for heads of {head_dim} channels, only for a power of two from 16 to "
            "128. Choose another model.num_heads, or set it to 'torch'."
        )


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
    except (torch.OutOfMemoryError, OutOfMemoryError):
        return _SHORT
    except RuntimeError:
        if not config.training.cuda_graph:
            raise
        # Some versions of torch cannot go on with the random state of a recording that failed.
        torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(torch.Generator("cuda"))
        return _UNRECORDED
    return ""
