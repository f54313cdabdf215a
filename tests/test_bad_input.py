"""Bad input gets one clear sentence: what was seen, what is wanted, what to do; before training where possible."""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import nets
import sgdwalk


def refusal(
    *,
    model: nn.Module | None = None,
    optimizer: Any = None,
    loss_fn: Any = functional.cross_entropy,
    data: Any = None,
    **watch: Any,
) -> str:
    """The message with which watch() refuses; what it was given is as it was, and can be watched once mended."""
    model = nets.mlp() if model is None else model
    optimizer = SGD(model.parameters(), lr=0.1) if optimizer is None else optimizer
    before = nets.everything(model, [])
    with pytest.raises(sgdwalk.InputError) as caught:
        sgdwalk.watch(model, optimizer, loss_fn, nets.classification() if data is None else data, **watch)
    nets.assert_identical(nets.everything(model, []), before)
    for one in optimizer if isinstance(optimizer, list) else [optimizer]:
        assert not getattr(one, "_optimizer_step_pre_hooks", None), "a refused walk leaves no hook"
        assert not getattr(one, "_optimizer_step_post_hooks", None)
    message = str(caught.value)
    assert 30 < len(message) < 600, message
    assert message.rstrip().endswith((".", ")", "?")), message
    return message


def assert_says(message: str, *patterns: str) -> None:
    for pattern in patterns:
        assert re.search(pattern, message, re.IGNORECASE), f"{pattern!r} is not in {message!r}"


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_at_the_start(value):
    assert_says(
        refusal(loss_fn=lambda output, target: functional.cross_entropy(output, target) * value), "not finite", "check"
    )


def test_data_that_hold_a_nan():
    inputs, targets = nets.classification()
    inputs[3, 2] = math.nan
    assert_says(refusal(data=(inputs, targets)), "not finite", "data")


def test_a_loss_function_that_sums():
    def total(output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target, reduction="sum")

    assert_says(refusal(loss_fn=total), r"\bsum", "mean")
    assert_says(refusal(loss_fn=total, data=nets.batches_of(nets.classification(), 8)), r"\bsum", "mean")


def test_a_mean_over_anything_but_examples_asks_for_sum_and_count():
    weight = torch.tensor([1.0, 20.0, 0.1])
    message = refusal(loss_fn=nn.CrossEntropyLoss(weight=weight))
    assert_says(message, r"\(sum, count\)", "weight")
    targets = nets.classification()[1].clone()
    targets[::3] = -100
    assert_says(refusal(data=(nets.classification()[0], targets)), r"\(sum, count\)", "ignore_index")


def test_a_loss_between_the_examples_of_a_batch():
    def contrastive(output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output @ output.T, torch.arange(len(output)))

    assert_says(refusal(loss_fn=contrastive), r"\(sum, count\)|mean")


def test_only_a_later_batch_shows_that_the_loss_is_no_mean():
    """Checked on every batch of the first evaluation: ignored targets may stand in the last one only."""
    inputs, targets = nets.classification()
    targets = targets.clone()
    targets[-3:] = -100
    assert_says(refusal(data=nets.batches_of((inputs, targets), 8)), r"\(sum, count\)")


@pytest.mark.parametrize(
    ("loss_fn", "pattern"),
    [
        (lambda output, target: None, "NoneType"),
        (lambda output, target: 1.5, "float"),
        (lambda output, target: output, r"shape.*\(\d+, 3\)"),
        ("cross_entropy", "str|callable"),
    ],
    ids=["nothing", "a float", "no losses", "no function"],
)
def test_a_loss_function_that_returns_something_else(loss_fn, pattern):
    assert_says(refusal(loss_fn=loss_fn), pattern, "loss_fn")


def test_a_loss_function_that_raises_tells_what_it_was_given():
    message = refusal(loss_fn=lambda output, target: functional.mse_loss(output.view(-1, 7, 3), target))
    assert_says(message, "RuntimeError", r"\d+, 5", "check")


