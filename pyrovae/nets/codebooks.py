"""Quantisers whose codes are learned, from vector-quantize-pytorch, an extra: `pip install 'pyrovae[vq]'`."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_number
from pyrovae._dispatch import recorded
from pyrovae.errors import DataError, MissingPackageError
from pyrovae.nets.quantisers import Quantiser, straight_through, whole

LIBRARY = "vector_quantize_pytorch"


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The number of the code nearest to each vector: `(*batch, D)` and `(K, D)` to `(*batch)`."""
    with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):  # a code must be nearest to itself
        found: Tensor = (codebook.square().sum(-1) - 2 * vectors.to(codebook) @ codebook.mT).argmin(-1)
    return found


class _Codebook(Quantiser):
    """A quantiser with a learned codebook. The gradient of e is rotated with the code, or passes as it is."""

    learned = True

    def __init__(
        self, num_codes: int, width: int, grid: int | Sequence[int], rotation: bool = True, commitment: float = 0.25
    ) -> None:
        super().__init__(num_codes, width, grid)
        self.rotation = rotation
        self.commitment = float(as_number(f"commitment of {type(self).__name__}", commitment, above=0))
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

    def _follow(self, e: Tensor) -> None:
        """In a step of training, let the codebook follow vectors `(*batch, D)`."""

    def forward(self, e: Tensor) -> Tensor:
        self.check(e, torch.Size((self.width, *self.grid)))
        last = e.movedim(self._dim, -1)
        self._follow(last)
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


class _Moving(_Codebook):
    """A codebook that follows the vectors by exponential moving averages, kept by a part `vq` of the library."""

    moves = True
    vq: Any

    def __init__(
        self,
        num_codes: int,
        width: int,
        grid: int | Sequence[int],
        decay: float,
        restart_below: float,
        rotation: bool,
        commitment: float,
    ) -> None:
        super().__init__(num_codes, width, grid, rotation, commitment)
        who = type(self).__name__
        self.decay = float(as_number(f"decay of {who}", decay, above=0, below=1))
        self.restart_below = float(as_number(f"restart_below of {who}", restart_below, least=0, also=", 0 for never"))

    def _options(self) -> dict[str, Any]:
        """Those of the library: its codes follow the vectors; gradients and terms of the objective are ours."""
        return {
            "dim": self.width,
            "codebook_size": self.num_codes,
            "decay": self.decay,
            "threshold_ema_dead_code": self.restart_below,
            "kmeans_init": True,
            "rotation_trick": False,
            "commitment_weight": 0.0,
        }

    @property
    def _books(self) -> list[Any]:
        """The parts of the library that hold codes and averages, one for each level."""
        raise NotImplementedError

    @property
    def started(self) -> bool:  # type: ignore[override]
        return all(bool(book.initted) for book in self._books)

    def _follow(self, e: Tensor) -> None:
        # A step that is being traced cannot ask whether there are codes: `pv.fit` and `pv.SVI` see to that beforehand.
        starts = self.training and torch.is_grad_enabled() and not recorded() and not self.started
        if not (starts or (self.training and e.requires_grad)):
            return
        left = e.detach().reshape(-1, self.width)
        with torch.no_grad(), torch.autocast(e.device.type, enabled=False):
            left = left.to(self.codebook)
            for book in self._books:
                if starts:
                    self._start(book, left)
                left = left - self._move(book, left)

    def _start(self, book: Any, e: Tensor) -> None:
        """Make the codes of one level the centres of the vectors `(n, D)`."""
        if len(e) < self.num_codes:
            raise DataError(
                f"{type(self).__name__} starts its {self.num_codes} codes as centres of the vectors of the first step, and got "
                f"{len(e)} of them (rows times {self.grid.numel()} places). Take fewer codes, more rows a step, or FSQ."
            )
        book.init_embed_(e.unsqueeze(0))

    def _move(self, book: Any, e: Tensor) -> Tensor:
        """One step of the averages of one level, by the vectors `(n, D)`, and the codes that they give.

        The library's own reads on the host whether a code is to start again; this waits for no device, and can be traced.

        Returns:
            The codes of the vectors before they moved, `(n, D)`: what the next level follows is what these left.
        """
        sizes, sums, codes = book.cluster_size[0], book.embed_avg[0], book.embed[0]
        k = nearest(e, codes)
        before = codes[k]
        chosen = (k.unsqueeze(-1) == torch.arange(self.num_codes, device=e.device)).to(e)  # (n, K)
        sizes = self.decay * sizes + (1 - self.decay) * chosen.sum(0)
        sums = self.decay * sums + (1 - self.decay) * chosen.mT @ e
        total = sizes.sum()
        smooth = (sizes + book.eps) * (total / (total + self.num_codes * book.eps))  # no code divides by 0
        codes = sums / smooth.unsqueeze(-1)
        if self.restart_below:
            # no two codes start at one vector, or only one of them would be chosen; those that get none wait
            places = torch.rand(max(len(e), self.num_codes), device=e.device).argsort()[: self.num_codes]
            dead = (sizes < self.restart_below) & (places < len(e))
            again = e[places.clamp_max(len(e) - 1)]
            codes = torch.where(dead.unsqueeze(-1), again, codes)
            sizes = sizes.masked_fill(dead, self.restart_below)
            sums = torch.where(dead.unsqueeze(-1), self.restart_below * again, sums)
        book.cluster_size[0].copy_(sizes)
        book.embed_avg[0].copy_(sums)
        book.embed[0].copy_(codes)
        return before


class VQ(_Moving):
    """Vector quantisation: the nearest of K codes, which follow the vectors by exponential moving averages.

    The codes start as the centres of k-means among the vectors of as many rows as a step has, and a code that fewer than
    `restart_below` vectors a step choose (on average) starts again at one of the vectors, no two at the same. In evaluation,
    and once it has started also where no gradient reaches e, as from a frozen encoder, the codebook stays as it is. A step with
    n vectors follows them by `N_k <- d N_k + (1 - d) n_k` and `m_k <- d m_k + (1 - d) sum_{i: k_i = k} e_i`, and a code is
    `m_k / N_k`.

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
        super().__init__(num_codes, width, grid, decay, restart_below, rotation, commitment)
        self.vq = library().VectorQuantize(**self._options())

    @property
    def _books(self) -> list[Any]:
        return [self.vq._codebook]

    @property
    def codebook(self) -> Tensor:
        codebook: Tensor = self.vq.codebook
        return codebook


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


class ResidualVQ(_Moving):
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
        super().__init__(num_codes, width, grid, decay, restart_below, rotation, commitment)
        self.depth = whole(self, "depth", depth, 1)
        self.vq = library().ResidualVQ(num_quantizers=self.depth, **self._options())
        self._level = self._dim - 1

    @property
    def _books(self) -> list[Any]:
        return [level._codebook for level in self.vq.layers]

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

    def forward(self, e: Tensor) -> Tensor:
        self.check(e, torch.Size((self.width, *self.grid)))
        last = e.movedim(self._dim, -1)
        self._follow(last)
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
