"""Recipes can be had again: their settings are valid, their numbers add up, and a verdict is what statistics says."""

import importlib
import json
import math
import re
import signal
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from calling import command
from transduce.cli import recipes as reproducing
from transduce.cli import reproduce as reproduction
from transduce.cli.data import write_dataset
from transduce.cli.recipes import Published, Recipe, find_recipe, list_recipes, rows_of, verdicts
from transduce.data import synthetic as small_tasks
from transduce.data.datasets import find_dataset, load_split
from transduce.devices import machine
from transduce.errors import ConfigMismatchError, TransduceError
from transduce.evaluation.config import METRICS
from transduce.runs.folder import RunFolder
from transduce.training.signals import Stopped

RECIPE = Recipe(
    name="small",
    title="A small one",
    tests=("test2016",),
    metrics=("bleu",),
    published=(Published(by="others", scores={"test2016 bleu": 30.0}),),
)


INDEX = """
[letters]
title = "Letters unchanged"
tests = ["test"]
metrics = ["exact_match", "cer"]
published = [{ by = "others", scores = { "test exact_match" = 99.0 } }]
"""
CONFIG = """
data.dataset = "copy"
tokenizer = { source = "characters", target = "characters" }
model = { preset = "tiny", d_model = 16, d_ff = 16, num_heads = 1, num_encoder_layers = 1, num_decoder_layers = 1 }
training = { steps = 6, batch_tokens = 64, validate_every = 3 }
validation = { metrics = ["cer"], max_pairs = 10 }
decoding.beam_size = 1
"""


@pytest.fixture(autouse=True)
def small_data_sets(monkeypatch) -> None:
    for split, num_rows in {"train": 300, "valid": 40, "test": 60}.items():
        monkeypatch.setitem(small_tasks.SPLITS, split, num_rows)


@pytest.fixture
def letters(monkeypatch, tmp_path: Path) -> Path:
    """The only recipe there is: of a few steps."""
    monkeypatch.setattr(reproducing, "_FOLDER", tmp_path)
    (tmp_path / "index.toml").write_text(INDEX)
    (tmp_path / "letters.toml").write_text(CONFIG)
    return tmp_path


def run(value: float, seed: int = 1, settings: str = "") -> dict:
    score = {"value": value, "is_higher_better": True, "num_segments": 1000}
    return {"seed": seed, "settings": settings, "scores": {"test2016": {"bleu": score}}}


def with_results(monkeypatch, tmp_path: Path, *values: float) -> Recipe:
    monkeypatch.setattr(reproducing, "_FOLDER", tmp_path)
    RECIPE.config_path.write_text("training.steps = 1")
    rows = [run(value, seed, RECIPE.settings) for seed, value in enumerate(values, start=1)]
    (tmp_path / "small.json").write_text(json.dumps(rows[::-1]))
    return RECIPE


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_every_recipe_is_a_config_of_a_named_data_set_with_these_test_sets(recipe):
    config = recipe.config(7)
    assert config.training.seed == 7
    assert config.training.steps > 0, "a run that ends by the clock is another one elsewhere"
    assert config.training.batching == "bucketed", "a GPU would choose others than those that were measured"
    assert len(recipe.results) == len(json.loads(recipe.results_path.read_text())), "they are of these settings"
    assert config.validation.beam_size == 1, "else what lengths are worth would decide which weights are kept"
    assert set(recipe.tests) <= set(find_dataset(config.data.dataset).splits)
    assert set(recipe.metrics) <= set(METRICS)
    for published in recipe.published:
        assert set(published.scores) <= {f"{test} {metric}" for test in recipe.tests for metric in recipe.metrics}


def test_results_of_other_settings_are_not_this_recipes(monkeypatch, tmp_path):
    recipe = with_results(monkeypatch, tmp_path, 31.0, 32.0)
    recipe.config_path.write_text("# One step.\n[training]\nsteps = 1\n")
    assert len(recipe.results) == 2
    recipe.config_path.write_text("training.steps = 2")
    assert recipe.results == []


