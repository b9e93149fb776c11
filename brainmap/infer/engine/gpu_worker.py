"""One GPU for each worker process of a machine."""

from __future__ import annotations

import os

from distributed import Worker, WorkerPlugin

__all__ = ["OneGpu"]


class OneGpu(WorkerPlugin):
    """Lets each worker process see one GPU, in turn; to be registered before the first task.

    A process chooses its GPU when it first uses one, so it is enough to set the variable before that.
    A worker that is started again keeps its name, and with it its GPU.

    Parameters
    ----------
    gpus : list of str
        As CUDA_VISIBLE_DEVICES names them; workers are named by numbers.
    """

    name = "brainmap-gpu"

    def __init__(self, gpus: list[str]) -> None:
        self.gpus = gpus

    def setup(self, worker: Worker) -> None:
        """Choose the GPU of a worker that has started."""
        os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[int(worker.name) % len(self.gpus)]
