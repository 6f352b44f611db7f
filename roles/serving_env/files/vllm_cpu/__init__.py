"""What vLLM's CPU build lacks to span hosts over Ray: found by vLLM through the entry point `vllm.platform_plugins`."""


def register() -> str:
    """Name the platform class that vLLM shall use on this host."""
    return "provision_vllm_cpu.platform.RayCpuPlatform"
