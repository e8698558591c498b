"""What is published says the same everywhere: pyproject.toml, changelog, citation, container and workflows."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from calling import command
from transduce.cli.parser import build_parser
from transduce.cli.settings import shipped_configs
from transduce.learn.notebooks import first_cell

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FOR_DEVELOPERS = {"all", "book", "dev", "docs"}
SOURCES = {path: path.read_text() for path in sorted((ROOT / "src").rglob("*.py"))}


def workflow(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())
    return found


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: word and arguments, lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.split("\n") if line]


def test_every_folder_that_the_package_reads_is_put_into_the_wheel() -> None:
    asked = set(re.findall(r'shipped_folder\("(\w+)"\)', "\n".join(SOURCES.values())))
    assert len(asked) == 3
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["sources"] == {"src/transduce": "transduce"} | {name: f"transduce/{name}" for name in asked}
    assert sorted(wheel["only-include"]) == sorted(wheel["sources"])


def test_the_readme_of_an_index_has_no_link_that_leads_nowhere() -> None:
    hook = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = (ROOT / hook["fragments"][0]["path"]).read_text()
    assert "](docs/" in text
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets
    assert all(target.startswith("https://") for target in targets)
    assert "](" not in re.sub(r"\[[^\[\]]+\]\(https://[^)\s]+\)", "", text)  # nothing is left of a link


def test_every_command_that_an_error_advises_installs_an_extra_that_there_is() -> None:
    advised = set(re.findall(r"pip install '(?:transduce|\.)\[(.*?)\]'", "\n".join(SOURCES.values())))
    assert advised == EXTRAS.keys() - FOR_DEVELOPERS
    for path, text in SOURCES.items():  # a command can be copied with the end of its line
        assert not re.search(r"pip install '[^']*'\.", text), path.name


def test_the_extra_all_has_every_extra_of_users_and_dev_has_it() -> None:
    (everything,) = EXTRAS["all"]
    assert set(re.findall(r"[\w]+", everything.partition("[")[2])) == EXTRAS.keys() - FOR_DEVELOPERS
    assert "transduce[all]" in EXTRAS["dev"]


def test_every_package_that_is_asked_for_is_pinned_as_tested() -> None:
    pins = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split("\n")
    }
    asked = {line for extra in EXTRAS.values() for line in extra} | {*PROJECT["dependencies"]}
    names = {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in asked}  # type: ignore[index]
    assert names - {"transduce"} <= pins


def test_version_and_date_are_one_in_package_changelog_and_citation() -> None:
    version, date = re.findall(r"(?m)^## \[(\d.*?)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text())[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == citation["version"] == version
    assert str(citation["date-released"]) == date
    assert (citation["title"], citation["license"]) == (PROJECT["name"], PROJECT["license"])


def test_the_place_for_new_entries_is_the_first_of_the_changelog() -> None:
    headings = re.findall(r"(?m)^## (.*)$", (ROOT / "CHANGELOG.md").read_text())
    assert headings[0] == "[Unreleased]"
    assert len(set(headings)) == len(headings) > 1


def test_ci_runs_the_one_script_on_every_python_that_is_named() -> None:
    named = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", each)]
    (job,) = workflow("ci")["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == named[0]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_only_a_tag_publishes_only_after_ci_and_without_a_token() -> None:
    release = workflow("release")
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML takes the word `on` for a truth value
    ci, build, publish = (release["jobs"][name] for name in ("ci", "build", "publish"))
    assert ci == {"uses": "./.github/workflows/ci.yml"}
    assert publish["needs"] == ["ci", "build"]
    assert publish["permissions"] == {"id-token": "write"}
    assert release["permissions"] == workflow("ci")["permissions"] == {"contents": "read"}
    assert "permissions" not in build
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text()


def test_container_and_workflows_name_no_address() -> None:
    for path in (ROOT / "Dockerfile", ROOT / ".dockerignore", *(ROOT / ".github/workflows").iterdir()):
        assert "://" not in path.read_text(), path.name
    assert all(":" in image and "." not in image.partition(":")[0] for word, image in instructions() if word == "FROM")


def test_the_container_has_the_wheel_with_the_pins_and_is_nobodys_root() -> None:
    words = instructions()
    assert {word for word, _ in words} <= {"FROM", "ARG", "ENV", "COPY", "RUN", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    last_stage = words[max(number for number, (word, _) in enumerate(words) if word == "FROM") :]
    runs = [arguments for word, arguments in last_stage if word == "RUN"]
    assert [arguments for word, arguments in last_stage if word == "USER"] == ["transduce"]
    assert any("useradd" in run for run in runs)
    assert ("ENTRYPOINT", json.dumps([*PROJECT["scripts"]])) in last_stage
    assert all("/constraints.txt" in run for run in runs if "pip install" in run)
    (extras,) = (arguments for word, arguments in last_stage if word == "ARG" and arguments.startswith("EXTRAS"))
    assert set(extras.partition("=")[2].strip('"').split(",")) <= EXTRAS.keys()


def test_what_the_container_copies_is_let_through_to_it() -> None:
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    let_through = {line[1:] for line in lines if line.startswith("!")}
    copied = [arguments.split() for word, arguments in instructions() if word == "COPY" and "--from" not in arguments]
    for *files, _ in copied:
        assert all(file == "." or file in let_through for file in files)
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {path.split("/")[0] for path in wheel["only-include"]} | {*PROJECT["license-files"], "README.md"}
    assert needed | {"pyproject.toml", "constraints.txt", ".gitignore"} == let_through
    assert all((ROOT / name).exists() for name in let_through)


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_init_prints_every_config_that_comes_with_the_package(name: str) -> None:
    found = command("init", "--from", name)
    assert found.out == shipped_configs()[name].read_bytes()


def test_init_knows_the_configs_and_recipes_of_the_repository_and_tells_the_nearest() -> None:
    there = {path.stem for folder in ("configs", "recipes") for path in (ROOT / folder).glob("*.toml")}
    assert shipped_configs().keys() == there - {"index"}
    found = command("init", "--from", "coppy")
    assert (found.status, found.err.count("\n")) == (2, 1)
    assert "Did you mean 'copy'?" in found.err
    found = command("init", "--from", "copy", "train.tsv")
    assert (found.status, found.err.count("\n")) == (2, 1)


def test_help_of_init_names_the_configs() -> None:
    (subparsers,) = (action for action in build_parser()._actions if action.dest == "subcommand")
    text = " ".join(subparsers.choices["init"].format_help().split())
    assert ", ".join(sorted(path.stem for path in (ROOT / "configs").glob("*.toml"))) in text


@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_a_config_that_is_not_there_but_in_the_package_is_told_how_to_get(verb: str, tmp_path: Path) -> None:
    found = command(verb, tmp_path / "configs/copy.toml")
    assert (found.status, found.err.count("\n")) == (66, 1)
    assert found.err.endswith("transduce init --from copy > copy.toml\n")


def test_a_notebook_says_in_its_first_cell_what_to_install_where_something_is_missing() -> None:
    advice = {"transduce": "pip install '.[learn]'", "matplotlib": "pip install 'transduce[learn]'"}
    exec(first_cell(), {})
    for missing, expected in advice.items():
        with (
            mock.patch("importlib.util.find_spec", lambda name, missing=missing: None if name == missing else name),
            pytest.raises(ImportError, match=re.escape(expected)),
        ):
            exec(first_cell(), {})


def test_learn_says_what_to_install_where_notebooks_cannot_be_executed(tmp_path: Path) -> None:
    expected = "to execute them: pip install 'transduce[learn]'\n"
    assert expected not in command("learn", tmp_path).err
    with mock.patch("transduce.cli.learn.find_spec", lambda name: None if name == "ipykernel" else name):
        assert command("learn", tmp_path).err.endswith(expected)