def test_results_come_in_the_order_of_seeds(monkeypatch, tmp_path):
    recipe = with_results(monkeypatch, tmp_path, 31.0, 32.0, 33.0)
    assert [result["seed"] for result in recipe.results] == [1, 2, 3]
    (row,) = rows_of(recipe, recipe.results)
    assert (row.values, row.mean, row.spread, row.published) == ((31.0, 32.0, 33.0), 32.0, 1.0, {"others": 30.0})


def test_the_margin_is_a_prediction_interval_of_student(monkeypatch, tmp_path):
    """By scipy's stats.t.ppf(0.975, 2) = 4.30265: 4.30265 * 1 * sqrt(1 + 1/3)."""
    recipe = with_results(monkeypatch, tmp_path, 31.0, 32.0, 33.0)
    (row,) = rows_of(recipe, recipe.results)
    assert row.margin == pytest.approx(4.30265 * math.sqrt(4 / 3), rel=1e-3)
    assert rows_of(recipe, [run(31.0)])[0].margin == math.inf
    many = rows_of(recipe, [run(31.0 + seed % 2, seed) for seed in range(20)])[0]
    assert many.margin == pytest.approx(2.262 * many.spread * math.sqrt(1.05), rel=1e-3)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(36.9, "came out as recorded"), (37.1, "came out HIGHER than recorded"), (26.9, "came out LOWER than recorded")],
)
def test_a_seed_beyond_the_margin_did_not_come_out(monkeypatch, tmp_path, value, verdict):
    recipe = with_results(monkeypatch, tmp_path, 31.0, 32.0, 33.0)
    (line,) = verdicts(recipe, run(value))
    assert line.startswith(f"test2016 bleu: {value:.2f}, {verdict}")
    assert line.endswith("32.00 ± 4.97 (3 seeds); others: 30.00")


def test_equal_seeds_leave_room_for_one_segment(monkeypatch, tmp_path):
    recipe = with_results(monkeypatch, tmp_path, 100.0, 100.0, 100.0)
    assert "came out as recorded: 100.00 ± 0.10" in verdicts(recipe, run(99.9))[0]
    assert "LOWER" in verdicts(recipe, run(99.7))[0]


def test_one_seed_gives_no_verdict(monkeypatch, tmp_path):
    recipe = with_results(monkeypatch, tmp_path, 31.0)
    assert verdicts(recipe, run(3.0)) == ["test2016 bleu: 3.00, recorded: 31.00 (1 seed); others: 30.00"]


def test_a_metric_that_was_not_recorded_yet_is_left_out(monkeypatch, tmp_path):
    recipe = replace(with_results(monkeypatch, tmp_path, 31.0, 32.0), metrics=("chrf", "bleu"))
    assert [row.metric for row in rows_of(recipe, recipe.results)] == ["bleu"]


def test_an_older_record_of_wrong_words_is_read_under_their_name_now(monkeypatch, tmp_path):
    grouped = "[validation]\nmetrics = ['wer', 'per']\nbest = 'wer'\n"
    monkeypatch.setattr(reproducing, "_FOLDER", tmp_path)
    recipe = replace(RECIPE, tests=("test",), metrics=("word_error", "per"), published=())
    recipe.config_path.write_text(grouped)
    older = recipe.settings
    recipe.config_path.write_text(grouped.replace("wer", "word_error"))
    score = {"value": 22.6, "is_higher_better": False, "num_segments": 1000}
    found = {
        "seed": 1,
        "settings": older,
        "scores": {"test": {"wer": score | {"name": "wer"}, "per": score | {"name": "per"}}},
        "validations": [{"step": 2, "wer": 31.0, "per": 7.0}],
    }
    recipe.results_path.write_text(json.dumps([found]))
    (read,) = recipe.results
    assert read["scores"]["test"]["word_error"] == score | {"name": "word_error"}
    assert read["validations"] == [{"step": 2, "word_error": 31.0, "per": 7.0}]
    assert [row.metric for row in rows_of(recipe, [read])] == ["word_error", "per"]


