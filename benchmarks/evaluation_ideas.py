"""What each way to make the evaluation of a segment cheaper brings, and what it does to the losses.

    python benchmarks/evaluation_ideas.py --data-dir DIR [--net mlp|vgg11|resnet56|all]

Forward passes only: the losses at all points of one segment over N examples in batches of 100, after
``--updates`` updates of SGD with learning rate 0.1. ``present`` is what ``watch()`` does with its defaults: float32,
weights lerped in place, one point after the other, ``channels_last`` but in the convolutions that it makes slower, and
freed memory kept by the process. Beside it, in turns:

* NCHW: torch's usual order of memory;
* channels_last in every layer;
* freed memory given back: as the C library does where nobody asks it to keep blocks of some MiB, in a process of its
  own, against the present evaluation in another one;
* bfloat16 autocast;
* torch.compile: the same forward pass, compiled by Inductor (left out, and said so, where that cannot run);
* points fused: all points of a batch at once, ``torch.func.vmap`` over the stacked weights (convolutions become grouped
  ones);
* huge pages: ``THP_MEM_ALLOC_ENABLE=1``, torch's own switch, read from the environment when a process begins; in a
  process of its own, too;
* weights packed (MLP): reordered for oneDNN once a point, by the operators that Inductor uses;
* first layer shared (MLP): a first layer's output is affine in α, so that it is computed at both ends only.

``error`` is the largest distance of a loss from the one in float64 on the same examples, in nats and in the segment's
heights; ``height off by`` is what comes of it for the height, relative.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import nets
from sgdwalk.allocator import keep_freed_memory
from sgdwalk.memory_format import SlowConvolutions, set_memory_format

SIZES = {"mlp": 2_000, "vgg11": 100, "resnet56": 100}
ROUNDS = {"mlp": 9, "vgg11": 3, "resnet56": 3}
INTERVALS = {"mlp": 10, "vgg11": 5, "resnet56": 5}
"""Of the segment's grid; fewer for the convolutional nets, whose points cost the same each and take seconds."""

PRESENT = "present"
ELSEWHERE = "present, in another process"
GIVEN_BACK = "freed memory given back"
HUGE_PAGES = "huge pages"
HUGE_PAGES_SWITCH = "THP_MEM_ALLOC_ENABLE"
HUGE_PAGES_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Timed = tuple[list[float], float]
"""The losses, and the processor seconds that they took."""

Batches = list[tuple[Tensor, Tensor]]


class Segment:
    """A net in evaluation mode, BatchNorm with each batch's statistics, and the weights at both ends of an update."""

    def __init__(
        self, model: nn.Module, start: Sequence[Tensor], end: Sequence[Tensor], batches: Batches, intervals: int
    ):
        self.model = copy.deepcopy(model).eval()
        for layer in self.model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.train()
                layer.track_running_stats = False
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.start = [tensor.clone() for tensor in start]
        self.end = [tensor.clone() for tensor in end]
        self.batches = [(x.clone(), y.clone()) for x, y in batches]
        self.alphas = [k / intervals for k in range(intervals + 1)]

    @torch.no_grad()
    def channels_last(self, *, everywhere: bool = True) -> Segment:
        with SlowConvolutions() as slow:
            self.model(self.batches[0][0])
        set_memory_format(self.model, torch.channels_last, () if everywhere else slow.layers(self.model))
        self.batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in self.batches]
        return self

    def as_watched(self) -> Segment:
        """In the order of memory that ``watch()`` takes."""
        convolutional = any(isinstance(layer, nn.Conv2d) for layer in self.model.modules())
        return self.channels_last(everywhere=False) if convolutional else self

    def double(self) -> Segment:
        self.model.double()
        self.start, self.end = [[tensor.double() for tensor in ends] for ends in (self.start, self.end)]
        self.batches = [(x.double(), y) for x, y in self.batches]
        return self

    def move_to(self, alpha: float) -> None:
        for target, low, high in zip(self.model.parameters(), self.start, self.end, strict=True):
            target.copy_(low).lerp_(high, alpha)

    @torch.no_grad()
    def losses(self, forward: Callable[[Tensor], Tensor] | None = None) -> list[float]:
        """The mean loss at every α, one point after the other."""
        found = []
        for alpha in self.alphas:
            self.move_to(alpha)
            found.append(self.mean_loss(forward or self.model))
        return found

    def mean_loss(self, forward: Callable[[Tensor], Tensor]) -> float:
        total = torch.zeros((), dtype=torch.float64)
        for x, y in self.batches:
            total += F.cross_entropy(forward(x), y, reduction="sum")
        return total.item() / sum(len(y) for _, y in self.batches)


