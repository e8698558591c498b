"""The live pages of the site compute what Python computes, ask nobody for anything, and are small."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transduce.inference.config import DecodingConfig
from transduce.learn.build_it import pieces
from transduce.learn.build_it.example import X
from transduce.model.attention import attention

PAGES = sorted((Path(__file__).parents[2] / "docs/site/live").glob("*.html"))


def calculated(page: str, expression: str) -> object:
    """What the page's own functions give, as node runs them; NaN comes as null."""
    if not (node := shutil.which("node")):
        pytest.skip("needs node")
    (path,) = (path for path in PAGES if path.stem == page)
    code = re.search(r'<script id="math">(.*?)</script>', path.read_text(), re.DOTALL)[1]
    script = f"{code}\nconsole.log(JSON.stringify({expression}));"
    return json.loads(subprocess.run([node, "-e", script], check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_is_small_alone_and_said_to_be_in_english(path):
    text = path.read_text()
    assert len(text.encode()) < 80_000
    assert not re.search(r"https?://|@import|<link|src=", text)
    assert '<html lang="en">' in text and 'name="viewport"' in text


@pytest.mark.parametrize("divides", [True, False])
def test_weights_and_gradients_are_those_of_softmax(divides):
    draws = torch.tensor(calculated("softmax", "DRAWS"), dtype=torch.float64)
    for width in (1, 64, 512):
        scores = draws if divides else draws * math.sqrt(width)
        weights = scores.softmax(0)
        jacobian = torch.autograd.functional.jacobian(lambda x: x.softmax(0), scores)
        on_page = (
            f"[weightsAt({width}, {str(divides).lower()}), gradientLength(weightsAt({width}, {str(divides).lower()}))]"
        )
        found, length = calculated("softmax", on_page)
        assert found == pytest.approx(weights.tolist(), abs=1e-6)
        assert length == pytest.approx(float(jacobian.norm()), abs=1e-6)


def test_hands_are_the_sinusoids_and_their_product_depends_on_the_distance_alone():
    table = pieces.sinusoids(40, 8)
    assert calculated("clock_hands", "vectorAt(37)") == pytest.approx(table[37].tolist(), abs=1e-5)
    products = [calculated("clock_hands", f"productOf({position}, 5)") for position in (0, 3, 34)]
    assert products == pytest.approx([float(table[3] @ table[8])] * 3, abs=1e-5)


def test_masked_weights_are_those_of_attention_and_of_a_row_that_looks_nowhere_nothing():
    masks = '{"padding": true, "causal": true, "rows": false, "self": false}'
    found = torch.tensor(calculated("masks", f"[0, 1, 2].map(query => weightsOf(0, query, {masks}))"))
    (mixed,) = pieces.attention(
        X, X, torch.eye(3)[None], pieces.causal_mask(3)
    )  # of unit values: the weights themselves
    assert torch.allclose(found, mixed, atol=1e-6)
    nowhere = calculated("masks", 'weightsOf(1, 2, {"padding": true, "causal": false, "rows": true, "self": false})')
    assert nowhere == [None, None, None]
    assert sum(calculated("masks", f"weightsOf(1, 0, {masks.replace('true', 'false')})")) == pytest.approx(1)


def test_a_trained_heads_weights_are_those_of_attention_and_it_looks_at_the_word_it_writes():
    trained = calculated("head", "TRAINED")
    q, k = (torch.tensor(trained[name], dtype=torch.float64) for name in ("queries", "keys"))
    may_look = torch.ones(1, 1, k.size(1), dtype=torch.bool)
    may_look[..., [2, 4]] = False
    for hidden, mask, scale in (("[]", torch.ones_like(may_look), 1.0), ("[2, 4]", may_look, 2.5)):
        weights = attention(q * scale, k, k, mask)[1]
        found = calculated(
            "head",
            f"TRAINED.queries.map((rows, head) => rows.map((_, i) => weightsOf(head, i, {hidden}, {scale})))",
        )
        assert torch.allclose(torch.tensor(found, dtype=torch.float64), weights, atol=1e-6)
    looks_at = [trained["source"][i] for i in attention(q, k, k)[1][3].argmax(-1)]
    assert sum(a == b for a, b in zip(looks_at, trained["written"], strict=True)) >= 7


def all_outputs(length: int) -> dict[str, float]:
    texts = {"": math.log(0.05)}
    for number in range(2**length):
        text = format(number, f"0{length}b").replace("0", "a").replace("1", "b")
        texts[text] = math.log(0.95) + sum(math.log({"a": 0.65, "b": 0.35}[letter]) for letter in text)
    return texts


@pytest.mark.parametrize("alpha", [0, 0.6, 1])
@pytest.mark.parametrize("length", [2, 6])
def test_a_beam_that_holds_all_finds_what_listing_all_finds(alpha, length):
    assert DecodingConfig(length_penalty=alpha).length_norm == "wu"  # the same norm as the toolkit's own
    scored = {text: value / ((6 + len(text)) / 6) ** alpha for text, value in all_outputs(length).items()}
    best = max(scored, key=scored.__getitem__)
    found = calculated("beam", f"beamSearch({length}, 500, {alpha})[0]")
    assert (found["text"], found["score"]) == (best, pytest.approx(scored[best], abs=1e-6))


def test_greedy_search_misses_the_empty_output_and_a_beam_of_four_finds_it():
    assert calculated("beam", "beamSearch(8, 1, 0)[0]")["text"] == "a" * 8
    assert calculated("beam", "beamSearch(8, 4, 0)[0]")["text"] == ""


def test_a_look_at_a_page_tells_what_is_wrong_with_it(tmp_path):
    if not shutil.which("chromium"):
        pytest.skip("needs chromium")
    page = '<meta name="viewport" content="width=device-width"><body><article>{}</article></body>'
    (tmp_path / "good.html").write_text(page.format("<h1>One</h1><p>Good.</p>"))
    wrong = (
        '<p>- a list</p><p>$x$</p><h2></h2><img src="x"><div style="width: 900px">wide</div>'
        '<img src="x" alt="No description has been provided for this image">'
        '<div class="jp-InputArea-editor"><pre style="width: 9px; overflow: auto">long code</pre></div>'
    )
    (tmp_path / "wrong.html").write_text(page.format(wrong))
    shutil.copy(PAGES[0], tmp_path)
    found = subprocess.run(
        [sys.executable, PAGES[0].parents[1] / "check.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert found.stdout.count("400 pixels: no alt text") == 2
    kinds = {line.partition(": ")[2].partition(":")[0] for line in found.stdout.strip().split("\n")}
    assert {re.split("[,:]", line)[0] for line in found.stdout.strip().split("\n")} == {"wrong.html"}
    assert kinds == {
        "wider than 400 pixels", "no alt text", "no picture", "formula not rendered", "not a list, table or heading",
        "empty heading", "link to nowhere", "code past the edge",
    }  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 3
