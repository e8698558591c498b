"""Experiments and pictures of attention, heads, embeddings and feed-forward networks; one sentence traced; the page."""

import json
import math
import re
from itertools import pairwise

import matplotlib.colors
import pytest
import torch
import torch.nn.functional as F

from hostile import HOSTILE
from transduce.learn import maps
from transduce.learn.canvas import DECODER
from transduce.learn.tasks import reversal
from transduce.learn.training import Training, small_transformer
from transduce.learn.transformer import figure1
from transduce.learn.transformer.attention import experiments, pictures
from transduce.learn.transformer.feed_forward.experiments import (
    ONE_WITH,
    THREE_WITHOUT,
    AttentionAlone,
    entry_of_neighbors,
    sum_of_neighbors,
)
from transduce.learn.transformer.matrices_page import attention_document, attention_page
from transduce.learn.transformer.tagging import UNASKED, Tagger, share_right
from transduce.learn.transformer.tracing import Trace, live_shapes, record_outputs, trace
from transduce.model import MultiHeadAttention
from transduce.model.config import VocabularySizes
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

SMALL = {"d_model": 12, "d_ff": 20, "num_heads": 3}


def test_the_jacobian_of_softmax_is_autograds():
    scores = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.functional.jacobian(lambda s: s.softmax(0), scores)
    assert torch.allclose(experiments.softmax_jacobian(scores.softmax(0)), expected, atol=1e-12)


def test_saturation_grows_with_the_width_only_without_the_root():
    found = experiments.saturation(fast=True)
    without = found.largest["without"]
    assert all(narrow < wide for narrow, wide in pairwise(without))
    assert max(found.largest["with the root"]) - min(found.largest["with the root"]) < 0.05
    assert torch.allclose(found.example["without"].sum(dim=1), torch.ones(len(found.widths)))


def test_the_attention_without_root_is_torchs_with_scale_one():
    torch.manual_seed(2)
    with_root = MultiHeadAttention(12, 3).double()
    without = experiments.WithoutRoot(12, 3).double()
    without.load_state_dict(with_root.state_dict())
    x, memory = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 7, 12, dtype=torch.float64)
    for given in ((x,), (x, memory)):
        q, k, v = with_root.project(*given)
        expected = with_root.combine(F.scaled_dot_product_attention(q, k, v, scale=1.0))
        assert torch.allclose(without(*given), expected, atol=1e-12)


def test_the_root_is_taken_out_of_every_attention_and_weights_stay():
    model = small_transformer(VocabularySizes.joint(9), **SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    experiments.take_out_root(model)
    attentions = [part for part in model.modules() if isinstance(part, MultiHeadAttention)]
    assert len(attentions) == 6
    assert all(isinstance(part, experiments.WithoutRoot) for part in attentions)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_previous_and_first_by_hand():
    answers = experiments.previous_and_first(torch.tensor([[4, 7, 5, 6]]))
    assert answers[0, 2:].tolist() == [[7, 4], [5, 4]]
    assert (answers[0, :2] == UNASKED).all()


def test_an_embedding_without_factor_enters_as_its_own_row_and_stays_shared_with_the_output():
    task = reversal(5, 2, 3)
    for large, scale in ((False, 1.0), (True, math.sqrt(12))):
        model = small_transformer(task.vocabulary, **SMALL)
        rows = model.src_embedding.weight.detach().clone()
        experiments.without_factor(model, large=large)
        model.src_positions = None
        entered = model._embed(torch.tensor([[3, 6]]), torch.arange(2), model.src_embedding, None)
        assert torch.allclose(entered[0], rows[[3, 6]] * scale, atol=1e-6)
        assert model.src_embedding is model.tgt_embedding
        assert torch.equal(model.output_weight, model.tgt_embedding.weight)


def test_questions_about_neighbors_by_hand():
    symbols = torch.tensor([[3, 4, 2]])
    assert sum_of_neighbors(symbols, 5)[0, :, 0].tolist() == [UNASKED, 2, 1]
    assert entry_of_neighbors(symbols, torch.arange(25).view(5, 5))[0, :, 0].tolist() == [UNASKED, 19, 22]


def test_a_layer_with_its_feed_forward_network_has_the_parameters_of_three_without():
    whole = Tagger(7, feed_forward=True, d_model=64, d_ff=256)
    three = Tagger(7, feed_forward=False, d_model=64, num_encoder_layers=3)
    assert abs(whole.num_layer_parameters / three.num_layer_parameters - 1) < 0.02


def test_without_its_feed_forward_network_a_layer_is_attention_and_its_norm():
    model = Tagger(7, feed_forward=False, **SMALL).eval()
    layer = model.transformer.encoder.layers[0]
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3))
    attended = F.layer_norm(x + layer.self_attention(x), (12,), eps=1e-5)
    assert torch.allclose(layer(x, None), attended, atol=1e-4)


