"""The catalogue of faults has 113 entries, each with a test or a reason, and docs/reliability.md is up to date."""

from parity_tests.catalogue import FOUND, NO_TEST, SECTIONS
from parity_tests.reliability import BEGIN, PAGE, find_tests, list_gaps, write_tables


def test_the_catalogue_is_whole():
    numbers = sorted(number for entries in SECTIONS.values() for number in entries)
    assert numbers == list(range(1, 114))
    assert NO_TEST.keys() <= set(numbers)


def test_every_fault_has_a_test_or_a_reason():
    assert list_gaps(find_tests()) == []
    assert not {f"C{number}" for number in NO_TEST} & find_tests().keys(), "a reason for an entry that has a test"


def test_the_page_is_the_commands():
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2] == write_tables(find_tests()).removeprefix(BEGIN)


def test_markers_are_found_and_gaps_are_listed(tmp_path):
    (tmp_path / "test_x.py").write_text('"""Faults: C1."""\ndef test_a():\n    """Faults: C2, F1.\n    """\n')
    tests = find_tests(tmp_path)
    assert tests == {"C1": ["test_x"], "C2": ["test_x::test_a"], "F1": ["test_x::test_a"]}
    gaps = list_gaps(tests | {"C999": ["test_x"]})
    assert "C2" not in gaps and "C3" in gaps and f"F{max(FOUND)}" in gaps and "C999 is no fault" in gaps
