"""What notebooks show: installed source, pages in frames, pictures whose labels fit."""

import html
import inspect

import numpy as np
import pytest

from transduce.learn import page, source_of
from transduce.learn.canvas import canvas, name_ticks
from transduce.model import MultiHeadAttention


def test_the_source_that_is_shown_is_the_installed_one():
    shown = source_of(MultiHeadAttention)
    assert shown.plain == inspect.getsource(MultiHeadAttention).rstrip()
    assert shown._repr_mimebundle_() == {"text/plain": shown.plain, "text/markdown": f"```python\n{shown.plain}\n```"}


def test_a_page_keeps_to_its_frame():
    document = '<p title="x">a & b</p><script>alert("1")</script>'
    shown = page(document, height=10, plain="a picture of a and b")
    before, _, rest = shown.html.partition('srcdoc="')
    inner, _, after = rest.partition('"')
    assert html.unescape(inner) == document
    assert before + after == '<iframe  width="100%" height="10" style="border:0" sandbox="allow-scripts"></iframe>' + (
        '<p style="color:#666">A page to play with. In Jupyter, if there is none above this line, run the cell.</p>'
    )
    assert shown.plain == "a picture of a and b"


def test_a_picture_shows_itself_as_png():
    figure, (axes,) = canvas(width=2, height=1)
    axes.plot([0, 1])
    assert figure._repr_png_()[0].startswith(b"\x89PNG")


@pytest.mark.parametrize(("queries", "keys"), [(3, 2), (2, 2), (3, 3)])
def test_labels_that_do_not_fit_a_map_are_refused(queries, keys):
    _, (axes,) = canvas()
    axes.imshow(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="2 queries by 3 keys"):
        name_ticks(axes, queries=["q"] * queries, keys=["k"] * keys)


def test_tokens_stand_at_their_rows_and_columns_literally():
    _, (axes,) = canvas()
    axes.imshow(np.zeros((2, 3)))
    name_ticks(axes, queries=["$a$", "b"], keys=["x", "y", "z"])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [r"\$a\$", "b"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["x", "y", "z"]