def test_the_share_right_counts_asked_positions_and_all_their_questions():
    class Constant(torch.nn.Module):
        def forward(self, symbols):
            return F.one_hot(torch.tensor([1, 2]), 4).float().expand(*symbols.shape, 2, 4)

    answers = torch.tensor([[[UNASKED, UNASKED], [1, 2], [1, 3], [0, 2]]])
    both, each = share_right(Constant(), lambda _: answers, torch.zeros(1, 4, dtype=torch.long))
    assert both == pytest.approx(1 / 3)
    assert each == pytest.approx([2 / 3, 2 / 3])


def test_a_delay_is_a_ratio_of_first_arrivals():
    slow, quick = Training(losses=[2.0] * 40 + [0.0] * 40), Training(losses=[2.0] * 10 + [0.0] * 70)
    found = AttentionAlone({}, {THREE_WITHOUT: slow, ONE_WITH: quick}, {}, 0.1, 100)
    by_hand = [
        next(i + 1 for i in range(80) if sum(losses[max(0, i - 19) : i + 1]) / min(20, i + 1) < 0.5)
        for losses in (slow.losses, quick.losses)
    ]
    assert found.delay == by_hand[0] / by_hand[1]


@pytest.fixture(scope="module")
def small():
    lines = ["a dog sees the cat", "the cat hears a dog", "a bird sees the dog"] * 5
    tokenizer = Tokenizer.learn(TokenizerConfig(vocab_size=300), lines, lines)
    return small_transformer(tokenizer.vocabulary_sizes, **SMALL).eval(), tokenizer


@pytest.fixture(scope="module")
def traced(small) -> Trace:
    return trace(*small, "a dog hears")


def test_a_trace_begins_with_the_tokenizer_and_ends_with_what_the_model_writes(small, traced):
    model, tokenizer = small
    assert list(traced.source_ids) == tokenizer.encode_source(["a dog hears"])[0]
    assert traced.written_ids[0] == Tokenizer.bos_id
    likeliest = traced.logits.argmax(dim=1).tolist()
    assert likeliest[: len(traced.written_ids) - 1] == list(traced.written_ids[1:])
    assert torch.allclose(traced.probabilities.sum(dim=1), torch.ones(len(traced.written_ids)))
    assert traced.next_tokens(tokenizer, 0, 3)[0][2] == pytest.approx(float(traced.probabilities[0].max()))
    assert model.config.num_heads == len(traced.attention["decoder.layers.0.cross_attention"])


def test_each_step_of_a_trace_follows_from_the_one_before(small, traced):
    model, _ = small
    x = traced.steps["src_positions"]
    assert torch.allclose(traced.embedded + traced.positions, x, atol=1e-6)
    assert torch.allclose(traced.embedded, model.src_embedding.weight[list(traced.source_ids)] * math.sqrt(12))
    layer = "encoder.layers.0."
    attended = F.layer_norm(x + traced.steps[layer + "self_attention"], (12,), eps=1e-5)
    assert torch.allclose(traced.steps[layer + "residual_1"], attended, atol=1e-5)
    out = F.layer_norm(attended + traced.steps[layer + "feed_forward"], (12,), eps=1e-5)
    assert torch.allclose(traced.steps[layer + "residual_2"], out, atol=1e-4)
    assert torch.allclose(traced.logits, model.logits(traced.steps["decoder"]), atol=1e-5)


