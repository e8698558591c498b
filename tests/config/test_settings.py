import ast
import dataclasses
import functools
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from transduce.config.settings import ExperimentConfig, load_config, refuse_changes
from transduce.config.toml import build, differences, override, parse_toml, to_table, to_toml
from transduce.errors import ConfigMismatchError, TransduceError
from transduce.evaluation.config import ValidationConfig
from transduce.inference.config import DecodingConfig
from transduce.model.config import PRESETS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/transduce"
LEAST = '[data]\ndataset = "copy"\n[training]\nsteps = 5\n'


@dataclass(frozen=True)
class Oven:
    degrees: float = 180.0
    racks: int = 2
    has_fan: bool = False
    mode: Literal["top", "bottom"] = "top"
    dishes: tuple[str, ...] = ("bread",)

    def __post_init__(self) -> None:
        if self.degrees > 300:
            raise ValueError(f"degrees is {self.degrees}: at most 300.")


@dataclass(frozen=True)
class Kitchen:
    name: str
    oven: Oven = field(default_factory=Oven)


# The generic part, on dataclasses of no experiment


def test_toml_gives_back_what_it_was_made_of() -> None:
    kitchen = Kitchen('quote " \\ \u2028 é', Oven(degrees=1e-9, racks=0, has_fan=True, mode="bottom", dishes=()))
    assert build(Kitchen, tomllib.loads(to_toml(kitchen))) == kitchen


def test_what_is_not_mentioned_keeps_its_default() -> None:
    assert build(Kitchen, {"name": "a", "oven": {"racks": 3}}) == Kitchen("a", Oven(racks=3))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"name": "a", "ovn": {}}, "unknown setting 'ovn'. Did you mean 'oven'?"),
        ({"name": "a", "oven": {"degrese": 1}}, "unknown setting 'oven.degrese'. Did you mean 'oven.degrees'?"),
        ({"name": "a", "oven": {"zzz": 1}}, "unknown setting 'oven.zzz'. Available: degrees, racks, has_fan, mode"),
        ({"name": 1}, "name is 1: it must be a text."),
        ({"oven": {}}, "'name' must be set"),
        ({"name": "a", "oven": 3}, "'oven' is a section of settings, not a value"),
        ({"name": {"x": 1}}, "name is {'x': 1}: it must be a text."),
        ({"name": "a", "oven": {"racks": True}}, "oven.racks is True: it must be a whole number."),
        ({"name": "a", "oven": {"racks": 2.0}}, "oven.racks is 2.0: it must be a whole number."),
        ({"name": "a", "oven": {"has_fan": 1}}, "oven.has_fan is 1: it must be true or false."),
        ({"name": "a", "oven": {"degrees": True}}, "oven.degrees is True: it must be a number."),
        ({"name": "a", "oven": {"degrees": "hot"}}, "oven.degrees is 'hot': it must be a number."),
        ({"name": "a", "oven": {"degrees": float("nan")}}, "oven.degrees is nan: it must be a finite number."),
        ({"name": "a", "oven": {"degrees": float("inf")}}, "oven.degrees is inf: it must be a finite number."),
        ({"name": "a", "oven": {"degrees": 301}}, "degrees is 301.0: at most 300."),
        ({"name": "a", "oven": {"mode": "side"}}, "oven.mode is 'side': it must be one of 'top', 'bottom'."),
        ({"name": "a", "oven": {"mode": ["top"]}}, "oven.mode is ['top']: it must be one of 'top', 'bottom'."),
        ({"name": "a", "oven": {"dishes": ["a", 2]}}, "oven.dishes is 2: it must be a text."),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(table: dict[str, object], told: str) -> None:
    with pytest.raises(TransduceError) as refusal:
        build(Kitchen, table)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_whole_number_can_stand_for_a_number() -> None:
    degrees = build(Oven, {"degrees": 200}).degrees
    assert (degrees, type(degrees)) == (200.0, float)


def test_a_single_text_can_stand_for_a_list_of_one() -> None:
    assert build(Oven, {"dishes": "cake"}).dishes == ("cake",)
    assert build(Oven, {"dishes": ["cake", "pie"]}).dishes == ("cake", "pie")