def test_without_results_nothing_is_judged():
    (line,) = verdicts(replace(RECIPE, name="not-there"), run(12.0))
    assert line == "test2016 bleu: 12.00; others: 30.00"


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(TransduceError, match=r"no recipe 'multi30k-tk'.*multi30k-tok"):
        find_recipe("multi30k-tk")


def test_a_row_is_trained_scored_and_judged(letters):
    run_dir = letters / "run"
    words = ["reproduce", "letters", "--seed", 3, "--processes", 1, "--run-dir", run_dir]
    found = command(*words, "-o", letters / "found.json")
    assert found.status == 0, found.err
    exact, cer = found.lines
    assert exact.endswith("; others: 99.00")
    assert exact.startswith("test exact_match: ")
    recorded = json.loads((letters / "found.json").read_text())
    assert cer == f"test cer: {recorded['scores']['test']['cer']['value']:.2f}"
    assert [recorded[key] for key in ("recipe", "seed", "steps", "processes")] == ["letters", 3, 6, 1]
    assert [row["step"] for row in recorded["validations"]] == [3, 6]
    assert 0 < recorded["validations"][-1]["seconds"] <= recorded["wall_seconds"] + 0.05, "rounded to tenths"

    source, target = (letters / f"copy/test.{side}" for side in ("source", "target"))
    write_dataset("copy", source.parent)
    scored = command("evaluate", run_dir, "--source", source, "--target", target, "--metric", "cer", "--json")
    assert json.loads(scored.out)["scores"]["cer"] == recorded["scores"]["test"]["cer"]

    (letters / "letters.json").write_text(json.dumps([recorded, recorded | {"seed": 4}]))
    again = command(*words, "--resume")
    assert again.status == 0, again.err
    value = recorded["scores"]["test"]["cer"]["value"]
    assert re.search(rf"came out as recorded: {value:.2f} ± \d+\.\d\d \(2 seeds\)$", again.lines[1])


def test_a_row_tells_the_commit_of_every_sitting(letters):
    run_dir, now = letters / "run", machine.commit()
    words = ["reproduce", "letters", "--processes", 1, "--run-dir", run_dir, "--json"]
    assert json.loads(command(*words).out)["commits"] == ([now] if now else [])
    folder = RunFolder.open(run_dir)
    started = folder.facts["started"] | {"commit": "0123abc"}
    resumed = [{"step": 3, "changes": {}, "machine": started | {"commit": commit}} for commit in ("456def", "0123abc")]
    folder.update_facts({"started": started, "resumed": [resumed[0], resumed[0], resumed[1]]})
    again = json.loads(command(*words, "--resume").out)
    assert again["commits"] == ["0123abc", "456def", "0123abc", *([now] if now else [])]
    assert again["cpu_seconds"] is None, "that of the other sittings is not known"


def test_a_commit_is_recorded_of_a_run_that_goes_on_and_not_told_as_another_machine(letters):
    words = ["train", letters / "letters.toml", "--run-dir", letters / "run"]
    assert command(*words).status == 0
    folder = RunFolder.open(letters / "run")
    folder.update_facts({"started": folder.facts["started"] | {"commit": "0123abc", "torch": "1.0"}})
    resumed = command(*words, "--resume")
    assert "torch was 1.0 and is " in resumed.err
    assert "commit was" not in resumed.err
    (told,) = RunFolder.open(letters / "run").facts["resumed"]
    assert told["machine"]["commit"] == machine.commit()


