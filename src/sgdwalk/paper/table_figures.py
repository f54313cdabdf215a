"""Figure 8, Tables 1 and 2: barriers and heights, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sgdwalk.paper import barrier_claims, charts, height_claims, protocols, tables
from sgdwalk.paper.figure import Figure, Table, published_name
from sgdwalk.paper.judging import Claim
from sgdwalk.paper.trainings import ARCHITECTURES, TABLE_EPOCHS, Architecture, Scale, our_epoch, sgd
from sgdwalk.paper.walk_figures import parabolas_table

FIGURE_8_EPOCHS = (1, 10, 20, 30, 40)
"""Epochs that are counted where not every one of the first 40 is watched."""
SMALLER_RATE = {"vgg11": 0.05}
"""Table 2's second learning rate."""
RESNET_RATE = 0.3
"""Table 2's for ResNet-56; its second row is missing in our copy of the paper."""


TITLES: Mapping[str, str] = {
    "fig8": "Figure 8: barriers in each of the first 40 epochs, VGG-11 on CIFAR-10",
    "table1": "Table 1: barriers crossed in an epoch",
    "table2": "Table 2: mean height above the valley floor in an epoch",
}


def _figure_8(scale: Scale) -> Figure:
    (watched, *others) = sgd("vgg11", scale)
    epochs = tuple(
        epoch
        for epoch in watched.watch_epochs
        if epoch <= 40 and (scale == "paper" or epoch in {our_epoch(each, scale) for each in FIGURE_8_EPOCHS})
    )
    source = "Section 3.1, Figure 8"
    return Figure(
        "fig8",
        scale,
        TITLES["fig8"],
        "Numbers of barriers found during training loss interpolation for every epoch (450 iterations) for VGG-11 on "
        "CIFAR-10.",
        ("vgg11",),
        {"sgd": (watched, *others)},
        (
            ("", barrier_claims.most_epochs_without("sgd", epochs, source)),
            ("", barrier_claims.low_barriers("sgd", source, epochs)),
        ),
        chart=lambda runs: charts.barriers_by_epoch(runs["sgd"][0], epochs),
    )


def _table_1(scale: Scale) -> Figure:
    networks: tuple[Architecture, ...] = ("vgg11", "resnet56", "mlp")
    epochs: dict[Architecture, dict[int, int]] = {
        each: {epoch: our_epoch(epoch, scale) for epoch in TABLE_EPOCHS[each]} for each in networks
    }
    trainings = {each: sgd(each, scale) for each in networks}
    found: list[tuple[str, Claim]] = []
    for each in networks:
        source = f"Section 3.1, Table 1 ({ARCHITECTURES[each]})"
        ours = list(dict.fromkeys(epochs[each].values()))
        found += [(ARCHITECTURES[each], barrier_claims.few_barriers(each, epoch, source)) for epoch in ours]
        row = f"{published_name(each)} {' '.join(str(count) for count in tables.PAPER_BARRIERS[each].values())}"
        found.append((ARCHITECTURES[each], barrier_claims.more_barriers_late(each, ours[0], ours[-1], row, source)))
        found.append((ARCHITECTURES[each], barrier_claims.low_barriers(each, f"{source}; said of Figure 8")))

    def compared(which: Architecture) -> Sequence[int]:
        return trainings[which][0].compare_epochs

    return Figure(
        "table1",
        scale,
        TITLES["table1"],
        "Number of barriers crossed during training of a whole epoch (450 iterations) for VGG-11 and Resnet-56 on "
        "CIFAR-10 and MLP on MNIST.",
        networks,
        trainings,
        tuple(found),
        chart=lambda runs: charts.barrier_shares(tables.barriers(runs, epochs)),
        tables=(
            Table(
                "table1",
                "Barriers, the paper's and ours",
                "Of the training that was watched throughout; significant: above twice the loss noise. low and high: "
                "95 % interval of the share (Clopper and Pearson). other_seeds: two trainings watched at every fifth "
                "update. authors: the first of the same updates, as many as stand under authors_updates, evaluated as "
                "the authors' code does. The paper's counts are of 450 updates, ours of as many as stand here.",
                lambda runs: tables.barriers(runs, epochs),
            ),
            *(
                Table(
                    f"noise-{each}",
                    f"How much of it is evaluation noise? {ARCHITECTURES[each]}",
                    "The same iterates by the clean evaluation and by the authors', who draw a fresh random partition "
                    "(and, for photographs, fresh augmentation) at every point of a segment. deviation: of repeated "
                    "evaluations of one θ by their protocol. expected: what the clean segments become when independent "
                    "noise of this deviation is added to every loss (mean of 2,000 simulations; for barriers with "
                    "their 95 % range); full: the same with the deviation over 45,000 images, which falls with 1/√N. "
                    "Where photographs are augmented, theirs is also the loss of other images.",
                    lambda runs, each=each: protocols.authors_noise(runs[each][0], compared(each)),
                    needs_exact=True,
                )
                for each in networks
            ),
            *(
                Table(
                    f"batchnorm-{each}",
                    f"Running statistics, and fewer examples: {ARCHITECTURES[each]}",
                    "The same updates with the statistics of each batch (clean) and with BatchNorm's running "
                    "statistics (eval), and the clean evaluation over a quarter and a sixteenth of the evaluation "
                    "batches.",
                    lambda runs, each=each: protocols.batchnorm_and_examples(runs[each][0], compared(each)),
                    needs_exact=True,
                )
                for each in ("vgg11", "mlp")
            ),
            *(
                Table(
                    f"finer-{each}",
                    f"A finer grid: {ARCHITECTURES[each]}",
                    "The same updates on 10 and on 100 intervals. floor_gap: floor on 10 less floor on 100, in "
                    "heights; mean and largest.",
                    lambda runs, each=each: protocols.finer_grid(runs[each][0], compared(each)),
                    needs_exact=True,
                )
                for each in ("vgg11", "mlp")
            ),
        ),
    )