def test_overrides_replace_and_leave_the_table_as_it_was() -> None:
    table = {"name": "a", "oven": {"racks": 2}}
    words = ["--oven.racks", "4", "--oven.mode=bottom", "--oven.has_fan", "true", "--oven.dishes", '["a", "b"]']
    expected = {"racks": 4, "mode": "bottom", "has_fan": True, "dishes": ["a", "b"]}
    assert override(table, words) == {"name": "a", "oven": expected}
    assert table == {"name": "a", "oven": {"racks": 2}}


def test_an_override_keeps_what_is_behind_the_first_equals_sign() -> None:
    assert override({}, ["--oven.mode=a=b"]) == {"oven": {"mode": "a=b"}}
    assert override({}, ["--oven.racks", "-3"]) == {"oven": {"racks": -3}}
    assert override({}, ["--oven.mode=--top"]) == {"oven": {"mode": "--top"}}


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("2024", ("2024",)),
        ("1.5", ("1.5",)),
        ("2024-01-31", ("2024-01-31",)),
        ("true", ("true",)),
        ("inf", ("inf",)),
        ('"2024"', ("2024",)),
        ('["2024", "b"]', ("2024", "b")),
        ("a.tsv", ("a.tsv",)),
    ],
)
def test_a_file_may_be_named_by_what_toml_takes_for_a_number(text: str, paths: tuple[str, ...]) -> None:
    least = '[data]\nvalid = ["v.tsv"]\n[training]\nsteps = 3\n'
    config = load_config(least, "x", ["--data.train", text, "--training.steps", "5"])
    assert (config.data.train, config.training.steps) == (paths, 5)


def test_only_a_field_of_text_takes_a_number_as_text() -> None:
    words = ["--oven.racks", "4", "--oven.has_fan", "true", "--oven.degrees", "7.5"]
    assert override({}, words, Kitchen) == {"oven": {"racks": 4, "has_fan": True, "degrees": 7.5}}
    assert override({}, ["--oven.unknown", "4"], Kitchen) == {"oven": {"unknown": 4}}


@pytest.mark.parametrize(
    "words",
    [
        *(["racks"], ["--racks", "3"], ["--oven.", "3"], ["--.racks", "3"], ["--oven.racks"]),
        ["--oven.racks", "--oven.has_fan", "true"],
    ],
)
def test_an_override_that_names_no_setting_is_refused(words: list[str]) -> None:
    with pytest.raises(TransduceError, match=r"racks|oven"):
        override({"oven": {}}, words)


def test_an_override_of_a_value_as_if_it_were_a_section_is_refused() -> None:
    with pytest.raises(TransduceError, match="'name' is not a section"):
        override({"name": "a"}, ["--name.x", "1"])


def test_broken_toml_is_refused_with_the_name_of_the_file_and_the_line() -> None:
    with pytest.raises(TransduceError, match=r"^my\.toml is not valid TOML: .*line 2"):
        parse_toml("[a]\nb =\n", "my.toml")


@pytest.mark.parametrize(
    "text",
    [
        f"x = {'[' * 100_000}",
        f"x = {'{a = ' * 100_000}",
        f"x = {'9' * 5_000}",
        f"x = 0x{'f' * 5_000}",
        f"{'a.' * 2_000}b = 1",
    ],
    ids=["arrays", "tables", "digits", "hexadecimal digits", "sections"],
)
def test_toml_that_python_cannot_hold_is_refused_with_the_name_of_the_file(text: str) -> None:
    # From Python 3.13 on a table may be as deep as the last of these, and is refused by its name.
    is_held = sys.version_info >= (3, 13) and text.startswith("a.")
    with pytest.raises(TransduceError, match="^unknown setting 'a'" if is_held else r"^my\.toml is not valid TOML"):
        load_config(text, "my.toml")


@pytest.mark.parametrize("name", ["oven.racks", "oven.degrees"])
@pytest.mark.parametrize("value", [1 << 63, 10**400, -(10**400)])
def test_a_number_beyond_64_bits_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(TransduceError, match=f"^{name} is .*2\\*\\*63"):
        build(Kitchen, {"name": "a", "oven": {name.partition(".")[2]: value}})