# --- the data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        (torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)),
        TensorDataset(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)),
        [],
    ],
    ids=["tensors", "dataset", "batches"],
)
def test_empty_data(data):
    assert_says(refusal(data=data), "empty", "at least one example")


def test_an_empty_batch_among_batches():
    batches = nets.batches_of(nets.classification(), 8)
    batches.insert(2, (torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)))
    assert_says(refusal(data=batches), "empty|no example|0 examples")


def test_inputs_and_targets_of_unequal_length():
    inputs, targets = nets.classification()
    assert_says(refusal(data=(inputs, targets[:-3])), "40", "37", "each example|one row")


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (nets.classification()[0], r"one tensor of shape \(40, 5\)"),
        (nets.classification()[:1], "a tuple with 1 entry,"),
        ((*nets.classification(), nets.classification()[0]), "a tuple with 3 entries,"),
    ],
    ids=["inputs alone", "a tuple of one", "a tuple of three"],
)
def test_data_that_are_no_pair_of_inputs_and_targets(data, seen):
    assert_says(refusal(data=data), seen, r"data=\(inputs, targets\)", "forward=")


def test_targets_out_of_range():
    inputs, targets = nets.classification()
    targets = targets.clone()
    targets[-1] = 3
    message = refusal(data=(inputs, targets))
    assert_says(message, "target", "out of bounds|range", "0")
    assert ".." not in message, "two stops where the error's own text ends with one"
    targets[-1] = -1
    assert_says(refusal(data=(inputs, targets)), "target", "out of bounds|range")


def test_targets_on_another_device():
    inputs, targets = nets.classification()
    assert_says(refusal(data=(inputs, targets.to("meta"))), "device", "cpu", "meta")
    # Tensors of a batch are moved to the model; what forward returns is taken as it is.
    message = refusal(forward=lambda model, batch: (model(batch[0]), batch[1].to("meta")))
    assert_says(message, "device", "cpu", "meta")


@pytest.mark.parametrize(
    "data",
    [
        (batch for batch in nets.batches_of(nets.classification(), 8)),
        iter(nets.batches_of(nets.classification(), 8)),
        zip(*nets.classification(), strict=True),
    ],
    ids=["generator", "iterator", "zip"],
)
def test_data_that_can_be_read_once_only(data):
    assert_says(refusal(data=data), "once", "list|Dataset")
    assert len(list(data)) > 0, "it was not read"


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(zip(*nets.classification(), strict=True))


def test_an_iterable_data_set():
    assert_says(refusal(data=Stream()), "Stream|IterableDataset", "list|map-style")
    assert_says(refusal(data=DataLoader(Stream(), batch_size=8)), "IterableDataset", "list|map-style")


class Augmented(Dataset):
    def __init__(self, draw: Any):
        self.data = nets.classification()
        self.draw = draw

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data[0][index] * (1 + 0.1 * self.draw()), self.data[1][index]


@pytest.mark.parametrize("source", ["torch", "numpy", "python", "own generator", "flip"])
def test_random_augmentation_inside_data(source):
    import random

    import numpy as np

    own = torch.Generator().manual_seed(0)
    draw = {
        "torch": lambda: torch.rand(1),
        "numpy": lambda: float(np.random.rand()),  # noqa: NPY002
        "python": random.random,
        "own generator": lambda: torch.rand(1, generator=own),
        "flip": lambda: float(torch.rand(1) < 0.5),  # half of the draws agree
    }[source]
    assert_says(refusal(data=Augmented(draw)), "augment", "without|fixed")
    assert_says(refusal(data=DataLoader(Augmented(draw), batch_size=8)), "augment")


def test_no_map_style_data_at_all():
    assert_says(refusal(data=42), "int", "Dataset|tensors")
    assert_says(refusal(data={"inputs": torch.zeros(3, 5)}), "dict", "Dataset|tensors|forward")


