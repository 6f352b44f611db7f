"""The packages of the lab's apt repository: NVIDIA's names, versions and ties, with the simulated programs in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from provision.lab.hardware.edge import START

DRIVERS = ("580.95.05", "580.126.16", "580.126.20", "580.159.04")
# Of each toolkit release its components' versions: compiler, runtime, BLAS.
TOOLKITS = {
    "13.0.2": {"nvcc": "13.0.88", "cudart": "13.0.96", "cublas": "13.1.0.3"},
    "13.0.3": {"nvcc": "13.0.88", "cudart": "13.0.96", "cublas": "13.1.1.3"},
}
# Releases of NCCL, each with the CUDA that NVIDIA built it for.
NCCLS = ("2.27.7-1+cuda13.0", "2.28.9-1+cuda13.0", "2.29.7-1+cuda13.2")
PINNED = [
    "nvidia-open",
    "nvidia-driver-cuda",
    "nvidia-kernel-open-dkms",
    "cuda-drivers",
    "nvidia-kernel-dkms",
    "nvidia-modprobe",
    "nvidia-persistenced",
    "nvidia-fabricmanager",
    "libnvidia-*",
    "libcuda1",
    "firmware-nvidia-gsp",
]


@dataclass(frozen=True)
class Package:
    """One package. `files` maps paths to texts (those below bin/ and sbin/ are programs); scripts are shell."""

    name: str
    version: str
    description: str
    depends: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    postinst: str = ""
    prerm: str = ""


def all_packages() -> list[Package]:
    """Everything in the repository, each once: drivers and toolkits whole, and NCCL."""
    packages = [package for version in DRIVERS for package in driver(version)]
    packages.append(_pinning("580", "580", "580.*"))
    packages += [package for version, parts in TOOLKITS.items() for package in toolkit(version, **parts)]
    packages += [package for version in NCCLS for package in nccl(version)]
    return list({(package.name, package.version): package for package in packages}.values())


def nccl(version: str) -> list[Package]:
    """One release of NCCL, built for one CUDA."""
    title = "NVIDIA Collective Communication Library (NCCL)"
    return [
        Package("libnccl2", version, f"{title} Runtime"),
        Package("libnccl-dev", version, f"{title} Development Files", f"libnccl2 (= {version})"),
    ]


def toolkit(version: str, nvcc: str, cudart: str, cublas: str) -> list[Package]:
    """The part of a CUDA toolkit that shows how it is tied: metapackages, each needing its components or later ones."""
    suffix = "-".join(version.split(".")[:2])

    def package(name: str, own: str, description: str, needs: dict[str, str] | None = None, **more: object) -> Package:
        ties = ", ".join(f"{each} (>= {minimum})" for each, minimum in (needs or {}).items())
        return Package(name, f"{own}-1", description, ties, **more)  # type: ignore[arg-type]

    def meta(name: str, description: str, needs: dict[str, str] | None = None) -> Package:
        return package(f"{name}-{suffix}", version, description, needs)

    parts = ("cuda-compiler", "cuda-libraries", "cuda-libraries-dev", "cuda-tools")
    libraries = {f"cuda-cudart-{suffix}": cudart, f"libcublas-{suffix}": cublas}
    headers = {f"cuda-cudart-dev-{suffix}": cudart, f"libcublas-dev-{suffix}": cublas}
    major = suffix.partition("-")[0]
    common = [
        f"cuda-toolkit-{suffix}-config-common",
        f"cuda-toolkit-{major}-config-common",
        "cuda-toolkit-config-common",
    ]
    home = f"usr/local/cuda-{suffix.replace('-', '.')}"
    return [
        meta("cuda-toolkit", "CUDA Toolkit meta-package", {f"{part}-{suffix}": version for part in parts}),
        meta("cuda-compiler", "CUDA compiler", {f"cuda-nvcc-{suffix}": nvcc}),
        meta("cuda-libraries", "CUDA Libraries meta-package", libraries),
        meta("cuda-libraries-dev", "CUDA Libraries development meta-package", headers),
        meta("cuda-tools", "CUDA Tools meta-package"),
        package(f"cuda-nvcc-{suffix}", nvcc, "CUDA nvcc", files={f"{home}/bin/nvcc": _nvcc(suffix, nvcc)}),
        package(f"cuda-cudart-{suffix}", cudart, "CUDA Runtime native Libraries", dict.fromkeys(common, cudart)),
        package(f"cuda-cudart-dev-{suffix}", cudart, "CUDA Runtime native dev links, headers"),
        package(f"libcublas-{suffix}", cublas, "CUBLAS native runtime libraries"),
        package(f"libcublas-dev-{suffix}", cublas, "CUBLAS native dev links, headers"),
        *(package(name, cudart, "Common config package for CUDA Toolkit") for name in common),
    ]


def _nvcc(suffix: str, version: str) -> str:
    """A compiler that says which one it is, and compiles nothing."""
    release = f"Cuda compilation tools, release {suffix.replace('-', '.')}, V{version}"
    return f"""\
