"""What is read off a model: beside arithmetic by hand, and networks whose heads are made to look somewhere."""

import numpy as np
import pytest
import torch

from transduce.data.batches import EncodedPairs
from transduce.learn.looking_inside import experiments as inside
from transduce.learn.looking_inside import pictures
from transduce.learn.looking_inside.experiments import Lens, Pronouncer, Pruning, Roles, flattened, silenced
from transduce.learn.training import Training, small_transformer
from transduce.learn.training_recipe.experiments import Words
from transduce.model import MultiHeadAttention, attention
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

WORDS, SOUNDS = ["cab", "bad", "deed", "a"], ["K AE B", "B AE D", "D IY D", "AH"]


@pytest.fixture
def untrained(monkeypatch):
    config = TokenizerConfig(source="characters", target="words", joint=False)
    tokenizer = Tokenizer.learn(config, WORDS, SOUNDS)
    pairs = EncodedPairs(tokenizer.encode_source(WORDS), tokenizer.encode_target(SOUNDS))
    model = small_transformer(tokenizer.vocabulary_sizes, d_model=16, d_ff=16, num_heads=2).eval()
    found = Pronouncer(Words(tokenizer, pairs, pairs, WORDS, SOUNDS), model, Training())
    monkeypatch.setattr(inside, "pronouncer", lambda **_: found)
    return found


@pytest.fixture
def part():
    torch.manual_seed(1)
    return MultiHeadAttention(12, 3).requires_grad_(False)


def test_a_silenced_head_is_as_if_it_had_found_nothing(part):
    x = torch.randn(2, 5, 12)
    q, k, v = part.project(x)
    v[:, 1] = 0
    expected = part.combine(attention(q, k, v)[0])
    before = {name: value.clone() for name, value in part.state_dict().items()}
    with silenced(part, 1):
        torch.testing.assert_close(part(x), expected)
    assert all(torch.equal(before[name], value) for name, value in part.state_dict().items())


def test_a_flattened_head_takes_the_mean_of_what_it_may_see_and_the_others_stay(part):
    x, mask = torch.randn(1, 5, 12), torch.tensor([True, True, True, False, False])[None, None, None]
    q, k, v = part.project(x)
    heads = attention(q, k, v, mask)[0]
    heads[:, 2] = v[:, 2, :3].mean(dim=1, keepdim=True)
    with flattened(part, 2):
        torch.testing.assert_close(part(x, mask=mask), part.combine(heads))
    with pytest.raises(ZeroDivisionError), flattened(part, 2):
        raise ZeroDivisionError
    torch.testing.assert_close(part(x, mask=mask), part.combine(attention(q, k, v, mask)[0]))


@pytest.mark.parametrize(("offset", "expected"), [(-1, 1.0), (0, 0.0), (1, 0.0)])
def test_a_head_that_looks_at_the_letter_before_is_found_and_padding_is_not_counted(offset, expected):
    weights = torch.zeros(2, 4, 4)
    weights[:, torch.arange(1, 4), torch.arange(3)] = 1
    weights[1, 2:] = 0.25  # what padding looks at
    rows = torch.tensor([[True] * 4, [True, True, False, False]])
    assert inside._mean_beside(weights, rows, offset) == expected


def test_maps_of_a_word_fit_its_tokens_and_add_up_to_one(untrained):
    letters, phonemes = untrained.tokens("deed")
    assert letters == ["d", "e", "e", "d", "</s>"]
    assert phonemes == ["<s>", "D", "IY", "D"]
    sizes = {"encoder": (5, 5), "self": (4, 4), "cross": (4, 5)}
    maps = untrained.maps("deed")
    for name, weights in maps.items():
        assert weights.shape == (2, *sizes[pictures.kind_of((name, 0))])
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:2]))
    with pytest.raises(ValueError, match="got 5 and 4 tokens"):
        pictures.head_maps(maps["decoder.layers.0.cross_attention"], "", tokens=(letters, phonemes))


def test_every_reading_counts_all_heads_and_leaves_the_model_as_it_was(untrained):
    before = {name: value.clone() for name, value in untrained.model.state_dict().items()}
    pruned, lens, roles = inside.pruning(fast=True), inside.lens("bad", fast=True), inside.roles(fast=True)
    assert len(pruned.costs) == len(pruned.flat) == 2 * (2 + 2 + 2)
    assert lens.agreement["layer 2, feed-forward"] == 1
    assert [len(row) for row in lens.example.values()] == [4] * 7  # B AE D and the end
    assert len(roles.shares) == 4
    assert all(0 <= sum(shares.values()) <= 1 + 1e-6 for shares in roles.shares.values())
    assert all(torch.equal(before[name], value) for name, value in untrained.model.state_dict().items())


def test_hiding_a_letter_is_attention_without_its_key(untrained):
    alone = untrained.data.valid_words.index("a")
    log_probs = inside._of_the_right_phonemes(untrained)
    assert torch.equal(inside._hiding(untrained, 3)[alone], log_probs[alone])  # padding there: nothing to hide
    assert not torch.allclose(inside._hiding(untrained, 0)[alone], log_probs[alone])
    assert inside.needed(fast=True).any_letter == pytest.approx(np.mean([1 / 3] * 6 + [1 / 4] * 3 + [1]))


def test_an_attention_along_the_diagonal_is_an_alignment(untrained):
    name = "decoder.layers.1.cross_attention"
    untrained.attention[name] = torch.eye(4, 5).expand(4, 2, -1, -1)
    found = inside.alignment(fast=True)
    assert found.forward == 1
    assert np.corrcoef(found.centre.numpy().T)[0, 1] > 0.9


def test_shares_and_sums_are_those_of_the_heads():
    heads = [("encoder.layers.0.self_attention", n) for n in range(4)]
    pruned = Pruning(0.9, dict(zip(heads, (0.0, 0.5, 3.0, 7.0), strict=True)), dict.fromkeys(heads, 0.1), 4.0)
    assert (pruned.idle, pruned.flat_idle, pruned.dearest) == (0.5, 1.0, 7.0)
    roles = Roles({heads[0]: {"itself": 0.2, "the next one": 0.7, "the one before": 0.1}}, {heads[0]: 1.0})
    assert roles.sharpest == 0.7
    assert Lens({"layer 1, feed-forward": 0.3}, {}).after_first_layer == 0.3
    assert pictures.short(("decoder.layers.1.cross_attention", 2)) == "cross 2.3"


@pytest.mark.usefixtures("untrained")
def test_pictures_name_heads_and_phonemes():
    pruned, lens = inside.pruning(fast=True), inside.lens("cab", fast=True)
    (axis,) = pictures.pruning(pruned).axes
    assert sorted(label.get_text() for label in axis.get_xticklabels()) == sorted(map(pictures.short, pruned.costs))
    (axis,) = pictures.lens(lens, answer=list(lens.example.values())[-1]).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == list(lens.example)
    assert len(pictures.shares(lens.agreement).axes[0].patches) == 7
    assert len(pictures.roles(inside.roles(fast=True)).axes[0].patches) == 4 * 4
