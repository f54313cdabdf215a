"""Augmentation of photographs as in the authors' code: a random crop after padding, and a random horizontal flip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random crops and flips.

    Attributes:
        padding: pixels put around each image before a crop of the image's own size is taken.
        black: what a black pixel is after normalization, one number a channel: the padding's colour.

    >>> augmentation = Augmentation(padding=4, black=(-2.0, -2.0, -2.0))
    >>> images = torch.rand(2, 3, 32, 32)
    >>> augmentation(images, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 32])
    """

    padding: int
    black: tuple[float, ...]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Shift each image by at most ``padding`` pixels each way, and flip every other one, all at random.

        Args:
            images: shape (examples, channels, height, width).
            generator: of the draws, on the CPU: the same whatever the device of the images.
        """
        count, channels, height, width = images.shape
        shifts = torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator)
        flips = torch.randint(2, (count, 1), generator=generator).bool()
        rows = shifts[0] + torch.arange(height)  # (examples, height)
        columns = shifts[1] + torch.arange(width)  # (examples, width)
        columns = torch.where(flips, columns.flip(1), columns)
        padded = images.new_empty(count, height + 2 * self.padding, width + 2 * self.padding, channels)
        padded[:] = torch.tensor(self.black).to(images)
        inside = slice(self.padding, self.padding + height), slice(self.padding, self.padding + width)
        padded[:, inside[0], inside[1]] = images.permute(0, 2, 3, 1)
        example = torch.arange(count)[:, None, None]
        index = (each.to(images.device) for each in (example, rows[:, :, None], columns[:, None, :]))
        return padded[tuple(index)].permute(0, 3, 1, 2).contiguous()
