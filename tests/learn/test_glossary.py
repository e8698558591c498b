"""No word of the glossary is used in the main notebook before the place that explains it, where it stands in bold."""

import re
import tomllib
from functools import cache
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = tomllib.loads((ROOT / "src/transduce/learn/glossary.toml").read_text())
WORDS = [name for name, entry in GLOSSARY.items() if "symbol" not in entry]
SYMBOLS = [name for name, entry in GLOSSARY.items() if "symbol" in entry]


@cache
def chapters() -> list[str]:
    """The text of each chapter of the main notebook, without its code; what stands before the first belongs to it."""
    cells = jupytext.read(ROOT / "notebooks/transformer.py").cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    parts = re.split(r"(?m)^(?=## \d+ · )", text)
    return [parts[0] + parts[1], *parts[2:]]


@cache
def prose(text: str) -> str:
    """Without headings, code, formulas, numbers of the ledger, links and the title of the paper."""
    for pattern in (
        r"(?m)^#.*$", r"```.*?```", r"`[^`]*`", r"\$\$.*?\$\$", r"\$[^$]*\$", r"\{claim:[^}]*\}",
        r"\[[^\]]*\]\([^)]*\)", r"Attention Is All You Need",
    ):  # fmt: skip
        text = re.sub(pattern, " ", text, flags=re.S if pattern.startswith(("```", r"\$\$")) else 0)
    return re.sub(r"\s+", " ", text)


def first_use(text: str, forms: list[str]) -> int | None:
    """Where one of the forms first stands as a word of its own."""
    found = re.search(rf"(?<![\w-])({'|'.join(map(re.escape, forms))})(?![\w-])", text, re.I)
    return found.start() if found else None


@pytest.mark.parametrize("name", WORDS)
def test_a_word_is_not_used_before_it_is_explained(name):
    entry, texts = GLOSSARY[name], [prose(text) for text in chapters()]
    forms = [name, *entry.get("forms", [])]
    bold = [re.search(rf"\*\*({'|'.join(map(re.escape, forms))})\*\*", text, re.I) for text in texts]
    explained_in = next((number for number, found in enumerate(bold) if found), None)
    assert explained_in == entry["chapter"], f"{name} stands in bold in chapter {explained_in}"
    for number, text in enumerate(texts[: entry["chapter"] + 1]):
        used = first_use(text, forms)
        if used is not None:
            assert number == entry["chapter"], f"{name} in chapter {number}: {text[max(0, used - 60) : used + 40]}"
            at = bold[number].start()
            assert used >= at, f"{name}: {text[max(0, used - 60) : used + 40]}"


@pytest.mark.parametrize("name", SYMBOLS)
def test_a_symbol_first_stands_in_the_chapter_that_explains_it(name):
    entry = GLOSSARY[name]
    used = [number for number, text in enumerate(chapters()) if entry["symbol"] in text]
    assert used[0] == entry["chapter"]


def test_each_entry_says_what_it_means_in_a_line():
    for name, entry in GLOSSARY.items():
        assert entry["meaning"].endswith("."), name
        assert len(entry["meaning"]) <= 110, name
        assert (ROOT / f"notebooks/{entry['notebook']}.py").exists()
