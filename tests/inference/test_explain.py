import base64
import hashlib
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import small_model
from calling import command
from hostile import HOSTILE
from transduce.cli.parser import build_parser
from transduce.errors import TransduceError
from transduce.inference import explain_page as pages
from transduce.inference.attention_maps import record_attention
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Constraints
from transduce.inference.explain import MAX_TOKENS, Explanation, explain, visible
from transduce.inference.explain_page import explanation_page
from transduce.inference.forced_decoding import token_log_probs
from transduce.inference.predictor import Predictor
from transduce.learn.explained import explained
from transduce.model import Transformer
from transduce.model.config import TransformerConfig
from transduce.runs.run import load
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

pytest_plugins = ["small_run"]

TEXTS = ["abc", "zyxwvu", "q", "abcdefghijkl", "é"]


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return load(run, device="cpu")


def with_decoding(predictor: Predictor, **settings: Any) -> Predictor:
    return Predictor(predictor.model, predictor.tokenizer, replace(predictor.decoding, **settings))


def random_predictor(*, num_layers: int = 2, num_heads: int = 3, max_len: int = 1024, **decoding: Any) -> Predictor:
    """A model that has learnt nothing, over the letters; its answers are as long as they may be, or nearly."""
    tokenizer = Tokenizer.learn(TokenizerConfig(source="characters", target="characters"), ["abc def"], ["fed cba"])
    config = TransformerConfig(
        d_model=6 * num_heads, d_ff=23, num_heads=num_heads, num_encoder_layers=num_layers,
        num_decoder_layers=num_layers, max_len=max_len,
    )  # fmt: skip
    return small_model.random_predictor(config, tokenizer, DecodingConfig(**decoding), seed=1, scale=0.0)


def ids_of(predictor: Predictor, found: Explanation) -> tuple[torch.Tensor, torch.Tensor]:
    """The text, and what the decoder reads."""
    source = predictor.tokenizer.encode_source([found.text])[0]
    return torch.tensor([source]), torch.tensor([[predictor.tokenizer.bos_id, *found.prediction.ids]])


def data_of(html: str) -> dict[str, Any]:
    """What the page's script reads."""
    return json.loads(html.split('<script id="data" type="application/json">')[1].split("</script>")[0])


# What is gathered


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "decoding", [{}, {"beam_size": 1}, {"beam_size": 5, "length_penalty": 0.0}, {"temperature": 1.0, "seed": 3}]
)
def test_the_explained_output_is_the_one_that_predict_gives(
    text: str, decoding: dict[str, Any], predictor: Predictor
) -> None:
    own = with_decoding(predictor, **decoding)
    [[expected]] = own.predict_n_best([text], 1)
    found = explain(own, text)
    assert found.prediction == expected
    assert [token.name for token in found.written] == [*own.tokenizer.target_tokens(expected.ids), "</s>"]


@pytest.mark.parametrize("text", TEXTS)
def test_attention_is_that_of_one_full_pass(text: str, predictor: Predictor) -> None:
    found = explain(predictor, text)
    src, tgt_in = ids_of(predictor, found)
    with torch.no_grad(), record_attention(predictor.model) as maps:
        predictor.model(src, tgt_in)
    assert found.attention.keys() == maps.keys()
    for name, weights in maps.items():
        torch.testing.assert_close(found.attention[name], weights[0], rtol=0, atol=1e-6)
    cross = found.attention["decoder.layers.0.cross_attention"]
    assert cross.shape == (2, len(found.written), len(found.source))


@pytest.mark.parametrize("text", TEXTS)
def test_probabilities_are_the_softmax_of_the_logits(text: str, predictor: Predictor) -> None:
    found = explain(predictor, text, num_candidates=4)
    src, tgt_in = ids_of(predictor, found)
    with torch.no_grad():
        probabilities = predictor.model.logits(predictor.model(src, tgt_in))[0].softmax(dim=-1)
    written = [*found.prediction.ids, predictor.tokenizer.eos_id]
    for step, (candidates, of_step) in enumerate(zip(found.candidates, probabilities, strict=True)):
        best = of_step.sort(descending=True).values
        for one in candidates:
            assert one.probability == pytest.approx(best[one.rank - 1].item(), abs=1e-6)
        assert [one.rank for one in candidates[:4]] == [1, 2, 3, 4]
        [chosen] = [one for one in candidates if one.is_chosen]
        assert chosen.probability == pytest.approx(of_step[written[step]].item(), abs=1e-6)
        assert chosen.token == found.written[step]