def test_data_without_a_loss_function_and_the_reverse():
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(sgdwalk.InputError, match=r"(?s)data.*loss_fn|loss_fn.*data|data.*when=None"):
        sgdwalk.watch(model, optimizer, functional.cross_entropy, None)
    with pytest.raises(sgdwalk.InputError, match="loss_fn"):
        sgdwalk.watch(model, optimizer, None, nets.classification())


def test_batches_of_another_shape_ask_for_forward():
    inputs, targets = nets.classification()
    assert_says(refusal(data=[{"x": inputs, "y": targets}]), "forward")
    assert_says(refusal(data=[(inputs, inputs, targets)]), "forward")
    assert_says(refusal(data=[inputs, targets, inputs]), "length|forward|pair")


def test_batch_size_with_batches_and_without_it_under_batchnorm():
    model = nets.mlp(batchnorm=True)
    assert_says(refusal(model=model), "BatchNorm", "batch_size")
    assert_says(refusal(model=model, data=TensorDataset(*nets.classification())), "BatchNorm", "batch_size")
    assert_says(refusal(data=nets.batches_of(nets.classification(), 8), batch_size=4), "batch_size=4", "leave.*out")


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "8"])
def test_a_batch_size_that_is_no_positive_integer(batch_size):
    assert_says(refusal(batch_size=batch_size), "batch_size", re.escape(repr(batch_size)), "at least 1|positive")


def test_one_example_under_batchnorm():
    inputs, targets = nets.classification(1)
    assert_says(
        refusal(model=nets.mlp(batchnorm=True), data=(inputs, targets), batch_size=8), "BatchNorm", "two examples|eval"
    )


@pytest.mark.parametrize("size", [0, 41, -1])
def test_a_probe_set_of_an_impossible_size(size):
    with pytest.raises(sgdwalk.InputError, match=f"{size}.*40"):
        sgdwalk.subset(nets.classification(), size)


# --- the model and the optimizer --------------------------------------------------------------------------------------


class AlwaysDrops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nets.mlp()

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.dropout(self.body(inputs), 0.5)  # training=True is the default


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_a_model_that_is_random_even_in_eval_mode(evaluate_on):
    message = refusal(model=AlwaysDrops(), evaluate_on=evaluate_on)
    assert_says(message, "random", "eval", "dropout")


def test_a_model_that_remembers_its_last_input():
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nets.mlp()
            self.register_buffer("shift", torch.zeros(3))

        def forward(self, inputs: Tensor) -> Tensor:
            output = self.body(inputs) + self.shift
            self.shift += output.detach().mean(0)
            return output

    model = Remembering()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = model.shift.clone()
    with pytest.raises(sgdwalk.InputError, match="differ"):
        sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification())
    torch.testing.assert_close(model.shift, before, rtol=0, atol=0)


def test_an_optimizer_of_another_model():
    assert_says(refusal(optimizer=SGD(nets.mlp(seed=1).parameters(), lr=0.1)), "optimizer", "model")
    model = nets.mlp()
    other = copy.deepcopy(model)
    assert_says(refusal(model=model, optimizer=SGD(other.parameters(), lr=0.1)), "optimizer", "model")
    # One parameter too many is enough.
    stranger = nn.Parameter(torch.zeros(3))
    assert_says(refusal(model=model, optimizer=SGD([*model.parameters(), stranger], lr=0.1)), "optimizer", "model")


def test_something_that_is_no_optimizer():
    model = nets.mlp()
    assert_says(refusal(model=model, optimizer=list(model.parameters())), "optimizer")
    assert_says(refusal(model=model, optimizer=[SGD(model.parameters(), lr=0.1), "adam"]), "str", "optimizer")
    assert_says(refusal(model=model, optimizer=[]), "optimizer")


def test_the_same_optimizer_twice():
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    assert_says(refusal(model=model, optimizer=[optimizer, optimizer]), "twice|same|once")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_below_float32(dtype):
    assert_says(refusal(model=nets.mlp(dtype=dtype)), str(dtype), "float32", "autocast")


