import gzip

import pytest

from hf_kfc.errors import DataError
from hf_kfc.ranking.concepts import icd10_code
from hf_kfc.ranking.ontologies.icd10cm import read_icd10cm
from hf_kfc.ranking.problems import Problems
from hf_kfc.ranking.schema import Concept


def order_line(number, code, billable, short, long) -> str:
    return f"{number:05d} {code:<7} {billable} {short:<60} {long}"


ORDER = [
    order_line(1, "X10", 0, "Toy fever", "Toy fever"),
    order_line(2, "X100", 1, "Toy fever d/t stubbing", "Toy fever due to stubbing"),
    order_line(3, "X109XXA", 1, "Toy fever, unsp", "Toy fever, unspecified"),
]
FEVERS = [
    Concept("X10", "Toy fever"),
    Concept("X100", "Toy fever due to stubbing", ("Toy fever d/t stubbing",)),
    Concept("X109XXA", "Toy fever, unspecified", ("Toy fever, unsp",)),
]


@pytest.fixture
def read(tmp_path):
    def make(*lines, **kwargs) -> list[Concept]:
        (tmp_path / "codes").write_text("".join(line + "\n" for line in lines))
        return list(read_icd10cm(tmp_path / "codes", **kwargs))

    return make


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("A00.0", "A000"),
        (" a000 ", "A000"),
        ("s22.49xa", "S2249XA"),
        ("A00", "A00"),
        ("A0.00", "A0.00"),  # not a code, and not made one
    ],
)
def test_codes_have_one_spelling(written, normal):
    assert icd10_code(written) == normal


def test_order_file(read):
    assert read(*ORDER) == FEVERS
    assert read(*ORDER, billable_only=True) == FEVERS[1:]


@pytest.mark.parametrize(
    "lines",
    [
        ("code\tlong_desc\tyear", "X10\tToy fever\t2019", 'X10.0\tToy "fever"\t2019'),
        ("Year,Code,Long Description", "2019,X10,Toy fever", '2019,x100,"Toy ""fever"""'),
    ],
)
def test_tables_by_their_headers(read, lines):
    assert read(*lines) == [Concept("X10", "Toy fever"), Concept("X100", 'Toy "fever"')]


def test_table_with_all_columns(tmp_path):
    path = tmp_path / "codes.gz"
    text = (
        "code\tbillable\tshort_desc\tlong_desc\tmajor\tchapter\n"
        "X10\tFalse\tToy fever\tToy fever\tToy fever\tDiseases of toys\n"
        "X100\tTrue\tToy f.\tToy fever of bears\tToy fever\tDiseases of toys\n"
    )
    path.write_bytes(gzip.compress(text.encode()))
    bears = Concept("X100", "Toy fever of bears", ("Toy f.",), ("Diseases of toys",))
    assert list(read_icd10cm(path)) == [
        Concept("X10", "Toy fever", (), ("Diseases of toys",)),
        bears,
    ]
    assert list(read_icd10cm(path, billable_only=True)) == [bears]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (ORDER[0][:70], "not a line of the order file"),
        (ORDER[0].replace(" 0 ", " 2 "), "not a line of the order file"),
        ("", "not a line of the order file"),
        (order_line(9, "X1", 0, "x", "x"), "code, billable flag or name is malformed"),
        (order_line(9, "X1-0", 0, "x", "x"), "code, billable flag or name is malformed"),
        (order_line(9, "X11", 0, "x", " "), "code, billable flag or name is malformed"),
        (ORDER[1], "code comes twice"),
    ],
)
def test_malformed_order_lines_raise_with_their_number_or_are_counted(read, line, reason):
    with pytest.raises(DataError, match=r"codes:3: .*; .*(correct|give|remove)"):
        read(*ORDER[:2], line, ORDER[2])
    problems = Problems("count")
    assert read(*ORDER[:2], line, ORDER[2], problems=problems) == FEVERS
    assert problems.counts == {reason: 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("X11,1", "malformed row"),
        ('X11,1,"Toy', "malformed row"),
        ("X11,perhaps,Toy", "code, billable flag or name is malformed"),
        ("X11,1,", "code, billable flag or name is malformed"),
        ("x1.0,1,Toy", "code, billable flag or name is malformed"),
        ("x10,1,Toy", "code comes twice"),
    ],
)
def test_malformed_table_lines_raise_with_their_number_or_are_counted(read, line, reason):
    lines = ("code,billable,long_desc", "X10,0,Toy fever", line)
    with pytest.raises(DataError, match=r"codes:3: .*; .*(correct|give|remove)"):
        read(*lines)
    problems = Problems("count")
    assert read(*lines, problems=problems) == FEVERS[:1]
    assert problems.counts == {reason: 1}


def test_other_files_are_refused(read):
    with pytest.raises(DataError, match=r"codes:1: no column code, longdesc in the header, or"):
        read("C1\tcold")
    with pytest.raises(DataError, match="codes:1: no column longdesc in"):
        read("code,name", "X10,fever")
    with pytest.raises(DataError, match="codes:1: no column billable in"):
        read("code,long_desc", "X10,fever", billable_only=True)
    with pytest.raises(DataError, match="codes:1: no column"):
        read('"')
    assert read() == []