#!/bin/sh
if [ "$*" = --version ] || [ "$*" = -V ]; then
    echo "nvcc: NVIDIA (R) Cuda compiler driver"
    echo "{release}"
    exit 0
fi
echo "nvcc fatal   : this is the lab's stand-in; it compiles no CUDA code" >&2
exit 1
"""


def driver(version: str) -> list[Package]:
    """One version of the driver and what must be of the same version."""
    same = f"(= {version}-1)"

    def package(name: str, description: str, depends: str = "", **more: object) -> Package:
        ties = ", ".join(f"{each} {same}" for each in depends.split())
        return Package(name, f"{version}-1", description, ties, **more)  # type: ignore[arg-type]

    return [
        package(
            "nvidia-open",
            "NVIDIA Driver meta-package, Open GPU kernel modules, latest version",
            "nvidia-driver-cuda nvidia-kernel-open-dkms",
        ),
        package(
            "nvidia-driver-cuda",
            "NVIDIA driver CUDA integration components",
            "libcuda1 libnvidia-ml1 libnvidia-ptxjitcompiler1 nvidia-persistenced nvidia-modprobe",
            files={"usr/bin/nvidia-smi": _program("nvidia_smi", version)},
        ),
        package(
            "cuda-drivers",
            "NVIDIA Driver meta-package, proprietary GPU kernel modules, latest version",
            "nvidia-driver-cuda nvidia-kernel-dkms",
        ),
        package(
            "nvidia-kernel-open-dkms",
            "NVIDIA binary kernel module DKMS source open flavor",
            "firmware-nvidia-gsp nvidia-modprobe",
            **_modules(version, "open"),
        ),
        package(
            "nvidia-kernel-dkms",
            "NVIDIA binary kernel module DKMS source",
            "firmware-nvidia-gsp nvidia-modprobe",
            **_modules(version, "proprietary"),
        ),
        package("firmware-nvidia-gsp", "NVIDIA GSP firmware"),
        package("libcuda1", "NVIDIA CUDA Driver Library", "libnvidia-ptxjitcompiler1"),
        package("libnvidia-cfg1", "NVIDIA binary OpenGL/GLX configuration library"),
        package("libnvidia-ml1", "NVIDIA Management Library (NVML) runtime library"),
        package("libnvidia-ptxjitcompiler1", "NVIDIA PTX JIT Compiler library"),
        package(
            "nvidia-modprobe",
            "Load the NVIDIA kernel driver and create device files",
            files={"usr/bin/nvidia-modprobe": _program("modprobe", version)},
        ),
        package(
            "nvidia-persistenced",
            "Daemon to maintain persistent software state in the NVIDIA driver",
            "libnvidia-cfg1",
            files={
                "usr/bin/nvidia-persistenced": _program("persistenced", version),
                "usr/lib/systemd/system/nvidia-persistenced.service": _PERSISTENCED,
            },
            postinst=_start("nvidia-persistenced.service"),
            prerm=_stop("nvidia-persistenced.service"),
        ),
        package(
            "nvidia-fabricmanager",
            "Fabric Manager for NVSwitch based systems",
            fields={"Provides": f"nvidia-fabricmanager-580 {same}"},
            files={
                "usr/bin/nv-fabricmanager": _program("fabricmanager", version),
                "usr/bin/nvidia-fabricmanager-start.sh": _FABRICMANAGER_START,
                "usr/share/nvidia/nvswitch/fabricmanager.cfg": _FABRICMANAGER_CONFIGURATION,
                "usr/lib/systemd/system/nvidia-fabricmanager.service": _FABRICMANAGER,
            },
            postinst=_RELOAD,
            prerm=_stop("nvidia-fabricmanager.service"),
        ),
        package("libnvidia-nscq", "NVSwitch Configuration and Query library"),
        _pinning(version, version, f"{version}-*"),
    ]


def _pinning(suffix: str, version: str, pinned: str) -> Package:
    """The package that keeps apt at one version (or one branch) of the driver."""
    name = f"nvidia-driver-pinning-{suffix}"
    text = f"Package: {' '.join(PINNED)}\nPin: version {pinned}\nPin-Priority: 1000\n"
    ties = {"Provides": "nvidia-driver-pinning", "Conflicts": "nvidia-driver-pinning"}
    files = {f"etc/apt/preferences.d/{name}.pref": text}  # apt passes over other endings
    return Package(name, f"{version}-1", f"Pins the NVIDIA driver to {suffix}", fields=ties, files=files)


def _modules(version: str, flavour: str) -> dict[str, Any]:
    """The kernel modules of one flavour: built on the host when the package is configured; never beside the other."""
    return {
        "fields": {
            "Provides": f"nvidia-kernel-dkms-any, nvidia-kernel-{version}",
            "Conflicts": "nvidia-kernel-dkms-any",
        },
        "files": {
            f"usr/src/nvidia-{version}/dkms.conf": f'PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="{version}"\n',
            f"etc/modprobe.d/{_BLACKLIST[flavour]}": "blacklist nouveau\n",
        },
        "postinst": f'[ "$1" != configure ] || {_run("driver", version)} installed {flavour}\n',
        "prerm": f"{_run('driver', version)} removed {flavour}\n",
    }


_BLACKLIST = {"open": "nvidia-blacklists-nouveau.conf", "proprietary": "nvidia-kernel-blacklists-nouveau.conf"}


def _program(program: str, version: str) -> str:
    return f'#!/bin/sh\n{START} {program} {version} "$@"\n'


def _run(program: str, version: str) -> str:
    return f"{START.removeprefix('exec ')} {program} {version}"


_RELOAD = "[ ! -d /run/systemd/system ] || systemctl daemon-reload\n"


def _start(unit: str) -> str:
    return f"""\