def test_complex_parameters_and_several_dtypes():
    model = nets.mlp()
    model[2].double()  # type: ignore[index]
    assert_says(refusal(model=model), "float32", "float64")


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_points", [1, 0, -3, 2.5, True, "10"])
def test_num_points_below_two(num_points):
    assert_says(refusal(num_points=num_points), "num_points", re.escape(repr(num_points)), "at least 2|2 or more")


@pytest.mark.parametrize(
    "make",
    [
        lambda: sgdwalk.every(0),
        lambda: sgdwalk.every(-1),
        lambda: sgdwalk.first_steps(0),
        lambda: sgdwalk.first_steps(3, epochs=()),
        lambda: sgdwalk.first_steps(3, epochs=(0,)),
        lambda: sgdwalk.in_epochs(),
        lambda: sgdwalk.in_epochs(0),
        lambda: sgdwalk.every(2.0),  # type: ignore[arg-type]
    ],
    ids=[
        "every(0)",
        "every(-1)",
        "first_steps(0)",
        "no epochs",
        "first_steps epoch 0",
        "in_epochs()",
        "epoch 0",
        "a float",
    ],
)
def test_a_schedule_that_never_fires(make):
    with pytest.raises(sgdwalk.InputError, match=r"never fires|at least"):
        make()


@pytest.mark.parametrize(
    "when", [sgdwalk.in_epochs(1) & sgdwalk.in_epochs(2), lambda step: False], ids=["and", "lambda"]
)
def test_a_schedule_that_did_not_fire_is_told_at_the_end(when, caplog):
    """Where it cannot be known before training starts, a run without a segment says why."""
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    inputs, targets = nets.classification()
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, (inputs, targets), when=when, steps_per_epoch=2
    ) as walk:
        for _ in range(5):
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    assert nets.event_kinds(walk.run) == ["never_watched"]
    assert_says(walk.run.events["message"][0], "when=", "5 steps")
    assert len(caplog.records) == 1


NOT_DRAWN = next(step for step in range(50) if not sgdwalk.one_in(7, dense=4)(step))


@pytest.mark.parametrize(
    "when",
    [sgdwalk.every(100) & sgdwalk.first_steps(2, epochs=(3,)), lambda step: step == NOT_DRAWN],
    ids=["When", "lambda"],
)
def test_a_sampled_walk_that_drew_nothing_says_so(when):
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    inputs, targets = nets.classification()
    options = {"method": "sampled", "when": when, "batch_size": 10, "steps_per_epoch": 6}
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, (inputs, targets), **options) as walk:
        for _ in range(NOT_DRAWN + 1):
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    assert nets.event_kinds(walk.run) == ["never_watched"]
    assert_says(
        walk.run.events["message"][0],
        rf"when=\(one_in\(7, seed=0, dense=4\) & .*(every\(100\)|lambda).* did not fire in {NOT_DRAWN + 1} steps",
    )


def test_a_schedule_by_epochs_needs_their_length():
    for when in (sgdwalk.in_epochs(2), sgdwalk.first_steps(3, epochs=(1, 2)), sgdwalk.every(2) | sgdwalk.in_epochs(2)):
        assert_says(refusal(when=when), "epoch", "steps_per_epoch")
    assert_says(refusal(measures={"m": sgdwalk.at(sgdwalk.in_epochs(2), lambda here: 1.0)}), "steps_per_epoch")


@pytest.mark.parametrize("when", [5, "every(2)", True])
def test_something_that_is_no_schedule(when):
    assert_says(refusal(when=when), "when", "every")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("batchnorm", "frozen", "train.*eval|eval.*train"),
        ("evaluate_on", "gpu", "copy.*model|model.*copy"),
        ("precision", "float16", "float32"),
        ("on_error", "ignore", "disable.*raise|raise.*disable"),
        ("method", "quick", "exact"),
        ("steps_per_epoch", 0, "at least 1|positive"),
        ("steps_per_epoch", 2.5, "integer"),
        ("steps_per_epoch", True, "integer"),
        ("partition_seed", "x", "integer of at least 0.*None"),
        ("partition_seed", -1, "at least 0"),
        ("partition_seed", 2.5, "integer"),
        ("partition_seed", True, "integer"),
        ("measures", [1], "no dict.*f"),
        ("measures", 3, "no dict"),
        ("config", [1], "no dict"),
        ("run", 5, "no path.*folder"),
        ("name", 5, "str"),
        ("gauge", "x", "True or False"),
        ("resume", "yes", "True or False"),
    ],
)
def test_settings_that_do_not_exist(name, value, wanted):
    assert_says(refusal(**{name: value}), name, re.escape(repr(value)), wanted)