def test_a_token_that_was_unlikely_is_among_the_candidates_with_its_rank() -> None:
    own = random_predictor(temperature=1.0, seed=2)
    found = explain(own, "abc", num_candidates=2)
    assert all(sum(one.is_chosen for one in step) == 1 for step in found.candidates)
    assert any(len(step) == 3 and step[2].is_chosen and step[2].rank > 3 for step in found.candidates)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("beam_size", [2, 3, 7])
def test_branches_are_those_of_a_plain_beam_search(text: str, beam_size: int, predictor: Predictor) -> None:
    """The oracle ranks all continuations of all hypotheses, each scored by a full pass over its prefix."""
    own = with_decoding(predictor, beam_size=beam_size)
    found = explain(own, text)
    src = ids_of(own, found)[0]
    alive: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    num_answers, longest = 0, own.max_len(src[0].tolist())
    for number, step in enumerate(found.branches, start=1):
        ranked = []
        for history, total in alive:
            with torch.no_grad():
                logits = own.model.logits(own.model(src, torch.tensor([[own.tokenizer.bos_id, *history]])))
            log_probs = logits[0, -1].log_softmax(dim=-1).tolist()
            allowed = range(2, len(log_probs)) if number < longest else [own.tokenizer.eos_id]
            ranked += [((*history, i), total + log_probs[i]) for i in allowed]
        ranked = sorted(ranked, key=lambda row: -row[1])[: 2 * beam_size]
        ended = [total for ids, total in ranked[:beam_size] if ids[-1] == own.tokenizer.eos_id]
        ended = ended[: beam_size - num_answers]
        num_answers += len(ended)
        alive = [row for row in ranked if row[0][-1] != own.tokenizer.eos_id][:beam_size]
        going = [branch for branch in step if branch.score is None]
        if step is not found.branches[-1]:
            assert [b.token.name for b in going] == own.tokenizer.target_tokens([ids[-1] for ids, _ in alive])
            assert [b.log_prob for b in going] == pytest.approx([total for _, total in alive], abs=1e-4)
        assert sorted(b.log_prob for b in step if b.score is not None) == pytest.approx(sorted(ended), abs=1e-4)


@pytest.mark.parametrize("text", TEXTS)
def test_the_branch_that_won_is_the_output(text: str, predictor: Predictor) -> None:
    found = explain(predictor, text)
    winners = [[(place, b) for place, b in enumerate(step) if b.is_winner] for step in found.branches]
    path = [won[0] for won in winners[: len(found.written)]]
    assert all(len(won) == 1 for won in winners[: len(found.written)])
    assert not any(winners[len(found.written) :])
    assert [branch.token for _, branch in path] == found.written
    assert all(branch.parent == place for (place, _), (_, branch) in pairwise(path))
    assert path[-1][1].score == found.prediction.score
    assert path[-1][1].log_prob == found.prediction.log_prob
    assert found.prediction.score == max(b.score for step in found.branches for b in step if b.score is not None)
    own = token_log_probs(predictor.model, [ids_of(predictor, found)[0][0].tolist()], [list(found.prediction.ids)])[0]
    totals = [sum(own[: step + 1]) for step in range(len(own))]
    assert [branch.log_prob for _, branch in path] == pytest.approx(totals, abs=1e-4)


def test_constraints_are_seen_in_the_search(predictor: Predictor) -> None:
    own = Predictor(
        predictor.model,
        predictor.tokenizer,
        predictor.decoding,
        constraints=Constraints(required=("qq",), forbidden=("a",)),
    )
    found = explain(own, "abc")
    assert "qq" in found.prediction.text
    assert found.facts["is_constrained"]
    assert [b.token for step in found.branches for b in step if b.is_winner] == found.written
    assert not any(b.token.name == "a" for step in found.branches for b in step)


def test_watching_changes_no_output_of_a_batch(predictor: Predictor) -> None:
    sources, _ = predictor.encode(TEXTS)
    seen = []
    watched = predictor.search(sources, 2, watch=lambda step: lambda *given: seen.append(given[0]) or step(*given))
    assert watched == predictor.search(sources, 2)
    assert seen


@pytest.mark.parametrize("text", ["", "   ", "\t"])
def test_an_empty_text_is_refused(text: str, predictor: Predictor) -> None:
    with pytest.raises(TransduceError, match="empty"):
        explain(predictor, text)


