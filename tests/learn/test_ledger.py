"""The ledger settles claims by their bounds, and writes what was measured beside what was expected."""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from transduce.errors import TransduceError
from transduce.learn import ClaimFailed, Ledger
from transduce.learn.__main__ import main
from transduce.learn.retraining import GIVEN, Results, Run, ledger_fields

LEDGER = Path(__file__).parents[2] / "notebooks/claims.toml"
TEXT = """# first line

[near-one]
sentence = "It is {measured:.1f}."
paper = "3.2"
experiment = "none.none"
value = "size"
at_least = 0.9
at_most = 1.1
fast_at_least = 0.0

[slow]
sentence = "It takes {measured:.0f} ms."
paper = ""
experiment = "none.none"
value = "seconds"
at_most = 5
is_timing = true
"""


@dataclass(frozen=True)
class Result:
    size: float = 1.0
    seconds: float = 3.0


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    (tmp_path / "claims.toml").write_text(TEXT)
    return Ledger.load(tmp_path / "claims.toml")


@pytest.mark.parametrize(
    ("size", "holds"), [(0.9, True), (1.1, True), (0.89, False), (1.11, False), (float("nan"), False)]
)
def test_a_claim_holds_within_its_bounds(ledger, size, holds):
    claim = ledger["near-one"]
    if holds:
        assert claim.settle(Result(size=size), fast=False).measured == size
    else:
        with pytest.raises(ClaimFailed, match="NOT as expected"):
            claim.settle(Result(size=size), fast=False)


def test_a_fast_run_judges_the_direction_alone_and_no_seconds(ledger):
    assert ledger["near-one"].settle(Result(size=0.1), fast=True).holds
    with pytest.raises(ClaimFailed):
        ledger["near-one"].settle(Result(size=-0.1), fast=True)
    assert ledger["slow"].settle(Result(seconds=99.0), fast=True).holds
    with pytest.raises(ClaimFailed):
        ledger["slow"].settle(Result(seconds=99.0), fast=False)


def test_what_is_shown_has_the_number_the_section_and_the_command(ledger):
    shown = ledger["near-one"].settle(Result(), fast=False)._repr_markdown_()
    for part in ("It is 1.0.", "section 3.2", "from 0.9 to 1.1", "python -m transduce.learn near-one"):
        assert part in shown


def test_what_was_measured_is_written_once_and_nothing_else_changes(ledger):
    ledger.write_measured({"near-one": 1.01234567})
    ledger.write_measured({"near-one": 0.98765432})
    text = ledger.path.read_text()
    assert ledger["near-one"].measured == 0.9877
    assert ledger["slow"].measured is None
    kept = [line for line in text.split("\n") if not line.startswith("measured")]
    assert "\n".join(kept) == TEXT
    assert text.count("measured =") == 1


def test_a_number_without_a_place_is_refused_and_nothing_is_written(ledger):
    with pytest.raises(TransduceError, match="no place for what was measured of far"):
        ledger.write_measured({"near-one": 1.0, "far": 2.0})
    assert ledger.path.read_text() == TEXT


def test_tables_may_be_written_as_toml_allows(tmp_path):
    (tmp_path / "claims.toml").write_text(
        TEXT.replace("[slow]", "[slow]  # on any machine").replace("value = ", "value=")
    )
    ledger = Ledger.load(tmp_path / "claims.toml")
    ledger.write_measured({"slow": 4.0, "near-one": float("inf")})
    assert (ledger["slow"].measured, ledger["near-one"].measured) == (4.0, float("inf"))


def test_what_was_expected_first_is_shown_where_it_was_something_else(tmp_path):
    first = 'first_expected = "at least 2"\nfirst_commit = "0123456789"'
    (tmp_path / "claims.toml").write_text(TEXT.replace("at_least = 0.9", f"at_least = 0.9\n{first}", 1))
    shown = Ledger.load(tmp_path / "claims.toml")["near-one"].settle(Result(), fast=False)._repr_markdown_()
    assert "first expected at least 2 (0123456) · guarded by 0.9 to 1.1" in shown


def test_a_count_is_said_in_all_its_digits(tmp_path):
    (tmp_path / "claims.toml").write_text(
        TEXT.replace("at_least = 0.9\nat_most = 1.1", "at_least = 12345\nat_most = 12345")
    )
    shown = Ledger.load(tmp_path / "claims.toml")["near-one"].settle(Result(size=12345.0), fast=False)
    assert "expected exactly 12,345 · measured 12,345" in shown._repr_markdown_()


def test_a_share_can_be_said_in_percentage_points(tmp_path):
    (tmp_path / "claims.toml").write_text(TEXT.replace("{measured:.1f}", "{measured_in_percent:.0f} points"))
    assert "It is 98 points." in str(Ledger.load(tmp_path / "claims.toml")["near-one"].settle(Result(size=0.98)))


