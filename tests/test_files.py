import os

import pytest

from hf_kfc.errors import HfKfcError
from hf_kfc.files import refuse_blocked, refuse_foreign, replace_directory


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
