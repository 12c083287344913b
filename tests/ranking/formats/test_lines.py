import gzip
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.formats.lines import read_lines, read_text
from hf_kfc.ranking.problems import Problems


def test_lines_are_numbered_and_lose_their_ends_and_the_byte_order_mark(tmp_path):
    file = tmp_path / "file"
    file.write_bytes("\ufeffone \r\n\n\ufeffthree".encode())
    assert list(read_lines(file)) == [(1, "one "), (2, ""), (3, "\ufeffthree")]
    file.write_bytes(b"")
    assert list(read_lines(file)) == []


def test_only_line_feeds_end_a_line(tmp_path):
    # `str.splitlines` also cuts at these, which abstracts hold.
    text = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\rh"
    file = tmp_path / "file"
    file.write_bytes(text.encode() + b"\n")
    assert list(read_lines(file)) == [(1, text)]


def test_gzip_is_known_by_its_content(tmp_path):
    file = tmp_path / "file.txt"
    file.write_bytes(gzip.compress("é\nb\n".encode()))
    assert list(read_lines(file)) == [(1, "é"), (2, "b")]
    assert read_text(file) == "é\nb\n"


def test_read_text_keeps_every_character(tmp_path):
    text = "\ufeffa\r\n\rb\u2028\n\n"
    file = tmp_path / "file"
    file.write_bytes(text.encode())
    assert read_text(file) == text


def test_a_line_in_another_encoding_is_raised_or_left_out(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"a\ncaf\xe9\nb\n\xff\xfe\nc")
    with pytest.raises(DataError, match=rf"^{re.escape(str(file))}:2: not UTF-8; convert the file"):
        list(read_lines(file))
    problems = Problems("count")
    assert list(read_lines(file, problems)) == [(1, "a"), (3, "b"), (5, "c")]
    assert problems.counts == {"not UTF-8": 2}
    with pytest.raises(DataError, match=r"file: not UTF-8 at byte 5; convert the file$"):
        read_text(file)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        message = rf"^{re.escape(str(path))}: no such file; check the path or fetch the corpus$"
        with pytest.raises(DataError, match=message):
            list(read_lines(path))
        with pytest.raises(DataError, match=message):
            read_text(path)


def test_damaged_gzip_is_raised_with_its_line_or_counted(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(gzip.compress(b"".join(b"%d\n" % (n * n) for n in range(50_000)))[:-20])
    problems = Problems("count")
    lines = list(read_lines(file, problems))
    assert lines == [(n + 1, str(n * n)) for n in range(len(lines))]
    assert len(lines) > 1000
    assert problems.counts == {"damaged gzip data": 1}
    place = f"{file}:{len(lines) + 1}: damaged gzip data after line {len(lines)}"
    with pytest.raises(DataError, match=rf"^{re.escape(place)}; fetch the file again$"):
        list(read_lines(file))
    with pytest.raises(DataError, match=r"file: damaged gzip data; fetch the file again$"):
        read_text(file)


TEXT = "".join(f"line {n * n}\n" for n in range(40))
ZIPPED = gzip.compress(TEXT.encode(), mtime=0)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(2, len(ZIPPED) - 1),
    st.one_of(st.just(b""), st.binary(min_size=1, max_size=30)),
)
def test_gzip_that_is_cut_or_overwritten_is_never_read_as_if_whole(tmp_path_factory, cut, tail):
    file = tmp_path_factory.getbasetemp() / "damaged.gz"
    data = ZIPPED[:cut] + tail
    file.write_bytes(data)
    problems = Problems("count")
    lines = [text for _, text in read_lines(file, problems)]
    if not tail:
        assert problems.counts == {"damaged gzip data": 1}
        assert TEXT.startswith("".join(f"{line}\n" for line in lines))
    elif not problems.counts:  # only bytes that say nothing of the content, as its time, changed
        assert gzip.decompress(data).decode() == "".join(f"{line}\n" for line in lines)
