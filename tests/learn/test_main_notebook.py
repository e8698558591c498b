"""The main notebook as a text: its chapters, its length, the code that stands in it, and what is folded away."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from transduce.learn.transformer import lesson, reasons
from transduce.learn.transformer.figure1 import figure_one_map
from transduce.learn.transformer.predicting import predicted
from transduce.learn.transformer.sentences import Sentences

FOLDER = Path(__file__).parents[2] / "notebooks"
sys.path.insert(0, str(FOLDER))
import build  # noqa: E402 - it lies beside the notebooks, outside the package

CELLS = build.read_text("transformer").cells
CODE = [cell for cell in CELLS if cell.cell_type == "code"]
MOST_WORDS, MOST_IMPORTS, MOST_LINES_OF_TRAINING = 8_000, 8, 12


def chapters() -> dict[int, str]:
    """Text and code of each chapter, in order; code is marked."""
    text = "\n".join(cell.source if cell.cell_type == "markdown" else f"<code>\n{cell.source}" for cell in CELLS)
    numbered = re.split(r"(?m)^## (\d+) · ", text)
    return {int(number): content for number, content in zip(numbered[1::2], numbered[2::2], strict=True)}


def test_it_is_short_enough_to_be_read():
    assert sum(len(cell.source.split()) for cell in CELLS if cell.cell_type == "markdown") <= MOST_WORDS


def test_there_is_one_cell_of_imports():
    importing = [cell.source for cell in CODE[1:] if re.search(r"(?m)^(import|from) ", cell.source)]
    assert len(importing) == 1
    assert len([line for line in importing[0].split("\n") if line.strip()]) <= MOST_IMPORTS


@pytest.mark.parametrize("number", range(12))
def test_a_chapter_begins_with_a_question_a_figure_and_what_fails_without(number):
    content = chapters()[number]
    question = content.index("**Question.**")
    figure = content.index("lesson.figure_one_map(")
    without = re.search(r"\*\*Without [^*]*\*\*", content).start()
    formula = content.find("$$")
    assert question < figure < without
    assert formula < 0 or without < formula


def test_the_whole_network_stands_in_it_in_the_pieces_of_the_workshop():
    code = "\n".join(cell.source for cell in CODE)
    for number, piece in build.pieces_by_number().items():
        assert piece in code, f"piece {number}"
    training = build.pieces_by_number()["12"].split("\n")
    assert len(training) - 1 <= MOST_LINES_OF_TRAINING


def test_what_settles_compares_or_draws_is_folded_away():
    for cell in CODE:
        last = cell.source.rstrip().split("\n")[-1]
        if re.search(r"settle\(|^assert ", cell.source, re.M) or re.match(r"lesson\.(?!train)\w+\(", last):
            assert "hide-input" in cell.metadata.get("tags", []), cell.source


def test_no_answer_is_given_away_and_no_source_of_the_package_shown():
    code = "\n".join(cell.source for cell in CODE)
    assert not re.search(r"\b(solution|source_of)\(", code)


def test_the_committed_outputs_show_no_source_of_the_package():
    notebook = nbformat.read(FOLDER / "transformer.ipynb", as_version=4)
    shown = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    names = (
        "Segments",
        "_in_whole_vectors",
        "_foreach_",
        "found_inf",
        "record_function",
        "KeysAndValues",
        "own_segments",
    )
    assert not [name for name in names if name in shown]


def test_every_step_of_the_workshop_is_pointed_to():
    pointers = re.findall(r"\*\*Now write it:\*\* steps? ([\d, and]+) of \[build_it\]", "\n".join(chapters().values()))
    assert sorted(int(step) for pointer in pointers for step in re.findall(r"\d+", pointer)) == list(range(1, 14))


def test_a_prediction_is_shown_back_with_how_far_off_it_was():
    assert predicted(..., "B", "Because.").plain == "It is B. Because."
    assert predicted("b", "B", "Because.").plain == "You said B, and B it is. Because."
    assert predicted("A", "B", "Because.").plain == "You said A; it is B. Because."
    assert predicted(50, 61.4, "Because.").plain == "You said 50: 11 too low. It is 61.4. Because."
    assert predicted("many", 61.4, "Because.").plain.startswith("You said 'many'. It is 61.4.")


def test_the_map_lights_the_parts_that_are_named_and_says_which():
    picture = figure_one_map("positions", "softmax")
    assert "This chapter: positions, softmax" in picture.alt
    plain, dark = (patch.get_facecolor() for patch in figure_one_map("softmax").axes[0].patches[-2:])
    assert plain != dark
    with pytest.raises(ValueError, match="no decoder"):
        figure_one_map("decoder")


def test_sentences_for_testing_are_in_no_training_pair():
    sentences = Sentences()
    assert sentences.test[0] == "the cat sleeps"
    ids, turned = sentences.pair("the cat sleeps")
    assert (sentences.text(ids), sentences.text(turned)) == ("the cat sleeps", "sleeps cat the")
    known = {sentences.text(ids) for _ in range(40) for ids, _ in sentences.next_pairs(100)}
    assert not known & set(sentences.test)
    assert max(max(ids) for ids, _ in sentences.next_pairs(500)) < Sentences.num_ids


def test_the_transformer_s_chain_of_operations_does_not_grow_with_the_length_and_the_gru_s_does():
    found = reasons.chains(fast=True)
    assert len(set(found.operations["Transformer"])) == 1
    assert found.operations["GRU"][-1] > 3 * found.operations["GRU"][0]
    sizes = list(found.parameters.values())
    assert max(sizes) < 1.02 * min(sizes)


def test_quality_by_steps_is_read_from_the_ledger_s_rows(tmp_path):
    found = reasons.quality_by_steps(FOLDER / "claims.toml")
    assert list(found.losses["Transformer"])[:2] == [200, 800]
    assert found.behind["GRU"][800] > 0 > found.behind["GRU with attention"][800]
    nothing = reasons.quality_by_steps(tmp_path / "claims.toml")
    assert not nothing.losses["Transformer"]
    assert not nothing.behind["GRU"]
    assert lesson.quality_curves(nothing).axes


def test_without_additions_all_tokens_become_the_same():
    right = lesson.through_layers().axes[1]
    neither, norm_alone, _, both = (line.get_ydata()[2] for line in right.get_lines())
    assert min(neither, norm_alone) > 0.9 > 0.5 > both


def test_a_smoothed_loss_cannot_fall_below_that_of_the_smoothed_probabilities():
    # Of two tokens, smoothing by 0.5 asks for 3/4 and 1/4.
    assert lesson._least_loss(0.5, 2) == pytest.approx(0.5623, abs=1e-4)


def test_the_lesson_has_every_name_it_says():
    assert all(getattr(lesson, name) is not None for name in lesson.__all__)
    assert torch.equal(lesson.X[0, 1], torch.tensor([0.0, 2, 0, 1]))
