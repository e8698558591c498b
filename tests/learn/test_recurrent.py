"""Recurrent networks behind the Transformer's interface: padding, steps, arithmetic by hand, beginnings."""

import pytest
import torch

from transduce.inference.beam_search import beam_search
from transduce.inference.config import DecodingConfig
from transduce.inference.search import SpecialIds
from transduce.learn.recurrent import RecurrentConfig, RecurrentSeq2Seq, as_large_as, num_parameters
from transduce.learn.tasks import BOS, EOS, FIRST_SYMBOL, PAD, batch_of, copying
from transduce.learn.training import exact_match, train, written
from transduce.model.config import VocabularySizes

VOCABULARY = VocabularySizes(source=13, target=11, num_target_ids=11, is_joint=False)
SHAPES = {
    "gru": RecurrentConfig(d_model=7),
    "lstm": RecurrentConfig(d_model=7, cell="lstm", num_encoder_layers=2),
    "gru, attention": RecurrentConfig(d_model=7, attends=True, num_decoder_layers=2),
    "lstm, attention, both ways": RecurrentConfig(d_model=7, cell="lstm", attends=True, reads_both_ways=True),
    "gru, both ways, deep": RecurrentConfig(
        d_model=7, reads_both_ways=True, num_encoder_layers=2, num_decoder_layers=3
    ),
}
each = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)


def network(config: RecurrentConfig) -> RecurrentSeq2Seq:
    torch.manual_seed(3)
    model = RecurrentSeq2Seq(config, VOCABULARY).double().eval()
    with torch.no_grad():  # zero biases would hide what leaks through them
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@each
def test_padding_changes_nothing(config):
    model = network(config)
    src, tgt_in = torch.tensor([[3, 5, 4, EOS]]), torch.tensor([[BOS, 4, 6]])
    padded = torch.tensor([[3, 5, 4, EOS, PAD, PAD, PAD], [7, 8, 9, 10, 3, 4, EOS]])
    targets = torch.tensor([[BOS, 4, 6, PAD, PAD], [BOS, 5, 5, 8, 3]])
    torch.testing.assert_close(model(padded, targets)[:1, :3], model(src, tgt_in))


@each
def test_steps_agree_with_one_pass_over_the_whole_target(config):
    model = network(config)
    src = torch.tensor([[3, 5, 4, EOS, PAD], [7, 8, 9, 10, EOS], [6, EOS, PAD, PAD, PAD]])
    tgt_in = torch.tensor([[BOS, 4, 6, 9], [BOS, 5, 5, 8], [BOS, 3, 10, 7]])
    whole, state = model.logits(model(src, tgt_in)), model.start(src)
    for position in range(tgt_in.size(1)):
        tokens = tgt_in[:, position : position + 1]
        logits, state = model.step(tokens, torch.zeros_like(tokens), state)
        torch.testing.assert_close(logits[:, 0], whole[:, position])


@each
def test_hypotheses_that_change_places_and_sentences_that_leave_keep_their_pasts(config):
    model = network(config)
    src = torch.tensor([[3, 5, 4, EOS, PAD], [7, 8, 9, 10, EOS]])
    zero = torch.zeros(2, 1, dtype=torch.long)
    _, state = model.step(torch.full((2, 1), BOS), zero, model.start(src))
    _, state = model.step(torch.tensor([[4, 5], [6, 7]]), zero.expand(2, 2), state)
    state.keep(torch.tensor([1]))
    logits, state = model.step(torch.tensor([[8, 9]]), torch.tensor([[1, 0]]), state)
    expected = model.logits(model(src[[1, 1]], torch.tensor([[BOS, 7, 8], [BOS, 6, 9]])))
    torch.testing.assert_close(logits[0], expected[:, -1])


@each
def test_the_future_of_the_target_is_not_seen(config):
    model = network(config)
    src = torch.tensor([[3, 5, EOS]])
    one, other = (model(src, torch.tensor([[BOS, 4, last]])) for last in (6, 9))
    assert torch.equal(one[:, :2], other[:, :2])
    assert not torch.equal(one[:, 2], other[:, 2])


