"""Compiles every kernel for GPUs that need not be here, as Triton checks more than its interpreter does."""

import inspect
from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from transduce.model import kernels
from transduce.training import kernels as loss_kernels

SIZES = ((80, 16), (90, 64))  # compute capability and head_dim
CAPABILITY = 90
POINTERS = {"query_offsets": "*i32", "key_offsets": "*i32", "log_sums": "*fp32", "seed": "*i64", "targets": "*i64"}
POINTERS |= dict.fromkeys(("statistics", "sums", "losses"), "*fp32")
NUMBERS = dict.fromkeys(("scale", "dropout", "eps", "smoothing"), "fp32")
INTEGERS = {"num_heads", "num_rows", "num_ids", "row_len", "width"}


def type_of(name: str) -> str:
    is_integer = name in INTEGERS or name.endswith(("_row", "_head"))
    return POINTERS.get(name) or NUMBERS.get(name) or ("i32" if is_integer else "*bf16")


def compiled(kernel: "triton.JITFunction", constants: dict[str, object], capability: int) -> None:
    names = inspect.signature(kernel.fn).parameters
    signature = {name: "constexpr" if name in constants else type_of(name) for name in names}
    source = ASTSource(kernel, signature, {(list(names).index(name),): value for name, value in constants.items()})
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


if __name__ == "__main__":
    for (capability, head_dim), is_causal in product(SIZES, (False, True)):
        settings = {"is_causal": is_causal, "block_len": 32, "head_dim": head_dim}
        for kernel in (kernels._forward, kernels._backward_of_queries, kernels._backward_of_keys):
            compiled(kernel, settings, capability)
    for has_norm, has_dropout in product((False, True), repeat=2):
        settings = {"has_norm": has_norm, "has_dropout": has_dropout, "block_len": 512}
        settings |= {} if has_dropout else {"seed": None}
        without = {} if has_norm else {"weight": None, "bias": None}
        compiled(kernels._add_and_norm, settings | without, CAPABILITY)
        without = {} if has_norm else {"weight": None, "total": None}
        compiled(kernels._backward_of_add_and_norm, settings | without, CAPABILITY)
    compiled(loss_kernels._loss_and_gradient, {"block_len": 4096}, CAPABILITY)