@pytest.fixture
def driver(monkeypatch) -> Callable[[str], ModuleType]:
    """Imports a driver of benchmarks, and has it measure the recipe `letters`."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")

    def imported(name: str) -> ModuleType:
        module = importlib.import_module(name)
        for recipe in vars(module).keys() & {"RECIPE", "RAW_RECIPE"}:
            monkeypatch.setattr(module, recipe, "letters")
        return module

    return imported


@pytest.mark.parametrize(("commits", "begun_with"), [(["0123abc", "456def"], "0123abc"), ([], None)])
def test_the_comparison_with_other_toolkits_reads_a_record(monkeypatch, driver, letters, commits, begun_with):
    quality, ours = driver("quality"), letters / "transduce"
    ours.mkdir()
    words = ["reproduce", "letters", "--processes", 1, "--run-dir", ours / "run", "-o", ours / "record.json"]
    assert command(*words).status == 0
    record = json.loads((ours / "record.json").read_text()) | {"commits": commits}
    (ours / "record.json").write_text(json.dumps(record))
    monkeypatch.setattr(quality, "text", lambda split: load_split("copy", split))
    monkeypatch.setattr(quality, "scores", lambda _folder, _name, answers: len(answers))
    found = quality.ours(letters, Namespace(threads=1))
    assert found["commit"] == begun_with
    assert found["minutes"] * 60 == pytest.approx(record["wall_seconds"])
    assert found["test"] == len(load_split("copy", "test").src)


@pytest.fixture
def ledger(monkeypatch, driver, letters) -> Callable[..., dict]:
    """Runs a part of the ledger with these words and gives what it recorded; the letters have no BLEU."""
    module, output = driver("ledger"), letters / "ledger.json"
    monkeypatch.setattr(module, "METRIC", "cer")
    monkeypatch.setattr(module, "STEPS", 6)
    changes = {"baseline": "", "seed 2": "--training.seed 2", "too fast": "--optim.learning_rate 1e30"}
    monkeypatch.setattr(module, "TRAININGS", changes)
    monkeypatch.setattr(module, "ANSWERS", {"baseline": "", "short": "--decoding.max_len_extra 1"})
    monkeypatch.setattr(module, "WEIGHTS", {"the last": 1})

    def run(*words: object) -> dict:
        monkeypatch.setattr("sys.argv", ["ledger.py", "-o", str(output), *map(str, words)])
        module.main()
        return json.loads(output.read_text())

    return run


@pytest.mark.proof
def test_the_ledger_trains_with_one_thing_changed_and_tells_what_diverged(ledger, letters):
    part = ledger("training", letters / "runs")["training"]
    assert (part["recipe"], part["steps"]) == ("letters", 6)
    baseline, seed, diverged = part["rows"]
    assert [row["changed"] for row in part["rows"]] == ["baseline", "seed 2", "too fast"]
    for row, name in ((baseline, "baseline"), (seed, "seed-2")):
        assert row["commits"] == ([machine.commit()] if machine.commit() else [])
        described = json.loads(command("describe", letters / "runs" / name, "--json").out)
        assert row["parameters"] == described["parameters"]["total"]
    assert "difference" not in baseline
    assert seed["difference"] == pytest.approx(seed["score"] - baseline["score"], abs=0.02)
    assert seed["difference"] != 0
    assert RunFolder.open(letters / "runs/seed-2").settings.training.seed == 2
    assert diverged == {"changed": "too fast", "how": "--optim.learning_rate 1e30", "score": None}


def test_the_ledger_does_not_go_on_with_runs_of_other_steps(ledger, letters):
    run = letters / "runs/seed-2"
    assert command("train", letters / "letters.toml", "--run-dir", run, "--training.steps", 3).status == 0
    with pytest.raises(SystemExit, match="seed-2 was planned for other steps than 6"):
        ledger("training", letters / "runs")
    assert not (letters / "runs/baseline").exists()


def test_the_ledger_answers_and_scores_in_other_ways(monkeypatch, driver, ledger, letters):
    def run_here(words, check):
        assert check and command(*words[3:]).status == 0

    monkeypatch.setattr(driver("ledger"), "subprocess", SimpleNamespace(run=run_here))
    run = letters / "run"
    assert command("reproduce", "letters", "--processes", 1, "--run-dir", run).status == 0
    part = ledger("answering", run, run)["answering"]
    baseline, short, last = part["rows"]
    assert (part["seed"], short["changed"], last["how"]) == (1, "short", "transduce average --last 1")
    assert short["difference"] == pytest.approx(short["score"] - baseline["score"], abs=0.02)
    assert short["difference"] < 0, "fewer letters that nobody asked for"
    assert [row["score"] for row in part["scored_otherwise"][:1]] == [baseline["score"]]


@pytest.mark.parametrize("how", [("--training.save_every", 2), ("--init-from", "{ready}"), ("--training.steps", 3)])
def test_the_ledger_refuses_a_run_that_is_not_the_recipes_to_the_last_setting_and_step(ledger, letters, how):
    ready, run = letters / "ready", letters / "run"
    assert command("train", letters / "letters.toml", "--run-dir", ready).status == 0
    words = [str(word).format(ready=ready) for word in how]
    assert command("train", letters / "letters.toml", "--run-dir", run, *words).status == 0
    with pytest.raises(SystemExit, match="was not trained as the recipe letters says"):
        ledger("answering", run, ready)


def test_the_ledger_is_shown_with_what_diverged_and_where_nothing_is_known_of_a_commit(monkeypatch, driver, tmp_path):
    render = driver("render_results")
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    row = {
        "changed": "seed 2",
        "how": "--training.seed 2",
        "score": 30.5,
        "difference": -0.25,
        "low": -1.0,
        "high": 0.5,
    }
    rows = [row | {"parameters": 1234, "commits": []}, {"changed": "too fast", "how": "--x 1", "score": None}]
    how = {"recipe": "letters", "machine": {"device": "a CPU", "cores": 2}, "versions": {"torch": "2.13.0"}}
    training = how | {"measured": "2026-01-02", "steps": 1500, "rows": rows}
    (tmp_path / "ledger.json").write_text(json.dumps({"training": training}))
    shown = render.ledger()
    assert "| seed 2 | 30.50 | -0.25 [-1.00, +0.50] | `--training.seed 2` | 1,234 |" in shown
    assert "| too fast | diverged |  | `--x 1` |" in shown
    assert "`letters` with 1,500 steps" in shown
    assert "commit `unknown`." in shown
    rows[0]["commits"] = ["0123456789abcdef", "fedcba9876543210-dirty"]
    (tmp_path / "ledger.json").write_text(json.dumps({"training": training}))
    assert "commits `0123456789ab`, `fedcba987654-dirty`." in render.ledger()


def test_a_run_that_began_with_the_weights_of_another_is_refused(letters):
    ready, begun = letters / "ready", letters / "begun"
    assert command("train", letters / "letters.toml", "--run-dir", ready).status == 0
    assert command("train", letters / "letters.toml", "--run-dir", begun, "--init-from", ready).status == 0
    refused = command("reproduce", "letters", "--processes", 1, "--run-dir", begun, "--resume")
    assert refused.status == 78
    assert f"was not trained like letters with seed 1 (it started from the weights of {ready})" in refused.err


def test_a_run_of_other_settings_is_refused_at_once_though_training_could_go_on(letters):
    words = ["reproduce", "letters", "--processes", 1, "--run-dir", letters / "run", "--resume"]
    assert command(*words[:-1]).status == 0
    (letters / "letters.toml").write_text(CONFIG.replace("steps = 6", "steps = 9"))
    told = f"{letters / 'run'} was not trained like letters with seed 1 (training.steps)"
    refused = command(*words)
    assert (refused.status, told in refused.err) == (78, True)

    went_on = command("train", letters / "letters.toml", "--run-dir", letters / "run", "--resume")
    assert went_on.status == 0, went_on.err
    refused = command(*words)
    assert (refused.status, told in refused.err) == (78, True), "its rate fell to zero before the last steps"


def test_a_run_that_saves_more_often_is_the_recipes_all_the_same(letters):
    run = ["--run-dir", letters / "run"]
    assert command("train", letters / "letters.toml", *run, "--training.save_every", 2).status == 0
    found = command("reproduce", "letters", "--processes", 1, *run, "--resume")
    assert found.status == 0, found.err
    assert found.lines[0].startswith("test exact_match: ")


@pytest.mark.parametrize("setting", ["data.max_len", "decoding.max_len_extra", "training.label_smoothing"])
def test_settings_that_change_what_is_learnt_or_kept_are_refused_though_they_were_changed_back(letters, setting):
    words = ["train", letters / "letters.toml", "--run-dir", letters / "run"]
    value = "0.2" if setting == "training.label_smoothing" else "30"
    assert command(*words, f"--{setting}", value).status == 0
    back = command(*words, "--resume", "--accept-changes")
    assert back.status == 0, back.err
    refused = command("reproduce", "letters", "--processes", 1, "--run-dir", letters / "run", "--resume")
    assert refused.status == 78
    assert f"was not trained like letters with seed 1 ({setting})" in refused.err


def test_a_precision_that_no_cpu_chooses_is_not_the_recipes(letters):
    words = ["train", letters / "letters.toml", "--run-dir", letters / "run"]
    assert command(*words, "--training.precision", "bfloat16").status == 0
    refused = command("reproduce", "letters", "--processes", 1, "--run-dir", letters / "run", "--resume")
    assert refused.status == 78
    assert "was not trained like letters with seed 1 (training.precision)" in refused.err


def test_a_run_goes_on_with_the_processes_that_its_minutes_count_for(letters):
    words = ["reproduce", "letters", "--run-dir", letters / "run"]
    assert command(*words, "--processes", 1).status == 0
    refused = command(*words, "--processes", 2, "--resume")
    assert refused.status == 78
    assert "started with --processes 1 --threads 1, and its minutes are counted for these" in refused.err
    assert "can use --processes 2 --threads 2: use those it was started with" in refused.err  # one each

    folder = RunFolder.open(letters / "run")
    session = {"step": 3, "changes": {}, "machine": folder.facts["started"] | {"threads": 4}}
    folder.update_facts({"resumed": [session]})
    refused = command(*words, "--processes", 1, "--resume")
    assert refused.status == 78
    assert "so no part of it can use --processes 1 --threads 4" in refused.err


def test_a_run_goes_on_with_as_many_threads_as_it_began_with_where_none_are_named(monkeypatch, letters):
    assert command("reproduce", "letters", "--processes", 1, "--run-dir", letters / "run").status == 0
    given: list[list[str]] = []
    monkeypatch.setattr(reproduction, "main", lambda words: given.append(words) or 0)
    how = {"resume": True, "seed": 1, "processes": 1, "threads": None, "device": "cpu", "quiet": True, "debug": False}
    reproduction._train(find_recipe("letters"), letters / "run", Namespace(**how))
    (words,) = given
    assert words[words.index("--threads") + 1] == "1"


def test_a_run_goes_on_by_the_words_it_began_with_though_its_processes_have_a_thread_each(monkeypatch, letters):
    run_dir = letters / "run"
    assert command("reproduce", "letters", "--processes", 1, "--run-dir", run_dir).status == 0
    folder = RunFolder.open(run_dir)
    folder.update_facts({"started": folder.facts["started"] | {"processes": 2, "threads": 1}})
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    num_threads = torch.get_num_threads()
    given: list[list[str]] = []
    monkeypatch.setattr(reproduction, "main", lambda words: given.append(words) or 0)
    how = {"resume": True, "seed": 1, "device": "cpu", "quiet": True, "debug": False}
    try:
        for processes, threads in ((2, 2), (2, 1), (None, None)):
            words = Namespace(**how, processes=processes, threads=threads)
            reproduction._train(find_recipe("letters"), run_dir, words)
        with pytest.raises(ConfigMismatchError):
            reproduction._train(find_recipe("letters"), run_dir, Namespace(**how, processes=1, threads=2))
    finally:
        torch.set_num_threads(num_threads)
    assert [words[words.index("--processes") + 1] for words in given] == ["2", "2", "2"]


def test_a_run_of_another_seed_is_not_taken_for_this_one(letters):
    words = ["reproduce", "letters", "--processes", 1, "--run-dir", letters / "run"]
    assert command(*words, "--seed", 1).status == 0
    refused = command(*words, "--seed", 2, "--resume")
    assert refused.status == 78
    assert "was not trained like letters with seed 2 (training.seed)" in refused.err
    assert refused.out == b""


@pytest.mark.parametrize(("signalled", "status"), [(Stopped(signal.SIGTERM), 143), (KeyboardInterrupt(), 130)])
def test_a_stop_while_scoring_tells_how_to_go_on(monkeypatch, letters, signalled, status):
    def stop(*_: object, **__: object) -> None:
        raise signalled

    words = ["reproduce", "letters", "--processes", 1, "--run-dir", letters / "run"]
    with monkeypatch.context() as patched:
        patched.setattr(reproduction, "measure", stop)
        stopped = command(*words)
    assert stopped.status == status
    assert stopped.err.endswith(
        f"with: transduce reproduce letters --processes 1 --run-dir {letters / 'run'} --threads 1 --resume\n"
    )
    resumed = command(*words, "--resume")
    assert resumed.status == 0, resumed.err
    assert resumed.lines[0].startswith("test exact_match: ")


@pytest.mark.usefixtures("letters")
def test_rows_are_listed_with_what_was_recorded_and_published():
    found = json.loads(command("reproduce", "--json").out)
    (row,) = found["recipes"]
    assert (row["name"], row["tests"], row["results"]) == ("letters", ["test"], [])
    assert row["published"] == [{"by": "others", "scores": {"test exact_match": 99.0}}]
    table = command("reproduce").out.decode()
    assert "letters" in table
    assert "others: test exact_match 99.00" in table
    assert "none yet" in table


def test_a_place_that_cannot_be_written_is_refused_before_training(letters):
    refused = command("reproduce", "letters", "--run-dir", letters / "run", "-o", letters / "none/found.json")
    assert refused.status == 2
    assert "there is no such folder" in refused.err
    refused = command("reproduce", "letters", "--run-dir", letters / "run", "-o", letters)
    assert refused.status == 2
    assert "is a folder" in refused.err
    assert not (letters / "run").exists()


@pytest.mark.usefixtures("letters")
def test_what_a_list_has_no_use_for_is_refused():
    for words in (["-o", "x.json"], ["--resume"], ["--run-dir", "runs/x"], ["--processes", "1"]):
        refused = command("reproduce", *words)
        assert refused.status == 2
        assert refused.err.startswith(f"transduce: error: {words[0]} needs the NAME of a recipe")


def test_a_stopped_row_tells_how_to_go_on_and_be_scored(monkeypatch, letters):
    monkeypatch.setattr(reproduction, "main", lambda _words: 143)
    found = command("reproduce", "letters", "--seed", 2, "--run-dir", letters / "run")
    assert found.status == 143
    assert found.err.endswith(
        f"transduce reproduce letters --seed 2 --run-dir {letters / 'run'} --threads 1 --resume\n"
    )


def test_two_processes_share_a_step_on_a_cpu_alone(monkeypatch):
    monkeypatch.setattr(reproduction, "find_device", lambda name: torch.device(name))
    monkeypatch.setattr(reproduction, "usable_threads", lambda: 8)
    asked = [(None, "cpu"), (None, "cuda"), (3, "cuda")]
    given = [Namespace(processes=processes, device=device) for processes, device in asked]
    assert list(map(reproduction._num_processes, given)) == [2, 1, 3]