# ---------------------------------------------------------------------------------------------------------- ideas
def in_bfloat16(segment: Segment) -> list[float]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return segment.losses()


@torch.no_grad()
def fused(segment: Segment) -> list[float]:
    """All points of a batch in one call."""
    weights = {}
    for (name, _), low, high in zip(segment.model.named_parameters(), segment.start, segment.end, strict=True):
        weights[name] = torch.stack([torch.lerp(low, high, alpha) for alpha in segment.alphas])
    total = torch.zeros(len(segment.alphas), dtype=torch.float64)
    for x, y in segment.batches:
        outputs = torch.func.vmap(lambda w, x=x: torch.func.functional_call(segment.model, w, (x,)))(weights)
        total += torch.stack([F.cross_entropy(output, y, reduction="sum") for output in outputs])
    return (total / sum(len(y) for _, y in segment.batches)).tolist()


@torch.no_grad()
def packed(segment: Segment) -> list[float]:
    """Linear layers whose weights are reordered once a point instead of at every product."""
    operators: Any = torch.ops.mkldnn
    layers = list(segment.model.children())
    found = []
    for alpha in segment.alphas:
        segment.move_to(alpha)
        size = len(segment.batches[0][0])
        weights = {
            layer: operators._reorder_linear_weight(layer.weight, size)
            for layer in layers
            if isinstance(layer, nn.Linear)
        }

        def forward(x: Tensor, weights: dict = weights) -> Tensor:
            for layer in layers:
                if layer in weights:
                    x = operators._linear_pointwise(x, weights[layer], layer.bias, "none", [], "")
                else:
                    x = layer(x)
            return x

        found.append(segment.mean_loss(forward))
    return found


@torch.no_grad()
def first_layer_shared(segment: Segment) -> list[float]:
    """The first layer at α = 0 and 1 only; between them its output is interpolated like its weights."""
    first, *rest = segment.model.children()
    ends = []
    for alpha in (0.0, 1.0):
        segment.move_to(alpha)
        ends.append([first(x) for x, _ in segment.batches])
    examples = sum(len(y) for _, y in segment.batches)
    found = []
    for alpha in segment.alphas:
        segment.move_to(alpha)
        total = torch.zeros((), dtype=torch.float64)
        for low, high, (_, y) in zip(*ends, segment.batches, strict=True):
            total += F.cross_entropy(nn.Sequential(*rest)(torch.lerp(low, high, alpha)), y, reduction="sum")
        found.append(total.item() / examples)
    return found


# ------------------------------------------------------------------------------------------- another process
def in_its_own_process(threads: int, keep: bool, *segment: Any) -> Callable[[], Timed]:
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    return here(Segment(*segment).as_watched().losses)


