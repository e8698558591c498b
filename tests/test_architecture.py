"""The house keeps its order: who may import whom, how long files and functions are, what is loaded when."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import transduce

SOURCE = Path(__file__).parent.parent / "src/transduce"

# From the bottom up: a package imports only what stands before it. `learn` may import all but `cli`, and nobody it.
ORDER = [
    ["errors"], ["files"], ["devices"], ["model"], ["text"], ["data"], ["training", "inference"], ["evaluation"],
    ["config"], ["runs"], ["export"], ["cli"],
]  # fmt: skip
ENTRIES = {name for floor in ORDER for name in floor} | {"learn"}
OUTSIDE_THE_CORE = ("learn", "export", "cli")
MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_CORE_LINES = 350, 60, 9_703


@cache
def trees() -> dict[Path, ast.Module]:
    """Every file of the package, parsed."""
    return {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}


def entry_of(path: Path) -> str:
    """The entry of the package that a file belongs to: a folder, or a file beside them."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_by(tree: ast.Module) -> set[str]:
    """The entries of ours that a file imports, at its top or where they are used."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno} has a relative import: write `from transduce.…`."
            if node.module == "transduce":
                names.update(alias.name for alias in node.names)
            elif (node.module or "").startswith("transduce."):
                names.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            names.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("transduce."))
    return names & ENTRIES


def code_lines(tree: ast.AST, text: str) -> set[int]:
    """The numbers of the lines that hold code: not blank, no comment, no docstring, no help text of a setting."""
    lines: set[int] = set()
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        for field, text_below in pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
            match field, text_below:  # the help text of a setting
                case ast.AnnAssign(), ast.Expr(value=ast.Constant(value=str())):
                    lines -= set(range(text_below.lineno, (text_below.end_lineno or 0) + 1))
    return lines


def test_the_package_has_the_entries_of_the_map_and_no_others() -> None:
    there = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.name != "__pycache__"}
    assert there - {"__init__", "__main__", "py.typed"} == ENTRIES


def test_every_package_imports_only_what_stands_before_it() -> None:
    floor_of = {name: number for number, floor in enumerate(ORDER) for name in floor}
    wrong = []
    for path, tree in trees().items():
        entry = entry_of(path)
        if entry in ("__init__", "__main__"):
            continue
        for other in imported_by(tree) - {entry}:
            may = other != "cli" if entry == "learn" else other != "learn" and floor_of[other] < floor_of[entry]
            if not may:
                wrong.append(f"{path.relative_to(SOURCE)} imports transduce.{other}")
    assert not wrong, f"{'; '.join(wrong)}: hand a function down instead."


def test_the_network_imports_nothing_of_ours_outside_its_folder() -> None:
    inside = {path: imported_by(tree) for path, tree in trees().items() if entry_of(path) == "model"}
    assert set().union(*inside.values()) == {"model"}


def test_no_module_imports_itself_through_others() -> None:
    modules = {".".join(path.relative_to(SOURCE).with_suffix("").parts): tree for path, tree in trees().items()}
    graph = {
        module: {
            node.module.removeprefix("transduce.")
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transduce.")
        }
        & modules.keys()
        for module, tree in modules.items()
    }

    def reach(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join([*path, module])}"
        if module not in without_cycle:
            for other in sorted(graph[module]):
                reach(other, (*path, module))
            without_cycle.add(module)

    without_cycle: set[str] = set()
    for module in graph:
        reach(module, ())


def test_the_architecture_has_a_row_for_every_entry_and_no_other() -> None:
    text = (SOURCE.parents[1] / "docs/ARCHITECTURE.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)(?:/|\.py)` \|", text, re.MULTILINE)) == sorted(ENTRIES)


@pytest.mark.parametrize("package", sorted(ENTRIES - {"errors"}))
def test_a_package_imports_nothing_when_it_is_loaded(package: str) -> None:
    tree = trees()[SOURCE / package / "__init__.py"]
    imports = {
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "typing"
    }
    assert imports <= {"from transduce import import_when_used"}


def test_no_file_loads_code_or_splits_text_its_own_way() -> None:
    """Pickles and `eval` run what they read; `str.splitlines` ends lines where `wc -l` does not; YAML guesses types."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
                banned = {"pickle", "cloudpickle", "dill", "joblib", "yaml"} & {name.split(".")[0] for name in names}
                assert not banned, f"{where} imports {banned}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "torch.load"}, f"{where} calls {called}"
                assert not re.search(r"\.splitlines$", called), f"{where} calls {called}"


def test_files_and_functions_are_short() -> None:
    for path, tree in trees().items():
        lines = code_lines(tree, path.read_text())
        name = path.relative_to(SOURCE)
        assert len(lines) <= MOST_FILE_LINES, (
            f"{name} has {len(lines)} lines of code, at most {MOST_FILE_LINES} are meant."
        )
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                length = len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
                assert length <= MOST_FUNCTION_LINES, f"{name}: {node.name} has {length} lines of code."


def test_the_core_is_small() -> None:
    """All but `learn`, `export` and `cli`. The number rises only in a commit that says what the lines bought."""
    counts = {
        path: len(code_lines(tree, path.read_text()))
        for path, tree in trees().items()
        if entry_of(path) not in OUTSIDE_THE_CORE
    }
    assert sum(counts.values()) <= MOST_CORE_LINES


def modules_after(program: str) -> set[str]:
    """The modules that a new interpreter has loaded at the end of `program`."""
    words = [sys.executable, "-c", f"import sys\n{program}\nprint(' '.join(sys.modules))"]
    return set(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())


def test_help_and_settings_need_neither_torch_nor_numpy() -> None:
    program = "import transduce.cli.main, transduce.cli.parser, transduce.config.settings, transduce.learn"
    heavy = {"torch", "numpy", "jaxtyping", "sacrebleu", "tokenizers"}
    packages = ", ".join(f"transduce.{name}" for name in sorted(ENTRIES))
    assert not modules_after(f"{program}\nimport {packages}") & heavy


def test_the_processes_that_prepare_data_need_no_torch() -> None:
    assert "torch" not in modules_after("import transduce.data.large.jobs")


def test_the_public_names_are_sorted_and_can_be_imported() -> None:
    assert transduce.__all__ == sorted(transduce.__all__)
    for name in transduce.__all__:
        assert getattr(transduce, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = transduce.nothing


def test_modules_are_found_under_their_old_names_which_say_where_they_went() -> None:
    for old, new in transduce._MOVED.items():
        assert (SOURCE / f"{new.replace('.', '/')}.py").is_file(), f"{old} went to {new}, which is not there"
    with pytest.warns(DeprecationWarning, match=r"transduce\.constraints is now transduce\.inference\.constraints"):
        from transduce.constraints import Constraints
    from transduce.inference import constraints

    assert Constraints is constraints.Constraints
    with pytest.warns(DeprecationWarning, match=r"transduce\.data\.collate is now transduce\.data\.batches\.collate"):
        from transduce.data import collate
    assert collate.__module__ == "transduce.data.batches"


def test_a_submodule_does_not_hide_the_name_it_is_called_after() -> None:
    import transduce.model.attention as _  # noqa: F401
    from transduce.model import attention

    assert callable(attention)


def test_commands_installed_with_0_1_find_what_they_call() -> None:
    from transduce.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
