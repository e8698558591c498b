"""The reference of settings: complete, true, and a config file that can be trained with."""

import dataclasses
import subprocess
import sys
import tomllib
import typing

import pytest

from transduce.cli.main import main
from transduce.config.reference import all_settings, annotated_toml, sections
from transduce.config.settings import ExperimentConfig, load_config
from transduce.config.toml import to_table

FIELDS = [
    f"{section}.{field.name}"
    for section, kind in typing.get_type_hints(ExperimentConfig).items()
    for field in dataclasses.fields(kind)
]


def test_every_setting_has_a_help_text_that_is_a_sentence() -> None:
    settings = {setting.name: setting for setting in all_settings()}
    assert [*settings] == [
        *FIELDS[: FIELDS.index("model.d_model")],
        "model.preset",
        *FIELDS[FIELDS.index("model.d_model") :],
    ]
    for name, setting in settings.items():
        assert setting.help[:1].isupper() or setting.help.startswith("torch"), name
        assert setting.help.endswith("."), name


def test_the_defaults_are_those_of_a_run() -> None:
    config = to_table(load_config('[data]\ndataset = "copy"\n[training]\nsteps = 1', "a file"))
    for setting in all_settings():
        if setting.name not in ("model.preset", "data.dataset", "training.steps"):
            assert tomllib.loads(f"value = {setting.default}")["value"] == config[setting.section][setting.key], setting


@pytest.mark.parametrize("words", ["settings", "init", "train --help"])
def test_every_setting_is_shown(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(words.split()) == 0
    except SystemExit as end:
        assert end.code == 0
    shown = capsys.readouterr().out
    for setting in all_settings():
        assert (setting.key if words == "init" else f"--{setting.name}") in shown


def test_a_setting_is_found_by_its_section_its_name_and_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    for name, number in (("optim", 10), ("optim.learning_rate", 1), ("learning_rate", 1), ("seed", 2)):
        assert main(["settings", name]) == 0
        assert capsys.readouterr().out.count("  --") == number


def test_an_unknown_setting_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "learnin_rate"]) == 2
    assert "Did you mean 'learning_rate'?" in capsys.readouterr().err


def test_the_file_of_init_is_a_config_with_the_pairs_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "a.src", "a.tgt"]) == 0
    config = load_config(capsys.readouterr().out, "my.toml")
    assert config.data.train == ("a.src", "a.tgt")
    assert (config.model.d_model, config.optim.method) == (128, "muon")


def test_a_commented_line_of_init_is_the_default_of_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert {"# d_model = 128", "# d_ff = 256", "# num_heads = 4", "# num_encoder_layers = 4"} <= {*lines}


def test_the_commented_lines_of_init_are_defaults_that_can_be_switched_on() -> None:
    text = annotated_toml({"data.dataset": "copy", "training.steps": 1})
    lines = [
        line.removeprefix("# ") if line.startswith(tuple(f"# {s.key} = " for s in all_settings())) else line
        for line in text.split("\n")
    ]
    without = [line for line in lines if not line.startswith(("preset = ", "train = [", "valid = ["))]
    assert load_config("\n".join(without), "x") == load_config(text, "x")


def test_settings_need_no_torch() -> None:
    program = "import sys; from transduce.cli.main import main; main(['settings']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_each_section_has_a_title() -> None:
    assert all(title.endswith(".") for title in sections().values())
