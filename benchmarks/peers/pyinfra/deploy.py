"""The desired state of the benchmark's hosts as a pyinfra deploy.

`desired` is what collect.py found on a converged host. Facts are asked for once each, many values at a time; an
operation that finds its host as wanted runs no command.
"""

import base64
import shlex
from io import StringIO

from pyinfra import config, host
from pyinfra.facts.deb import DebPackages
from pyinfra.facts.files import File, Sha256File
from pyinfra.facts.server import Command, Sysctl
from pyinfra.operations import apt, files, python, server, systemd

config.SUDO = True
ASK = """
import json, sys, urllib.request
body = {"model": sys.argv[2], "prompt": "1 + 1 =", "max_tokens": 1}
request = urllib.request.Request(sys.argv[1], json.dumps(body).encode(), {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=60))["usage"]["completion_tokens"])
"""
desired = host.data.desired


def said(command):
    """The lines that a command prints on the host; none if it fails."""
    return (host.get_fact(Command, command=f"{command} 2>/dev/null || true") or "").splitlines()


def expect(name, is_so):
    """Stop this host where what a deploy cannot make is not there."""
    if not is_so:
        python.raise_exception(name=name, exception=RuntimeError)


def put(item):
    """One small file with its owner and mode."""
    return files.put(
        name=f"Write {item['path']}",
        src=StringIO(base64.b64decode(item["content"]).decode()),
        dest=item["path"],
        user=item["owner"],
        group=item["group"],
        mode=item["mode"],
        create_remote_dir=False,
    )


def preflight():
    free = "df --output=avail --block-size=1G /opt | tail -n 1"
    release = said(f"sh -c '. /etc/os-release && echo $ID $VERSION_ID && {free}'")
    expect("Expect the system and free space", release[0] == desired["os"] and int(release[1]) >= 1)


def base():
    apt.packages(name="Install packages", packages=desired["packages"], update=False)
    if user := desired["user"]:
        server.user(
            name="Create the service user",
            user=user["name"],
            home=user["home"],
            shell=user["shell"],
            system=True,
            create_home=False,
            ensure_home=False,
        )
    for item in desired["directories"]:
        files.directory(
            name=f"Make {item['path']}", path=item["path"], user=item["owner"], group=item["group"], mode=item["mode"]
        )
    for item in desired["secrets"]:
        files.file(name=f"Keep {item['path']} to root", path=item["path"], user="root", group="root", mode=item["mode"])
    for path in desired["absent"]:
        files.file(name=f"Remove {path}", path=path, present=False)


def written():
    """All files; what reads them is told where they changed."""
    certificates, units, others = [], [], []
    for item in desired["files"]:
        is_certificate = item["path"].startswith("/usr/local/share/ca-certificates/")
        is_unit = item["path"].startswith(("/etc/systemd/system/", "/etc/provision/"))
        (certificates if is_certificate else units if is_unit else others).append(put(item))
    server.shell(
        name="Rebuild the bundle of certificates",
        commands="update-ca-certificates",
        _if=lambda: any(operation.did_change() for operation in certificates),
    )
    return lambda: any(operation.did_change() for operation in units)


def kernel():
    wanted = {key: value.split() for key, value in desired["sysctls"].items()}
    seen = host.get_fact(Sysctl, keys=sorted(wanted)) if wanted else {}
    lists = {key: value if isinstance(value, list) else [value] for key, value in seen.items()}
    shown = {key: [str(word) for word in words] for key, words in lists.items()}
    if shown != wanted:
        server.shell(name="Load kernel tunables", commands="sysctl --load=/etc/sysctl.d/90-provision.conf")
    values = dict(sorted(desired["sysfs"].items()))
    lines = said(f"cat {' '.join(values)}") if values else []
    if any(f"[{value}]" not in line and value != line for value, line in zip(values.values(), lines, strict=True)):
        command = "systemd-tmpfiles --create /etc/tmpfiles.d/90-provision.conf"
        server.shell(name="Set the tunables of sysfs", commands=command)