@pytest.mark.parametrize(
    "measures", [{"loss": lambda here: 1.0}, {"cosine": lambda here: 1.0}, {"step": lambda here: 1.0}]
)
def test_a_measure_named_like_a_column(measures):
    assert_says(refusal(measures=measures), next(iter(measures)), "name")


def test_a_measure_whose_name_is_no_text_and_a_config_that_is_not_plain():
    assert_says(refusal(measures={1: lambda here: 1.0}), "measures", "key 1", "str")
    assert_says(refusal(config={"a": torch.ones(1)}), "config", "plain JSON", "Tensor")
    assert_says(refusal(config={"a": math.nan}), "config", "finite")


@pytest.mark.parametrize("model", [3, None, "mlp"])
def test_something_that_is_no_model(model):
    with pytest.raises(sgdwalk.InputError, match=r"model is a \w+, not a torch.nn.Module: pass"):
        sgdwalk.watch(model, SGD(nets.mlp().parameters(), lr=0.1), functional.cross_entropy, nets.classification())


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_layer(evaluate_on):
    model = nn.Sequential(nn.Linear(4, 5), torch.jit.script(nn.Linear(5, 3)))
    assert_says(
        refusal(model=model, evaluate_on=evaluate_on),
        "layer '1' of the model is TorchScript",
        "before torch.jit.script",
    )


def test_measures_that_are_no_functions():
    assert_says(refusal(measures={"sharpness": 3.0}), "sharpness", "float|call")


def test_on_training_data_that_are_the_first_epoch_of_nothing():
    """A run without an update is no error: its tables are empty."""
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification()) as walk:
        pass
    assert len(walk.run.steps) == 0
    assert len(walk.run.segments) == 0


# --- run folders ------------------------------------------------------------------------------------------------------


def test_a_run_folder_that_exists(tmp_path):
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(), run=tmp_path / "run").close()
    with pytest.raises(sgdwalk.RunFolderError, match=r"(?s)run.*resume=True|resume=True.*run"):
        sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(), run=tmp_path / "run")
    assert not optimizer._optimizer_step_pre_hooks


def test_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    model = nets.mlp()
    with pytest.raises(sgdwalk.RunFolderError, match=re.escape(tmp_path.name)):
        sgdwalk.watch(
            model, SGD(model.parameters(), lr=0.1), functional.cross_entropy, nets.classification(), run=tmp_path
        )
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_resume_without_anything_to_resume(tmp_path):
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    assert_says(refusal(model=model, optimizer=optimizer, resume=True), "resume", "run=")
    # A job that is requeued before its first write starts afresh with the command it always uses.
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, nets.classification(), run=tmp_path / "none", resume=True
    ) as walk:
        functional.cross_entropy(model(nets.classification()[0]), nets.classification()[1]).backward()
        optimizer.step()
    assert len(walk.run.steps) == 1
    assert nets.event_kinds(walk.run) == ["nothing_to_resume"]
    assert_says(walk.run.events["message"][0], "none held no run", "anew")
    # A checkpoint of a run whose folder is gone is no state of the new one: no rows of it are missing here.
    foreign = state_after(3, run=tmp_path / "lost")
    with (
        sgdwalk.watch(
            model, optimizer, functional.cross_entropy, nets.classification(), run=tmp_path / "fresh", resume=True
        ) as walk,
        pytest.raises(sgdwalk.ResumeError, match=r"saved by the run 'lost'"),
    ):
        walk.load_state_dict(foreign)
    assert nets.event_kinds(walk.run) == ["nothing_to_resume", "no_update"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_points": 5}, "num_points"),
        ({"data": nets.classification(40, seed=9)}, "data"),
        ({"partition_seed": 7, "batch_size": 16}, "partition_seed|batch_size"),
    ],
    ids=["settings", "data", "partition"],
)
def test_resume_with_other_settings_or_data(tmp_path, change, named):
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    data = nets.classification()
    sgdwalk.watch(model, optimizer, functional.cross_entropy, data, run=tmp_path / "run").close()
    arguments = {"data": data, **change}
    with pytest.raises(sgdwalk.ResumeError, match=named):
        sgdwalk.watch(
            model,
            optimizer,
            functional.cross_entropy,
            arguments.pop("data"),
            run=tmp_path / "run",
            resume=True,
            **arguments,
        )


