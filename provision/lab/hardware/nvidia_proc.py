"""`/proc/driver`: what the NVIDIA kernel module shows there while it is loaded."""

from __future__ import annotations

from typing import Any

from provision.lab.hardware.nodes import Directory, Hardware
from provision.lab.hardware.state import module_title

# As the open kernel module 580.159.04 printed them with nothing set.
_PARAMETERS = """\
ResmanDebugLevel: 4294967295
RmLogonRC: 1
ModifyDeviceFiles: 1
DeviceFileUID: 0
DeviceFileGID: 0
DeviceFileMode: 438
InitializeSystemMemoryAllocations: 1
UsePageAttributeTable: 4294967295
EnableMSI: 1
EnablePCIeGen3: 0
MemoryPoolSize: 0
KMallocHeapMaxSize: 0
VMallocHeapMaxSize: 0
IgnoreMMIOCheck: 0
EnableStreamMemOPs: 0
EnableUserNUMAManagement: 1
NvLinkDisable: 0
RmProfilingAdminOnly: 1
PreserveVideoMemoryAllocations: 0
EnableS0ixPowerManagement: 0
S0ixPowerManagementVideoMemoryThreshold: 256
DynamicPowerManagement: 3
DynamicPowerManagementVideoMemoryThreshold: 200
RegisterPCIDriver: 1
EnablePCIERelaxedOrderingMode: 0
EnableResizableBar: 0
EnableGpuFirmware: 18
EnableGpuFirmwareLogs: 2
RmNvlinkBandwidthLinkCount: 0
EnableDbgBreakpoint: 0
OpenRmEnableUnsupportedGpus: 1
DmaRemapPeerMmio: 1
ImexChannelCount: 2048
CreateImexChannel0: 0
GrdmaPciTopoCheckOverride: 0
CoherentGPUMemoryMode: ""
RegistryDwords: ""
RegistryDwordsPerDevice: ""
RmMsg: ""
GpuBlacklist: ""
TemporaryFilePath: ""
ExcludedGpus: ""
"""


def driver_directory(hardware: Hardware) -> Directory:
    """The content of `/proc/driver`: empty until the module is loaded."""
    loaded = hardware["driver"]["loaded"]
    if not loaded:
        return {}
    gpus: Directory = {gpu["bus_id"]: _gpu(hardware, gpu, loaded) for gpu in hardware["gpus"]}
    version = (
        f"NVRM version: {module_title(hardware)}  \nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14+deb12u1) \n"
    )
    nothing: Directory = {"capabilities": {}, "patches": {}, "warnings": {}, "registry": 'Binary: ""\n'}
    suspend: Directory = {"suspend": "suspend hibernate resume\n", "suspend_depth": "default modeset uvm\n"}
    return {"nvidia": {"version": version, "params": _PARAMETERS, "gpus": gpus, **nothing, **suspend}}


def _gpu(hardware: Hardware, gpu: dict[str, Any], loaded: str) -> Directory:
    card = hardware["profile"]["gpus"]
    information = (
        f"Model: \t\t {card['name']}\n"
        f"IRQ:   \t\t {41 + gpu['index']}\n"
        f"GPU UUID: \t {gpu['uuid']}\n"
        f"Video BIOS: \t {card['vbios'].lower()}\n"
        "Bus Type: \t PCIe\n"
        "DMA Size: \t 52 bits\n"
        "DMA Mask: \t 0xfffffffffffff\n"
        f"Bus Location: \t {gpu['bus_id']}\n"
        f"Device Minor: \t {gpu['index']}\n"
        f"GPU Firmware: \t {loaded}\n"
        "GPU Excluded:\t No\n"
    )
    return {
        "information": information,
        "power": "Runtime D3 status:          Disabled by default\n",
        "registry": 'Binary: ""\n',
    }