def test_a_text_with_too_many_tokens_is_refused(predictor: Predictor) -> None:
    with pytest.raises(TransduceError, match=f"{MAX_TOKENS + 1:,} tokens"):
        explain(predictor, "a" * MAX_TOKENS)


def test_a_text_longer_than_the_model_is_meant_for_is_truncated_and_reported() -> None:
    found = explain(random_predictor(max_len=7), "abcdefabcdef")
    assert found.prediction.is_source_truncated
    assert len(found.source) == 7
    page = explanation_page(found, "x")
    assert "its first 6 tokens" in page.left_out[0]
    assert data_of(page.html)["leftOut"] == page.left_out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("▁Hund", "▁Hund"),
        (" ", "▁"),
        ("\t", "␉"),
        ("\x00", "␀"),
        ("\x7f", "⟨U+007F⟩"),
        ("\u00a0", "⟨U+00A0⟩"),
        ("a\u200db", "a⟨U+200D⟩b"),
        ("\u202e", "⟨U+202E⟩"),
        ("\u2028", "⟨U+2028⟩"),
        ("\ufe0f", "⟨U+FE0F⟩"),
        ("\u0301", "◌\u0301"),
        ("", "∅"),
        ("ﷺ", "ﷺ"),
    ],
)
def test_what_cannot_be_seen_has_a_sign(name: str, expected: str) -> None:
    assert visible(name) == expected


def test_kinds_of_tokens_tell_a_control_id_from_its_name_as_text() -> None:
    tokenizer = Tokenizer.learn(TokenizerConfig(source="words", target="words"), ["</s> a"], ["a </s>"])
    model = Transformer(TransformerConfig(d_model=6, d_ff=5, num_heads=2), tokenizer.vocabulary_sizes)
    found = explain(Predictor(model, tokenizer), "</s> é")
    kinds = [(token.name, token.kind) for token in found.source]
    assert kinds == [
        ("</s>", "text"), ("<0x20>", "byte"), ("<0xC3>", "byte"), ("<0xA9>", "byte"), ("</s>", "control"),
    ]  # fmt: skip


# The page


def weights_on(kind: dict[str, Any], num_rows: int, num_columns: int) -> np.ndarray:
    """(layers, heads, rows, columns), as the page's script unpacks them."""
    levels = np.frombuffer(base64.b64decode(kind["weights"]), np.uint8).reshape(len(kind["largest"]), -1) / 255
    levels = levels * np.array(kind["largest"])[:, None]
    levels = levels.reshape(kind["numLayers"], kind["numHeads"], -1)
    if kind["kind"] != "decoder":
        return levels.reshape(*levels.shape[:2], num_rows, num_columns)
    unpacked = np.zeros((*levels.shape[:2], num_rows, num_columns))
    at = 0
    for row in range(num_rows):
        unpacked[:, :, row, : row + 1] = levels[:, :, at : at + row + 1]
        at += row + 1
    return unpacked


