"""Extreme eigenpairs of a symmetric operator that is known by its products with vectors only.

Rayleigh-Ritz on a growing orthonormal basis V whose products W = A V are kept. The basis grows by the residual of a
wanted pair, which spans the same spaces as Lanczos when it starts from one vector, may start from several vectors, and
tells the true residual ‖A x - λ x‖ of every pair at no further product. At its limit the basis shrinks to the best
Ritz vectors (thick restart).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgdwalk.errors import InputError

WHICH = ("magnitude", "largest", "smallest")
MAX_BASIS = 40
"""Vectors in the basis before it restarts; with their products twice as many vectors are held."""

ROUGHLY = 0.1
"""Relative residual at which a pair that is only watched is known well enough."""

NOT_SYMMETRIC = "products with the operator are not symmetric, so second derivatives of some layer are wrong"
ASYMMETRY = 1e-3
"""|v·Aw - w·Av| over ‖A w‖ that rounding cannot make, in float32 either."""

Progress = Callable[[int, int, float], None]

_CONVERTED = 1 << 22
"""Numbers converted to float64 at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Eigenpairs:
    """Eigenpairs of a symmetric operator, each with what it is worth.

    Attributes:
        values: λ, signed, in the order asked for.  # (k,)
        residuals: ‖A x - λ x‖₂ for the unit vectors x: some eigenvalue lies within this distance of λ.  # (k,)
        converged: whether the residual is at most tolerance · |λ| and, in a cautious search, λ at rest.  # (k,)
        vectors: unit eigenvectors, as rows.  # (k, d)
        num_products: products A v that it took.
        reason: why it stopped short, in words; empty where all that was sought converged.
        start: where a problem much like this one may start from: A x of the best Ritz vectors x, the wanted ones
            first, which is a step of power iteration ahead of x and costs no product.  # (m, d)
        others: Ritz values of those in ``start`` that are not among ``values``: rough, from below.  # (m - k,)
    """

    values: Tensor
    residuals: Tensor
    converged: Tensor
    vectors: Tensor
    num_products: int
    reason: str
    start: Tensor
    others: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))

    def __repr__(self) -> str:
        told = "converged" if bool(self.converged.all()) else f"converged: {self.converged.tolist()}, {self.reason}"
        values = ", ".join(f"{value:.6g}" for value in self.values.tolist())
        return f"Eigenpairs(values=[{values}], {self.num_products} products, {told})"


