"""The field's words and American spelling, in help, messages and documents: no term that only its author knows."""

import argparse
import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from transduce.cli.parser import build_parser

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src/transduce"

# A pattern of what we once wrote, a sentence that has it, and what the field says.
TERMS = [
    (r"right answers?\b", "the right answers to them", "references"),
    (r"(outputs?|answers?) must hold\b", "what answers must hold", "output constraints"),
    (r"\blikeliest\b", "the K likeliest tokens", "most likely"),
    (r"\bdrawing instead\b", "drawing instead of searching", "sampling"),
    (r"\bthat is drawn\b|\bof the draws\b", "of all that is drawn", "random seed"),
    (r"\bdrawn at temperature\b", "drawn at temperature 1", "sampled"),
    (r"\bfolder to make\b", "folder to make", "output folder"),
    (r"\bwhose files\b", "whose files", "format"),
    (r"\bsittings?\b", "the sittings of a run", "session"),
    (r"\bverbs?\b", "on every verb", "command"),
    (r"\bblanks\b|\b(a|the) blank\b|\bblank lines?\b", "separated by blanks", "space, or a line without text"),
    (r"\bcut off\b", "sources cut off", "truncated"),
    (r"\bin training too\b", "in training too, of the validation", "also in the training data"),
    (r"\bgo(es)? on, and wins\b|\bdropped next\b", "goes on, and wins", "kept (final), pruned"),
    (r"\bmultipl\w+ in bytes\b", "multiply in bytes", "8-bit integer arithmetic"),
    (r"\bpieces (to write|that can be written)|\d pieces\b", "8,000 pieces", "subwords"),
    (r"\b(can|cannot|could) be had\b", "a BLEU that cannot be had", "is available"),
    (r"\bno number to go by\b", "no number to go by", "not finite"),
    (r"\blearnt\b", "learnt from them", "learned"),
    (
        r"\b(character|final|general|initial|item|local|lower|maxim|minim|normal|optim|organ|orthogonal|penal|random"
        r"|real|recogn|regular|serial|summar|synchron|token|un|vector|visual)is(e|es|ed|ing|er|ers|ation|ations)\b",
        "tokenised",
        "-ize",
    ),
    (
        r"\b(behaviour|colour|favour|flavour|honour|labour|neighbour)\w*|\bcentre[sd]?\b|\blicence[sd]?\b|\bgrey\b"
        r"|\banalys(e|ed|ing)\b|\b(cancell|labell|modell|signall)(ed|ing)\b",
        "favours",
        "American spelling",
    ),
]
PRIVATE = [re.compile(pattern, re.IGNORECASE) for pattern, _, _ in TERMS]
# An output is an answer to nobody; a question has one.
ANSWER = re.compile(r"\banswer(s|ed)?\b", re.IGNORECASE)

# Names that files, callers or the command have: keys of JSON and TOML, a file's name, spellings of version 0.1.
NAMES = re.compile(r"\blicence(?= =|$)|^licence|\blearnt-|`learnt`|^(randomisation|normalisation)$")
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/site/pages/**/*.md",
    "Makefile",
    "docs/*.md",
    "benchmarks/README.md",
    "configs/*.toml",
]
DOCUMENTS += ["recipes/*.toml", "src/transduce/data/catalogue.toml", "src/transduce/inference/explanation.html"]
HISTORY = ("LOG.md",)  # quotes what was


def private_terms(text: str, *, more: tuple[re.Pattern[str], ...] = ()) -> list[str]:
    text = NAMES.sub("", text)
    return [match[0] for pattern in (*PRIVATE, *more) for match in pattern.finditer(text)]


def help_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """All that the help of a command and of its subcommands shows."""
    yield parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in dict.fromkeys(action.choices.values()):
                yield from help_of(each)


@cache
def literals() -> list[tuple[str, str, bool]]:
    """Every string of the package but the lessons: where it stands, its text, and whether it is a docstring."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        if path.relative_to(SOURCE).parts[0] == "learn":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                found.append((where, " ".join(node.value.split()), id(node) in alone))
    return found


@pytest.mark.parametrize(("pattern", "sentence", "better"), TERMS, ids=[better for *_, better in TERMS])
def test_a_private_term_is_found_in_a_sentence_that_has_it_and_not_in_its_better_word(pattern, sentence, better):
    assert re.search(pattern, sentence, re.IGNORECASE)
    assert not private_terms(better)


def test_no_help_text_has_a_private_term():
    texts = list(help_of(build_parser()))
    assert len(texts) > 20
    assert not [term for text in texts for term in private_terms(text, more=(ANSWER,))]


def test_no_string_of_the_package_has_a_private_term():
    assert len(literals()) > 3_000
    assert not [(where, terms) for where, text, _ in literals() if (terms := private_terms(text))]


def test_no_message_calls_an_output_an_answer():
    words = [(where, text) for where, text, is_docstring in literals() if not is_docstring and " " in text]
    assert len(words) > 500
    assert not [(where, text) for where, text in words if ANSWER.search(text)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_document_has_a_private_term(document):
    paths = [path for path in ROOT.glob(document) if path.name not in HISTORY]
    assert paths
    found = [(path.name, private_terms(line)) for path in paths for line in path.read_text("utf-8").splitlines()]
    assert not [(name, terms) for name, terms in found if terms]
