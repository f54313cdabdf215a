"""Sums of outer products of gradients, scale · Σ r rᵀ: what C and S_B have in common.

Such a matrix has rank at most n, the number of gradients r, and its eigenvalues other than zero are those of the n × n
Gram matrix scale · r_i · r_j. The gradients are kept as rows where they fit into memory, else made again for each pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import normalize

from sgdwalk.draws import generator
from sgdwalk.eigensolver import Eigenpairs, check_settings, extreme_eigenpairs, inner_products
from sgdwalk.errors import InputError
from sgdwalk.graphs import free_bytes
from sgdwalk.objective import FullLoss
from sgdwalk.operators import LARGEST_DENSE, LossOperator

LARGEST_GRAM = 4_000
"""Rows of a matrix whose eigenvalues are all computed (about half a minute on one core): beyond it, by products."""


class OuterProducts(LossOperator):
    """scale · Σ r rᵀ over n gradients r: symmetric, positive semi-definite, of rank at most n.

    Args:
        full_loss: the loss, its site standing at θ.
        num_rows: n.
        scale: what the sum is multiplied by.
        memory_limit: bytes that kept gradients, or kept graphs, may take; a quarter of what is free by default.
        guard: context for each pass over the gradients.
    """

    def __init__(
        self,
        full_loss: FullLoss,
        num_rows: int,
        scale: float,
        *,
        memory_limit: int | None = None,
        guard: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ):
        super().__init__(full_loss, memory_limit=memory_limit, guard=guard)
        self.num_rows = num_rows
        self.scale = scale
        self._rows: Tensor | None = None

    # ---------------------------------------------------------------------------------------- the gradients as rows
    def make_rows(self, first: int) -> Iterator[Tensor]:
        """The rows from ``first`` on, a few at a time; to be called within ``_passing``.  # (m, d) each"""
        raise AssertionError("abstract")

    @contextlib.contextmanager
    def _passing(self) -> Iterator[None]:
        with self._guard(), sdpa_kernel([SDPBackend.MATH]):
            yield

    def _chunks(self, first: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Rows with the number of the first of them, kept ones or made again."""
        for rows in [self._rows[first:]] if self._rows is not None else self.make_rows(first):
            yield first, rows
            first += len(rows)

    def _room(self) -> int:
        """Rows that memory has room for."""
        if self._memory_limit is None:
            self._memory_limit = free_bytes(self.device) // 4
        return self._memory_limit // (self.size * torch.finfo(self.dtype).bits // 8)

    def _keep(self) -> bool:
        """Make the rows and keep them, where they fit."""
        if self._rows is None and self.num_rows <= self._room():
            rows = torch.empty(self.num_rows, self.size, dtype=self.dtype, device=self.device)
            for first, chunk in self._chunks():
                rows[first : first + len(chunk)] = chunk
            self._rows = rows
        return self._rows is not None

    def release(self) -> None:
        super().release()
        self._rows = None

    # --------------------------------------------------------------------------------------- what is asked about them
    def by_rows(self, vectors: Tensor) -> Tensor:
        """The products with several vectors, from one pass over the gradients.  # (k, d) -> (k, d)"""
        total = torch.zeros_like(vectors)
        with self._passing():
            for _, rows in self._chunks():
                total += (vectors @ rows.T) @ rows
        return self.scale * total

    def squared_norms(self) -> Tensor:
        """‖r‖² of each gradient, in float64.  # (n,) on the CPU"""
        with self._passing():
            norms = [torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) for _, rows in self._chunks()]
        return torch.cat(norms).square().cpu()

    def trace(self) -> float:
        """The sum of the eigenvalues, scale · Σ ‖r‖², from one pass over the gradients."""
        return self.scale * float(self.squared_norms().sum())

    def diagonal(self) -> Tensor:
        """scale · Σ r_j² for each coordinate j, in float64, from one pass over the gradients.  # (d,)"""
        total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        with self._passing():
            for _, rows in self._chunks():
                total += torch.linalg.vector_norm(rows, dim=0, dtype=torch.float64).square()
        return self.scale * total

    def gram(self) -> Tensor:
        """The Gram matrix scale · r_i · r_j, in float64; its eigenvalues other than zero are the operator's.

        Where the gradients do not fit into memory, as many passes as it takes to meet each with each.  # (n, n), CPU

        Raises:
            InputError: for more than 10,000 gradients.
        """
        if self.num_rows > LARGEST_DENSE:
            raise InputError(
                f"The Gram matrix of {self.num_rows:,} gradients would not fit: use fewer examples (sgdwalk.subset) or "
                "eigenpairs(), which does without."
            )
        total = torch.zeros(self.num_rows, self.num_rows, dtype=torch.float64)
        with self._passing():
            width = self.num_rows if self._keep() else max(1, self._room())
            for start in range(0, self.num_rows, width):
                self._fill_columns(total, start, min(start + width, self.num_rows))
        lower = torch.tril(total, -1)
        return self.scale * (lower + lower.T + torch.diag(total.diagonal()))

    def _fill_columns(self, total: Tensor, start: int, end: int) -> None:
        """Inner products of gradients start to end with themselves and all later ones, below the diagonal."""
        block = self._rows
        if block is None:
            block = torch.empty(end - start, self.size, dtype=self.dtype, device=self.device)
        for first, rows in self._chunks(start):
            if self._rows is None and first < end:
                block[first - start : first - start + len(rows)] = rows[: end - first]
            filled = min(end, first + len(rows)) - start
            total[first : first + len(rows), start : start + filled] = inner_products(rows, block[:filled])

    def eigenpairs(self, k: int = 1, *, tolerance: float = 1e-3, max_products: int = 200, seed: int = 0) -> Eigenpairs:
        """The k largest eigenvalues and their eigenvectors, each with its true residual ‖A x - λ x‖.

        All eigenvalues of the smaller of two matrices where that has at most 4,000 rows: of the Gram matrix if the
        gradients fit into memory, of the operator itself if it has fewer coordinates than there are gradients. Else by
        products, as for a Hessian.

        Args:
            k: how many pairs; beyond the operator's rank the eigenvalues are zero.
            tolerance: a pair has converged when its residual is at most tolerance · |λ|.
            max_products: products after which a search by products stops.
            seed: of random vectors.

        Raises:
            InputError: for a k or tolerance that cannot be had.
        """
        check_settings(k=k, which="largest", tolerance=tolerance, max_products=max_products, size=self.size)
        random = generator("start of an eigensolver", seed)
        if self.size <= min(self.num_rows, LARGEST_GRAM):
            values, vectors = self._of_own_matrix(k)
        elif self.num_rows <= LARGEST_GRAM and self._fits():
            values, vectors = self._of_gram(k, random)
        else:
            settings = {"k": k, "which": "largest", "tolerance": tolerance, "max_products": max_products}
            place = {"generator": random, "dtype": self.dtype, "device": self.device}
            return extreme_eigenpairs(self.__matmul__, self.size, **settings, **place)
        images = self.by_rows(vectors)
        away = images.to(torch.float64) - values.to(self.device).unsqueeze(1) * vectors.to(torch.float64)
        residuals = torch.linalg.vector_norm(away, dim=1).cpu()
        converged = residuals <= tolerance * values
        rank = int((values > 0).sum())
        reason = f"the matrix has rank {rank}: its other eigenvalues are zero" if rank < k else ""
        if not reason and not bool(converged.all()):
            reason = "tolerance is below the rounding of the gradients"
        return Eigenpairs(values, residuals, converged, vectors, k, reason, normalize(images))

    def _fits(self) -> bool:
        with self._passing():
            return self._keep()

    def _of_own_matrix(self, k: int) -> tuple[Tensor, Tensor]:
        matrix = torch.zeros(self.size, self.size, dtype=torch.float64, device=self.device)
        with self._passing():
            for _, rows in self._chunks():
                wide = rows.to(torch.float64)
                matrix += wide.T @ wide
        values, vectors = torch.linalg.eigh(self.scale * matrix)
        values = _above_rounding(values.flip(0)[:k].cpu(), self.size)
        return values, vectors.flip(1)[:, :k].T.to(self.dtype).contiguous()

    def _of_gram(self, k: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        values, coordinates = torch.linalg.eigh(self.gram())
        values = _above_rounding(values.flip(0)[:k], self.num_rows)
        rank = int((values > 0).sum())
        wanted = coordinates.flip(1)[:, :rank].T.to(device=self.device, dtype=self.dtype)
        vectors = torch.zeros(rank, self.size, dtype=self.dtype, device=self.device)
        with self._passing():
            for first, rows in self._chunks():
                vectors += wanted[:, first : first + len(rows)] @ rows
        # What is orthogonal to all eigenvectors with an eigenvalue belongs to the eigenvalue zero.
        others = torch.randn(k - rank, self.size, generator=random, dtype=torch.float64).to(vectors)
        orthonormal = torch.linalg.qr(normalize(torch.cat([vectors, others])).T).Q.T
        return torch.nn.functional.pad(values[:rank], (0, k - rank)), orthonormal.contiguous()


def _above_rounding(values: Tensor, size: int) -> Tensor:
    """Descending eigenvalues of a positive semi-definite matrix, with zero for what is nothing but rounding."""
    threshold = float(values[0]) * size * torch.finfo(torch.float64).eps
    return torch.where(values > max(threshold, 0.0), values, 0.0)