def _table_2(scale: Scale) -> Figure:
    epochs = {epoch: our_epoch(epoch, scale) for epoch in TABLE_EPOCHS["vgg11"]}
    ours = list(dict.fromkeys(epochs.values()))
    roles: dict[str, tuple[Architecture, float]] = {
        "vgg11": ("vgg11", 0.1),
        "vgg11-low": ("vgg11", 0.05),
        "resnet56": ("resnet56", RESNET_RATE),
    }
    source = "Section 3.2, Table 2"
    said = f"Section 5; {source}"
    small_rate = (
        "if we use a small learning rate, SGD should encounter such barriers and likely cross them. But we found in "
        "our experiments that this was not the case"
    )
    return Figure(
        "table2",
        scale,
        TITLES["table2"],
        "Average height of SGD above valley floor across the iterations in one epoch for different epochs during the "
        "training of VGG-11 and Resnet-56 using SGD on CIFAR-10.",
        ("vgg11", "resnet56"),
        {
            "vgg11": sgd("vgg11", scale),
            "vgg11-low": sgd("vgg11", scale, SMALLER_RATE["vgg11"]),
            "resnet56": sgd("resnet56", scale, RESNET_RATE),
        },
        (
            *(
                (
                    f"{ARCHITECTURES[network]}, η = {rate}",
                    height_claims.falling_height(role, ours, said),
                )
                for role, (network, rate) in roles.items()
            ),
            ("VGG-11", height_claims.lower_at_small_rate("vgg11-low", "vgg11", ours, source)),
            *(
                ("VGG-11, η = 0.05", barrier_claims.few_barriers("vgg11-low", epoch, "Section 6", words=small_rate))
                for epoch in ours
            ),
        ),
        chart=lambda runs: charts.heights(tables.heights(runs, roles, epochs)),
        tables=(
            Table(
                "table2",
                "Mean heights, the paper's and ours",
                "Nats per example. mean: over the seeds, each the mean over every fifth update of the epoch, which "
                "all of them have; low and high: Student's 95 % interval. throughout: over every update, of the seed "
                "that was watched at all of them.",
                lambda runs: tables.heights(runs, roles, epochs),
            ),
            Table(
                "noise",
                "How much of it is evaluation noise? VGG-11 on CIFAR-10, η = 0.1",
                "clean_height and authors_height: the same updates by both evaluations; expected_height: of the clean "
                "segments when noise of the deviation between repeated evaluations is added to every loss (2,000 "
                "simulations).",
                lambda runs: protocols.authors_noise(runs["vgg11"][0], sgd("vgg11", scale)[0].compare_epochs),
                needs_exact=True,
            ),
            *(
                parabolas_table(role, None, f"{ARCHITECTURES[each]}, η = {rate}")
                for role, (each, rate) in roles.items()
            ),
        ),
    )


FIGURES: Mapping[str, Callable[[Scale], Figure]] = {"fig8": _figure_8, "table1": _table_1, "table2": _table_2}
"""Id -> what makes the figure at a scale."""
