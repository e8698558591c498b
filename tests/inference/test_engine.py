"""The cached step, in its plain form and laid flat: both are held to full passes over each prefix, in float64."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from covering import covered
from small_model import SEPARATE, SOURCES, VOCABULARIES, random_ids, small_model
from transduce.inference.engine import InferenceModel
from transduce.model import Transformer

NUM_IDS = SEPARATE.num_target_ids
STEPPERS = {"plain": lambda model: model, "flat": InferenceModel}
both = pytest.mark.parametrize("stepper", STEPPERS.values(), ids=STEPPERS.keys())

SWITCHES = covered(
    [False, True], ["layer", "rms"], ["sinusoidal", "learned", "rotary", "none"],
    ["relu", "gelu", "silu", "swiglu"], [True, False], ["joint", "separate"],
)  # fmt: skip
WIDTHS = [(4,) * 7, (1, *(4,) * 12), (2,) * 35, (1,) * 35]
DESCENTS = covered(list(STEPPERS), [False, True], ["sinusoidal", "learned", "rotary", "none"], WIDTHS, strength=2)


def logits_of_full_forward(model: Transformer, src: Tensor, prefixes: Tensor) -> Tensor:
    """Scores after each prefix (B, beam, T), every one computed from its own beginning."""
    beam_size = prefixes.size(1)
    hidden = model(src.repeat_interleave(beam_size, dim=0), prefixes.flatten(0, 1))
    return model.logits(hidden[:, -1]).unflatten(0, (-1, beam_size))


def decode_with_random_parents(
    stepper: Transformer | InferenceModel, src: Tensor, widths: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the cached logits and the prefixes that they follow, (B, beam, T); `widths` are those of the beam."""
    random = torch.Generator().manual_seed(9)
    state = stepper.start(src)
    prefixes = torch.empty(len(src), widths[0], 0, dtype=torch.long)
    for width in widths:
        tokens = torch.randint(1, NUM_IDS, (len(src), width), generator=random)
        parents = torch.randint(0, prefixes.size(1), (len(src), width), generator=random)
        prefixes = prefixes.gather(1, parents[..., None].expand(-1, -1, prefixes.size(2)))
        prefixes = torch.cat((prefixes, tokens[..., None]), dim=2)
        logits, state = stepper.step(tokens, parents, state)
        yield logits[..., :NUM_IDS], prefixes


@both
@pytest.mark.parametrize(("norm_first", "norm", "positions", "feed_forward", "tie", "vocabulary"), SWITCHES)
@torch.inference_mode()
def test_cached_decoding_matches_full_forward(norm_first, norm, positions, feed_forward, tie, vocabulary, stepper):
    model = small_model(
        VOCABULARIES[vocabulary],
        norm_first=norm_first,
        norm=norm,
        positions=positions,
        feed_forward=feed_forward,
        tie_embeddings=tie,
        output_bias=tie,
    )
    for logits, prefixes in decode_with_random_parents(stepper(model), SOURCES, [1] * 4):
        expected = logits_of_full_forward(model, SOURCES, prefixes)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("stepper", "norm_first", "positions", "widths"), DESCENTS)
@torch.inference_mode()
def test_a_beam_of_random_descent_matches_full_forward(stepper, norm_first, positions, widths):
    model = small_model(norm_first=norm_first, positions=positions)
    for logits, prefixes in decode_with_random_parents(STEPPERS[stepper](model), SOURCES, widths):
        expected = logits_of_full_forward(model, SOURCES, prefixes)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11)


@both
@pytest.mark.parametrize("num_sources", [1, 11])  # alone; enough for sources to be filled up to whole vectors
@torch.inference_mode()
def test_any_number_of_sentences_matches_full_forward(num_sources, stepper):
    model = small_model()
    src = random_ids(num_sources, 5, seed=4)
    src[1::2, 3:] = 0
    for logits, prefixes in decode_with_random_parents(stepper(model), src, [1, 3, 3]):
        expected = logits_of_full_forward(model, src, prefixes)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11)


@both
@pytest.mark.parametrize("width", [1, 3])
@torch.inference_mode()
def test_sentences_that_are_kept_go_on_as_before(width, stepper):
    model = small_model()
    tokens = random_ids(3, width, 16, seed=10)
    state, rows = stepper(model).start(SOURCES), torch.arange(3)
    same = torch.arange(width).expand(3, -1)
    for t in range(16):
        if t in (2, 9):
            kept = torch.tensor([2, 0]) if t == 2 else torch.tensor([1])
            state.keep(kept)
            rows = rows[kept]
        logits, state = stepper(model).step(tokens[rows, :, t], same[rows], state)
        expected = logits_of_full_forward(model, SOURCES[rows], tokens[rows, :, : t + 1])
        torch.testing.assert_close(logits[..., :NUM_IDS], expected, rtol=0, atol=1e-11)


@torch.inference_mode()
def test_scores_of_ids_that_do_not_exist_are_minus_infinity():
    (logits, _), *_ = decode_with_random_parents(InferenceModel(small_model()), SOURCES, [1])
    assert logits.isfinite().all()
    model = InferenceModel(small_model())
    beyond, _ = model.step(
        torch.ones(3, 1, dtype=torch.long), torch.zeros(3, 1, dtype=torch.long), model.start(SOURCES)
    )
    assert (beyond[..., NUM_IDS:] == -torch.inf).all()


@torch.inference_mode()
def test_slots_that_nobody_descends_from_are_dropped():
    model = InferenceModel(small_model())
    state = model.start(SOURCES)
    tokens, parents = torch.ones(3, 5, dtype=torch.long), torch.zeros(3, 5, dtype=torch.long)
    for _ in range(30):
        _, state = model.step(tokens, parents, state)  # all descend from the first: one slot a step stays
    assert state.num_slots <= 30 + 6 * 5