[ "$1" = configure ] || exit 0
deb-systemd-helper enable {unit} >/dev/null || true
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    deb-systemd-invoke restart {unit} >/dev/null || true
fi
"""


def _stop(unit: str) -> str:
    return f'[ "$1" != remove ] || [ ! -d /run/systemd/system ] || deb-systemd-invoke stop {unit} >/dev/null || true\n'


_PERSISTENCED = """\
[Unit]
Description=NVIDIA Persistence Daemon
Wants=syslog.target

[Service]
Type=forking
PIDFile=/run/nvidia-persistenced/nvidia-persistenced.pid
Restart=always
ExecStart=/usr/bin/nvidia-persistenced --no-persistence-mode --verbose
ExecStopPost=/bin/rm -rf /run/nvidia-persistenced

[Install]
WantedBy=multi-user.target
"""

_FABRICMANAGER = """\
[Unit]
Description=NVIDIA fabric manager service
After=network-online.target
Requires=network-online.target

[Service]
User=root
PrivateTmp=false
Type=forking
TimeoutStartSec=720
ExecStart=/usr/bin/nvidia-fabricmanager-start.sh --mode start --args "-c /usr/share/nvidia/nvswitch/fabricmanager.cfg"
ExecStop=/usr/bin/nvidia-fabricmanager-start.sh --mode stop
PIDFile=/run/nvidia-fabricmanager/nv-fabricmanager.pid
LimitCORE=infinity

[Install]
WantedBy=multi-user.target
"""

_FABRICMANAGER_CONFIGURATION = """\
LOG_FILE_NAME=/var/log/fabricmanager.log
DAEMONIZE=1
FABRIC_MODE=0
"""

_FABRICMANAGER_START = """\
#!/bin/sh
case "$2" in
start)
    # $4 is one word on purpose split into options.
    if /usr/bin/nv-fabricmanager $4; then
        echo 'Started "Nvidia Fabric Manager"'
    else
        echo "\\"/usr/bin/nv-fabricmanager $4\\" failed! Exit code: 1" >&2
        exit 1
    fi
    ;;
stop)
    pid_file=/run/nvidia-fabricmanager/nv-fabricmanager.pid
    [ ! -f $pid_file ] || kill "$(cat $pid_file)"
    ;;
esac
"""
