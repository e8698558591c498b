"""The measures behind the paper's three reasons, and what their pictures say."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from transduce.evaluation.metrics import Score
from transduce.learn.measuring import interleaved, longest_chain, num_calls
from transduce.learn.pronouncing import Words
from transduce.learn.recurrent import num_parameters
from transduce.learn.tasks import EOS
from transduce.learn.training import small_transformer
from transduce.learn.why_it_matters import experiments as why
from transduce.learn.why_it_matters import pictures
from transduce.learn.why_it_matters import quality as why_quality
from transduce.learn.why_it_matters.experiments import GRU, LOOKING, LSTM, TRANSFORMER

WORDS = Words(
    train=[("cab", "K AE B"), ("ace", "EY S")], test=[("bee", "B IY")], phonemes=("AE", "B", "EY", "IY", "K", "S")
)


def test_a_chain_is_the_longest_way_and_no_sum_of_ways():
    x = torch.ones(3, requires_grad=True)
    assert longest_chain(x * 2) == 2  # the product, and the leaf that collects its gradient
    short, long = x * 2, ((x * 2) * 3).exp()
    assert longest_chain(short + long) == 5
    assert longest_chain(torch.stack([x * i for i in range(9)])) == 3  # nine ways, none of which waits for another


@pytest.mark.parametrize("length", [3, 8])
def test_every_token_makes_a_gru_s_chain_longer_by_the_same(length):
    rnn, x = nn.GRU(4, 4, batch_first=True), torch.randn(2, length + 2, 4)
    chains = [longest_chain(rnn(x[:, : length + more])[0][:, -1]) for more in range(3)]
    assert chains[2] - chains[1] == chains[1] - chains[0] > 0


def test_a_transformer_s_chain_is_as_long_at_any_length():
    model = small_transformer(WORDS.vocabulary, d_model=16, d_ff=24, num_heads=2)
    chains = [longest_chain(model(ids, ids)) for ids in (torch.full((2, n), 4) for n in (16, 48))]
    assert chains[0] == chains[1]


def test_calls_are_counted_in_both_directions():
    x = torch.ones(3, requires_grad=True)
    assert num_calls(lambda: x.detach().exp()) == 2
    assert num_calls(lambda: x.exp().sum().backward()) > 3


def test_interleaved_work_is_done_in_turns():
    done = []
    work = {name: [lambda tag=f"{name}{i}": done.append(tag) for i in range(2)] for name in "ab"}
    times = interleaved(work, rounds=2)
    assert " ".join(done) == "a0 b0 a1 b1 b0 a0 b1 a1 a0 b0 a1 b1"  # the first round warms up
    assert {name: len(of_name) for name, of_name in times.items()} == {"a": 2, "b": 2}


def test_compared_networks_are_equally_large():
    networks = why._equally_large(WORDS.vocabulary, names=(TRANSFORMER, GRU, LSTM, LOOKING))
    sizes = [num_parameters(network) for network in networks.values()]
    assert max(sizes) / min(sizes) < 1.02


def test_the_far_symbols_are_the_first_ones():
    batch = why.first_symbols(3, 10).draw(5, torch.Generator().manual_seed(2))
    assert batch.src.shape == (5, 3 + 10 + 1)
    assert torch.equal(batch.tgt_out[:, :3], batch.src[:, :3])
    assert (batch.tgt_out[:, 3] == EOS).all()


def test_the_gradient_of_the_first_token_is_that_of_small_changes():
    network = why._equally_large(why.first_symbols(1, 1).vocabulary, d_model=8, names=(GRU,))[GRU].double()
    batch = why.first_symbols(1, 4).draw(16, torch.Generator().manual_seed(4))
    bump = torch.zeros(16, 6, network.config.d_model, dtype=torch.float64)

    def loss() -> float:
        with network.src_embedding.register_forward_hook(lambda _m, _a, x: x + bump if x.size(1) == 6 else x):
            logits = network.logits(network(batch.src, batch.tgt_in))
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch.tgt_out.flatten()).item()

    slopes = torch.zeros(16, network.config.d_model)
    for row in range(16):
        for channel in range(network.config.d_model):
            ends = []
            for sign in (1e-6, -1e-6):
                bump[row, 0, channel] = sign
                ends.append(loss())
            bump[row, 0, channel] = 0.0
            slopes[row, channel] = (ends[0] - ends[1]) / 2e-6
    measured = why._first_token_gradient(network, 4)
    assert measured == pytest.approx(float(slopes.norm(dim=1).mean()), rel=1e-3)


def test_named_symbols_are_counted_one_by_one(monkeypatch):
    task = why.first_symbols(2, 1)
    batch = task.draw(200, torch.Generator().manual_seed(99))
    answers = [[row[0]] if number % 2 else row[:2] for number, row in enumerate(batch.tgt_out.tolist())]
    monkeypatch.setattr(why, "written", lambda *_: answers)
    assert why._share_named(None, task) == pytest.approx(0.75)


def test_words_become_letters_and_phonemes():
    batch = WORDS.batch(WORDS.train)
    assert batch.src.tolist() == [[5, 3, 4, EOS], [3, 5, 7, EOS]]
    assert batch.tgt_out.tolist() == [[7, 3, 4, EOS], [5, 8, EOS, 0]]
    assert WORDS.error_rate(["B EY"]).value == pytest.approx(50.0)


def test_words_to_test_on_are_not_those_to_learn_from():
    words = Words.load(300, 100)
    assert not {word for word, _ in words.train} & {word for word, _ in words.test}
    assert [len(words.train), len(words.test)] == [300, 100]


def speed() -> why.Speed:
    names = (TRANSFORMER, GRU, LSTM)
    return why.Speed(
        lengths=(16, 512),
        parameters=dict.fromkeys(names, 10),
        milliseconds={TRANSFORMER: (4.0, 8.0), GRU: (2.0, 24.0), LSTM: (1.0, 2.0)},
        chains={TRANSFORMER: (50, 50), GRU: (100, 3100)},
        calls=dict.fromkeys(names, (1, 1)),
        answer_lengths=(8, 32),
        answers={TRANSFORMER: (3.0, 12.0), GRU: (2.0, 8.0)},
    )


def test_ratios_are_to_the_transformer():
    found = speed()
    assert [found.gru_at_shortest, found.gru_at_longest, found.lstm_at_longest] == [0.5, 3.0, 0.25]
    assert [found.gru_chain_growth, found.transformer_chain_growth, found.decoding_ratio] == [31.0, 1.0, 1.5]


def test_excess_is_in_points_above_the_transformer():
    def score(value: float) -> Score:
        return Score("per", value, value - 1, value + 1, 10, "", False)

    rows = {TRANSFORMER: (score(30), score(12)), GRU: (score(40), score(25)), LOOKING: (score(20), score(10))}
    found = why_quality.Quality((10, 20), rows, {}, {}, 5, [])
    assert [found.gru_excess, found.attention_excess] == [13, -2]
    (axis,) = pictures.error_rates(found).axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["10 steps", "20 steps"]
    assert len(axis.patches) == 6


def test_pictures_of_time_name_networks_and_lengths():
    left, right = pictures.step_times(speed()).axes
    assert [text.get_text() for text in left.get_xticklabels()] == ["16", "512"]
    assert [text.get_text() for text in left.get_legend().get_texts()] == [TRANSFORMER, GRU, LSTM]
    assert [text.get_text() for text in right.get_legend().get_texts()] == [TRANSFORMER, GRU]
    assert {left.get_xscale(), left.get_yscale(), right.get_yscale()} == {"log"}


def test_pictures_of_recall_have_a_panel_for_each_question():
    recall = why.Recall(
        (5, 30), 8, {(GRU, 1): (1.0, 0.9), (GRU, 8): (0.3, 0.2), (LOOKING, 8): (1.0, 1.0)}, {}, (0.2, 0.1), 1 / 8
    )
    alone = why.FarAlone((5, 30), {0.1: (1.0, 0.2)}, {LOOKING: 1.0}, 1 / 8)
    axes = pictures.recalled(recall, alone).axes
    assert [axis.get_title() for axis in axes] == [
        "One symbol, one distance",
        "One symbol, distances mixed",
        "8 symbols, distances mixed",
    ]
    assert [recall.gru_one_far, recall.gru_far, recall.attention_far, alone.slowest_far] == [0.9, 0.2, 1.0, 0.2]
    assert replace(recall, scores={**recall.scores, (TRANSFORMER, 8): (0.5, 0.4)}).transformer_far == 0.4
