"""A first linear layer's outputs serve all points of a segment; wherever they could not, the layer itself is used."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, relu

import sgdwalk
from sgdwalk import passage, shared_layer

NUM_POINTS = 4


class Net(nn.Module):
    """40-8-3 with BatchNorm, and places to change what happens before and in the first layer."""

    def __init__(self, first=None, before=lambda x: x, bias=True):
        super().__init__()
        self.first = nn.Linear(40, 8, bias=bias) if first is None else first
        self.norm, self.last = nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.before = before

    def forward(self, x):
        return self.last(torch.relu_(self.norm(self.first(self.before(x)))))


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 1.5


class Twice(Net):
    def forward(self, x):
        return self.last(relu(self.first(x)) + relu(self.first(2 * x)))


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.also = nn.Linear(40, 8)
        self.also.weight = self.first.weight

    def forward(self, x):
        return self.last(relu(self.first(x)) - self.also(x))


class WritesToSome(Net):
    """Not to the first batch, at which one looks before sharing anything."""

    def forward(self, x):
        return super().forward(x if len(x) == 12 else x.mul_(1.5))


class Clips(Net):
    """In evaluations alone, so that training walks from where it stands."""

    def forward(self, x):
        if not torch.is_grad_enabled():
            self.first.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


class ByKeyword(Net):
    def forward(self, x):
        return self.last(torch.relu_(self.norm(self.first(input=x))))


class Folds(Net):
    """Another shape of the same numbers, at every other call."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        rows = len(x)
        x = x.view(rows // 2, 2, 40) if self.calls % 2 else x
        return self.last(torch.relu(self.first(x).reshape(rows, 8)))


@pytest.fixture
def products(monkeypatch):
    """How many products with ends of a segment were made."""
    made = []

    def counted(*arguments):
        made.append(arguments[0].shape)
        return linear(*arguments)

    monkeypatch.setattr(shared_layer, "linear", counted)
    return made


def walk(model, *, updates=2, **options):
    """A few updates of SGD on 50 examples in batches of 12, watched; the losses beside those of a float64 twin."""
    torch.manual_seed(1)
    inputs, targets = torch.randn(50, *options.pop("shape", (40,))), torch.randint(3, (50,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    options = {"batch_size": 12, "num_points": NUM_POINTS, "on_error": "raise", **options}
    twins = []
    with sgdwalk.watch(model, optimizer, cross_entropy, (inputs, targets), **options) as watched:
        batches = [tuple(tensor.clone() for tensor in batch) for batch in watched.batches()]
        for _ in range(updates):
            before = copy.deepcopy(model)
            optimizer.zero_grad()
            cross_entropy(model(inputs[:12].clone()), targets[:12]).backward()
            optimizer.step()
            twins.append([twin(before, model, k / NUM_POINTS, batches) for k in range(NUM_POINTS + 1)])
    losses = watched.run.segments.pivot_table(index="step", columns="alpha", values="loss").to_numpy()
    return losses, twins


def twin(start, end, alpha, batches):
    """The mean loss at (1 - α) θ_t + α θ_{t+1}, all in float64 and with the whole model."""
    model = copy.deepcopy(end).double()
    for parameter, a, b in zip(model.parameters(), start.parameters(), end.parameters(), strict=True):
        parameter.data = (1 - alpha) * a.detach().double() + alpha * b.detach().double()
    model.train()
    with torch.no_grad():
        total = sum(cross_entropy(model(x.double()), y, reduction="sum") for x, y in batches)
    return float(total) / sum(len(y) for _, y in batches)


@pytest.mark.parametrize(
    "model",
    [
        lambda: Net(),
        lambda: Net(bias=False),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(40, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
    ],
    ids=["batchnorm", "no bias", "flattened, in place"],
)
def test_two_products_serve_all_points(model, products):
    torch.manual_seed(0)
    losses, twins = walk(model())
    assert len(products) == 2 * 2 * 5  # both ends, two segments, five batches
    for step, wanted in enumerate(twins):
        assert losses[step] == pytest.approx(wanted, rel=2e-6, abs=1e-7)


def test_a_flattened_image_counts_as_the_batch(products):
    torch.manual_seed(0)
    losses, twins = walk(nn.Sequential(nn.Flatten(), nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3)), shape=(5, 8))
    assert len(products) == 2 * 2 * 5
    assert losses[1] == pytest.approx(twins[1], rel=2e-6)


def hooked():
    model = Net()
    model.first.register_forward_hook(lambda layer, arguments, output: output * 0.5)
    return model


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (lambda: Net(first=OwnLinear(40, 8)), {}),
        (lambda: Net(before=lambda x: x * 2), {}),
        (lambda: Net(before=lambda x: x.mul_(1.0)), {}),
        (lambda: Twice(), {}),
        (lambda: Tied(), {}),
        (hooked, {}),
        (lambda: Net(first=nn.utils.parametrizations.weight_norm(nn.Linear(40, 8))), {}),
        (lambda: Net(), {"evaluate_on": "model"}),
        (lambda: Net(), {"forward": lambda model, batch: (model(batch[0]), batch[1])}),
    ],
    ids=[
        *("own forward", "another input", "writes to its input", "called twice", "tied", "hooked", "parametrized"),
        *("on the model itself", "own forward function"),
    ],
)
def test_any_other_layer_is_evaluated_as_it_is(model, options, products):
    torch.manual_seed(0)
    losses, twins = walk(model(), **options)
    assert products == []
    for step, wanted in enumerate(twins):
        assert losses[step] == pytest.approx(wanted, rel=2e-6, abs=1e-7)


@pytest.mark.parametrize("model", [WritesToSome, Clips, ByKeyword, Folds])
def test_what_a_model_does_on_the_way_is_done_at_every_point(model):
    torch.manual_seed(0)
    losses, twins = walk(model())
    for step, wanted in enumerate(twins):
        assert losses[step] == pytest.approx(wanted, rel=2e-6, abs=1e-7)


def test_inputs_without_memory_of_their_own_are_evaluated_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    dense, targets = torch.randn(24, 40), torch.randint(3, (24,))

    def loss_at_the_end(inputs):
        data = list(zip(inputs, targets.split(12), strict=True))
        with sgdwalk.watch(model, optimizer, cross_entropy, data, on_error="raise") as watched:
            optimizer.zero_grad()
            cross_entropy(model(dense), targets).backward()
            optimizer.step()
        return watched.run.steps["next_loss"].iloc[-1]

    found = loss_at_the_end([part.to_sparse() for part in dense.split(12)])
    assert found == pytest.approx(cross_entropy(model(dense), targets).item(), rel=2e-6)


def test_a_layer_that_does_not_walk_is_evaluated_as_it_is(products):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD([*model.norm.parameters(), *model.last.parameters()], lr=0.5)
    data = torch.randn(24, 40), torch.randint(3, (24,))
    with sgdwalk.watch(model, optimizer, cross_entropy, data, batch_size=12, on_error="raise"):
        cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    assert products == []


def test_a_call_on_something_else_goes_through_the_layer_as_it_stands(products):
    """The model takes another way after it was looked at: its calls are checked one by one."""
    torch.manual_seed(0)
    model = Net()
    turns = []

    def before(x):
        turns.append(len(turns))
        return x if len(turns) % 3 else x * 1.0

    plain, _ = walk(copy.deepcopy(model))
    model.before = before
    losses, _ = walk(model)
    assert len(products) > 0
    assert losses == pytest.approx(plain, rel=2e-6)


def test_groups_of_batches_give_the_same_losses(monkeypatch):
    torch.manual_seed(0)
    model = Net()
    together, _ = walk(copy.deepcopy(model))
    monkeypatch.setattr(shared_layer, "GROUP_BYTES", 1)
    one_by_one, _ = walk(copy.deepcopy(model))
    assert (together == one_by_one).all()


def test_the_layer_is_itself_again_after_a_failure():
    torch.manual_seed(0)
    model = Net()
    layer = shared_layer.SharedLayer(model.first, 0, 1)
    with pytest.raises(ZeroDivisionError), layer.installed(list(model.parameters()), list(model.parameters())):
        raise ZeroDivisionError
    assert "forward" not in model.first.__dict__


@pytest.mark.parametrize("most_bytes", [shared_layer.GROUP_BYTES, 20_000], ids=["one group", "several groups"])
@pytest.mark.parametrize("options", [{}, {"largest_pass": 3_000}], ids=["ends over all data", "ends sampled"])
@pytest.mark.parametrize("batchnorm", [False, True], ids=["plain", "batchnorm"])
def test_two_products_serve_all_points_of_a_sampled_unit(batchnorm, options, most_bytes, products, monkeypatch):
    def certified():
        torch.manual_seed(0)
        between = [nn.BatchNorm1d(8)] if batchnorm else []
        model = nn.Sequential(nn.Linear(40, 8), *between, nn.Tanh(), nn.Linear(8, 3)).double()
        inputs, targets = torch.randn(6_000, 40).double(), torch.randint(3, (6_000,))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        watching = {"batch_size": 20, "method": "certified", "on_error": "raise", **options}
        with sgdwalk.watch(model, optimizer, cross_entropy, (inputs, targets), **watching) as watched:
            for step in range(3):
                products.clear()
                at_all_points.clear()
                optimizer.zero_grad()
                cross_entropy(model(inputs[50 * step :][:50]), targets[50 * step :][:50]).backward()
                optimizer.step()
        return watched.run

    at_all_points = []
    levels = passage.Passage.true_minus_middle

    def counted(self, units, *inside):
        at_all_points.append(int(self.units.sizes[units].sum()))
        return levels(self, units, *inside)

    monkeypatch.setattr(passage.Passage, "true_minus_middle", counted)
    monkeypatch.setattr(shared_layer, "GROUP_BYTES", most_bytes)
    shared = certified()
    assert sum(shape[0] for shape in products) == 2 * sum(at_all_points) > 0
    monkeypatch.setattr(passage, "find_shared_layer", lambda full_loss: None)
    alone = certified()
    assert not products
    assert (shared.segments["kind"][-11:] == "estimated").any()
    for name in ("loss", "halfwidth"):
        torch.testing.assert_close(
            *(torch.tensor(run.segments[name].to_numpy()) for run in (shared, alone)), rtol=1e-11, atol=1e-14
        )
    evaluated, of_alone = (run.steps["examples_evaluated"] for run in (shared, alone))
    assert evaluated[1:].equals(of_alone[1:])
    # The first step is exact. Where batches are the units, those of its sample serve again, or the layer is shared.
    assert (evaluated[0] > of_alone[0]) == (batchnorm and not options)


class WritesToFew(Net):
    """To evaluation batches with a large number in them; the first has none."""

    def forward(self, x):
        if (x > 20).any():
            x[:, 1] *= 2
        return super().forward(x)


def test_a_sampled_unit_that_the_model_writes_to_is_fresh_at_every_point(monkeypatch):
    def certified():
        torch.manual_seed(0)
        model = WritesToFew()
        inputs, targets = torch.randn(6_000, 40), torch.randint(3, (6_000,))
        inputs[5::600, 0] = 30.0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        watching = {"batch_size": 20, "method": "certified", "on_error": "raise"}
        with sgdwalk.watch(model, optimizer, cross_entropy, (inputs, targets), **watching) as watched:
            for step in range(3):
                optimizer.zero_grad()
                rows = slice(50 * step, 50 * step + 50)
                cross_entropy(model(inputs[rows].clone()), targets[rows]).backward()
                optimizer.step()
        return watched.run.segments

    shared = certified()
    monkeypatch.setattr(passage, "find_shared_layer", lambda full_loss: None)
    alone = certified()
    assert (shared["kind"] == "estimated").any()
    assert shared["loss"].to_numpy() == pytest.approx(alone["loss"].to_numpy(), rel=1e-6)


class BFloat16(nn.Sequential):
    def forward(self, x):
        return super().forward(x).bfloat16()


def test_outputs_of_low_precision_are_sampled():
    torch.manual_seed(0)
    model = BFloat16(nn.Linear(40, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    inputs, targets = torch.randn(6_000, 40), torch.randint(3, (6_000,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def loss_fn(output, target):
        return cross_entropy(output.float(), target, reduction="sum"), len(target)

    watching = {"batch_size": 20, "method": "certified", "tolerance": 0.5, "on_error": "raise"}
    with sgdwalk.watch(model, optimizer, loss_fn, (inputs, targets), **watching) as watched:
        for _ in range(2):
            optimizer.zero_grad()
            cross_entropy(model(inputs[:50]).float(), targets[:50]).backward()
            optimizer.step()
    assert (watched.run.segments["kind"] == "estimated").any()


class TensorOrTuple(Net):
    def forward(self, x):
        return super().forward(x[0] if isinstance(x, tuple) else x)


@pytest.mark.parametrize("method", ["exact", "certified", "sampled"])
def test_batches_whose_inputs_are_of_two_kinds_are_evaluated_as_they_are(method):
    torch.manual_seed(0)
    inputs, targets = torch.randn(1_200, 40), torch.randint(3, (1_200,))
    parts = inputs.split(20)
    data = list(zip([parts[0], *((part,) for part in parts[1:])], targets.split(20), strict=True))
    model = TensorOrTuple()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(model, optimizer, cross_entropy, data, method=method, on_error="raise") as watched:
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(model(inputs[:50]), targets[:50]).backward()
            optimizer.step()
    assert len(watched.run.steps) == 3
