"""The page of `transduce explain`, shown in a notebook."""

from transduce.inference.explain import explain
from transduce.inference.explain_page import explanation_page
from transduce.inference.predictor import Predictor
from transduce.learn.showing import Shown, page


def explained(predictor: Predictor, text: str, *, name: str = "this model", height: int = 900) -> Shown:
    """How `predictor` answers `text`: every head's attention, what might have been written, the search.

    `height` in pixels of the frame it is in. Raises TransduceError if there is nothing in the text, or too much.
    """
    found = explain(predictor, text)
    probabilities = [next(one.probability for one in step if one.is_chosen) for step in found.candidates]
    tokens = (f"{token.name} ({p:.2f})" for token, p in zip(found.written, probabilities, strict=True))
    return page(explanation_page(found, name).html, height=height, plain=f"{text}\n-> {' '.join(tokens)}")