def test_resume_needs_the_state_before_the_first_update(tmp_path):
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    inputs, targets = nets.classification()

    def update() -> None:
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    with sgdwalk.watch(model, optimizer, functional.cross_entropy, (inputs, targets), run=tmp_path / "run"):
        update()
    with (
        sgdwalk.watch(
            model,
            optimizer,
            functional.cross_entropy,
            (inputs, targets),
            run=tmp_path / "run",
            resume=True,
            on_error="raise",
        ),
        pytest.raises(sgdwalk.ResumeError, match="load_state_dict"),
    ):
        update()
    assert len(sgdwalk.open_run(tmp_path / "run").events) == 0, "no round of optimizers was left incomplete"


def test_a_state_dict_of_another_walk():
    model = nets.mlp()
    other = nn.Linear(5, 3)
    with sgdwalk.watch(other, SGD(other.parameters(), lr=0.1), functional.cross_entropy, nets.classification()) as walk:
        state = walk.state_dict()
    with (
        sgdwalk.watch(model, SGD(model.parameters(), lr=0.1), functional.cross_entropy, nets.classification()) as walk,
        pytest.raises(sgdwalk.ResumeError, match="parameters"),
    ):
        walk.load_state_dict(state)


@contextlib.contextmanager
def walk_after(steps: int, **watch: Any) -> Iterator[sgdwalk.Walk]:
    """A walk of some updates that can go on."""
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    inputs, targets = nets.classification()
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, (inputs, targets), **watch) as walk:
        for _ in range(steps):
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        yield walk


def state_after(steps: int, **watch: Any) -> dict[str, Any]:
    with walk_after(steps, **watch) as walk:
        return walk.state_dict()


@pytest.mark.parametrize("state", [{"foo": 1}, {}, [1], None, {"step": 3, "epoch": None}], ids=repr)
def test_something_that_is_no_state_of_a_walk(state):
    with (
        walk_after(0) as walk,
        pytest.raises(sgdwalk.ResumeError, match=r"no walk's state: pass what walk.state_dict\(\) returned"),
    ):
        walk.load_state_dict(state)


def test_the_state_of_another_run_takes_no_row_back(tmp_path):
    """Both are of the same model, data and settings: only the run that saved it tells them apart."""
    foreign = state_after(2, run=tmp_path / "other")
    state_after(5, run=tmp_path / "mine")
    before = sgdwalk.open_run(tmp_path / "mine")
    with (
        walk_after(0, run=tmp_path / "mine", resume=True) as walk,
        pytest.raises(sgdwalk.ResumeError, match=r"(?s)saved by the run 'other'.*this is the run 'mine'.*load.*run="),
    ):
        walk.load_state_dict(foreign)
    after = sgdwalk.open_run(tmp_path / "mine")
    assert len(after.steps) == len(before.steps) == 5
    assert list(after.events["kind"]) == list(before.events["kind"])


