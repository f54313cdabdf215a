"""A sweep on a Ray cluster of two machines, here of two nodes on one, of which one is lost in mid-sweep.

``python losing_a_node.py FOLDER`` trains two runs, one on each node. When both are on their way their processes are
halted, one node is removed, and they are let go. Prints a JSON object: what was told, and whether all were finished.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.executors import RayExecutor
from sgdwalk.paper.sweep import train_all, training_name

EXPERIMENTS = [
    Experiment(num_train=120, hidden=(7, 5), batch_size=30, num_points=2, epochs=200, watch_every=3, seed=seed)
    for seed in (0, 1)
]
EVERY = 5
"""Updates between two checkpoints."""
MEMORY = 80 * 2**20


class Loss:
    """Takes a node away once every training is past its first checkpoints."""

    def __init__(self, folder, lose):
        self.told = {training_name(each): [[], []] for each in EXPERIMENTS}
        """Updates done, as told before the loss and after it."""
        self.warnings = []
        self._folder = folder
        self._lose = lose
        self._halted = {}

    def update(self, name, num_done, num_updates, fraction):
        if name not in self.told:  # all together
            return
        lost = self._lose is None
        self.told[name][lost].append(num_done)
        if not lost and num_done > 2 * EVERY and name not in self._halted:
            self._halted[name] = json.loads((self._folder / name / "writer.lock").read_text())["pid"]
            os.kill(self._halted[name], signal.SIGSTOP)
            if len(self._halted) == len(EXPERIMENTS):
                self._lose()
                self._lose = None
                for process in self._halted.values():
                    os.kill(process, signal.SIGCONT)


def num_alive():
    """Nodes that the cluster's head takes for alive."""
    return sum(each["Alive"] for each in ray.nodes())


def main(folder):
    """Sweep, losing a node; returns what happened."""
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    cluster.wait_for_nodes()
    loss = Loss(folder, lambda: cluster.remove_node(node, allow_graceful=False))
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: loss.warnings.append(record.getMessage())
    logging.getLogger("sgdwalk").addHandler(handler)
    with RayExecutor(cluster.address) as executor:
        nodes_before = num_alive()
        finished = train_all(
            EXPERIMENTS,
            folder,
            jobs=None,
            executions=[Execution(checkpoint_every=EVERY)],
            executor=executor,
            retries=1,
            update=loss.update,
        )
        patient_until = time.monotonic() + 60  # the head notices by heartbeats that do not come
        while num_alive() == nodes_before and time.monotonic() < patient_until:
            time.sleep(0.2)
        nodes_after = num_alive()
    cluster.shutdown()
    return {"finished": finished, "told": loss.told, "warnings": loss.warnings, "nodes": [nodes_before, nodes_after]}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        happened = main(Path(sys.argv[1]))
    print(json.dumps(happened))