def test_a_gru_by_hand_gives_the_encoder_s_states():
    """Cho et al. 2014, in torch's form: the reset gate is applied after the product."""
    model = network(RecurrentConfig(d_model=7, attends=True))
    src = torch.tensor([[3, 5, 9, EOS]])
    rnn, h = model.encoder, torch.zeros(7, dtype=torch.float64)
    for number, token in enumerate(src[0].tolist()):
        x = model.src_embedding.weight[token] * 7**0.5
        from_x = rnn.weight_ih_l0 @ x + rnn.bias_ih_l0
        from_h = rnn.weight_hh_l0 @ h + rnn.bias_hh_l0
        reset, update = (torch.sigmoid(from_x + from_h))[:14].chunk(2)
        new = torch.tanh(from_x[14:] + reset * from_h[14:])
        h = (1 - update) * new + update * h
        torch.testing.assert_close(model.start(src).memory[0][0, number], h)


def test_attention_mixes_states_as_by_hand():
    model = network(RecurrentConfig(d_model=7, attends=True))
    src, tgt_in = torch.tensor([[3, 5, 9, EOS]]), torch.tensor([[BOS]])
    states, start = model.start(src).memory[0][0], model.start(src).hidden[0][0]
    x = model.decoder(model.tgt_embedding(tgt_in) * 7**0.5, start)[0][0, 0]
    scores = torch.stack([x @ (model.key_proj.weight @ state + model.key_proj.bias) for state in states]) / 7**0.5
    weights = scores.exp() / scores.exp().sum()
    found = sum(weight * state for weight, state in zip(weights, states, strict=True))
    expected = torch.tanh(model.out_proj.weight @ torch.cat((found, x)) + model.out_proj.bias)
    torch.testing.assert_close(model(src, tgt_in)[0, 0], expected)


def test_without_attention_the_last_state_is_all_that_the_decoder_gets():
    plain, looking = (network(RecurrentConfig(d_model=7, attends=attends)) for attends in (False, True))
    states, other = torch.randn(1, 4, 7).double(), torch.randn(1, 4, 7).double()
    is_real, x = torch.ones(1, 4, dtype=torch.bool), torch.randn(1, 2, 7).double()
    assert torch.equal(plain._look_back(x, (states, is_real)), plain._look_back(x, (other, is_real)))
    assert not torch.equal(looking._look_back(x, (states, is_real)), looking._look_back(x, (other, is_real)))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_each_gate_starts_orthogonal_and_an_lstm_remembers(cell):
    model = RecurrentSeq2Seq(RecurrentConfig(d_model=8, cell=cell), VOCABULARY)
    for matrix in model.encoder.weight_hh_l0.chunk(3 if cell == "gru" else 4):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(8), atol=1e-5, rtol=0)
    expected = torch.zeros_like(model.encoder.bias_ih_l0)
    if cell == "lstm":
        expected[8:16] = 1
    assert torch.equal(model.encoder.bias_ih_l0, expected)
    assert not model.encoder.bias_hh_l0.any()


def test_beam_search_takes_it():
    model = network(SHAPES["lstm, attention, both ways"])
    src = torch.tensor([[3, 5, 4, EOS], [7, EOS, PAD, PAD]])
    found = beam_search(
        model.step,
        model.start(src),
        torch.tensor([4, 4]),
        SpecialIds(PAD, BOS, EOS),
        config=DecodingConfig(beam_size=3),
    )
    assert len(found) == 2


def test_it_learns_and_writes_by_itself():
    task = copying(num_symbols=4, shortest=1, longest=3)
    torch.manual_seed(1)
    model = RecurrentSeq2Seq(RecurrentConfig(d_model=24, attends=True), task.vocabulary)
    train(model, task.draw, steps=150, batch_size=32, learning_rate=1e-2, warmup_steps=10)
    batch = batch_of([([FIRST_SYMBOL + 1, FIRST_SYMBOL], [FIRST_SYMBOL + 1, FIRST_SYMBOL])])
    assert written(model, batch.src, 5) == [[FIRST_SYMBOL + 1, FIRST_SYMBOL]]
    assert exact_match(model, task.draw(50, torch.Generator().manual_seed(9))) > 0.9


def test_a_network_as_large_as_another_is_the_nearest_width():
    sizes = [num_parameters(RecurrentSeq2Seq(RecurrentConfig(d_model=d), VOCABULARY)) for d in range(1, 40)]
    for target in (300, 5000, 8001):
        found = as_large_as(target, lambda d: RecurrentSeq2Seq(RecurrentConfig(d_model=d), VOCABULARY))
        assert abs(num_parameters(found) - target) == min(abs(size - target) for size in sizes)


def test_an_unknown_cell_is_told():
    with pytest.raises(ValueError, match="one of gru, lstm"):
        RecurrentConfig(cell="rnn")
