"""Texts that error messages are made of."""

import pytest

from itr.errors import first_of


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b", "c"], "a, b, c"),
        (["a", "b", "c", "d"], "a, b, c and 1 more"),
        (range(3000), "0, 1, 2 and 2,997 more"),
        ({"x": 1, "y": 2}, "x, y"),
    ],
)
def test_first_of(items, text):
    assert first_of(items) == text


def test_first_of_with_a_limit_and_a_separator():
    assert first_of("abcd", limit=2, separator="; ") == "a; b and 2 more"