def extreme_eigenpairs(
    product: Callable[[Tensor], Tensor],
    size: int,
    *,
    k: int = 1,
    which: str = "magnitude",
    tolerance: float = 1e-3,
    max_products: int = 200,
    start: Tensor | None = None,
    cautious: bool = True,
    watched: int = 0,
    num_kept: int = 0,
    max_basis: int = MAX_BASIS,
    generator: torch.Generator,
    progress: Progress | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Eigenpairs:
    """The k eigenpairs of largest magnitude, or at one end of the spectrum.

    Args:
        product: v -> A v for a symmetric A.  # (d,) -> (d,)
        size: d.
        k: how many pairs.
        which: ``magnitude``, ``largest`` or ``smallest`` (algebraically).
        tolerance: a pair has converged when ‖A x - λ x‖ ≤ tolerance · |λ|.
        max_products: products after which it stops, converged or not.
        start: vectors to begin with, need not be orthogonal; random ones where there are fewer than k.  # (m, d)
        cautious: a pair has converged only when its value stood still over the last product, too: from a random start
            a residual may be small at another eigenvalue before the extreme one has come up.
        watched: so many pairs beyond the wanted ones must be found roughly, to 10 % of their values. A start close to
            the wanted vectors converges at once and never meets an eigenvalue that has risen elsewhere: watch one pair
            more than there are start vectors, and add a random vector to them.
        num_kept: vectors to return in ``start`` beyond the k wanted ones.
        max_basis: vectors held, with their products, before the basis restarts.
        generator: of the random vectors, on the CPU: the same one gives the same numbers.
        progress: called with products so far, converged pairs, relative residual of the pair that is worked on.

    >>> matrix = torch.diag(torch.tensor([3.0, -5.0, 1.0]))
    >>> pairs = extreme_eigenpairs(lambda v: matrix @ v, 3, generator=torch.Generator().manual_seed(0))
    >>> round(pairs.values.item(), 5), pairs.converged.item()
    (-5.0, True)
    """
    check_settings(k=k, which=which, tolerance=tolerance, max_products=max_products, size=size)
    waiting = [] if start is None else list(_rows(start, size).to(device=device, dtype=dtype))
    sought = min(size, k + watched)
    basis = Basis(size, min(size, max(max_basis, 2 * sought + 4, len(waiting))), dtype, device)
    products = 0
    reason = ""

    def random() -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)

    def limit(index: int, values: list[float]) -> float:
        if index < k:
            return tolerance * abs(values[index])
        # A random vector has about 1/√d of each eigenvector in it, so that a residual this small hides none whose value
        # is like the first. No more may pass: where few values are large, a random vector's residual is small anyway.
        return max(tolerance, ROUGHLY) * max(abs(values[index]), abs(values[0]) / math.sqrt(size))

    waiting += [random() for _ in range(k - len(waiting))]
    ritz, unconverged, before = None, list(range(sought)), [math.inf] * sought
    while True:
        while waiting and products < max_products:
            vector = basis.orthonormal(waiting.pop(0))
            if vector is None:
                continue
            image = product(vector)
            products += 1
            if not bool(torch.isfinite(image).all()):
                reason = "a product with the operator is not finite"
                break
            basis.add(vector, image)
        if not basis.symmetric:
            reason = NOT_SYMMETRIC
        if basis.length == 0:
            if reason:
                break
            waiting = [random()]
            continue
        ritz = basis.ritz(sought, which)
        moving = [cautious and abs(a - b) > tolerance * abs(a) for a, b in zip(ritz.values, before, strict=False)]
        before = ritz.values
        unconverged = [
            i
            for i, residual in enumerate(ritz.residuals)
            if not residual <= limit(i, ritz.values) or (i < k and moving[i] and basis.length < size)
        ]
        if progress is not None:
            at = unconverged[0] if unconverged else 0
            size_of = abs(ritz.values[at])
            done = sum(i not in unconverged for i in range(min(k, len(ritz.values))))
            progress(products, done, ritz.residuals[at] / size_of if size_of else 0.0)
        if reason:
            unconverged = list(range(sought))
            break
        if not unconverged and len(ritz.values) == sought:
            break
        if products >= max_products:
            reason = f"not converged after {products} products"
            break
        if basis.length == size:  # the whole space: only rounding is left, and more products cannot mend it
            reason = "tolerance is below the rounding of the operator's products"
            break
        expansion = basis.orthonormal(basis.residual(ritz.coordinates[unconverged[0]])) if unconverged else None
        waiting = [random() if expansion is None else expansion]
        if basis.length == basis.capacity:
            basis.restart(ritz_keep(sought, basis.capacity), which)
    return _result(basis, ritz, reason, unconverged, products, k, num_kept, which)


