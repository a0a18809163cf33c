"""The only difference between one card and many: rank, world size and the gathers over the data-parallel group.

On one card every function is an identity and the compiled graph holds no collective.  Collectives over several processes
arrive with the sharding work; until then a launch on more than one is refused here rather than computed wrongly.
"""
import os


def world_size():
    """Number of processes that the launcher (msrun) started; 1 without a launcher."""
    size = int(os.environ.get("MS_WORKER_NUM", "1"))
    if size > 1:
        raise NotImplementedError(f"started on {size} processes, but this version runs on one: "
                                  "start python run_blip2.py without msrun")
    return size


def rank():
    """Index of this process in the data-parallel group."""
    return 0


def gather(tensor):
    """(B, …) on every card → (G, …): the rows of all cards in rank order."""
    return tensor
