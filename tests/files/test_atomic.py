import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from transduce.errors import DamagedFileError, MissingInputError, RunFolderError
from transduce.files.atomic import remove_temporaries, replacing, sync_folder, write_atomically
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
    sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_folder(tmp_path)


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
    with pytest.raises(MissingInputError, match=f"^{tmp_path}: this is a folder, and a file is needed"):
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


def test_a_folder_under_way_is_not_taken_for_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".out.01234567.tmp").mkdir()
    (tmp_path / ".weights.01234567.tmp").touch()
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".out.01234567.tmp"]
