"""Exercises of chapters 8 and 9: the shift, the smoothed target, the schedule, slips, and beam search."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from transduce.learn.exercising import Wrong, exercise, number_of, returned, tensor_of
from transduce.learn.tasks import BOS, EOS

NextLogProbs = Callable[[Sequence[int]], dict[int, float]]


def _shift(target: list[int]) -> tuple[list[int], list[int]]:
    return [BOS, *target], [*target, EOS]


@exercise(
    "training-shift",
    hints=(
        "Both lists are one longer than the target.",
        "What goes in begins with the begin symbol; what is asked for ends with the end symbol.",
    ),
    solution=_shift,
    wrong=(
        lambda _target: None,
        lambda target: ([*target, EOS], [*target, EOS]),
        lambda target: ([BOS, *target, EOS], [BOS, *target, EOS]),
        lambda target: ([BOS, *target[:-1]], target),
        lambda target: ([*target, EOS], [BOS, *target]),
    ),
)
def _check_shift(shift: Any) -> None:
    for target in ([7, 8, 9], [5], []):
        try:
            goes_in, asked = ([int(i) for i in ids] for ids in returned(shift(list(target))))
        except (TypeError, ValueError):
            raise Wrong("It should return two lists of ids: what goes in, and what is asked for.") from None
        if asked == [BOS, *target] and goes_in == [*target, EOS]:
            raise Wrong("The two are swapped: the begin symbol goes in, the end symbol is asked for.")
        if goes_in == asked:
            raise Wrong(f"For {target} both are {asked}: the model would be told at each position what it has to name.")
        if asked != [*target, EOS]:
            raise Wrong(f"For {target} it asks for {asked}: the model must also learn where to end, with {EOS}.")
        if goes_in != [BOS, *target]:
            raise Wrong(f"For {target} it puts in {goes_in}, not {[BOS, *target]}.")


def _smoothed(right: int, label_smoothing: float, num_ids: int) -> list[float]:
    even = label_smoothing / num_ids
    return [1 - label_smoothing + even if i == right else even for i in range(num_ids)]


@exercise(
    "training-smoothed-target",
    hints=(
        "Take e = label_smoothing off the right id, and give it back to all V = num_ids ids in equal parts.",
        "The right id gets e / V too.",
    ),
    solution=_smoothed,
    wrong=(
        lambda _right, _e, _v: None,
        lambda right, e, v: [1 - e if i == right else e / (v - 1) for i in range(v)],
        lambda right, e, v: [1 - e if i == right else e / v for i in range(v)],
        lambda right, _e, v: [float(i == right) for i in range(v)],
    ),
)
def _check_smoothed(smoothed: Any) -> None:
    for right, e, v in ((2, 0.1, 5), (0, 0.3, 4)):
        found = tensor_of(smoothed(right, e, v)).flatten().tolist()
        if len(found) != v or not abs(sum(found) - 1) < 1e-5:
            raise Wrong(f"A distribution over {v} ids sums to 1; yours has {len(found)} and sums to {sum(found):.3f}.")
        if abs(found[right] - (1 - e)) < 1e-5:
            raise Wrong(
                f"The right id has {found[right]:.3f} and the others share e: a common variant. The definition that "
                "the paper cites gives e / V to every id, the right one included."
            )
        if max(abs(a - b) for a, b in zip(found, _smoothed(right, e, v), strict=True)) > 1e-5:
            raise Wrong(f"For right = {right}, e = {e}, V = {v} the right id should have {1 - e + e / v:.3f}.")


def _rate(step: int, d_model: int, warmup_steps: int) -> float:
    return float(d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5))


@exercise(
    "training-rate",
    hints=("Two terms, of which the smaller counts: one rises with the step, one falls.", "Steps count from 1."),
    solution=_rate,
    wrong=(
        lambda _step, _d, _w: None,
        lambda step, d, w: d**-0.5 * max(step**-0.5, step * w**-1.5),
        lambda step, d, w: d**0.5 * min(step**-0.5, step * w**-1.5),
        lambda step, d, w: d**-0.5 * step * w**-1.5,
        lambda step, _d, w: 512**-0.5 * min(step**-0.5, step * w**-1.5),
    ),
)
def _check_rate(rate: Any) -> None:
    peak = (512 * 4000) ** -0.5  # both terms of the minimum are equal at the end of the warm-up
    for step, d_model, warmup, right in (
        (4000, 512, 4000, peak),
        (2000, 512, 4000, peak / 2),
        (16000, 512, 4000, peak / 2),
        (10, 64, 100, 0.125 * 10 / 1000),
    ):
        found = number_of(rate(step, d_model, warmup))
        if not math.isclose(found, right, rel_tol=1e-5):
            told = f"At step {step:,} of d_model {d_model} and {warmup:,} steps of warm-up"
            raise Wrong(f"{told}: {right:.3e}, not {found:.3e}.")


@exercise(
    "decoding-no-slip",
    hints=("All 40 tokens have to be right.", "Independent events: their probabilities are multiplied."),
    solution=0.98**40,
    wrong=(0.98, 0.5, 1 - 0.02 * 40),
)
def _check_no_slip(share: Any) -> None:
    found = number_of(share)
    if abs(found / 100 - 0.98**40) < 0.005:
        raise Wrong(f"{found:g} is in percent; a probability lies between 0 and 1.")
    if not abs(found - 0.98**40) <= 0.005:
        raise Wrong(f"{share} is not it: 40 tokens, each right with probability 0.98, independently of the others.")


def _score(log_prob: float, length: int, alpha: float) -> float:
    return float(log_prob / ((5 + length) / 6) ** alpha)


@exercise(
    "decoding-length-score",
    hints=("Divide, do not subtract.", "An output of one token, its end alone, is divided by 1."),
    solution=_score,
    wrong=(
        lambda _log_prob, _length, _alpha: None,
        lambda log_prob, length, _alpha: log_prob / length,
        lambda log_prob, length, alpha: log_prob / length**alpha,
        lambda log_prob, length, alpha: log_prob * ((5 + length) / 6) ** alpha,
    ),
)
def _check_score(score: Any) -> None:
    for log_prob, length, alpha, right in ((-3.0, 1, 0.6, -3.0), (-6.0, 7, 1.0, -3.0), (-6.0, 19, 0.5, -3.0)):
        found = number_of(score(log_prob, length, alpha))
        if not math.isclose(found, right, rel_tol=1e-5):
            raise Wrong(
                f"A log-probability of {log_prob} over {length} tokens, alpha {alpha}, scores {right}, not {found:.3f}."
            )


def _beam(next_log_probs: NextLogProbs, beam_size: int, longest: int) -> list[int]:
    beam: list[tuple[float, list[int]]] = [(0.0, [])]
    ended = []
    for _ in range(longest):
        continued = [(log_prob + more, [*ids, i]) for log_prob, ids in beam for i, more in next_log_probs(ids).items()]
        ranked = sorted(continued, key=lambda found: -found[0])
        ended += [found for found in ranked[:beam_size] if found[1][-1] == EOS]
        beam = [found for found in ranked if found[1][-1] != EOS][:beam_size]
    return max(ended)[1][:-1]


def _greedy(next_log_probs: NextLogProbs, _beam_size: int, longest: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < longest:
        step = next_log_probs(ids)
        best = max(step, key=lambda i: step[i])
        if best == EOS:
            break
        ids.append(best)
    return ids


def _forgetful(next_log_probs: NextLogProbs, beam_size: int, longest: int) -> list[int]:
    """Ranks by the last token's log-probability alone."""
    beam: list[tuple[float, list[int]]] = [(0.0, [])]
    ended = []
    for _ in range(longest):
        continued = [(more, [*ids, i]) for _, ids in beam for i, more in next_log_probs(ids).items()]
        ranked = sorted(continued, key=lambda found: -found[0])
        ended += [found for found in ranked[:beam_size] if found[1][-1] == EOS]
        beam = [found for found in ranked if found[1][-1] != EOS][:beam_size]
    return max(ended)[1][:-1]


