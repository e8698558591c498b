import errno
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from transduce.errors import RunFolderError
from transduce.files.atomic import new_folder, remove_temporaries
from transduce.files.locks import try_lock


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_appears_when_all_of_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        assert (tmp_path / "a").exists() == (synced[-1] == tmp_path.name)

    monkeypatch.setattr(os, "fsync", fsync)
    with new_folder(tmp_path / "a") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "x").write_text("x")
    assert set(synced) == {"inner", "x", folder.name, tmp_path.name}
    assert names_in(tmp_path) == {"a"} and (tmp_path / "a" / "inner" / "x").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "a") as folder:
        (folder / "x").touch()
        raise error
    assert names_in(tmp_path) == set()


def test_a_full_disk_is_one_line_with_what_is_needed(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "full")
    with (
        pytest.raises(RunFolderError, match=r"a: cannot be written: full \(1,234 bytes needed, [\d,]+ free\)"),
        new_folder(tmp_path / "a", 1234),
    ):
        raise full


def test_only_what_killed_processes_left_of_this_name_is_removed(tmp_path: Path) -> None:
    others = {".b.0123abcd.tmp", ".a.mine.tmp", "a.0123abcd.tmp", ".[a].89abcdef.tmp"}
    for name in {".a.0123abcd.tmp", ".a.89abcdef.tmp"} | others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    with ExitStack() as held:
        assert try_lock(tmp_path / ".a.89abcdef.tmp", held)  # one that is being written
        with new_folder(tmp_path / "a"):
            pass
        assert names_in(tmp_path) == {"a", ".a.89abcdef.tmp"} | others
        with new_folder(tmp_path / "[a]") as writing:
            remove_temporaries(tmp_path)  # of all names
            assert names_in(tmp_path) == {
                "a", ".a.89abcdef.tmp", ".a.mine.tmp", "a.0123abcd.tmp", writing.name
            }  # fmt: skip


def test_a_link_with_the_name_of_a_temporary_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x").touch()
    (tmp_path / ".a.0123abcd.tmp").symlink_to("mine")
    (tmp_path / ".a.89abcdef.tmp").symlink_to("mine/x")
    with new_folder(tmp_path / "a"):
        pass
    assert names_in(tmp_path / "mine") == {"x"}


def test_an_empty_folder_is_replaced_also_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with new_folder(tmp_path / "link") as folder:
        (folder / "x").touch()
    assert names_in(tmp_path) == {"empty", "link"} and names_in(tmp_path / "empty") == {"x"}


def test_a_folder_with_something_in_it_and_the_current_one_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full/inner").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in (tmp_path / "full", tmp_path / "file", tmp_path / "here", Path()):
        with pytest.raises(RunFolderError, match="is in use: name a new folder"), new_folder(path):
            pytest.fail("the work was begun")
    assert names_in(tmp_path) == {"full", "file", "here"}


def test_a_relative_path_is_one_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with new_folder(Path("a")):
        pass
    assert names_in(tmp_path) == {"a"}
