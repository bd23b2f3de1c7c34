"""How many codes `pyrovae fit --model vqvae` takes for the rows that there are."""

import importlib.util
import math

import pytest
import torch

from pyrovae.app.catalogue import CODEBOOKS, codes_of

LEARNED = [name for name in CODEBOOKS if name != "fsq"]
extra = pytest.mark.skipif(
    importlib.util.find_spec("vector_quantize_pytorch") is None, reason="needs vector-quantize-pytorch"
)


@pytest.mark.parametrize(("rows", "grid", "number"), [(1258, 10, 9), (1258, 6, 27), (14, 4, 240), (10_000, 10, 240)])
def test_few_rows_get_as_few_codes_as_tell_enough(rows: int, grid: int, number: int) -> None:
    codes, prior = codes_of("fsq", grid, rows, 128)
    assert codes.num_codes == prior.num_classes == number and grid * math.log(number) > 19


@extra
@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize(("rows", "grid"), [(1, 1), (14, 1), (3000, 1), (50_000, 1), (14, (2, 2)), (1258, 10)])
def test_codes_start_from_the_vectors_of_any_step(name: str, rows: int, grid: int | tuple[int, ...]) -> None:
    """Twice as many vectors as codes, where there are three."""
    codes, prior = codes_of(name, grid, rows, 128)
    assert prior.num_classes == codes.num_codes >= 2
    vectors = min(rows, 128) * codes.grid.numel()
    if vectors > 1:
        codes.train()(torch.randn(min(rows, 128), codes.width, *codes.grid, requires_grad=True))
        assert codes.started and (name == "simvq" or vectors < 3 or 2 * codes.num_codes <= vectors)
