import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_kfc.errors import HfKfcError
from hf_kfc.files import (
    read_bounded,
    refuse_blocked,
    refuse_foreign,
    replace_directory,
    scratch_directory,
)


def write(directory, text):
    with replace_directory(directory) as partial:
        (partial / "file").write_text(text)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_folder_is_made_with_its_parents_and_replaced_whole(tmp_path):
    directory = tmp_path / "a" / "b"
    write(directory, "one")
    (directory / "more").write_text("")
    write(directory, "two")
    assert names(directory) == ["file"]
    assert (directory / "file").read_text() == "two"
    assert names(directory.parent) == ["b"]


@pytest.mark.parametrize("older", [False, True], ids=["new", "older"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_all_is_as_before(older, error, tmp_path):
    if older:
        write(tmp_path / "a", "one")
    with pytest.raises(error), replace_directory(tmp_path / "a") as partial:
        (partial / "file").write_text("two")
        raise error
    assert names(tmp_path) == (["a"] if older else [])
    assert not older or (tmp_path / "a" / "file").read_text() == "one"


def test_an_older_folder_is_put_back_if_the_new_one_cannot_be_moved(tmp_path):
    write(tmp_path / "a", "one")
    with pytest.raises(FileNotFoundError), replace_directory(tmp_path / "a") as partial:
        partial.rmdir()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "file").read_text() == "one"


def test_of_a_link_the_target_is_replaced(tmp_path):
    write(tmp_path / "disk" / "a", "one")
    (tmp_path / "a").symlink_to(tmp_path / "disk" / "a")
    write(tmp_path / "a", "two")
    assert names(tmp_path) == ["a", "disk"]
    assert (tmp_path / "a").is_symlink()
    assert names(tmp_path / "disk") == ["a"]
    assert (tmp_path / "disk" / "a" / "file").read_text() == "two"


def test_the_working_folder_can_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    write(type(tmp_path)("."), "one")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "file").read_text() == "one"
    os.chdir(tmp_path)  # the old folder is gone


def test_a_foreign_folder_is_refused(tmp_path):
    for directory in (tmp_path / "absent", tmp_path):
        refuse_foreign(directory, "sub/marker")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(HfKfcError, match="exists and has no sub/marker; choose another folder"):
        refuse_foreign(tmp_path, "sub/marker")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "marker").write_text("")
    refuse_foreign(tmp_path, "sub/marker")


@pytest.mark.parametrize("path", ["file", "file/a", "file/a/b"])
def test_a_file_in_the_way_is_refused(path, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for directory in (tmp_path / path, type(tmp_path)(path)):
        for refuse in (refuse_blocked, lambda d: refuse_foreign(d, "marker")):
            with pytest.raises(HfKfcError, match="file is not a folder; choose another folder"):
                refuse(directory)
    refuse_blocked(type(tmp_path)("absent/a"))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no file system that takes no folder")
def test_where_no_folder_can_be_made_it_is_said():
    for refuse in (refuse_blocked, lambda d: refuse_foreign(d, "marker")):
        with pytest.raises(HfKfcError, match=r"^/proc/a/b cannot be made \(.*\); choose another"):
            refuse(Path("/proc/a/b"))
    with pytest.raises(HfKfcError, match=r"^/proc cannot be written into \(.*\); choose another"):
        refuse_blocked(Path("/proc"))


def test_what_killed_processes_left_is_removed_and_what_others_hold_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hold = (
        "import os, sys, time; from pathlib import Path\n"
        "from hf_kfc.files import replace_directory, scratch_directory\n"
        "with scratch_directory() as one, replace_directory(Path(sys.argv[1])) as two:\n"
        "    print(one, two, flush=True)\n"
        "    time.sleep(100)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", hold, str(tmp_path / "result")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        folders = [type(tmp_path)(name) for name in process.stdout.readline().split()]
        fresh = tmp_path / "hf_kfc-fresh"
        fresh.mkdir()
        for folder in folders:
            os.utime(folder, (0, 0))  # long ago
        for alive in (True, False):
            if not alive:
                process.kill()
                process.wait()
            with scratch_directory() as own, replace_directory(tmp_path / "result") as partial:
                assert own.is_dir()
                assert partial.is_dir()
            assert [folder.exists() for folder in folders] == [alive, alive]
    assert sorted(names(tmp_path)) == ["hf_kfc-fresh", "result"]


def test_a_file_that_is_read_is_bounded_and_regular(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(HfKfcError, match="file has 5 bytes, expected at most 4"):
        read_bounded(path, 4)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "none", 4)
    os.mkfifo(tmp_path / "pipe")
    for strange in (tmp_path / "pipe", tmp_path, type(tmp_path)("/dev/zero")):
        with pytest.raises(HfKfcError, match="is no regular file"):
            read_bounded(strange, 4)
