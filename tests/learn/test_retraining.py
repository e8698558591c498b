"""Experiments are run at other rates, for longer and from other seeds, and what came of it is kept."""

import json
import subprocess
from multiprocessing import get_context
from pathlib import Path

import pytest

from transduce.errors import TransduceError
from transduce.learn import retraining
from transduce.learn.ledger import OTHER_RATE, Ledger
from transduce.learn.retraining import BETTER, GIVEN, OTHER, Results, Run, mismatches, run_all, runs_of
from transduce.learn.tasks import copying
from transduce.learn.training import small_transformer, train
from transduce.learn.varying import varied

CLAIM = """[near]
sentence = "{measured}"
paper = ""
experiment = "a.b"
value = "gap"
at_least = 0.5
fast_at_least = 0.0
"""


def trained(**how: object) -> tuple[list[float], list[float], list[object]]:
    with varied(**how) as variation:  # type: ignore[arg-type]
        task = copying(5, 2, 3)
        model = small_transformer(task.vocabulary, d_model=16, d_ff=16, num_encoder_layers=1, num_decoder_layers=1)
        found = train(model, task.draw, steps=6, batch_size=4, learning_rate=0.01, warmup_steps=2)
    return found.losses, found.rates, variation.trained


def test_a_training_is_longer_at_another_rate_and_from_another_seed_within_the_block_alone() -> None:
    losses, rates, _ = trained()
    assert trained()[:2] == (losses, rates)
    longer = trained(steps=2)
    assert len(longer[0]) == 12 and max(longer[1]) == pytest.approx(max(rates))
    assert longer[1].index(max(longer[1])) == 3  # the warm-up is as much longer
    assert trained(rates=[0.5])[1] == pytest.approx([rate / 2 for rate in rates])
    assert trained(seed=1)[0] != losses
    (row,) = longer[2]
    assert (row.steps, row.rate) == (12, 0.01)  # type: ignore[attr-defined]
    assert row.loss == pytest.approx(sum(longer[0]) / 12)  # type: ignore[attr-defined]


def test_a_longer_training_takes_the_rate_at_which_it_ended_lower(tmp_path: Path) -> None:
    results = Results(tmp_path / "rows.jsonl")
    given, other, better = runs_of("a.b")
    assert (given.rates, other.rates, better.rates, better.times) == (GIVEN, OTHER, BETTER, 4)
    assert (results.factors(given), set(results.factors(other))) == ([], {OTHER_RATE})
    results.append(given, [{"loss": 1.0}, {"loss": 2.0}], {"gap": 1.0})
    results.append(other, [{"loss": 1.5}, {"loss": 1.0}], {"gap": 0.5})
    assert results.factors(better) == [1.0, OTHER_RATE]
    again = Results(tmp_path / "rows.jsonl")
    assert (again.values, again.trainings) == (results.values, results.trainings)


def test_a_run_cut_off_while_it_was_written_counts_as_none(tmp_path: Path) -> None:
    path, run = tmp_path / "rows.jsonl", Run("a.b", 1, GIVEN)
    Results(path).append(run, [{"loss": 1.0}, {"loss": 2.0}], {"gap": 1.0})
    lines = path.read_text().split("\n")
    path.write_text("\n".join(lines[:2]) + "\n")  # without the line that says that it is whole
    results = Results(path)
    assert results.values == {}
    results.append(run, [{"loss": 3.0}, {"loss": 4.0}], {"gap": 2.0})
    assert Results(path).trainings[run] == [{"loss": 3.0}, {"loss": 4.0}]


def test_a_line_torn_by_a_kill_is_dropped_and_the_file_goes_on(tmp_path: Path) -> None:
    path, run = tmp_path / "rows.jsonl", Run("a.b", 1, GIVEN)
    Results(path).append(run, [{"loss": 1.0}], {"gap": 1.0})
    whole = path.read_text()
    for torn in (whole[:20], whole[:-5], whole + '{"run": {"exp'):
        path.write_text(torn)
        Results(path).append(run, [{"loss": 2.0}], {"gap": 2.0})
        assert Results(path).values == {run: {"gap": 2.0}}


def test_one_failing_experiment_loses_no_other_and_a_new_value_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = get_context("forkserver")  # which imports torch once
    server.set_forkserver_preload(["transduce.learn.transformer.attention.experiments"])
    monkeypatch.setattr(retraining, "get_context", lambda _method: server)
    path, rows = tmp_path / "claims.toml", tmp_path / "rows.jsonl"
    sound = CLAIM.replace("a.b", "transformer.attention.experiments.saturation").replace("gap", "unscaled_largest")
    path.write_text(sound + CLAIM.replace("near", "broken").replace("a.b", "masks.experiments.nowhere"))
    good, bad = (Run(claim.experiment, 1, GIVEN) for claim in Ledger.load(path).claims.values())
    with pytest.raises(TransduceError, match="nowhere"):
        run_all([bad, good], Ledger.load(path), Results(rows))
    assert {run: set(values) for run, values in Results(rows).values.items()} == {good: {"unscaled_largest"}}
    path.write_text(sound + sound.replace("near", "further").replace("unscaled_largest", "gradient_ratio"))
    run_all([good], Ledger.load(path), Results(rows))
    assert set(Results(rows).values[good]) == {"unscaled_largest", "gradient_ratio"}


def test_what_was_expected_first_is_compared_with_the_history(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        words = ("git", "-c", "user.name=x", "-c", "user.email=x", *words)
        return subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    path = tmp_path / "claims.toml"
    path.write_text(CLAIM)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    first = git("rev-parse", "HEAD")[:10]
    assert mismatches(Ledger.load(path)) == []
    path.write_text(CLAIM.replace("[near]", "[renamed]").replace("0.5", "0.4"))
    assert mismatches(Ledger.load(path)) == [
        f'renamed: first_expected = "at least 0.5", first_commit = "{first}" in the history'
    ]
    path.write_text(path.read_text() + f"first_expected = {json.dumps('at least 0.5')}\nfirst_commit = '{first}'\n")
    assert mismatches(Ledger.load(path)) == []
