"""The search for a GPU, run without a graph: its outputs are those of the searches that wait for each step."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from test_alphabet import LETTERS, SEEN, predictor_of

from small_model import random_predictor
from transduce.errors import TransduceError
from transduce.inference.beam_search import beam_search
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Rules
from transduce.inference.engine import InferenceModel
from transduce.inference.search import Hypothesis, SpecialIds, greedy_search
from transduce.inference.static_search import StaticSearches
from transduce.model.config import TransformerConfig
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "birds", "in", "trees"]
TOKENIZER = Tokenizer.learn(TokenizerConfig(source="words", target="words", joint=False), WORDS, WORDS[::-1])
MODEL = TransformerConfig(d_model=16, d_ff=24, num_heads=2, num_encoder_layers=1, num_decoder_layers=2, max_len=64)
SPECIAL = SpecialIds(TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sources_of(lens: list[int], num_ids: int, seed: int) -> torch.Tensor:
    random = np.random.default_rng(seed)
    rows = [[*random.integers(3, num_ids, length - 1).tolist(), SPECIAL.eos] for length in lens]
    return torch.tensor([row + [SPECIAL.pad] * (max(lens) - len(row)) for row in rows], device=DEVICE)


def ids_of(src: torch.Tensor) -> list[list[int]]:
    return [[i for i in row if i != SPECIAL.pad] for row in src.tolist()]


def refuse_others(ours: list[list[Hypothesis]], theirs: list[list[Hypothesis]]) -> None:
    assert [[each.ids for each in n_best] for n_best in ours] == [[each.ids for each in n_best] for n_best in theirs]
    for n_best, expected in zip(ours, theirs, strict=True):
        for name in ("log_prob", "score"):
            numbers = [[getattr(each, name) for each in hypotheses] for hypotheses in (n_best, expected)]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("beam_size", "num_best", "length_norm"), [(1, 1, "wu"), (2, 2, "power"), (5, 3, "wu")])
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@torch.inference_mode()
def test_outputs_are_those_of_the_other_searches(beam_size, num_best, length_norm, positions):
    config = DecodingConfig(beam_size=beam_size, length_norm=length_norm, length_penalty=1.2)
    model = TransformerConfig(**vars(MODEL) | {"positions": positions})
    for seed in range(4):  # so random that outputs end at all lengths
        predictor = random_predictor(model, TOKENIZER, config, seed=seed, scale=0.5).to(DEVICE)
        engine = InferenceModel(predictor.model)
        searches = StaticSearches(engine, SPECIAL, config, num_best=num_best)
        # Two shapes, one of them twice: nothing is left of the batch before.
        for lens, limits in (([4, 9, 2], [9, 5, 40]), ([7], [12]), ([5, 3, 6, 2], [33, 1, 12, 8])):
            src, max_lens = sources_of(lens, 12, seed), torch.tensor(limits, device=DEVICE)
            state = engine.start(src)
            if beam_size == 1:
                expected = [[each] for each in greedy_search(engine.step, state, max_lens, SPECIAL, config=config)]
            else:
                expected = beam_search(engine.step, state, max_lens, SPECIAL, config=config, num_best=num_best)
            refuse_others(searches.search(ids_of(src), limits), expected)


@pytest.mark.parametrize("beam_size", [1, 4])
@torch.inference_mode()
def test_characters_are_whole_and_of_the_alphabet(beam_size):
    config = DecodingConfig(beam_size=beam_size, length_penalty=3.0)  # long outputs
    num_bytes = 0
    for seed in range(6):
        predictor = predictor_of(LETTERS, SEEN, seed=seed, beam_size=beam_size).to(DEVICE)
        engine, alphabet = InferenceModel(predictor.model), predictor.alphabet
        src, max_lens = sources_of([4, 3, 5], 260, seed), torch.tensor([12, 3, 6], device=DEVICE)
        options = {"config": config, "rules": [Rules(alphabet=alphabet, eos_id=SPECIAL.eos)] * 3}
        if beam_size == 1:
            expected = [[each] for each in greedy_search(engine.step, engine.start(src), max_lens, SPECIAL, **options)]
        else:
            expected = beam_search(engine.step, engine.start(src), max_lens, SPECIAL, **options)
        ours = StaticSearches(engine, SPECIAL, config, alphabet=alphabet).search(ids_of(src), max_lens.tolist())
        refuse_others(ours, expected)
        num_bytes += sum(len(n_best[0].ids) > 1 and max(n_best[0].ids) >= 0x80 for n_best in expected)
    assert num_bytes


@pytest.mark.parametrize("max_len", [1, 5])
@torch.inference_mode()
def test_scores_that_are_no_numbers_are_refused(max_len):
    predictor = random_predictor(MODEL, TOKENIZER, DecodingConfig(), seed=1).to(DEVICE)
    predictor.model.tgt_embedding.weight.fill_(float("nan"))
    searches = StaticSearches(InferenceModel(predictor.model), SPECIAL, DecodingConfig(beam_size=2))
    with pytest.raises(TransduceError, match="NaN"):
        searches.search([[3, 4, SPECIAL.eos]], [max_len])


def test_a_predictor_takes_this_search_where_it_is_asked_to_and_can(monkeypatch):
    monkeypatch.setattr("transduce.inference.predictor.is_gpu", lambda _device: True)
    num_batches = []
    search = StaticSearches.search
    monkeypatch.setattr(StaticSearches, "search", lambda *given: num_batches.append(1) or search(*given))
    predictor = random_predictor(MODEL, TOKENIZER, DecodingConfig(beam_size=3), seed=1, scale=0.5).to(DEVICE)
    texts = ["the cat sat", "", "birds", "a mat and the birds in trees"]
    graphed = DecodingConfig(beam_size=3, cuda_graph=True)
    expected = [[each.ids for each in n_best] for n_best in predictor.predict_n_best(texts, 2)]
    assert not num_batches
    outputs = predictor.predict_n_best(texts, 2, decoding=graphed)
    assert [[each.ids for each in n_best] for n_best in outputs] == expected
    assert num_batches
    num_batches.clear()
    for settings in ({"min_len": 3}, {"temperature": 1.0}):
        predictor.predict(texts, decoding=DecodingConfig(cuda_graph=True, **settings))
    assert not num_batches


def test_threads_that_share_a_predictor_have_the_outputs_of_one(monkeypatch):
    monkeypatch.setattr("transduce.inference.predictor.is_gpu", lambda _device: True)
    decoding = DecodingConfig(beam_size=2, cuda_graph=True)
    predictor = random_predictor(MODEL, TOKENIZER, decoding, seed=1, scale=0.5).to(DEVICE)
    texts = [" ".join(WORDS[first : first + length]) for first in range(4) for length in (1, 3, 5)]
    expected = [predictor.predict([text]) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: predictor.predict([text]), texts)) == expected


def test_of_many_sentences_as_many_are_searched_at_once_as_memory_allows(monkeypatch):
    monkeypatch.setattr("transduce.inference.static_search._MOST_BYTES", 2**20)
    engine = InferenceModel(random_predictor(MODEL, TOKENIZER, DecodingConfig(), seed=1).model)
    searches = StaticSearches(engine, SPECIAL, DecodingConfig(beam_size=3))
    src_lens = [3] * 40 + [40] * 5
    batches = list(searches._batches(src_lens, [2 * length + 20 for length in src_lens]))
    # A token's keys and values take 2 * 2 layers * 16 * 4 bytes; room is for 64 + 3 * 128 of them, or 32 + 3 * 32.
    assert engine.bytes_per_token == 256
    assert [len(rows) for rows in batches[:3]] == [8, 32, 5]
    assert sorted(row for rows in batches for row in rows) == list(range(45))