def test_a_state_goes_into_no_new_folder_and_no_walk_that_has_begun(tmp_path):
    foreign = state_after(2)
    for watch, steps in (({"run": tmp_path / "new"}, 0), ({}, 1)):
        with walk_after(steps, **watch) as walk:
            with pytest.raises(sgdwalk.ResumeError, match="To begin a run of its own here, load no state"):
                walk.load_state_dict(foreign)
            assert len(walk.run.steps) == walk.step == steps


@pytest.mark.parametrize(
    ("saved", "now", "named"),
    [
        ({"num_points": 5}, {}, "settings.num_points was 5 and is 10"),
        ({"budget": 5}, {}, "settings.method was 'chosen by the budget' and is 'exact'"),
        ({}, {"budget": 5}, "settings.method was 'exact' and is 'chosen by the budget'"),
        ({"config": {"seed": 1}}, {"config": {"seed": 2}}, "config.seed was 1 and is 2"),
    ],
    ids=["num_points", "budget into exact", "exact into budget", "config"],
)
def test_a_state_saved_with_other_settings(saved, now, named):
    state = state_after(2, **saved)
    with (
        walk_after(0, **now) as walk,
        pytest.raises(sgdwalk.ResumeError, match=re.escape(named)),
    ):
        walk.load_state_dict(state)


def test_a_walk_in_memory_that_goes_on_from_a_folder_says_where_its_first_rows_are(tmp_path):
    state = state_after(2, run=tmp_path / "run")
    with walk_after(0) as walk:
        walk.load_state_dict(state)
        again = walk.state_dict()
        walk.load_state_dict(again)
    assert "missing_steps" in nets.event_kinds(walk.run)
    assert_says(walk.run.events["message"][0], "steps 0 to 1", "run folder")
    assert again["run"]["id"] == state["run"]["id"] == sgdwalk.open_run(tmp_path / "run").info["id"]


# --- notes and measures while training --------------------------------------------------------------------------------


def test_a_note_that_is_no_number():
    model = nets.mlp()
    with sgdwalk.watch(model, SGD(model.parameters(), lr=0.1), functional.cross_entropy, nets.classification()) as walk:
        with pytest.raises(sgdwalk.InputError, match=r"accuracy.*high"):
            walk.note(epoch=1, accuracy="high")
        with pytest.raises(sgdwalk.InputError, match=r"epoch.*0"):
            walk.note(epoch=0)
        with pytest.raises(sgdwalk.InputError, match="epoch"):
            walk.note(accuracy=0.5)  # of which epoch?


def test_hvp_of_a_vector_of_another_length():
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    inputs, targets = nets.classification()
    with sgdwalk.watch(
        model,
        optimizer,
        functional.cross_entropy,
        (inputs, targets),
        measures={"bad": lambda here: here.hvp(torch.ones(3)).sum()},
        on_error="raise",
    ):
        functional.cross_entropy(model(inputs), targets).backward()
        with pytest.raises(sgdwalk.InputError, match=r"\(3,\).*\(75,\)"):
            optimizer.step()


# --- a training that goes wrong ---------------------------------------------------------------------------------------


def test_a_nan_during_training_is_recorded_as_such_and_the_walk_goes_on():
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    inputs, targets = nets.classification()
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, (inputs, targets)) as walk:
        for step in range(5):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            if step == 2:
                model[0].weight.grad[0, 0] = math.nan  # type: ignore[index]
            optimizer.step()
    steps = walk.run.steps
    assert len(steps) == 5
    assert list(steps["loss"].isna()) == [False, False, False, True, True]
    assert list(steps["next_loss"].isna()) == [False, False, True, True, True]
    assert steps["floor"].isna().tolist() == [False, False, True, True, True]
    assert steps["barrier"].isna().tolist() == [False, False, True, True, True]
    assert steps["barrier_reason"][2:].str.contains("finite").all()
    assert math.isnan(steps["grad_norm"][2])
    assert isinstance(steps["grad_norm_reason"][2], str)
    assert "measurement_failed" not in nets.event_kinds(walk.run)


def test_parameters_that_are_not_finite_at_the_start():
    model = nets.mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan  # type: ignore[index]
    assert_says(refusal(model=model), "not finite")
