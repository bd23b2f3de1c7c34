"""Quantisers: vectors to the nearest of finitely many codes, with a gradient that passes through.

A quantiser takes a grid of vectors e, `(*batch, width, *grid)`, and returns a grid of codes z of the same shape, one of
`num_codes` at each place. `indices(z)` numbers the codes and `lookup(indices)` is its inverse. What a quantiser returns is
exactly a code, whatever its gradient: `z = q + (t - t.detach())`, where q is the code and t what the gradient follows.

`FSQ` has a fixed lattice of codes and needs nothing else. The other quantisers learn their codebooks and take them from
vector-quantize-pytorch, an extra: `pip install 'pyrovae[vq]'`.
"""

import importlib
import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyrovae.errors import DataError, MissingPackageError, OptionError, ShapeError
from pyrovae.nets.mlp import as_size

LIBRARY = "vector_quantize_pytorch"


class Quantiser(nn.Module):
    """Base class of quantisers: `e -> z`, the nearest code at each place of a grid.

    A subclass defines `forward`, `indices` and `lookup`, and for learned codebooks `residuals`.

    Args:
        num_codes: K, the number of codes.
        width: Number of elements of a code.
        grid: Shape of the grid, an int or a tuple of ints.

    Raises:
        OptionError: `num_codes` or `width` is no whole number of at least 2 and 1.
        ShapeError: `grid` is no shape.

    References:
        van den Oord, Vinyals and Kavukcuoglu 2017, arXiv:1711.00937.

    Example:
        >>> codes = pv.nets.FSQ((5, 5, 5), grid=(2, 2))
        >>> isinstance(codes, pv.nets.Quantiser), codes.num_codes, codes.event_shape, codes.index_shape
        (True, 125, torch.Size([3, 2, 2]), torch.Size([2, 2]))
    """

    learned = False  # whether the codes follow the vectors, so that the objective needs terms for that
    commitment = 0.0  # the weight of |e - z|^2 in the objective, of a learned codebook
    moves = False  # whether a step of training changes the codes by its rows, and not by a gradient
    started = True  # whether there are codes; those that move have none before their first step of training

    def __init__(self, num_codes: int, width: int, grid: int | Sequence[int]) -> None:
        super().__init__()
        self.num_codes = whole(self, "num_codes", num_codes, 2)
        self.width = whole(self, "width", width, 1)
        self.grid = as_size(grid)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one grid of codes z."""
        return torch.Size((self.width, *self.grid))

    @property
    def index_shape(self) -> torch.Size:
        """Shape of the numbers of these codes."""
        return self.grid

    def forward(self, e: Tensor) -> Tensor:
        """The nearest codes, with a gradient for e.

        Args:
            e: Vectors, `(*batch, width, *grid)`.

        Returns:
            The codes z, `(*batch, *event_shape)`.

        Raises:
            ShapeError: e has another trailing shape.
        """
        raise NotImplementedError

    def indices(self, z: Tensor) -> Tensor:
        """The numbers of codes, from 0 to K - 1.

        Args:
            z: Codes, `(*batch, *event_shape)`; other vectors count as their nearest code.

        Returns:
            Whole numbers, `(*batch, *index_shape)`.
        """
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes with these numbers: the inverse of `indices`.

        Args:
            indices: Whole numbers from 0 to K - 1, `(*batch, *index_shape)`.

        Returns:
            The codes, `(*batch, *event_shape)`.

        Raises:
            ShapeError: The numbers have another trailing shape, or are no whole numbers.
            DataError: On the CPU, a number is not that of a code.
        """
        raise NotImplementedError

    def vectors(self, z: Tensor) -> Tensor:
        """What a decoder reads of codes z, `(*batch, width, *grid)`: the codes themselves, or their sum over levels."""
        return z

    def residuals(self, e: Tensor, z: Tensor) -> Tensor:
        """What each code of z, `(*batch, *event_shape)`, stands for: e itself, or what the levels before it left."""
        return e

    def check(self, values: Tensor, shape: torch.Size) -> None:
        """Raise ShapeError unless `values` has the shape `(*batch, *shape)`."""
        if values.shape[values.dim() - len(shape) :] != shape:
            wanted = ", ".join(["*batch", *map(str, shape)])
            raise ShapeError(
                f"{type(self).__name__} needs a tensor of shape ({wanted}), got {tuple(values.shape)}. Build the networks and "
                "the quantiser for the same grid, and give codes of the size that this model has."
            )

    def check_indices(self, indices: Tensor) -> None:
        """Raise ShapeError or DataError unless `indices` are numbers of codes, `(*batch, *index_shape)`.

        How large they are is looked up on the CPU only, where that takes no time, and not while a step is traced.
        """
        self.check(indices, self.index_shape)
        if indices.dtype is torch.bool or indices.is_floating_point() or indices.is_complex():
            raise ShapeError(f"{type(self).__name__} needs whole numbers of codes, got {indices.dtype}: use .long().")
        if indices.device.type != "cpu" or not indices.numel() or get_proxy_mode() is not None:
            return
        low, high = (int(extreme) for extreme in indices.aminmax())
        if low < 0 or high >= self.num_codes:
            raise DataError(
                f"{type(self).__name__} has {self.num_codes} codes, numbered from 0 to {self.num_codes - 1}, got "
                f"{low if low < 0 else high}: give numbers as indices(z) returns them."
            )