def ritz_keep(k: int, capacity: int) -> int:
    """Ritz vectors that survive a restart: the wanted ones and enough beside them to go on converging."""
    return min(k + max(2, capacity // 4), capacity - 1)


def _rows(start: Tensor, size: int) -> Tensor:
    if not isinstance(start, Tensor):
        raise InputError(f"start is a {type(start).__name__}: a tensor with vectors as rows is wanted, (m, {size}).")
    if start.dim() != 2 or start.shape[1] != size:
        raise InputError(f"start has shape {tuple(start.shape)}: vectors as rows are wanted, (m, {size}).")
    return start


def check_settings(*, k: int, which: str, tolerance: float, max_products: int, size: int) -> None:
    if which not in WHICH:
        raise InputError(f"which={which!r} does not exist; there is {', '.join(map(repr, WHICH))}.")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size:
        raise InputError(f"k={k!r}: ask for 1 to {size} eigenpairs, the number of parameters.")
    if not (isinstance(tolerance, (int, float)) and 0 < tolerance < 1):
        raise InputError(f"tolerance={tolerance!r}: a relative residual between 0 and 1 is wanted, such as 1e-3.")
    if isinstance(max_products, bool) or not isinstance(max_products, int) or max_products < 1:
        raise InputError(f"max_products={max_products!r}: at least one product is needed.")


@dataclass(frozen=True, slots=True)
class _Ritz:
    values: list[float]
    residuals: list[float]
    coordinates: list[Tensor]
    """Of each wanted Ritz vector in the basis, followed by its value.  # (length,)"""


class Basis:
    """Orthonormal rows V, their products W = V A, and the projected matrix V A Vᵀ in float64."""

    def __init__(self, size: int, capacity: int, dtype: torch.dtype, device: torch.device | None):
        self.length, self.capacity = 0, capacity
        self.size, self.dtype, self.device = size, dtype, device
        self._vectors = self._images = torch.empty(0, size, dtype=dtype, device=device)
        self.projected = torch.zeros(0, 0, dtype=torch.float64)
        self.symmetric = True
        """Whether all products so far are those of a symmetric operator, up to rounding."""
        self._longest = 0.0

    @property
    def vectors(self) -> Tensor:
        return self._vectors[: self.length]

    @property
    def images(self) -> Tensor:
        return self._images[: self.length]

    def orthonormal(self, vector: Tensor) -> Tensor | None:
        """The part of ``vector`` outside the basis, of length 1; None where nothing but rounding is left."""
        norm = float(torch.linalg.vector_norm(vector.to(torch.float64)))
        if not math.isfinite(norm) or norm == 0.0 or self.length == self.size:
            return None
        vector = vector / norm
        for _ in range(3):
            if self.length:
                vector = vector - (self.vectors @ vector) @ self.vectors
            shrunk = float(torch.linalg.vector_norm(vector.to(torch.float64)))
            if shrunk < 100 * torch.finfo(self.dtype).eps:
                return None
            vector = vector / shrunk
            if shrunk > 0.5:
                break
        return vector

    def outside(self, vector: Tensor) -> Tensor:
        """The part of ``vector`` outside the basis, at its own length."""
        for _ in range(2):
            vector = vector - (self.vectors @ vector) @ self.vectors
        return vector

    def add(self, vector: Tensor, image: Tensor) -> None:
        if self.length == len(self._vectors):
            self._grow()
        self._vectors[self.length], self._images[self.length] = vector, image
        self.length += 1
        column = inner_products(self.vectors, image[None])[:, 0]
        row = inner_products(self.images, vector[None])[:, 0]
        self._longest = max(self._longest, float(torch.linalg.vector_norm(image.to(torch.float64))))
        self.symmetric &= bool(((column - row).abs() <= ASYMMETRY * self._longest).all())
        projected = torch.zeros(self.length, self.length, dtype=torch.float64)
        projected[:-1, :-1] = self.projected
        # The mean of both sides: what rounding leaves unsymmetric belongs to neither.
        projected[-1] = projected[:, -1] = (column + row) / 2
        self.projected = projected

    def _grow(self) -> None:
        rows = min(self.capacity, max(4, 2 * self.length))
        for name in ("_vectors", "_images"):
            larger = torch.empty(rows, self.size, dtype=self.dtype, device=self.device)
            larger[: self.length] = getattr(self, name)[: self.length]
            setattr(self, name, larger)

    def ritz(self, count: int, which: str) -> _Ritz:
        values, coordinates = self._ordered(which)
        chosen = range(min(count, self.length))
        pairs = [torch.cat([coordinates[:, i], values[i : i + 1]]) for i in chosen]
        residuals = [float(torch.linalg.vector_norm(self.residual(pair).to(torch.float64))) for pair in pairs]
        return _Ritz([float(values[i]) for i in chosen], residuals, pairs)

    def _ordered(self, which: str) -> tuple[Tensor, Tensor]:
        values, coordinates = torch.linalg.eigh(self.projected)
        key = {"magnitude": -values.abs(), "largest": -values, "smallest": values}[which]
        order = torch.argsort(key, stable=True)
        return values[order], coordinates[:, order]

    def residual(self, pair: Tensor) -> Tensor:
        """A x - λ x of a Ritz pair given by its coordinates and value.  # (d,)"""
        coordinates, value = pair[:-1], float(pair[-1])
        return combination(coordinates, self.images) - value * combination(coordinates, self.vectors)

    def restart(self, keep: int, which: str) -> None:
        """Shrink to the ``keep`` best Ritz vectors."""
        values, coordinates = self._ordered(which)
        kept = coordinates[:, :keep]
        vectors, images = ([combination(kept[:, i], rows) for i in range(keep)] for rows in (self.vectors, self.images))
        for i in range(keep):
            self._vectors[i], self._images[i] = vectors[i], images[i]
        self.length = keep
        self.projected = torch.diag(values[:keep])

    def best(self, count: int, which: str) -> tuple[Tensor, Tensor, Tensor]:
        """The best Ritz vectors x, and A x, as unit rows, and their values."""
        values, coordinates = self._ordered(which)
        chosen = coordinates[:, :count].T
        vectors, images = (
            torch.stack([unit(combination(row, rows)) for row in chosen]) for rows in (self.vectors, self.images)
        )
        return vectors, images, values[:count]


def unit(vector: Tensor) -> Tensor:
    """The vector at length 1, or zeros; float32 cannot hold the squares of very large and very small numbers."""
    norm = float(torch.linalg.vector_norm(vector.to(torch.float64)))
    return vector / norm if norm else vector


def inner_products(rows: Tensor, others: Tensor) -> Tensor:
    """The inner product of each row with each of the others, summed in float64.  # (m, d), (n, d) -> (m, n), CPU"""
    total = torch.zeros(len(rows), len(others), dtype=torch.float64, device=rows.device)
    width = max(1, _CONVERTED // (len(rows) + len(others)))
    for part, other in zip(rows.split(width, 1), others.split(width, 1), strict=True):
        total += part.to(torch.float64) @ other.to(torch.float64).T
    return total.cpu()


def combination(coordinates: Tensor, rows: Tensor) -> Tensor:
    """Σ c_i row_i.  # (n,), (n, d) -> (d,)"""
    return coordinates.to(rows) @ rows


def _result(
    basis: Basis,
    ritz: _Ritz | None,
    reason: str,
    unconverged: list[int],
    products: int,
    k: int,
    num_kept: int,
    which: str,
) -> Eigenpairs:
    values, residuals = (torch.full((k,), math.nan, dtype=torch.float64) for _ in range(2))
    vectors = torch.full((k, basis.size), math.nan, dtype=basis.dtype, device=basis.device)
    start, others, found = vectors[:0], values[:0], 0
    if ritz is not None:
        found = min(k, len(ritz.values))
        values[:found] = torch.tensor(ritz.values[:found], dtype=torch.float64)
        residuals[:found] = torch.tensor(ritz.residuals[:found], dtype=torch.float64)
        best, start, ordered = basis.best(k + num_kept, which)
        vectors[:found], others = best[:found], ordered[found:]
    converged = torch.tensor([index < found and index not in unconverged for index in range(k)])
    return Eigenpairs(values, residuals, converged, vectors, products, reason, start, others)
