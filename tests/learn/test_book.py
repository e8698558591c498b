"""What a page of the site keeps of a notebook: words for its pictures, links to headings and to other pages."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("mkdocs_jupyter")
spec = importlib.util.spec_from_file_location("site_notebooks", Path(__file__).parents[2] / "docs/site/notebooks.py")
book = importlib.util.module_from_spec(spec)
spec.loader.exec_module(book)


def on_the_web(cell: dict) -> dict:
    return json.loads(book.for_the_web(json.dumps({"cells": [cell]})))["cells"][0]


def test_a_picture_is_said_in_the_words_of_its_metadata():
    metadata = {"image/png": {"alt": 'a "map" of <heads>', "width": 500, "height": 200}}
    output = {"output_type": "display_data", "data": {"image/png": "aGk=\n"}, "metadata": metadata}
    shown = on_the_web({"cell_type": "code", "source": "", "outputs": [output]})["outputs"][0]["data"]["text/html"]
    assert 'alt="a &quot;map&quot; of &lt;heads&gt;"' in shown
    assert 'src="data:image/png;base64,aGk="' in shown


def test_links_lead_to_the_headings_and_the_pages_that_the_web_has():
    source = ["see [1](#1-·-Self-attention)\n", "and [masks](masks.ipynb), [paper](https://x.org/a.ipynb)"]
    told = on_the_web({"cell_type": "markdown", "source": source})["source"]
    assert told == "see [1](#1-self-attention)\nand [masks](masks.html), [paper](https://x.org/a.ipynb)"
