import errno
import hashlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from transduce.errors import DamagedFileError, MissingInputError, RunFolderError, TransduceError
from transduce.files.atomic import remove_temporaries, replacing, sync, write_atomically
from transduce.files.content import read_bytes, sha256_of, sha256_of_file


def failing(number: int):
    def fail(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_is_replaced_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_new_files_have_the_permissions_of_any_other_new_file(tmp_path):
    write_atomically(tmp_path / "ours", b"")
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_reader_keeps_the_old_content_while_the_file_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"newer")
        assert reader.read() == b"old"


def test_a_full_disk_is_one_line_with_what_is_needed_and_free(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(
        RunFolderError, match=r"^\S*a\.txt: cannot be written: .*1,234 bytes needed, [\d,]+ free"
    ) as caught:
        write_atomically(tmp_path / "a.txt", bytes(1234))
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_an_error_while_tidying_up_does_not_hide_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    monkeypatch.setattr(os, "unlink", failing(errno.EIO))
    with pytest.raises(RunFolderError, match=os.strerror(errno.ENOSPC)):
        write_atomically(tmp_path / "a.txt", b"x")


def test_writing_into_a_missing_folder_names_the_file(tmp_path):
    with pytest.raises(RunFolderError, match=r"no/a\.txt: cannot be written: No such file"):
        write_atomically(tmp_path / "no" / "a.txt", b"x")


def test_a_file_system_that_cannot_sync_folders_is_no_error_and_a_bad_disk_is(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    sync(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync(tmp_path)


def test_only_our_temporaries_are_removed(tmp_path):
    for name in (".a.txt.0123abcd.tmp", "a.tmp", ".hidden"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    remove_temporaries(tmp_path / "no such folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.tmp"]


@pytest.mark.parametrize("read", [read_bytes, sha256_of_file])
def test_a_missing_file_is_named_with_what_to_do(tmp_path, read):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file" / "below"):
        with pytest.raises(MissingInputError, match=f"^{path}: no such file. Check"):
            read(path)
    with pytest.raises(MissingInputError, match=f"^{tmp_path}: this is a folder: name a file in it"):
        read(tmp_path)


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, DamagedFileError), (errno.EACCES, MissingInputError)])
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, monkeypatch, number, kind):
    monkeypatch.setattr(Path, "read_bytes", failing(number))
    with pytest.raises(kind, match=f"x: cannot be read: {os.strerror(number)}"):
        read_bytes(tmp_path / "x")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path, size):
    (tmp_path / "x").write_bytes(b"\xa5" * size)
    assert sha256_of_file(tmp_path / "x") == sha256_of(b"\xa5" * size) == hashlib.sha256(b"\xa5" * size).hexdigest()


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_the_same_file(tmp_path: Path) -> None:
    for name in (".out.01234567.tmp", ".other.01234567.tmp", ".out.txt.01234567.tmp"):
        (tmp_path / name).touch()
    write_atomically(tmp_path / "out", b"new")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".other.01234567.tmp", ".out.txt.01234567.tmp", "out"]


def test_two_may_write_one_file_at_once_and_the_last_wins(tmp_path: Path) -> None:
    with replacing(tmp_path / "out") as first:
        first.write(b"first")
        with replacing(tmp_path / "out") as second:
            remove_temporaries(tmp_path)
            second.write(b"second")
        assert (tmp_path / "out").read_bytes() == b"second"
    assert (tmp_path / "out").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(os.name == "nt", reason="threads write at once, and Windows replaces no file that is open")
def test_many_that_write_one_file_at_once_all_succeed(tmp_path: Path) -> None:
    contents = [bytes([number]) * 10_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(partial(write_atomically, tmp_path / "out"), contents * 10))
    assert (tmp_path / "out").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_file_that_replaces_another_has_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    with replacing(path) as file:
        file.write(b"new")
        (temporary,) = (other for other in tmp_path.iterdir() if other != path)
        assert stat.S_IMODE(temporary.stat().st_mode) & ~mode & 0o077 == 0  # nor are they wider before
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode)


def test_the_permissions_of_a_group_are_not_given_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.touch(0o640)
    path.chmod(0o664)
    real = Path.stat

    def stat_of(self: Path, **how: bool) -> os.stat_result:
        values = list(real(self, **how))
        return os.stat_result([*values[:5], values[5] + (self == path), *values[6:]])  # the group of `path` is another

    monkeypatch.setattr(Path, "stat", stat_of)
    write_atomically(path, b"new")
    assert stat.S_IMODE(real(path).st_mode) == 0o604


@pytest.mark.parametrize("letter", ["a", "ä", "字", "😀"])
def test_a_name_as_long_as_the_disk_takes_can_be_written(tmp_path: Path, letter: str) -> None:
    path = tmp_path / (letter * (255 // len(letter.encode())))
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_a_disk_without_locks_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", failing(errno.ENOLCK))
    write_atomically(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("act", [read_bytes, sha256_of_file, partial(write_atomically, content=b"")])
def test_a_name_with_nul_is_refused_in_one_line(tmp_path: Path, act: Callable[[Path], object]) -> None:
    with pytest.raises(TransduceError, match=r"a\\x00b: no file name can contain the character NUL"):
        act(tmp_path / "a\0b")
