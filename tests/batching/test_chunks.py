"""How rows are cut into chunks."""

from __future__ import annotations

import math

import pytest

from pyrovae.batching.chunks import even_size


@pytest.mark.parametrize("most", [1, 2, 7, 100, 2500])
def test_chunks_of_even_size_are_as_few_as_can_be_and_waste_less_than_a_row_each(most: int) -> None:
    for total in (1, 2, 6, 7, 8, 99, 101, 3200):
        size = even_size(total, most)
        number = math.ceil(total / size)
        assert size <= most
        assert number == math.ceil(total / most)
        assert 0 <= number * size - total < number