def states():
    """What the kernel and the boot loader have, read by one command."""
    wanted = desired["states"]
    told = "\n".join(said(" ; echo ---- ; ".join(state["read"] for state in wanted))) if wanted else ""
    for state, seen in zip(wanted, (told + "\n").split("----\n"), strict=False):
        if seen.strip() != state["told"]:
            server.shell(name=f"Set what {state['read']} tells", commands=state["change"])


def swap():
    path, size = desired["swap"]["path"], desired["swap"]["size"]
    file = host.get_fact(File, path=path)
    if not file or file["size"] != size:
        command = f"swapoff {path} 2>/dev/null; fallocate --length {size} {path} && chmod 0600 {path} && mkswap {path}"
        server.shell(name="Make the swap file", commands=command)
    files.file(name="Close the swap file to others", path=path, mode="600")
    line = f"{path} none swap sw,nofail,x-provision 0 0"
    files.line(name="Enter the swap file in fstab", path="/etc/fstab", line=rf"^{path}\s.*$", replace=line)
    if path not in said("swapon --show=NAME --noheadings"):
        server.shell(name="Turn swap on", commands=f"swapon {path}")


def driver():
    wanted = desired["driver"]
    present = host.get_fact(DebPackages)
    if any(name not in present or version not in present[name] for name, version in pairs(wanted["packages"])):
        install = "DEBIAN_FRONTEND=noninteractive apt-get install --yes --allow-downgrades --allow-change-held-packages"
        server.shell(name="Install the driver in its version", commands=f"{install} {' '.join(wanted['packages'])}")
    if set(wanted["held"]) - set(said("apt-mark showhold")):
        server.shell(name="Hold the driver's packages", commands=f"apt-mark hold {' '.join(wanted['held'])}")
    if said("cat /sys/module/nvidia/version") != [wanted["version"]]:
        server.shell(name="Load the driver", commands="modprobe nvidia")
    if wanted.get("fabric"):
        states = said("nvidia-smi --query-gpu=fabric.state,fabric.status --format=csv,noheader")
        expect("Expect the fabric to be complete", set(states) == {"Completed, Success"})


def pairs(packages):
    """Names and versions."""
    return [package.split("=", 1) for package in packages]


def gpus():
    wanted = desired["gpu"]
    clocks = dict(sorted(wanted["clocks"].items()))
    shown = said(f"nvidia-smi --query-gpu={wanted['query']} --format=csv,noheader,nounits")
    asked = f"nvidia-smi --id={','.join(clocks)} --query-gpu=clocks.sm --format=csv,noheader,nounits"
    if shown != wanted["rows"] or (clocks and said(asked) != list(clocks.values())):
        server.shell(name="Set the GPUs", commands="sh /etc/provision/gpu-settings.sh")


def units(files_changed):
    for unit in desired["units"]:
        systemd.service(
            name=f"Enable and start {unit['name']}",
            service=unit["name"],
            enabled=unit["enabled"],
            running=True if unit["active"] else None,
        )
    active = " ".join(unit["name"] for unit in desired["units"] if unit["active"])
    command = f"systemctl daemon-reload && systemctl restart {active}"
    server.shell(name="Restart units", commands=command, _if=files_changed)


def serving():
    for item in desired["environments"]:
        expect(f"Expect {item['lock']}", host.get_fact(Sha256File, path=item["lock"]) == item["sha256"])
    if weights := desired["weights"]:
        expect("Expect the manifest", host.get_fact(Sha256File, path=weights["manifest"]) == weights["sha256"])
        sizes = said(rf"find {weights['place']} -type f -printf '%P %s\n'")
        expect("Expect every file of the weights", sorted(sizes) == weights["sizes"])
    if ray := desired["ray"]:
        expect(
            "Expect the nodes of the cluster", "".join(said(ray["command"])[-1:]).count('"alive": true') == ray["nodes"]
        )
    if api := desired["api"]:
        said_by_api = said(f"python3 -c {shlex.quote(ASK)} {api['url']}/v1/completions {api['model']}")
        expect("Expect a generated answer", said_by_api == ["1"])


preflight()
base()
files_changed = written()
kernel()
states()
if desired["swap"]:
    swap()
if desired["driver"]:
    driver()
if desired["gpu"]:
    gpus()
units(files_changed)
serving()
