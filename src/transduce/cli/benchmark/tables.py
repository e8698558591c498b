"""What `benchmark` prints: its figures, and how they are to be read."""

from typing import Any

from rich.table import Table

from transduce.cli.console import print_table


def print_training_speed(found: dict[str, Any]) -> None:
    """What `benchmark train` found, and how its figures are to be read."""
    settings = found["settings"]
    print(_what_was_trained(found))
    table = Table("of training", "median", "min", "max")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = [
        ("target tokens / second", "tokens_per_second", "{:,.0f}"),
        ("target tokens / CPU second", "tokens_per_cpu_second", "{:,.0f}"),
        ("matrix products' share of the time", "product_share", "{:.1%}"),
        ("GFLOP/s in matrix products", "gflops", "{:,.1f}"),
        ("the same products alone, GFLOP/s", "gflops_of_products_alone", "{:,.1f}"),
    ]
    for title, key, shape in rows:
        if found[key] is not None:
            table.add_row(title, *(shape.format(found[key][name]) for name in ("median", "min", "max")))
    print_table(table)
    parts = found["parts_ms"]
    total = sum(parts.values()) or 1.0
    print("a step, ms: " + ", ".join(f"{name} {value:,.1f} ({value / total:.0%})" for name, value in parts.items()))
    print("padding: " + ", ".join(f"{side} {share:.1%}" for side, share in found["padding"].items()))
    held = " + ".join(f"{value:,.0f}" for value in found["peak_memory_mib"])
    print(f"peak memory: {held} MiB")
    _print_what_others_had(found)
    print(
        f"{settings['blocks']} blocks of {settings['steps_per_block']} steps. Tokens are real ones with their end, no "
        "padding. Share = time that the products a step executes take alone, at the same sizes and strides, on as many "
        "threads and processes at once / time of the step; products inside fused attention are left out of both."
    )


def _what_was_trained(found: dict[str, Any]) -> str:
    settings = found["settings"]
    return (
        f"{settings['model']} ({settings['parameters']:,} parameters) on {settings['data']}, "
        f"{settings['batch_tokens']:,} tokens a step, {settings['precision']}, {settings['processes']} x "
        f"{settings['threads']} threads\n{_where(found)}"
    )


def print_decoding_speed(found: dict[str, Any]) -> None:
    """What `benchmark decode` found, and how its figures are to be read."""
    settings = found["settings"]
    precision = "int8" if settings["int8"] else "float32"
    print(
        f"{settings['parameters']:,} parameters, {settings['target_ids']:,} pieces to write with, "
        f"{settings['lines']:,} lines, {settings['threads']} threads, {precision}\n{_where(found)}"
    )
    table = Table("answers", "tokens / second", "sentences / second", "tokens / CPU second", "ms a line: p50, p90, p99")
    for column in table.columns[1:]:
        column.justify = "right"
    for mode, of_mode in found["modes"].items():
        speeds = (of_mode[key] for key in ("tokens_per_second", "sentences_per_second", "tokens_per_cpu_second"))
        latencies = ", ".join(f"{value:,.1f}" for value in of_mode.get("latency_ms", {}).values())
        table.add_row(mode, *(f"{speed['median']:,.0f}" for speed in speeds), latencies)
    print_table(table)
    print(f"the first answer took {found['first_answer_ms']:,.0f} ms; peak memory {found['peak_memory_mib']:,.0f} MiB")
    _print_what_others_had(found)
    print(
        f"Medians over {settings['blocks']} blocks, from text to text. beam5 divides scores by the length; all: every "
        f"line in one call; 64, 1: so many a call; 1: the first {settings['single_lines']} lines. Tokens are those of "
        "the answers, their ends included."
    )


def _print_what_others_had(found: dict[str, Any]) -> None:
    if found["others_share"] is not None:
        print(
            f"of the cores' time, other programs had {found['others_share']:.1%}, "
            f"other guests of the machine {found['stolen_share']:.1%}"
        )


def _where(found: dict[str, Any]) -> str:
    return (
        f"{found['machine']['device']}, {found['machine']['cores']} cores, torch {found['versions']['torch']}, "
        f"commit {short_commit(found['commit'])}"
    )


def short_commit(full: str | None) -> str:
    """Its first twelve digits, with the "-dirty" if it has one; of None, "unknown"."""
    digits, _, dirty = (full or "unknown").partition("-")
    return f"{digits[:12]}{dirty and f'-{dirty}'}"
