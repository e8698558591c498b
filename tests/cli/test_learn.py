"""The command copies the notebooks to where a reader wants them, and over nobody's work."""

from pathlib import Path

from calling import command

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def test_all_notebooks_and_the_ledger_are_copied_byte_for_byte_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        found = command("learn", tmp_path / "here")
        assert (found.status, found.out) == (0, b"")
        assert found.err.rstrip("\n").endswith(f"write your own in {tmp_path / 'here/build_it.ipynb'}")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert copied == {
        path.name: path.read_bytes()
        for path in [*NOTEBOOKS.glob("*.ipynb"), NOTEBOOKS / "claims.toml", NOTEBOOKS / "retrainings.jsonl"]
    }


def test_a_notebook_in_which_a_reader_wrote_is_not_overwritten_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "build_it.ipynb").write_text("mine")
    found = command("learn", tmp_path)
    assert (found.status, found.err.count("\n")) == (73, 1)
    assert f"{tmp_path / 'build_it.ipynb'} already exists" in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["build_it.ipynb"]
    assert (tmp_path / "build_it.ipynb").read_text() == "mine"


def test_a_folder_of_a_notebooks_name_is_told_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "masks.ipynb").mkdir()
    found = command("learn", tmp_path)
    assert (found.status, found.err.count("\n")) == (73, 1)
    assert f"{tmp_path / 'masks.ipynb'} is a folder: move it" in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["masks.ipynb"]
