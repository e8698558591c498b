"""Printed tables of `benchmark`, with a line on how to read them."""

from typing import Any

from rich.table import Table

from transduce.cli.console import number_columns, print_table


def print_training_speed(result: dict[str, Any]) -> None:
    """Print the result of `benchmark train`, and how to read it."""
    settings = result["settings"]
    print(_format_workload(result))
    table = Table("training speed", *number_columns("median", "min", "max"))
    rows = [
        ("target tokens / second", "tokens_per_second", "{:,.0f}"),
        ("target tokens / CPU second", "tokens_per_cpu_second", "{:,.0f}"),
        ("share of time in matrix products", "product_share", "{:.1%}"),
        ("GFLOP/s in matrix products", "gflops", "{:,.1f}"),
        ("GFLOP/s of the same products alone", "gflops_of_products_alone", "{:,.1f}"),
    ]
    for title, key, shape in rows:
        if result[key] is not None:
            table.add_row(title, *(shape.format(result[key][name]) for name in ("median", "min", "max")))
    print_table(table)
    parts = result["parts_ms"]
    total = sum(parts.values()) or 1.0
    print("ms per step: " + ", ".join(f"{name} {value:,.1f} ({value / total:.0%})" for name, value in parts.items()))
    print("padding: " + ", ".join(f"{side} {share:.1%}" for side, share in result["padding"].items()))
    peaks = " + ".join(f"{value:,.0f}" for value in result["peak_memory_mib"])
    print(f"peak memory: {peaks} MiB")
    _print_other_load(result)
    print(
        f"{settings['blocks']} blocks of {settings['steps_per_block']} steps. Tokens are target tokens with end "
        "symbols, without padding. Share: the time that a step's matrix products take alone, at the same sizes and "
        "strides, on as many threads and processes at once, divided by the time of the step. Products inside fused "
        "attention are not counted."
    )


def _format_workload(result: dict[str, Any]) -> str:
    settings = result["settings"]
    return (
        f"{settings['model']} ({settings['parameters']:,} parameters) on {settings['data']}, "
        f"{settings['batch_tokens']:,} tokens per step, {settings['precision']}, {settings['processes']} x "
        f"{settings['threads']} threads\n{_format_machine(result)}"
    )


def print_decoding_speed(result: dict[str, Any]) -> None:
    """Print the result of `benchmark decode`, and how to read it."""
    settings = result["settings"]
    precision = "int8" if settings["int8"] else "float32"
    print(
        f"{settings['parameters']:,} parameters, {settings['target_ids']:,} output tokens, "
        f"{settings['lines']:,} lines, {settings['threads']} threads, {precision}\n{_format_machine(result)}"
    )
    names = ("tokens / second", "sentences / second", "tokens / CPU second", "ms/line: p50, p90, p99")
    table = Table("outputs", *number_columns(*names))
    for mode, speeds_of_mode in result["modes"].items():
        speeds = (speeds_of_mode[key] for key in ("tokens_per_second", "sentences_per_second", "tokens_per_cpu_second"))
        latencies = ", ".join(f"{value:,.1f}" for value in speeds_of_mode.get("latency_ms", {}).values())
        table.add_row(mode, *(f"{speed['median']:,.0f}" for speed in speeds), latencies)
    print_table(table)
    print(
        f"the first output took {result['first_answer_ms']:,.0f} ms; peak memory {result['peak_memory_mib']:,.0f} MiB"
    )
    _print_other_load(result)
    print(
        f"Medians over {settings['blocks']} blocks, from text to text. beam5 divides scores by the length; all: every "
        f"line in one call; 64, 1: lines per call; 1: only the first {settings['single_lines']} lines. Tokens are "
        "those of the outputs, including end symbols."
    )


def _print_other_load(result: dict[str, Any]) -> None:
    if result["others_share"] is not None:
        print(
            f"share of the cores' time: other programs {result['others_share']:.1%}, "
            f"other guests of the machine {result['stolen_share']:.1%}"
        )


def _format_machine(result: dict[str, Any]) -> str:
    return (
        f"{result['machine']['device']}, {result['machine']['cores']} cores, torch {result['versions']['torch']}, "
        f"commit {short_commit(result['commit'])}"
    )


def short_commit(full: str | None) -> str:
    """A commit's first twelve digits, with "-dirty" if it has that; "unknown" for None."""
    digits, _, dirty = (full or "unknown").partition("-")
    return f"{digits[:12]}{dirty and f'-{dirty}'}"
