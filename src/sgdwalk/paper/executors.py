"""Ray and SLURM behind the call that ``concurrent.futures`` makes; both are extras, imported where they are used."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sgdwalk
from sgdwalk.paper.config import Execution
from sgdwalk.paper.sweep import Executor


class RayFuture:
    """A task of Ray's, as a future."""

    def __init__(self, ray: Any, reference: Any):
        self._ray = ray
        self._reference = reference

    def done(self) -> bool:
        """Whether it ended, well or not."""
        return bool(self._ray.wait([self._reference], timeout=0)[0])

    def result(self) -> Any:
        """What the call returned; raises what Ray says of a worker or machine that was lost."""
        return self._ray.get(self._reference)

    def cancel(self) -> None:
        """Do not begin it."""
        self._ray.cancel(self._reference)


class RayExecutor:
    """Makes each call a task of a Ray cluster's; use it as a context, which leaves the cluster at its end.

    Ray does not retry: the sweep does, and takes back what a lost machine holds of a run.

    Args:
        address: of a cluster that runs, ``"auto"`` for the one this machine belongs to; one is started on this machine
            for the time being where not given.
        options: of ``ray.remote``, such as ``num_cpus``, ``num_gpus``, ``resources``.
    """

    def __init__(self, address: str | None = None, **options: Any):
        self._ray = _extra("ray", "ray")
        self._started = not self._ray.is_initialized()
        if self._started:
            self._ray.init(address, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=None)
        self._call = self._ray.remote(max_retries=0, **options)(_call)

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> RayFuture:
        """Let a function be called on some machine of the cluster."""
        return RayFuture(self._ray, self._call.remote(function, *arguments))

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._ray.shutdown()


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@contextlib.contextmanager
def open_executor(kind: str, options: Mapping[str, Any], execution: Execution, logs: Path) -> Iterator[Executor]:
    """The executor of this kind, for as long as the context lasts.

    Args:
        kind: ``ray`` or ``submitit``.
        options: of that kind's table in a sweep's file.
        execution: threads and device of a training, from which follows what it asks for where ``options`` do not say.
        logs: folder for submitit's files.

    Raises:
        sgdwalk.InputError: the extra is not installed, or refuses the options.
    """
    on_gpu = execution.device.startswith("cuda")
    if kind == "ray":
        asked = {"num_cpus": execution.num_threads, "num_gpus": int(on_gpu), **options}
        with _explained(kind, asked):
            executor = RayExecutor(**asked)
        with executor:
            yield executor
    else:
        submitit = _extra("submitit", "slurm")
        asked = {"name": "sgdwalk", "cpus_per_task": execution.num_threads, "gpus_per_node": int(on_gpu), **options}
        cluster = asked.pop("cluster", None)
        if "timeout_min" not in asked:
            raise sgdwalk.InputError(
                "[submitit] does not say timeout_min, the minutes that a training may take of a machine at a time: "
                "`--dry-run` estimates them. One that takes longer is requeued and goes on."
            )
        with _explained(kind, asked):
            executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
            executor.update_parameters(**asked)
        yield executor


@contextlib.contextmanager
def _explained(kind: str, options: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except sgdwalk.SgdwalkError:
        raise
    except Exception as error:  # each library has its own
        told = " ".join(str(error).split())
        raise sgdwalk.InputError(f"{kind} refuses {dict(options)}: {type(error).__name__}: {told[:800]}") from error


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise sgdwalk.InputError(
            f"{module} is not installed here: pip install -c constraints.txt '.[{extra}]' in a clone of the repository."
        ) from error