def test_a_module_that_runs_twice_is_recorded_twice_and_hooks_are_gone_afterwards():
    twice = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with record_outputs(twice) as outputs:
        twice(torch.zeros(2, 3))
        twice(torch.ones(2, 3))
    twice(torch.ones(2, 3))
    assert set(outputs) == {"0", "0, again"}
    assert not torch.equal(outputs["0"], outputs["0, again"])


def test_figure_one_shows_the_shape_that_leaves_each_box(small):
    model, _ = small
    shapes = live_shapes(model, torch.full((2, 7), 5), torch.full((2, 4), 5))
    drawn = figure1.figure_one(shapes, num_encoder_layers=2, num_decoder_layers=2)
    texts = [text for text in drawn.axes[0].texts if matplotlib.colors.same_color(text.get_color(), DECODER)]
    shown = [text.get_text() for text in texts if text.get_weight() == "bold"]
    size = model.vocabulary.num_target_ids
    assert len(shown) == len(figure1.boxes()) == 14
    assert shown == ["2 × 7 × 12"] * 5 + ["2 × 4 × 12"] * 7 + [f"2 × 4 × {size}"] * 2


def test_maps_have_the_tokens_of_their_own_sides(traced):
    weights = traced.attention["decoder.layers.1.cross_attention"]
    drawn = maps.head_maps({"": weights}, queries=traced.written, keys=traced.source)
    first = drawn.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == list(traced.written)
    assert [label.get_text() for label in first.get_xticklabels()] == list(traced.source)


def test_pictures_of_saturation_say_what_their_axes_are():
    drawn = pictures.saturation_curves(experiments.saturation(fast=True))
    assert [axis.get_xlabel() for axis in drawn.axes] == ["d_k", "d_k", "key, largest weight first"]
    assert len(drawn._repr_png_()[0]) < 300_000


def _json_of(document):
    return re.search(r"const d = (.*?), n = d\.K", document, re.DOTALL).group(1)


def _data(document):
    return json.loads(_json_of(document))


def test_the_page_holds_torchs_own_numbers_and_nothing_from_outside():
    random = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(n, width, generator=random).double() for n, width in ((2, 3), (4, 3), (4, 5)))
    document = attention_document(q, k, v, queries=["x", "y"], keys=list("abcd"))
    found = _data(document)
    assert torch.allclose(torch.tensor(found["Z"]).double(), F.scaled_dot_product_attention(q, k, v), atol=1e-5)
    assert torch.allclose(torch.tensor(found["S"]).double(), q @ k.T / math.sqrt(3), atol=1e-5)
    assert not re.search(r"https?://|<link|<img|@import", document)
    assert len(document) < 60_000


@pytest.mark.parametrize("name", [*HOSTILE, "DATA"])
def test_a_name_is_data_on_the_page_and_nothing_else(name):
    q = torch.eye(2)
    document, other = (attention_document(q, q, q, queries=[one, "y"], keys=[one, "y"]) for one in (name, "abc"))
    assert _json_of(document) != _json_of(other)
    assert document.replace(_json_of(document), "", 1) == other.replace(_json_of(other), "", 1)
    assert not set(_json_of(document)) & set("<>&\u2028\u2029\n")
    assert _data(document)["queries"] == _data(document)["keys"] == [name, "y"]
    assert "innerHTML" not in document


def test_a_masked_page_gives_hidden_keys_no_weight():
    q = torch.eye(3)
    mask = torch.ones(3, 3, dtype=torch.bool).tril()
    found = _data(attention_document(q, q, q, queries=list("abc"), keys=list("abc"), mask=mask))
    assert [found["A"][0][1], found["A"][0][2], found["A"][1][2]] == [0.0, 0.0, 0.0]


def test_the_page_refuses_names_that_do_not_fit():
    q = torch.eye(2)
    with pytest.raises(ValueError, match="names"):
        attention_page(q, q, q, queries=["one"], keys=["one", "two"])


def test_the_plain_text_of_a_masked_page_is_masked_too():
    q = torch.eye(2)
    shown = attention_page(q, q, q, queries=["a", "b"], keys=["a", "b"], mask=torch.ones(2, 2, dtype=torch.bool).tril())
    assert "weights [1.0, 0.0] -> [1.0, 0.0]" in shown.plain
