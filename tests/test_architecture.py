import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import transduce

SOURCE = Path(__file__).parent.parent / "src/transduce"

# Rows from the bottom up: a module may import any lower row, and of its own row what SIDEWAYS grants.
ROWS = {
    "leaves": {
        "errors", "files", "stopping", "config", "unigram", "vocabulary", "tokenizer", "model", "loss", "muon", "optim",
        "decoding", "beams", "constraints", "inference", "linear_maps", "sentencepieces",
        "metric_definitions", "metrics", "distributed", "decompression", "reading", "machine",
        "matrix_products", "cuda_graphs", "cpu_settings", "certified_files", "large_files", "pair_rows",
        "prepared_folder", "shards", "word_table", "worker_processes", "html_json",
    },
    "stores": {
        "preparation_jobs", "preparation", "data", "packed_batches", "pronouncing_dictionary", "small_tasks",
        "fetching", "catalogue", "datasets", "tensor_files", "checkpoint", "inspection", "progress", "monitoring",
    },
    "workers": {"train_step", "trainer", "annotation", "predictor", "export", "explaining", "explanation_page"},
    "composition": {
        "settings", "corpus", "scoring", "experiment", "fitting", "benchmarking", "decoding_speed", "importing",
        "reproducing", "tasks",
    },
    "front ends": {
        "learn", "streams", "speed_tables", "housekeeping", "shipping", "reproduction", "commands", "parser", "cli",
        "__main__",
    },
}  # fmt: skip
FREE = {"errors", "stopping", "files"}  # what goes wrong, how a stop is told, how a file is written: for everyone
SIDEWAYS = {
    "files": {"errors"},
    "tokenizer": {"sentencepieces", "vocabulary", "word_table"},
    "sentencepieces": {"vocabulary"},
    "distributed": {"machine", "worker_processes"},
    "muon": {"distributed"},
    "optim": {"distributed", "muon"},
    "decoding": {"constraints"},
    "beams": {"constraints", "decoding"},
    "inference": {"linear_maps", "model"},
    "vocabulary": {"unigram", "word_table"},
    "metrics": {"metric_definitions"},
    "reading": {"decompression", "pair_rows"},
    "pair_rows": {"decompression"},
    "large_files": {"decompression", "pair_rows"},
    "shards": {"certified_files"},
    "prepared_folder": {"certified_files"},
    "catalogue": {"fetching", "pronouncing_dictionary", "small_tasks"},
    "datasets": {"catalogue", "fetching"},
    "checkpoint": {"tensor_files"},
    "packed_batches": {"data"},
    "trainer": {"train_step"},
    "predictor": {"annotation"},
    "export": {"annotation", "predictor"},
    "explaining": {"predictor"},
    "explanation_page": {"explaining"},
    "corpus": {"settings"},
    "scoring": {"settings", "corpus"},
    "experiment": {"settings", "corpus", "scoring"},
    "fitting": {"settings", "corpus", "scoring", "experiment", "tasks"},
    "benchmarking": {"corpus"},
    "importing": {"settings"},
    "reproducing": {"settings", "corpus", "scoring"},
    "speed_tables": {"streams"},
    "housekeeping": {"shipping", "speed_tables", "streams"},
    "shipping": {"streams"},
    "reproduction": {"streams"},
    "commands": {"streams", "housekeeping", "shipping", "reproduction"},
    "cli": {"commands", "parser"},
    "__main__": {"cli"},
}
MOST_FILE_LINES, MOST_FUNCTION_LINES = 350, 60


def paths() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The module of ours a file belongs to; the folder `model` is one."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_by(path: Path) -> Iterator[str]:
    """The dotted names of ours that a file imports, at its top or where they are used, below `transduce`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}:{node.lineno} has a relative import: write `from transduce.…`."
            if node.module == "transduce":
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith("transduce."):
                yield str(node.module).removeprefix("transduce.")
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("transduce.") for a in node.names if a.name.startswith("transduce."))


def allowed(module: str) -> set[str]:
    names = list(ROWS)
    row = next(number for number, name in enumerate(names) if module in ROWS[name])
    return set().union(*(ROWS[name] for name in names[:row])) | SIDEWAYS.get(module, set()) | FREE


@functools.cache
def graph() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in paths():
        names = {name.split(".")[0] for name in imported_by(path)}
        found.setdefault(name_of(path), set()).update(names - {name_of(path)})
    return found


def test_every_module_has_one_place_on_the_map() -> None:
    mapped = [module for row in ROWS.values() for module in row]
    assert sorted(mapped) == sorted({name_of(path) for path in paths()} - {"__init__"})


@pytest.mark.parametrize("module", sorted(set().union(*ROWS.values())))
def test_a_module_imports_only_what_the_map_allows(module: str) -> None:
    wrong = graph()[module] - allowed(module)
    assert not wrong, f"{module} may not import {', '.join(sorted(wrong))}: pass a function down instead."


def test_the_map_grants_nothing_that_nobody_uses() -> None:
    found = graph()
    unused = {module: granted - found[module] for module, granted in SIDEWAYS.items() if granted - found[module]}
    assert not unused, f"no longer needed in SIDEWAYS: {unused}"


def test_the_network_imports_nothing_of_ours_outside_its_folder() -> None:
    assert graph()["model"] == set()


def test_the_readme_names_every_file_of_the_network() -> None:
    tree = (SOURCE.parents[1] / "README.md").read_text().split("## What is where")[1]
    files = {path.name for path in (SOURCE / "model").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"│   [├└]── (\w+\.py)", tree)) == files


def test_no_module_imports_itself_through_others() -> None:
    found = graph() | {"__init__": set()}

    def reached(module: str, seen: tuple[str, ...]) -> None:
        assert module not in seen, f"import cycle: {' -> '.join([*seen, module])}"
        for other in sorted(found[module]):
            reached(other, (*seen, module))

    for module in found:
        reached(module, ())


@pytest.mark.parametrize("path", paths(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_loads_code_or_splits_text_its_own_way(path: Path) -> None:
    """Pickles and `eval` run what they read; `str.splitlines` ends lines where `wc -l` does not; YAML guesses types."""
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
            banned = {"pickle", "cloudpickle", "dill", "joblib", "yaml"} & {name.split(".")[0] for name in names}
            assert not banned, f"{where} imports {banned}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load"}, f"{where} calls {called}"
            assert not re.search(r"\.splitlines$", called), f"{where} calls {called}"


@pytest.mark.parametrize("path", paths(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    num_lines = text.count("\n")
    assert num_lines <= MOST_FILE_LINES, f"{path.name} has {num_lines} lines, at most {MOST_FILE_LINES} are meant."
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MOST_FUNCTION_LINES, f"{path.name}: {node.name} has {length} lines."


def test_the_public_names_are_sorted_and_can_be_imported() -> None:
    assert transduce.__all__ == sorted(transduce.__all__)
    for name in transduce.__all__:
        assert getattr(transduce, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = transduce.nothing
