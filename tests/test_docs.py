"""The documentation says what is so: its commands and snippets run, and every public name has a docstring.

A page is run from its first line to its last, in a folder with small files under the names that all pages use. Long
trainings take a few steps of a tiny model instead.
"""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import transduce
from calling import command
from transduce.cli.main import _split_settings
from transduce.cli.parser import GROUPS, build_parser
from transduce.config.settings import ExperimentConfig
from transduce.model.config import PRESETS
from transduce.runs.train import train

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs/site"
sys.path.insert(0, str(SITE))
import check  # noqa: E402 - beside the pages, outside the package
import links  # noqa: E402
import reference  # noqa: E402

PAGES = sorted((SITE / "pages").rglob("*.md"))
_BLOCK = re.compile(r"^( *)```(sh|python)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
# Commands that install something, wait for a person, or need what is on no machine by itself.
_NOT_RUN = (
    "pip ",
    "python3 -m venv",
    "source ",
    "jupyter ",
    "transduce --version",
    "transduce import ",
    "transduce evaluate runs/opus ",
)
_MOST_LINES = 100  # of a file that `transduce data` writes
_SLOW = {"howto/ship.md"}  # imports what others export for
STEPS = 2


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """The language and the text of the blocks of a page that can be run."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, re.sub(f"^{indent}", "", text, flags=re.MULTILINE)) for indent, language, text in found]


# --- a small world ---------------------------------------------------------------------------------------------------


def sentences() -> list[tuple[str, str]]:
    """English sentences and their German, all different on either side."""
    subjects = [("A dog", "Ein Hund"), ("A man", "Ein Mann"), ("A cat", "Eine Katze"), ("A child", "Ein Kind")]
    verbs = [("runs", "rennt"), ("reads", "liest"), ("sleeps", "schläft"), ("plays", "spielt"), ("sits", "sitzt")]
    places = [("in the snow", "im Schnee"), ("in the park", "im Park"), ("at home", "zu Hause")]
    times = [(f"at {hour} o'clock", f"um {hour} Uhr") for hour in range(1, 25)]
    rows = [
        tuple(" ".join(each) + "." for each in zip(*row, strict=True))
        for row in product(subjects, verbs, places, times)
    ]
    return [rows[i * 617 % len(rows)] for i in range(len(rows))]  # in a mixed order: 617 is prime to their number


def write_world(folder: Path) -> None:
    """The files that the pages speak of."""
    rows = sentences()
    parts = {"train": rows[:120], "valid": rows[120:130], "test": rows[130:136]}
    for name, pairs in parts.items():
        for suffix, side in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
            (folder / f"{name}.{suffix}").write_text("".join(f"{line}\n" for line in side), encoding="utf-8")
    for name, pairs in {"pairs": rows[:120], "domain": rows[140:240], "domain-test": rows[240:246]}.items():
        text = "".join(f"{source}\t{target}\n" for source, target in pairs)
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    (folder / "mono.de").write_text("".join(f"{target}\n" for _, target in rows[246:256]), encoding="utf-8")
    (folder / "in.txt").write_text("A dog runs.\n\nTwo men read.\n", encoding="utf-8")


def shortened(config: ExperimentConfig, run_dir: Path, **options: Any) -> Any:
    """`train` in a few steps, on one process."""
    training = replace(config.training, steps=STEPS, epochs=0.0, minutes=0.0, validate_every=STEPS // 2, log_every=1)
    validation = replace(config.validation, max_pairs=4)
    config = replace(config, training=training, validation=validation)
    return train(config, run_dir, **options | {"processes": 1, "device": "cpu"})


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """A tiny model, few steps of it, and no measurement of the machine."""
    tiny = replace(PRESETS["tiny"], d_model=16, d_ff=32, num_heads=2, num_encoder_layers=1, num_decoder_layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", tiny)
        patch.setattr("transduce.runs.fit.MINIMUM_PAIRS", 50)
        patch.setattr("transduce.runs.train._draw_learning_curve", lambda *_: None)
        patch.setattr("transduce.runs.fit.measured_speed", lambda *_: lambda _config: 500.0)
        for name in ("transduce.runs.fit.train", "transduce.runs.train_pairs.train_by", "transduce.cli.train.train"):
            patch.setattr(name, shortened)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files, and a trained run."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        transduce.train(["train.en", "train.de"], "runs/en-de", valid=["valid.en", "valid.de"], training={"steps": 1})
    return folder


# --- running a page --------------------------------------------------------------------------------------------------


def run_shell(text: str) -> None:
    """Runs the lines of a block: `transduce` in this process, everything else in bash."""
    for line in filter(None, map(str.strip, without_loops(text).split("\n"))):
        if line.startswith(("#", *_NOT_RUN)):
            continue
        if "transduce " not in line:
            subprocess.run(["bash", "-c", f"set -o pipefail\n{line}"], check=True, stdout=subprocess.DEVNULL)
            continue
        line, _, file = line.partition(" > ")
        data = b""
        for stage in line.split(" | "):
            if stage.startswith("transduce "):
                words = shlex.split(stage, comments=True)[1:]
                outcome = command(*words, stdin=data)
                assert outcome.status == 0, f"{stage}\n{outcome.err}"
                data = outcome.out
                if words[:1] == ["data"] and "-o" in words:
                    shorten_files(Path(words[words.index("-o") + 1]))
            else:
                data = subprocess.run(["bash", "-c", stage], input=data, check=True, capture_output=True).stdout
        if file:
            Path(file.strip()).write_bytes(data)


def without_loops(text: str) -> str:
    """The block with the body of each `for` loop written out for each of its values."""

    def written_out(loop: re.Match[str]) -> str:
        return "".join(loop[3].replace(f"${loop[1]}", value) for value in loop[2].split())

    return re.sub(r"^for (\w+) in ([^;]*); do\n(.*?)^done\n", written_out, text, flags=re.MULTILINE | re.DOTALL)


def shorten_files(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "README.md":
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:_MOST_LINES]))


def runnable(page: Path) -> Any:
    name = str(page.relative_to(SITE / "pages"))
    return pytest.param(page, id=name, marks=[pytest.mark.proof] if name in _SLOW else [])


@pytest.mark.parametrize("page", [runnable(page) for page in PAGES if blocks_of(page)])
def test_every_command_and_snippet_of_a_page_works(
    page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, text in blocks_of(page):
        if language == "sh":
            run_shell(text)
        else:
            exec(compile(text, str(page), "exec"), names)


def test_the_examples_of_every_command_are_words_that_it_takes() -> None:
    parser = build_parser()
    subparsers = reference._subparsers(parser)
    epilogs = {name: subparsers[name].epilog or "" for commands in GROUPS.values() for name in commands}
    assert all("transduce " in epilog for epilog in epilogs.values())
    for epilog in epilogs.values():
        for example in epilog.split("\n")[1:]:
            for part in re.split(r" \| | && ", example.strip()):
                if part.startswith("transduce "):
                    words = shlex.split(part.partition(" > ")[0])[1:]
                    parser.parse_args(_split_settings(words)[1] if words[0] == "train" else words)


# --- names and links -------------------------------------------------------------------------------------------------


def undocumented(path: Path) -> Iterator[str]:
    """The public functions, classes and methods of a module that have no docstring."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            members = node.body if isinstance(node, ast.ClassDef) else []
            methods = [each for each in members if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")]
            for each in (node, *methods):
                if ast.get_docstring(each) is None and not (each is not node and is_forward(each)):
                    yield f"{path.relative_to(ROOT)}:{each.lineno} {each.name}"


def is_forward(method: ast.FunctionDef) -> bool:
    return method.name == "forward"  # of a module: its class says what it computes


def test_every_public_name_has_a_docstring() -> None:
    source = ROOT / "src/transduce"
    files = [source / "errors.py", *(path for name in reference.PACKAGES for path in (source / name).rglob("*.py"))]
    outside = {path for path in (source / "learn").rglob("*.py") if path.parent != source / "learn"}
    missing = [name for path in sorted({*files} - outside) for name in undocumented(path)]
    assert not missing, "\n".join(missing)


def test_the_python_reference_has_every_public_name() -> None:
    pages = dict(reference.reference_pages())
    for name in transduce.__all__:
        assert f"transduce.{name}" in pages["reference/api/index.md"]
    for package in reference.PACKAGES:
        page, folder = pages[f"reference/api/{package}.md"], ROOT / "src/transduce" / package
        for name, home in getattr(import_module(f"transduce.{package}"), "_HOMES", {}).items():
            module = f"transduce.{package}.{home}"
            assert f"::: {module}.{name}\n" in page or f"::: {module}\n" in page
            is_defined = re.search(rf"^(def|class) {name}\b|^{name}\b.* = ", (folder / f"{home}.py").read_text(), re.M)
            assert is_defined, f"{name} is not in {module}"


def test_every_link_of_the_pages_leads_to_a_page_or_a_file_of_the_repository() -> None:
    made = {page: (str(links.PAGES / page), text) for page, text in reference.reference_pages()}
    written = {str(path.relative_to(SITE / "pages")): (str(path.relative_to(ROOT)), path.read_text()) for path in PAGES}
    documents = {page: (source, (ROOT / source).read_text()) for source, page in links.DOCUMENTS.items()}
    notebooks = {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    site = links.SiteLinks({*made, *written, *documents, *notebooks})
    for page, (source, text) in {**made, **written, **documents}.items():
        site.rewritten(text, source, page)
    assert "src/transduce/model/transformer.py" in site.files


@pytest.mark.parametrize(
    ("link", "leads_to"),
    [
        ("[a](../../../LOG.md#x)", "[a](../results/log.md#x)"),
        ("[a](../tutorials/pairs.md)", "[a](../tutorials/pairs.md)"),
        ("[a](../reference/settings.md)", "[a](../reference/settings.md)"),
        ("[a](../../../../notebooks/masks.ipynb)", "[a](../notebooks/masks.ipynb)"),
        ("[a](../../../../Makefile)", "[a](../files/Makefile.md)"),
        ("[a](https://x.org/a.md) [b](#c)", "[a](https://x.org/a.md) [b](#c)"),
        ("`[a](gone.md)`", "`[a](gone.md)`"),
    ],
)
def test_a_link_from_file_to_file_leads_from_page_to_page(link: str, leads_to: str) -> None:
    known = {"tutorials/pairs.md", "reference/settings.md", "notebooks/masks.ipynb"}
    assert links.SiteLinks(known).rewritten(link, "docs/site/pages/howto/a.md", "howto/a.md") == leads_to


def test_a_link_to_no_file_and_no_page_is_an_error() -> None:
    with pytest.raises(links.BrokenLinkError, match=r"howto/a\.md: \.\./gone\.md"):
        links.SiteLinks(set()).rewritten("[a](../gone.md)", "docs/site/pages/howto/a.md", "howto/a.md")


def test_a_check_of_the_site_names_links_that_lead_nowhere_and_what_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "good.html").write_text('<h1 id="one">One</h1><a href="more/wrong.html#two">x</a><a href="#one">y</a>')
    wrong = (
        '<h1 id="two">Two</h1><a href="#gone">x</a><a href="x.ipynb#one">y</a><a href="gone.html#one">z</a>'
        '<a href="../good.html#one">good</a><a href="../good.html#two">z</a><a href="https://x.org/a">good</a>'
        '<img src="gone.png"><script src="https://x.org/a.js"></script><img src="data:image/png;base64,aGk=">'
    )
    (tmp_path / "more/wrong.html").write_text(wrong)
    (tmp_path / "more/wrong.css").write_text("@font-face { src: url('https://x.org/f.woff2') }")
    (tmp_path / "good.css").write_text("@font-face { src: url(fonts/f.woff2) }")
    lines = check.wrong_links(sorted(tmp_path.rglob("*.html")), tmp_path)
    assert lines == [
        "more/wrong.html: no such anchor: #gone",
        "more/wrong.html: no such anchor: ../good.html#two",
        "more/wrong.html: link to nowhere: gone.html#one",
        "more/wrong.html: link to nowhere: gone.png",
        "more/wrong.html: loaded from elsewhere: https://x.org/a.js",
        "more/wrong.html: link to nowhere: x.ipynb#one",
        "more/wrong.css: loads from elsewhere",
    ]


def test_the_comment_beside_a_field_is_its_documentation_unless_it_is_for_tools(tmp_path: Path) -> None:
    griffe = pytest.importorskip("griffe")
    from comments import CommentsAsDocstrings

    code = (
        'class A:\n    x: int  # how many\n    y: int = 0  # type: ignore\n    z: int  # not this\n    """but that"""\n'
    )
    (tmp_path / "fields.py").write_text(code)
    extensions = griffe.load_extensions(CommentsAsDocstrings)
    module = griffe.load("fields", search_paths=[tmp_path], extensions=extensions, allow_inspection=False)
    texts = {name: field.docstring and field.docstring.value for name, field in module["A"].members.items()}
    assert texts == {"x": "how many", "y": None, "z": "but that"}
