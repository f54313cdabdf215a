"""sgdwalk: see how an optimizer walks — the full training loss between every two consecutive iterates.

The names below are loaded on first use, so that reading a run never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgdwalk import analysis, figures, valley
    from sgdwalk.alignment import noise_alignment, power_law, principal_angles
    from sgdwalk.checkpoints import Checkpoints
    from sgdwalk.curvature import eigenpairs, gauss_newton, hessian, preconditioned, spectral_norm
    from sgdwalk.data import subset
    from sgdwalk.errors import CheckpointError, InputError, ResumeError, RunFolderError, SgdwalkError
    from sgdwalk.isolation import is_measuring
    from sgdwalk.isotropic import isotropic_noise
    from sgdwalk.lock import forget_writer
    from sgdwalk.max_variance import max_gradient_variance
    from sgdwalk.measures import Undefined, at
    from sgdwalk.noise import gradient_noise, gradient_second_moment
    from sgdwalk.noise_scale import GradientNoiseScale, gradient_noise_scale
    from sgdwalk.norm_growth import norm_under_noise, updates_to_norm
    from sgdwalk.report import save_figure, write_report
    from sgdwalk.residual import hessian_residual
    from sgdwalk.run import Run, open_run
    from sgdwalk.sampled import SampledSegments
    from sgdwalk.sharpness import BatchSharpness, batch_sharpness
    from sgdwalk.spectral_walk import SpectralNorm
    from sgdwalk.spectrum import spectral_density, trace
    from sgdwalk.stability import stability_threshold
    from sgdwalk.standing import LossOptions
    from sgdwalk.walk import Walk
    from sgdwalk.watching import watch
    from sgdwalk.when import When, every, first_steps, in_epochs, one_in

_HOME = {
    "BatchSharpness": "sharpness",
    "CheckpointError": "errors",
    "Checkpoints": "checkpoints",
    "GradientNoiseScale": "noise_scale",
    "InputError": "errors",
    "LossOptions": "standing",
    "ResumeError": "errors",
    "Run": "run",
    "RunFolderError": "errors",
    "SampledSegments": "sampled",
    "SgdwalkError": "errors",
    "SpectralNorm": "spectral_walk",
    "Undefined": "measures",
    "Walk": "walk",
    "When": "when",
    "at": "measures",
    "batch_sharpness": "sharpness",
    "eigenpairs": "curvature",
    "every": "when",
    "first_steps": "when",
    "forget_writer": "lock",
    "gauss_newton": "curvature",
    "gradient_noise": "noise",
    "gradient_noise_scale": "noise_scale",
    "gradient_second_moment": "noise",
    "hessian": "curvature",
    "hessian_residual": "residual",
    "in_epochs": "when",
    "is_measuring": "isolation",
    "isotropic_noise": "isotropic",
    "max_gradient_variance": "max_variance",
    "noise_alignment": "alignment",
    "norm_under_noise": "norm_growth",
    "one_in": "when",
    "open_run": "run",
    "power_law": "alignment",
    "preconditioned": "curvature",
    "principal_angles": "alignment",
    "save_figure": "report",
    "spectral_density": "spectrum",
    "spectral_norm": "curvature",
    "stability_threshold": "stability",
    "subset": "data",
    "trace": "spectrum",
    "updates_to_norm": "norm_growth",
    "watch": "watching",
    "write_report": "report",
}
_MODULES = frozenset({"analysis", "figures", "valley"})

__all__ = [
    "BatchSharpness",
    "CheckpointError",
    "Checkpoints",
    "GradientNoiseScale",
    "InputError",
    "LossOptions",
    "ResumeError",
    "Run",
    "RunFolderError",
    "SampledSegments",
    "SgdwalkError",
    "SpectralNorm",
    "Undefined",
    "Walk",
    "When",
    "analysis",
    "at",
    "batch_sharpness",
    "eigenpairs",
    "every",
    "figures",
    "first_steps",
    "forget_writer",
    "gauss_newton",
    "gradient_noise",
    "gradient_noise_scale",
    "gradient_second_moment",
    "hessian",
    "hessian_residual",
    "in_epochs",
    "is_measuring",
    "isotropic_noise",
    "max_gradient_variance",
    "noise_alignment",
    "norm_under_noise",
    "one_in",
    "open_run",
    "power_law",
    "preconditioned",
    "principal_angles",
    "save_figure",
    "spectral_density",
    "spectral_norm",
    "stability_threshold",
    "subset",
    "trace",
    "updates_to_norm",
    "valley",
    "watch",
    "write_report",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"sgdwalk.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"sgdwalk.{name}")
    raise AttributeError(f"module 'sgdwalk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