# ---------------------------------------------------------------------------------------------------- measurement
def trained(model: nn.Module, batches: Batches, updates: int) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """The net after some updates, and the ends of the next one."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start: list[Tensor] = []
    for index in range(updates + 1):
        x, y = batches[index % len(batches)]
        start = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model, start, [parameter.detach().clone() for parameter in model.parameters()]


def here(run: Callable[[], list[float]]) -> Callable[[], Timed]:
    """An evaluation in this process, with its processor seconds."""

    def timed() -> Timed:
        begin = time.process_time()
        return run(), time.process_time() - begin

    return timed


def keeping(run: Callable[[], Timed], kept: list[float]) -> Callable[[], None]:
    return lambda: kept.append(run()[1])


def height(losses: Sequence[float]) -> float:
    return (losses[0] + losses[-1] - 2 * min(losses)) / 2


def measure(name: str, options) -> dict:
    torch.manual_seed(0)
    count = options.examples or SIZES[name]
    # Trained on more examples than are evaluated, or the few of them would soon be fitted.
    inputs, targets = (common.mnist if name == "mlp" else common.cifar10)(options.data_dir, max(count, 2_000))
    every = list(zip(inputs.split(options.batch_size), targets.split(options.batch_size), strict=True))
    model = {"mlp": nets.mlp, "vgg11": nets.vgg11, "resnet56": nets.resnet56}[name]()
    model, start, end = trained(model, every, options.updates)
    segment = (model, start, end, every[: -(-count // options.batch_size)], INTERVALS[name])

    keep_freed_memory()
    present = Segment(*segment).as_watched()
    own = copy.deepcopy(present)
    compiled = torch.compile(own.model, dynamic=False)
    sides: dict[str, Callable[[], Timed]] = {
        PRESENT: here(present.losses),
        "bfloat16 autocast": here(lambda: in_bfloat16(present)),
        "torch.compile": here(lambda: own.losses(compiled)),
        "points fused": here(lambda: fused(present)),
    }
    if name != "mlp":
        sides["NCHW"] = here(Segment(*segment).losses)
        sides["channels_last in every layer"] = here(Segment(*segment).channels_last().losses)
    else:
        sides["weights packed"] = here(lambda: packed(present))
        sides["first layer shared"] = here(lambda: first_layer_shared(present))

    reference = Segment(*segment).double().losses()
    losses, not_run = {}, {}
    with contextlib.ExitStack() as stack:
        for side, keep, environment in (
            (ELSEWHERE, True, {}),
            (GIVEN_BACK, False, {}),
            (HUGE_PAGES, True, {HUGE_PAGES_SWITCH: "1"}),
        ):
            process = common.elsewhere(in_its_own_process, options.threads, keep, *segment, environment=environment)
            sides[side] = stack.enter_context(process)
        for side, run in list(sides.items()):  # once before the clock runs: compiles, warms up, and keeps the losses
            try:
                losses[side], _ = run()
            except Exception as error:
                not_run[side] = f"{type(error).__name__}: {str(error)[:300]}"
                del sides[side]
        processor: dict[str, list[float]] = {side: [] for side in sides}
        runs = {side: keeping(run, processor[side]) for side, run in sides.items()}
        raw = common.alternate(runs, rounds=options.rounds or ROUNDS[name], warmup=0)
    return {
        "net": name,
        "examples": count,
        "seconds": raw,
        "processor_seconds": processor,
        "ratios": {side: common.ratio(raw[side], raw[against(side)]) for side in sides},
        "processor_ratios": {side: common.ratio(processor[side], processor[against(side)]) for side in sides},
        "reference": reference,
        "losses": losses,
        "height": height(reference),
        "not_run": not_run,
        "transparent_huge_pages": HUGE_PAGES_SETTING.read_text().strip() if HUGE_PAGES_SETTING.exists() else None,
    }


def against(side: str) -> str:
    return ELSEWHERE if side in (HUGE_PAGES, GIVEN_BACK) else PRESENT


def row(case: dict, side: str) -> dict[str, Any]:
    error = max(abs(loss - exact) for loss, exact in zip(case["losses"][side], case["reference"], strict=True))
    ratio = case["ratios"][side]
    return {
        "net": case["net"],
        "N": case["examples"],
        "points": len(case["reference"]),
        "evaluation": side,
        "ms": common.milliseconds(case["seconds"][side]),
        "ratio (median)": ratio["median"],
        "quartiles": f"{ratio['quartile_low']:.3f}-{ratio['quartile_high']:.3f}",
        "of processor seconds": case["processor_ratios"][side]["median"],
        "rounds": ratio["rounds"],
        "error": error,
        "height": case["height"],
        "error, heights": error / case["height"],
        "height off by": abs(height(case["losses"][side]) / case["height"] - 1),
    }


def main() -> None:
    options = common.arguments(__doc__.splitlines()[0], net="all", examples=0, batch_size=100, rounds=0, updates=12)
    names = list(SIZES) if options.net == "all" else [options.net]
    for name in names:
        case = measure(name, options)
        for side, reason in case["not_run"].items():
            print(f"{name}: {side} does not run here: {reason}")
        rows = [row(case, side) for side in case["seconds"]]
        common.report(options.out, f"evaluation_ideas_{name}", vars(options), case, rows)


if __name__ == "__main__":
    main()