@pytest.mark.parametrize("is_mean", [False, True])
def test_the_page_holds_the_weights_of_the_right_tokens(is_mean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_mean:
        monkeypatch.setattr(pages, "_MOST_WEIGHTS", 0)
    found = explain(random_predictor(), "abc")
    data = data_of(explanation_page(found, "x").html)
    sides = {
        "encoder": ("encoder", "self_attention", data["source"], data["source"]),
        "decoder": ("decoder", "self_attention", data["read"], data["read"]),
        "cross": ("decoder", "cross_attention", data["read"], data["source"]),
    }
    assert [kind["kind"] for kind in data["attention"]] == list(sides)
    for kind in data["attention"]:
        side, part, rows, columns = sides[kind["kind"]]
        expected = np.stack([found.attention[f"{side}.layers.{layer}.{part}"].numpy() for layer in range(2)])
        if is_mean:
            expected = expected.mean(axis=1, keepdims=True)
        error = np.abs(weights_on(kind, len(rows), len(columns)) - expected).max(axis=(2, 3))
        assert (error <= expected.max(axis=(2, 3)) * (0.5 / 255 + 1e-4)).all()
    names = [data["tokens"][i][0] for i in data["source"]]
    assert names == ["a", "b", "c", "</s>"]
    assert data["tokens"][data["read"][0]] == ["<s>", "control"]
    assert data["read"][1:] == data["written"][:-1]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_data_and_nothing_else(text: str, predictor: Predictor) -> None:
    html, other = (explanation_page(explain(predictor, one), one).html for one in (text, "abc"))
    data, other_data = (re.search(r'application/json">(.*?)</script>', page, re.DOTALL) for page in (html, other))
    assert data and other_data
    assert html.replace(data[1], "", 1) == other.replace(other_data[1], "", 1)
    assert not set(data[1]) & set("<>&\u2028\u2029\n")
    assert json.loads(data[1])["text"] == text
    assert json.loads(data[1])["run"] == text


def test_the_name_of_a_folder_may_be_no_text(predictor: Predictor) -> None:
    html = explanation_page(explain(predictor, "abc"), "caf\udce9").html
    assert data_of(html)["run"] == "caf?"


def test_the_page_asks_for_nothing_from_outside(predictor: Predictor) -> None:
    html = explanation_page(explain(predictor, "abc"), "x").html
    page = html.replace(re.findall(r'application/json">(.*?)</script>', html, re.DOTALL)[0], "")
    assert not re.findall(r"://|\bsrc=|\bhref=|@import|url\(|fetch\(|innerHTML|outerHTML|insertAdjacent|eval\(", page)
    script = html.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    assert len(page.encode()) < 60_000


def test_a_page_of_many_heads_and_a_long_text_is_not_too_large_and_says_what_it_leaves_out() -> None:
    own = random_predictor(num_layers=6, num_heads=8, max_len_ratio=2.0)
    found = explain(own, "a" * (MAX_TOKENS - 1))
    assert len(found.written) > 2 * MAX_TOKENS  # 16 million weights: no page could be larger for this model
    page = explanation_page(found, "x")
    assert len(page.html.encode()) < 3_000_000
    assert [line.split(" is shown as the mean over the heads")[0] for line in page.left_out] == [
        "To save space, encoder self-attention",
        "To save space, decoder self-attention",
        "To save space, decoder cross-attention",
    ]
    assert data_of(page.html)["leftOut"] == page.left_out


def test_a_page_of_a_usual_text_leaves_out_nothing() -> None:
    found = explain(random_predictor(num_layers=6, num_heads=8), "abc def " * 5)
    page = explanation_page(found, "x")
    assert page.left_out == []
    assert all(kind["numHeads"] == 8 for kind in data_of(page.html)["attention"])


def test_a_notebook_shows_the_page_in_a_frame_and_the_tokens_without_one(predictor: Predictor) -> None:
    shown = explained(predictor, "abc", height=321)
    answer = predictor.predict_n_best(["abc"], 1)[0][0]
    assert shown.plain.startswith("abc\n-> ")
    assert shown.plain.split("-> ")[1].split(" ")[::2] == [*answer.text, "</s>"]
    assert 'height="321"' in shown.html
    assert "srcdoc=" in shown.html


# The verb


def test_the_verb_writes_the_page_in_the_place_of_what_was_there(
    run: Path, predictor: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    outcome = command("explain", run, "abc", "-o", path)
    assert outcome.status == 0, outcome.err
    assert outcome.out == b""
    assert outcome.err.count("\n") == 1
    assert path.read_text() == explanation_page(explain(predictor, "abc"), run.name).html
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]


def test_the_verb_takes_options_of_the_search(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    outcome = command("explain", run, "abc", "-o", path, "--beam-size", 1, "--length-penalty", 0.25, "--quiet")
    assert (outcome.status, outcome.err) == (0, "")
    facts = data_of(path.read_text())["facts"]
    assert (facts["beam_size"], facts["length_penalty"]) == (1, 0.25)


def test_a_text_may_begin_with_a_dash() -> None:
    assert build_parser().parse_args(["explain", "-o", "page.html", "RUN", "--", "-abc"]).text == "-abc"


@pytest.mark.parametrize(
    ("text", "said"), [("", "text is empty"), ("a" * 300, "301 tokens"), ("a\nb", "a newline"), ("\udcff", "surrogate")]
)
def test_a_text_that_cannot_be_explained_is_one_line_and_leaves_the_old_page(
    text: str, said: str, run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    outcome = command("explain", run, text, "-o", path)
    assert outcome.status == 2
    assert outcome.err.startswith("transduce: error: ")
    assert outcome.err.count("\n") == 1
    assert said in outcome.err
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]


def test_a_folder_is_no_place_for_a_page(run: Path, tmp_path: Path) -> None:
    outcome = command("explain", run, "abc", "-o", tmp_path)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    outcome = command("explain", run, "abc", "-o", tmp_path / "none" / "page.html")
    assert (outcome.status, outcome.err.count("\n")) == (73, 1)
