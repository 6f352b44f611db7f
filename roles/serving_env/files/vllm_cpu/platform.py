"""vLLM's CPU platform, made placeable by Ray."""

from vllm.platforms.cpu import CpuPlatform


class RayCpuPlatform(CpuPlatform):
    """One vLLM worker per unit of Ray's resource "GPU", of which a node without GPUs announces as many as it is told.

    The platform of vLLM itself names no Ray resource, so its Ray executor refuses to start on CPUs.
    """

    ray_device_key: str = "GPU"

    @classmethod
    def device_control_id_to_physical_device_id(cls, device_id: str) -> int:
        """Ray numbers its pretended devices from 0; there is nothing physical to look up."""
        return int(device_id)

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        """Communicate over shared memory only where memory is shared."""
        return "provision_vllm_cpu.communicator.SameHostCommunicator"
