"""The simulated hardware: GPUs, driver, fabric, InfiniBand, the kernel's knobs, NVIDIA's packages, faults."""