@pytest.mark.parametrize(
    "text", ["2\n[evil]\nx=1", "2 # no more", "2\n", "2, racks = 3", "2}\n[evil]\nx = {a = 1", "2\n#\n", "[2] # no"]
)
def test_an_override_is_one_value_with_nothing_behind_it(text: str) -> None:
    assert override({}, ["--oven.racks", text]) == {"oven": {"racks": text}}
    with pytest.raises(TransduceError, match=r"oven\.racks is .* must be a whole number") as caught:
        build(Kitchen, override({"name": "a"}, ["--oven.racks", text], Kitchen))
    assert "\n" not in str(caught.value)


def test_an_override_may_be_any_value_of_toml() -> None:
    values = {"[1, 2]": [1, 2], "[\n1, # one\n2]": [1, 2], "{a = 1}": {"a": 1}, '"a # b"': "a # b", " 3 ": 3}
    for text, value in values.items():
        assert override({}, ["--oven.unknown", text]) == {"oven": {"unknown": value}}


def test_a_setting_of_millions_of_characters_is_refused_at_once_in_a_short_line() -> None:
    started, long = time.perf_counter(), "x" * 5_000_000
    for table in ({long: 1}, {"name": "a", "oven": {"racks": long}}, {"oven": {long: 1}}):
        with pytest.raises(TransduceError) as caught:
            build(Kitchen, table)
        assert len(str(caught.value)) < 2_100
    assert time.perf_counter() - started < 2


def test_differences_names_what_differs_and_nothing_else() -> None:
    assert differences(Kitchen("a"), Kitchen("b", Oven(racks=5))) == {"name": ("a", "b"), "oven.racks": (2, 5)}
    assert differences(Kitchen("a"), Kitchen("a")) == {}


# The settings of an experiment


def test_settings_survive_being_written_and_read() -> None:
    config = load_config(LEAST, "x", ["--model.dropout", "0.25", "--validation.metrics", '["bleu", "ter"]'])
    assert load_config(to_toml(config), "x") == config


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_every_example_config_loads_and_survives(path: Path) -> None:
    config = load_config(path.read_text(), path.name)
    assert load_config(to_toml(config), path.name) == config


@pytest.mark.parametrize("metrics", ['["wer", "per"]', '"wer"'])
def test_an_older_config_of_grouped_sources_is_scored_by_the_share_of_wrong_words(metrics: str) -> None:
    older = f"{LEAST}[validation]\nmetrics = {metrics}\nbest = 'wer'\ngroup_sources = true\n"
    validation = load_config(older, "x").validation
    assert (validation.metrics[0], validation.best) == ("word_error", "word_error")
    assert load_config(older.replace("wer", "word_error"), "x").validation == validation
    ungrouped = load_config(older.replace("true", "false"), "x").validation
    assert (ungrouped.metrics[0], ungrouped.best) == ("wer", "wer")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_the_defaults_and_settings_go_above_it(name: str) -> None:
    config = load_config(LEAST, "x", ["--model.preset", name])
    assert config.model == PRESETS[name]
    config = load_config(LEAST, "x", ["--model.preset", name, "--model.dropout", "0.5"])
    assert config.model == dataclasses.replace(PRESETS[name], dropout=0.5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.preset", "huge"], "model.preset is 'huge': it must be one of tiny, small, base, big."),
        (["--model.preset", '["tiny"]'], "model.preset is ['tiny']"),
        (["--data.train", "a.tsv"], "no training data"),
        (["--data.valid", "a.tsv"], "data.valid goes with data.train"),
        (["--data.max_len", "1"], "data.max_len is 1"),
        (["--data.more", '["a", "b", "c"]'], "data.more has 3 files: give one with both sides"),
        (["--model.max_len", "100"], "data.max_len (256) must be at most model.max_len (100)"),
        (["--validation.best", "chrf"], "validation.best is 'chrf'"),
        (["--validation.metrics", "bluu"], "validation.metrics: there is no metric 'bluu'. Did you mean 'bleu'?"),
        (["--validation.group_sources", "true"], "validation.metrics may contain only word_error and per"),
        (["--validation.max_pairs", "0"], "validation.max_pairs is 0"),
        (["--validation.beam_size", "0"], "validation.beam_size is 0"),
        (["--training.steps", "-1"], "training.steps is -1"),
        (["--training.minutes", "nan"], "training.minutes is nan"),
        (["--training.steps", "0"], "no length of training"),
        (["--optim.beta1", "1.0"], "optim.beta1"),
        (["--optim.epsilon", "0"], "optim.epsilon is 0.0: it must be above 0"),
        (["--decoding.beam_size", "0"], "beam_size is 0"),
        (["--tokenizer.vocab_size", "3"], "vocab_size (3)"),
        (["--training.learning_rate", "1e-3"], "Did you mean 'optim.learning_rate'?"),
        (["--training.beam_size", "3"], "Did you mean 'validation.beam_size' or 'decoding.beam_size'?"),
    ],
)
def test_what_a_section_refuses_reaches_the_user_in_one_line(words: list[str], told: str) -> None:
    with pytest.raises(TransduceError) as refusal:
        load_config(LEAST, "x", words)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_defaults_of_all_sections_are_valid() -> None:
    assert load_config(LEAST, "x").decoding == DecodingConfig()
    assert load_config(LEAST, "x").validation == ValidationConfig()