def _without_pruning(next_log_probs: NextLogProbs, beam_size: int, longest: int) -> list[int]:
    """Keeps the best of each beginning, and never ranks beginnings together."""
    beam: list[tuple[float, list[int]]] = [(0.0, [])]
    ended = []
    for _ in range(longest):
        continued = []
        for log_prob, ids in beam:
            best = sorted(next_log_probs(ids).items(), key=lambda step: -step[1])[:beam_size]
            continued += [(log_prob + more, [*ids, i]) for i, more in best]
        ended += [found for found in continued if found[1][-1] == EOS]
        beam = [found for found in continued if found[1][-1] != EOS]
    return max(ended)[1][:-1]


def _garden_path(ids: Sequence[int]) -> dict[int, float]:
    """Begins well with 3, which leads into vagueness; 4 is less likely and sure of what follows. Ends after two."""
    if not ids:
        shares = {3: 0.5, 4: 0.4, 5: 0.1}
    elif len(ids) == 1:
        shares = {3: [3, 4, 5], 4: [5], 5: [4, 5]}[ids[0]]  # type: ignore[assignment]
        shares = dict.fromkeys(shares, 1 / len(shares))
    else:
        shares = {EOS: 0.95, 3: 0.05} if ids[0] == 4 else {EOS: 1.0}
    return {i: math.log(share) for i, share in shares.items()}


