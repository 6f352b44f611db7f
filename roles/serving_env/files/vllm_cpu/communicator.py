"""Collectives between CPU workers that may stand on different hosts."""

import os
import socket

import torch.distributed
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


class SameHostCommunicator(CpuCommunicator):
    """Use shared memory among the ranks of one host, and gloo over the network as soon as a group spans two.

    vLLM compares only the name of the shared memory, which it derives alike on every host; ranks of two hosts would
    then wait for each other in memory that each sees alone.
    """

    def _all_group_ranks_share_shm_group_name(self) -> bool:
        shm = os.stat("/dev/shm")  # noqa: S108
        places = [None] * self.world_size
        torch.distributed.all_gather_object(places, (socket.gethostname(), shm.st_dev), group=self.device_group)
        return len(set(places)) == 1 and super()._all_group_ranks_share_shm_group_name()