# What a config is called where it is read.
SECTIONS = [field.name for field in dataclasses.fields(ExperimentConfig)]
READERS = {"self", "config", "settings", *SECTIONS}


def sections() -> dict[str, type]:
    return {name: type(getattr(load_config(LEAST, "x"), name)) for name in to_table(load_config(LEAST, "x"))}


def reads_of(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, str]]:
    """The attributes read in a module, each with the class that reads it to validate itself, if one does."""
    for node in ast.iter_child_nodes(tree):
        is_own = isinstance(tree, ast.ClassDef) and getattr(node, "name", "") == "__post_init__"
        by = tree.name if is_own else owner
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            base = ast.unparse(node.value).split(".")[-1]
            if base in READERS:
                yield node.attr, by
        yield from reads_of(node, by)


@functools.cache
def all_reads() -> set[tuple[str, str]]:
    return {read for path in SOURCE.rglob("*.py") for read in reads_of(ast.parse(path.read_text()))}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_read_somewhere(section: str) -> None:
    kind = sections()[section]
    read = {name for name, by in all_reads() if by != kind.__name__}
    unread = {field.name for field in dataclasses.fields(kind)} - read
    assert not unread, f"nobody reads {section}.{', '.join(sorted(unread))}: take it out, or use it"


@pytest.mark.parametrize(
    ("name", "allowed", "with_flag"),
    [("training.steps", True, True), ("optim.beta1", False, True), ("model.d_model", False, False)],
)
def test_resuming_allows_refuses_or_asks(name: str, allowed: bool, with_flag: bool) -> None:
    for accept_changes, is_fine in ((False, allowed), (True, with_flag)):
        if is_fine:
            refuse_changes({name: (1, 2)}, accept_changes=accept_changes)
        else:
            with pytest.raises(ConfigMismatchError, match=rf"{name} \(1 -> 2\)"):
                refuse_changes({name: (1, 2)}, accept_changes=accept_changes)


def test_normal_forms_are_given_as_names_with_commas_or_as_a_list() -> None:
    text = '[data]\ntrain = "a.tsv"\n[training]\nsteps = 1\n'
    for value in ("nfc,lower", "nfc, lower", '["nfc", "lower"]'):
        assert load_config(text, "x", ["--tokenizer.normalize", value]).tokenizer.normalize == ("nfc", "lower")
    assert load_config(f'{text}[tokenizer]\nnormalize = "nfc"\n', "x").tokenizer.normalize == ("nfc",)
    with pytest.raises(TransduceError, match=r"normalize is 'lowr': it must be one of .* Did you mean 'lower'"):
        load_config(text, "x", ["--tokenizer.normalize", "nfc,lowr"])


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("false", False), ("auto", "auto")])
def test_a_graph_is_wanted_or_not_or_left_to_the_device(value: str, expected: object) -> None:
    config = load_config(LEAST, "x", ["--training.batching", "packed", "--training.cuda_graph", value])
    assert config.training.cuda_graph is expected or config.training.cuda_graph == expected == "auto"
    assert load_config(to_toml(config), "x") == config


def test_a_number_is_not_taken_for_true() -> None:
    with pytest.raises(TransduceError, match=r"training\.cuda_graph is 1: it must be one of 'auto', True, False"):
        load_config(LEAST, "x", ["--training.batching", "packed", "--training.cuda_graph", "1"])