def whole(owner: nn.Module, name: str, value: Any, least: int) -> int:
    """Return `value` if it is a whole number of at least `least`, else raise OptionError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise OptionError(f"{type(owner).__name__} needs a whole number of at least {least} for {name}, got {value!r}.")
    return number


def is_number(value: Any) -> bool:
    """Whether this is a real number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def straight_through(value: Tensor, through: Tensor) -> Tensor:
    """Exactly `value`, with the gradient of `through`. Bengio, Leonard and Courville 2013, arXiv:1308.3432."""
    return value.detach() + (through - through.detach())


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The number of the code nearest to each vector: `(*batch, D)` and `(K, D)` to `(*batch)`."""
    with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):  # a code must be nearest to itself
        found: Tensor = (codebook.square().sum(-1) - 2 * vectors.to(codebook) @ codebook.mT).argmin(-1)
    return found


class FSQ(Quantiser):
    """Finite scalar quantisation: each element of a vector is rounded to one of a few levels. Nothing is learned.

    With L levels, `h = (L - 1) / 2`, `o = 1/2` for an even and 0 for an odd L, an element u becomes
    `round(b(u)) / floor(L / 2)` with `b(u) = h tanh(u + artanh(o / h)) - o`, which keeps 0 at 0. Rounding passes its gradient
    on as it is, so that `dz/du = b'(u) / floor(L / 2)`. The codes are all combinations of the levels, `K = L_1 ... L_d`, and
    nearly all of them are used without any further term in the objective.

    Args:
        levels: Number of levels of each element, at least 3, such as (8, 5, 5, 5) for 1000 codes.
        grid: Shape of the grid of codes, an int or a tuple of ints.

    Raises:
        OptionError: `levels` is empty, or one of them is no whole number of at least 3.
        ShapeError: `grid` is no shape, or an input has another trailing shape.

    References:
        Mentzer et al. 2023, arXiv:2309.15505.

    Example:
        >>> codes = pv.nets.FSQ((5, 3), grid=2)
        >>> z = codes(torch.tensor([[0.0, 9.0], [-9.0, 0.1]]))
        >>> z
        tensor([[ 0.,  1.],
                [-1.,  0.]])
        >>> codes.indices(z), codes.num_codes
        (tensor([2, 9]), 15)
        >>> torch.equal(codes.lookup(codes.indices(z)), z)
        True
    """

    reach: Tensor
    offset: Tensor
    shift: Tensor
    steps: Tensor
    sizes: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int] = (8, 6, 5), grid: int | Sequence[int] = 1) -> None:
        if not isinstance(levels, Sequence) or not levels:
            raise OptionError(
                f"FSQ needs a number of levels for each element of a code, such as (8, 5, 5, 5), got {levels!r}."
            )
        sizes_of_levels = tuple(whole(self, "levels", n, 3) for n in levels)
        super().__init__(math.prod(sizes_of_levels), len(levels), grid)
        self.levels = sizes_of_levels
        sizes = torch.tensor(self.levels).reshape(-1, *(1 for _ in self.grid))
        half = (sizes - 1) / 2
        offset = torch.where(sizes % 2 == 0, 0.5, 0.0)
        parts = {
            "reach": half,
            "offset": offset,
            "shift": torch.atanh(offset / half),
            "steps": (sizes // 2).to(half),
            "sizes": sizes,
            "basis": sizes.cumprod(0) // sizes,
        }
        for name, value in parts.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, e: Tensor) -> Tensor:
        self.check(e, self.event_shape)
        bounded = (self.reach * torch.tanh(e + self.shift) - self.offset) / self.steps
        return straight_through(torch.round(bounded * self.steps) / self.steps, bounded)

    def indices(self, z: Tensor) -> Tensor:
        self.check(z, self.event_shape)
        digits = torch.round(z.detach() * self.steps).long() + self.sizes // 2
        digits = torch.minimum(digits.clamp_min(0), self.sizes - 1)
        return (digits * self.basis).sum(-1 - len(self.grid))

    def lookup(self, indices: Tensor) -> Tensor:
        self.check_indices(indices)
        digits = indices.unsqueeze(-1 - len(self.grid)) // self.basis % self.sizes
        return (digits - self.sizes // 2) / self.steps

    def extra_repr(self) -> str:
        return f"levels={self.levels}, grid={tuple(self.grid)}"


class _Codebook(Quantiser):
    """A quantiser with a learned codebook. The gradient of e is rotated with the code, or passes as it is."""

    learned = True

    def __init__(
        self, num_codes: int, width: int, grid: int | Sequence[int], rotation: bool = True, commitment: float = 0.25
    ) -> None:
        super().__init__(num_codes, width, grid)
        if not (is_number(commitment) and 0 < commitment < math.inf):
            raise OptionError(f"{type(self).__name__} needs commitment to be a positive number, got {commitment!r}.")
        self.rotation, self.commitment = rotation, float(commitment)
        self._dim = -1 - len(self.grid)  # of the elements of a code

    @property
    def codebook(self) -> Tensor:
        """The codes, `(K, width)`."""
        raise NotImplementedError

    def _through(self, e: Tensor, q: Tensor) -> Tensor:
        """A tensor with the gradient that e is to get through the code q, both `(*batch, D)`."""
        if not self.rotation:
            return e
        rotated: Tensor = library("vector_quantize_pytorch").rotate_to(e, q.detach())
        return rotated

    def _is_to_start(self) -> bool:
        """Whether a step of training is to make the codes. One that is being traced cannot tell, and takes them to be there."""
        return torch.is_grad_enabled() and get_proxy_mode() is None and not self.started

    def _follow(self, e: Tensor) -> None:
        """Let the codebook follow vectors `(*batch, D)`, in its first step, and in one that trains the encoder, too."""

    def forward(self, e: Tensor) -> Tensor:
        self.check(e, torch.Size((self.width, *self.grid)))
        last = e.movedim(self._dim, -1)
        if self.training and (e.requires_grad or self._is_to_start()):
            self._follow(last.detach())
        q = self.codebook[nearest(last, self.codebook)]
        return straight_through(q, self._through(last, q)).movedim(-1, self._dim)

    def indices(self, z: Tensor) -> Tensor:
        self.check(z, self.event_shape)
        return nearest(z.movedim(self._dim, -1), self.codebook)

    def lookup(self, indices: Tensor) -> Tensor:
        self.check_indices(indices)
        return self.codebook[indices].movedim(-1, self._dim)

    def extra_repr(self) -> str:
        return f"num_codes={self.num_codes}, width={self.width}, grid={tuple(self.grid)}"


class VQ(_Codebook):
    """Vector quantisation: the nearest of K codes, which follow the vectors by exponential moving averages.

    The codes start as the centres of k-means among the vectors of the first step, and a code that fewer than `restart_below`
    vectors a step choose (on average) starts again at one of the vectors. In evaluation, and once it has started also where no
    gradient reaches e, as from a frozen encoder, the codebook stays as it is. Because it is changed by the rows and not by a
    gradient, steps run eagerly.

    Args:
        num_codes: K, the number of codes.
        width: Number of elements of a code.
        grid: Shape of the grid of codes, an int or a tuple of ints.
        decay: Decay of the moving averages, from 0 to 1.
        restart_below: Vectors a step below which a code starts again; 0 for never.
        rotation: Whether the gradient of a code is rotated and rescaled on its way to e (Fifty et al. 2024,
            arXiv:2410.06424); else it passes as it is.
        commitment: The weight of `|e - z|^2` in the objective.

    Raises:
        OptionError: A number is out of range.
        MissingPackageError: vector-quantize-pytorch is not installed.
        DataError: The first step has fewer vectors than there are codes.
        ShapeError: `grid` is no shape, or an input has another trailing shape.

    References:
        van den Oord et al. 2017, arXiv:1711.00937, appendix A.1; Zeghidour et al. 2021, arXiv:2107.03312 (start and restarts).

    Example:
        >>> codes = pv.nets.VQ(8, width=2, grid=4)
        >>> e = torch.randn(10, 2, 4, requires_grad=True)
        >>> codes(e).shape, len(torch.unique(codes.indices(codes(e)))) > 4
        (torch.Size([10, 2, 4]), True)
    """

    def __init__(
        self,
        num_codes: int,
        width: int,
        grid: int | Sequence[int],
        decay: float = 0.99,
        restart_below: float = 1.0,
        rotation: bool = True,
        commitment: float = 0.25,
    ) -> None:
        super().__init__(num_codes, width, grid, rotation, commitment)
        self.decay, self.restart_below = _share(self, decay), _amount(self, restart_below)
        self.vq = library().VectorQuantize(dim=self.width, codebook_size=self.num_codes, **_moving(self))

    moves = True

    @property
    def started(self) -> bool:  # type: ignore[override]
        return bool(self.vq._codebook.initted)

    @property
    def codebook(self) -> Tensor:
        codebook: Tensor = self.vq.codebook
        return codebook

    def _follow(self, e: Tensor) -> None:
        rows = e.reshape(1, -1, self.width)
        _check_start(self, rows)
        self.vq(rows)


class SimVQ(_Codebook):
    """Vector quantisation by a learned linear map of fixed codes: all codes move together, so that none dies.

    `c_k = W a_k`, with `a_k` drawn once from `N(0, I / width)` and W learned by the term `|sg(e) - z|^2` in the objective.

    Args:
        num_codes: K, the number of codes.
        width: Number of elements of a code.
        grid: Shape of the grid of codes, an int or a tuple of ints.
        rotation: As of `VQ`.
        commitment: The weight of `|e - z|^2` in the objective.

    Raises:
        OptionError: A number is out of range.
        MissingPackageError: vector-quantize-pytorch is not installed.
        ShapeError: `grid` is no shape, or an input has another trailing shape.

    References:
        Zhu et al. 2024, arXiv:2411.02038.

    Example:
        >>> codes = pv.nets.SimVQ(8, width=2, grid=(3, 3))
        >>> codes.indices(codes(torch.randn(10, 2, 3, 3))).shape
        torch.Size([10, 3, 3])
    """

    def __init__(
        self, num_codes: int, width: int, grid: int | Sequence[int], rotation: bool = True, commitment: float = 0.25
    ) -> None:
        super().__init__(num_codes, width, grid, rotation, commitment)
        self.sim = library().SimVQ(dim=self.width, codebook_size=self.num_codes)

    @property
    def codebook(self) -> Tensor:
        codebook: Tensor = self.sim.codebook
        return codebook


class ResidualVQ(_Codebook):
    """Residual vector quantisation: each level codes what the levels before it left, `e = c_1 + c_2 + ...`.

    z has a dimension for the levels, `(*batch, Q, width, *grid)`, and a decoder reads its sum. With Q levels there are K^Q
    vectors. Each level starts, follows and restarts as a `VQ`.

    Args:
        num_codes: K, the number of codes of each level.
        width: Number of elements of a code.
        grid: Shape of the grid of codes, an int or a tuple of ints.
        depth: Q, the number of levels.
        decay: As of `VQ`.
        restart_below: As of `VQ`.
        rotation: As of `VQ`.
        commitment: The weight of the squared residual of each level in the objective.

    Raises:
        OptionError: A number is out of range.
        MissingPackageError: vector-quantize-pytorch is not installed.
        DataError: The first step has fewer vectors than there are codes.
        ShapeError: `grid` is no shape, or an input has another trailing shape.

    References:
        Zeghidour et al. 2021, arXiv:2107.03312.

    Example:
        >>> codes = pv.nets.ResidualVQ(8, width=2, grid=4, depth=3)
        >>> z = codes(torch.randn(10, 2, 4, requires_grad=True))
        >>> z.shape, codes.vectors(z).shape, codes.indices(z).shape
        (torch.Size([10, 3, 2, 4]), torch.Size([10, 2, 4]), torch.Size([10, 3, 4]))
    """

    def __init__(
        self,
        num_codes: int,
        width: int,
        grid: int | Sequence[int],
        depth: int = 2,
        decay: float = 0.99,
        restart_below: float = 1.0,
        rotation: bool = True,
        commitment: float = 0.25,
    ) -> None:
        super().__init__(num_codes, width, grid, rotation, commitment)
        self.depth = whole(self, "depth", depth, 1)
        self.decay, self.restart_below = _share(self, decay), _amount(self, restart_below)
        self.vq = library().ResidualVQ(
            dim=self.width, codebook_size=self.num_codes, num_quantizers=self.depth, **_moving(self)
        )
        self._level = self._dim - 1

    moves = True

    @property
    def started(self) -> bool:  # type: ignore[override]
        return all(bool(level._codebook.initted) for level in self.vq.layers)

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size((self.depth, self.width, *self.grid))

    @property
    def index_shape(self) -> torch.Size:
        return torch.Size((self.depth, *self.grid))

    @property
    def codebook(self) -> Tensor:
        """The codes of each level, `(Q, K, width)`."""
        codebook: Tensor = self.vq.codebooks
        return codebook

    def _follow(self, e: Tensor) -> None:
        rows = e.reshape(1, -1, self.width)
        _check_start(self, rows)
        self.vq(rows)

    def forward(self, e: Tensor) -> Tensor:
        self.check(e, torch.Size((self.width, *self.grid)))
        last = e.movedim(self._dim, -1)
        if self.training and (e.requires_grad or self._is_to_start()):
            self._follow(last.detach())
        found, left = [], last.detach()
        for codebook in self.codebook:
            found.append(codebook[nearest(left, codebook)])
            left = left - found[-1]
        through = self._through(last, torch.stack(found).sum(0))
        found[0] = straight_through(found[0], through)  # of the sum: the other levels pass no gradient on
        return torch.stack(found, self._level).movedim(-1, self._dim)

    def indices(self, z: Tensor) -> Tensor:
        self.check(z, self.event_shape)
        levels = zip(z.movedim(self._dim, -1).unbind(self._level), self.codebook)
        return torch.stack([nearest(level, codebook) for level, codebook in levels], -1 - len(self.grid))

    def lookup(self, indices: Tensor) -> Tensor:
        self.check_indices(indices)
        levels = zip(indices.unbind(-1 - len(self.grid)), self.codebook)
        found = torch.stack([codebook[level] for level, codebook in levels], self._level)
        return found.movedim(-1, self._dim)

    def vectors(self, z: Tensor) -> Tensor:
        return z.sum(self._level)

    def residuals(self, e: Tensor, z: Tensor) -> Tensor:
        before = z.detach().cumsum(self._level) - z.detach()
        return e.unsqueeze(self._level) - before


def library(module: str = "") -> Any:
    """vector-quantize-pytorch, or a module of it. Raises MissingPackageError where it is not installed."""
    try:
        return importlib.import_module(f"{LIBRARY}.{module}" if module else LIBRARY)
    except ModuleNotFoundError as error:
        if error.name != LIBRARY:
            raise
        raise MissingPackageError(
            "Learned codebooks (VQ, SimVQ, ResidualVQ) need the package vector-quantize-pytorch, which is not installed: "
            "pip install 'pyrovae[vq]'. FSQ needs no other package."
        ) from None


def _moving(owner: Any) -> dict[str, Any]:
    """Options of the library's codebooks: they follow the vectors, and gradients and terms of the objective are ours."""
    return {
        "decay": owner.decay,
        "threshold_ema_dead_code": owner.restart_below,
        "kmeans_init": True,
        "rotation_trick": False,
        "commitment_weight": 0.0,
    }


def _check_start(owner: Quantiser, rows: Tensor) -> None:
    """DataError if k-means is to start more codes than it is given vectors."""
    if rows.shape[1] < owner.num_codes and not owner.started:
        raise DataError(
            f"{type(owner).__name__} starts its {owner.num_codes} codes as centres of the vectors of the first step, and got "
            f"{rows.shape[1]} of them (rows times {owner.grid.numel()} places). Take fewer codes, more rows a step, or FSQ."
        )


def _share(owner: nn.Module, decay: float) -> float:
    if not (is_number(decay) and 0 < decay < 1):
        raise OptionError(f"{type(owner).__name__} needs decay to be between 0 and 1, got {decay!r}.")
    return float(decay)


def _amount(owner: nn.Module, restart_below: float) -> float:
    if not (is_number(restart_below) and 0 <= restart_below < math.inf):
        raise OptionError(
            f"{type(owner).__name__} needs restart_below to be a number of vectors, 0 for never, got {restart_below!r}."
        )
    return float(restart_below)
