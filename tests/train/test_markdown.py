import pytest

from train.markdown import table


def test_aligns_names_left_and_numbers_right():
    found = table(["form", "accuracy", "n"], [["page", "99.0 %", "10"], ["", "", "2"]])
    assert found == "| form | accuracy | n |\n|---|---:|---:|\n| page | 99.0 % | 10 |\n| | | 2 |"


def test_refuses_a_row_of_another_width():
    with pytest.raises(ValueError, match="expected 2 cells in a table's row, found 1"):
        table(["form", "n"], [["page"]])
