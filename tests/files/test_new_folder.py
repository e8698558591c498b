import errno
import os
from pathlib import Path

import pytest

from transduce.errors import RunFolderError
from transduce.export.new_folder import new_folder, remove_leftovers
from transduce.files.locks import lock_folder


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
    (tmp_path / ".a.00000000.tmp").touch()  # a file that is being replaced
    with lock_folder(tmp_path / ".a.89abcdef.tmp"):  # one that is being written
        with new_folder(tmp_path / "a"):
            pass
        assert names_in(tmp_path) == {"a", ".a.89abcdef.tmp", ".a.00000000.tmp"} | others
        with new_folder(tmp_path / "[a]") as writing:
            remove_leftovers(tmp_path)  # of all names
            assert names_in(tmp_path) == {
                "a", ".a.89abcdef.tmp", ".a.00000000.tmp", ".a.mine.tmp", "a.0123abcd.tmp", writing.name
            }  # fmt: skip


def test_a_relative_path_is_one_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with new_folder(Path("a")):
        pass
    assert names_in(tmp_path) == {"a"}
