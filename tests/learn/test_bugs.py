"""The ten patients: each differs from the healthy network, by what it is said to suffer from, and in nothing else."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from transduce.learn.break_it import bugs, experiments, pictures
from transduce.learn.break_it.bugs import LETTERS, TASK, admit, name_of
from transduce.learn.break_it.experiments import CANDIDATES, HEALTHY, LAWS, Scores, Ward, broken, examine
from transduce.learn.tasks import BOS, PAD


@pytest.fixture(scope="module")
def examined():
    return {HEALTHY: examine(admit())} | {letter: examine(admit(letter)) for letter in LETTERS}


def test_the_healthy_network_breaks_no_law_whatever_its_weights():
    for seed in (1, 2, 3):
        assert broken(examine(admit(seed=seed))) == set()


# What a bug brings with it: whoever sees the next token sees padding, heads mixed up with positions are hidden wrongly,
# and whoever shares itself out among queries shares itself out among those of padding, too.
_BESIDES = {
    "causal mask leaks by one": {"padding counts in the loss"},
    "heads are split by view": {
        "causal mask leaks by one",
        "padding counts in the loss",
        "source padding is not masked",
    },
    "softmax over the wrong axis": {"scores are not divided by the root of d_k", "source padding is not masked"},
}


@pytest.mark.parametrize("letter", LETTERS)
def test_each_patient_breaks_the_law_made_for_it_and_no_other_but_those_that_follow(letter, examined):
    assert broken(examined[letter]) == {name_of(letter)} | _BESIDES.get(name_of(letter), set())


def test_no_two_patients_suffer_from_the_same_or_show_the_same(examined):
    assert len({name_of(letter) for letter in LETTERS}) == len(LETTERS) == 10
    assert len({frozenset(broken(found)) for found in examined.values()}) == 11
    assert {name_of(letter) for letter in LETTERS} < set(CANDIDATES)
    assert len(CANDIDATES) == len(LAWS) == 14


def test_patients_have_the_weights_of_the_healthy_network():
    healthy = admit().model.state_dict()
    for letter in LETTERS:
        assert all(torch.equal(healthy[name], value) for name, value in admit(letter).model.state_dict().items())


def test_a_law_that_cannot_be_measured_does_not_hold():
    assert not LAWS[0].holds(float("nan"))


def test_batches_of_the_sick_loaders_are_what_their_names_say():
    right = TASK.draw(6, torch.Generator().manual_seed(1))
    by_name = {name_of(letter): admit(letter).draw(6, torch.Generator().manual_seed(1)) for letter in LETTERS}
    not_shifted = by_name["target is not shifted"]
    assert torch.equal(not_shifted.tgt_in, right.tgt_out)
    assert BOS not in not_shifted.tgt_in
    counted = by_name["padding counts in the loss"].tgt_out
    assert PAD not in counted
    assert bool((counted == bugs.PADDING_AS_A_WORD).eq(right.tgt_out == PAD).all())


def test_a_split_by_view_is_right_for_a_single_token_only():
    healthy, sick = (experiments._encoder_layer(model).self_attention for model in (admit().model, admit("C").model))
    x = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(healthy(x[:, :1]), sick(x[:, :1]))
        assert not torch.allclose(healthy(x), sick(x), atol=1e-2)


def test_a_softmax_over_queries_is_attention_with_the_scores_turned():
    part = bugs.SoftmaxOverQueries(8, 2)
    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        q, k, v = part.project(x)
        weights = scaled_dot_product_attention(k, q, torch.eye(3).expand(1, 2, 3, 3)).transpose(-2, -1)
        torch.testing.assert_close(part(x), part.combine(weights @ v))


def test_pictures_show_patients_laws_and_what_is_broken(examined):
    scores = {name: Scores([2.0, 1.0 + 0.1 * i], 0.5, 0.25) for i, name in enumerate(examined)}
    ward = Ward(scores, examined)
    assert (ward.caught, ward.false_alarms, ward.no_worse) == (10, 0, 1)
    assert ward.ratio(LETTERS[2]) == pytest.approx(1.3)
    (axis,) = pictures.laws_map(examined).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [HEALTHY, *LETTERS]
    assert sum(text.get_text() != "0" for text in axis.texts) == sum(len(broken(found)) for found in examined.values())
    (axis,) = pictures.scores_map(ward).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == [HEALTHY, *LETTERS]
    assert len(pictures.loss_curves(ward).axes[0].lines) == 2 * 11  # a curve, and a line to its name
