"""Shapes are broadcast as by torch."""

import itertools

import pytest
import torch

from pyrovae._shapes import broadcast_shapes

SHAPES = [(), (1,), (3,), (0,), (2, 3), (2, 1), (1, 3), (4, 1, 1), torch.Size([4, 2, 3])]


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_as_torch_does(number: int) -> None:
    refused = 0
    for shapes in itertools.product(SHAPES, repeat=number):
        try:
            wanted = torch.broadcast_shapes(*shapes)
        except RuntimeError:
            refused += 1
            with pytest.raises(RuntimeError, match="cannot be broadcast"):
                broadcast_shapes(*shapes)
        else:
            found = broadcast_shapes(*shapes)
            assert found == wanted and isinstance(found, torch.Size)
    assert (refused > 0) == (number > 1)
