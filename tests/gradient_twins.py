"""Small nets of many kinds, and the losses of their single examples as a function of θ, written from the definition.

A twin evaluates a deep copy of the model in float64, one fixed evaluation batch after the other; its gradients and
Hessians come from ``torch.autograd.functional`` and from nothing in ``src``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

import nets


class Attention(nn.Module):
    """Self-attention over a row of five numbers as five tokens; the fused kernel has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 4), nn.Linear(4, 3)
        self.project = nn.Linear(4, 12, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = self.project(self.embed(inputs.unsqueeze(-1))).unsqueeze(1).chunk(3, dim=-1)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.head(attended.squeeze(1).mean(1))


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(), nn.Linear(12, 3)
    )


def net(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    made: dict[str, Callable[[], nn.Module]] = {
        "tanh": lambda: nets.mlp(),
        "batchnorm": lambda: nets.mlp(batchnorm=True, dropout=0.3),
        "group_norm_gelu": group_norm,
        "tied": nets.TiedAutoencoder,
        "attention": Attention,
    }
    return made[kind]().to(dtype)


KINDS = ["tanh", "batchnorm", "group_norm_gelu", "tied", "attention"]


def parameters_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters() if p.requires_grad])


def losses_twin(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """θ -> ℓ_1 … ℓ_N, batch by batch; ``loss(output, target)`` gives the losses of a batch's examples."""
    module = copy.deepcopy(model).double().eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train()
    free = [(name, p.shape, p.numel()) for name, p in module.named_parameters() if p.requires_grad]

    def losses(theta: Tensor) -> Tensor:
        parts = theta.split([size for *_, size in free])
        weights = {name: part.view(shape) for (name, shape, _), part in zip(free, parts, strict=True)}
        with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]):
            outputs = [torch.func.functional_call(copy.deepcopy(module), weights, (in_float64(x),)) for x, _ in batches]
        return torch.cat([loss(output, in_float64(y)) for output, (_, y) in zip(outputs, batches, strict=True)])

    return losses


def in_float64(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def cross_entropies(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, reduction="none")


def gradients_one_by_one(losses: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """∇ℓ_i, a row for each example, by one backward pass each.  # (N, d)"""
    return torch.autograd.functional.jacobian(losses, theta)


def hessian_of_mean(losses: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    # Reverse over reverse: torch.func.hessian's forward mode is wrong for BatchNorm in train mode.
    return torch.autograd.functional.hessian(lambda point: losses(point).mean(), theta)