def _likeliest(next_log_probs: NextLogProbs, longest: int) -> list[int]:
    """By scoring every answer there is."""
    found = []
    for length in range(longest):
        for ids in itertools.product((3, 4, 5), repeat=length):
            steps = [next_log_probs(ids[:t]).get(i, -math.inf) for t, i in enumerate((*ids, EOS))]
            found.append((sum(steps), list(ids)))
    return max(found)[1]


@exercise(
    "decoding-beam",
    hints=(
        "Keep a list of (log-probability, ids). At each step extend each by every token, and rank them all together.",
        "A beginning that reaches the end symbol leaves the beam and is remembered with its log-probability.",
        "Add up the log-probabilities of all tokens of a beginning.",
    ),
    solution=_beam,
    wrong=(lambda _next, _size, _longest: None, _greedy, _forgetful, _without_pruning),
)
def _check_beam(beam: Any) -> None:
    best = _likeliest(_garden_path, 3)
    asked: set[tuple[int, ...]] = set()

    def watched(ids: Sequence[int]) -> dict[int, float]:
        known = [int(i) for i in ids]  # from a list, a tuple or a tensor
        asked.add(tuple(known))
        return _garden_path(known)

    found = _ids_of(beam(watched, 2, 3))
    if found and found[-1] == EOS:
        raise Wrong("Leave the end symbol out of what you return.")
    if found != best:
        raise Wrong(
            f"With a beam of 2 it returns {found}. The most probable output is {best}, and a beam of 2 holds its "
            "beginning. Are beginnings ranked together, by the sum over all their tokens?"
        )
    for length in range(4):
        if (count := sum(len(ids) == length for ids in asked)) > 2:
            raise Wrong(
                f"With a beam of 2 it goes on from {count} beginnings of {length} tokens: rank them together, keep 2."
            )
    if (found := _ids_of(beam(watched, 1, 3)))[:1] != [3]:
        raise Wrong(f"A beam of 1 is greedy search and begins with 3; yours returns {found}.")


def _ids_of(found: Any) -> list[int]:
    try:
        return [int(i) for i in returned(found)]
    except (TypeError, ValueError):
        raise Wrong(f"It should return the ids alone, in a list, not {found!r}.") from None