@pytest.mark.parametrize(
    ("bounds", "same", "other"),
    [
        ("at_least = 0.4\nfast_at_least = 0.1", 0.2, 0.05),  # the direction is what a fast run has to show
        ("at_least = 0.4\nshows_when_fast = false", 0.1, -0.1),
        ("at_most = -0.4\nshows_when_fast = false", -0.1, 0.1),
        ("at_least = -0.05\nat_most = 0.05\nfast_at_least = -0.1", 0.04, 0.06),  # two things are alike
    ],
)
def test_a_number_measured_otherwise_points_the_same_way_or_not(tmp_path, bounds, same, other):
    text = TEXT.partition("at_least")[0] + bounds
    (tmp_path / "claims.toml").write_text(text)
    claim = Ledger.load(tmp_path / "claims.toml")["near-one"]
    assert claim.points_the_same_way(same)
    assert not claim.points_the_same_way(other)
    assert not claim.points_the_same_way(float("nan"))


def test_a_result_without_the_number_is_told(ledger):
    with pytest.raises(TransduceError, match="claim near-one: a object has no 'size'"):
        ledger.settle("near-one", object())


def test_a_claim_run_for_want_of_data_in_its_fast_form_is_judged_as_such(ledger, monkeypatch):
    @dataclass(frozen=True)
    class Small(Result):
        fast: bool = True

    monkeypatch.setattr("transduce.learn.ledger.run_experiment", lambda _name, **_settings: Small(size=0.1))
    assert ledger["near-one"].run(fast=False).fast


def test_settled_values_are_recorded_where_the_environment_says(ledger, tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSDUCE_MEASURED", str(tmp_path / "m.jsonl"))
    ledger["near-one"].settle(Result(size=1.05), fast=False)
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"claim": "near-one", "measured": 1.05, "fast": False}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("at_most = 5", "most = 5"), "claim slow has most"),
        (("at_most = 5\n", ""), "what is expected"),
        (("is_timing = true\n", ""), "which way does it go"),
    ],
)
def test_a_ledger_that_says_too_little_is_refused(tmp_path, change, told):
    (tmp_path / "claims.toml").write_text(TEXT.replace(*change))
    with pytest.raises(TransduceError, match=told):
        Ledger.load(tmp_path / "claims.toml")


def test_an_unknown_claim_names_the_known_ones(ledger):
    with pytest.raises(TransduceError, match="near-one, slow"):
        ledger["far"]


def test_a_folder_without_a_ledger_has_that_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Ledger.load().claims == Ledger.load(LEDGER).claims


def test_the_command_lists_claims_and_refuses_unknown_ones(monkeypatch, capsys):
    monkeypatch.chdir(LEDGER.parent)
    monkeypatch.setattr("sys.argv", ["learn"])
    assert main() == 0
    assert len(capsys.readouterr().out.strip().split("\n")) == len(Ledger.load().claims)
    monkeypatch.setattr("sys.argv", ["learn", "nonsense"])
    assert main() == TransduceError.exit_status
    assert capsys.readouterr().err.startswith("error: there is no claim 'nonsense'")


def test_every_claim_of_the_project_names_an_experiment_and_was_measured():
    ledger = Ledger.load(LEDGER)
    assert len(ledger.claims) >= 25
    for claim in ledger.claims.values():
        module, _, function = claim.experiment.rpartition(".")
        assert callable(getattr(import_module(f"transduce.learn.{module}"), function)), claim.name
        assert "{measured" in claim.sentence, claim.name
        assert claim.measured is not None, claim.name
        low, high = claim.bounds(fast=False)
        assert (low is None or claim.measured >= low) and (high is None or claim.measured <= high), claim.name
        assert bool(claim.first_expected) == bool(claim.first_commit), claim.name


def test_a_claim_about_trainings_holds_otherwise_too_or_says_what_came_then():
    """At another rate and for four times the steps: see `make claims`, whose rows are those of the ledger."""
    ledger = Ledger.load(LEDGER)
    results = Results(LEDGER.with_name("retrainings.jsonl"))
    compared = [claim for claim in ledger.claims.values() if claim.seeds]
    assert len(compared) >= 40
    fields = ledger_fields(ledger, results)
    for claim in compared:
        assert fields[claim.name] == {
            "steps": claim.steps,
            "rates": list(claim.rates),
            "at_other_rate": claim.at_other_rate,
            "longer": claim.longer,
        }
        low, high = claim.bounds(fast=False)
        given = results.values[Run(claim.experiment, 1, GIVEN)][claim.value]
        assert (low is None or given >= low) and (high is None or given <= high), claim.name
        for name in ("at_other_rate", "longer"):
            holds = claim.points_the_same_way(getattr(claim, name))
            assert holds or f"{{{name}" in claim.sentence, f"{claim.name}: {name} is not told"
