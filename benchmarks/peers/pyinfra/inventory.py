"""The benchmark's hosts, from the file that it writes beside its own inventory (PEERS_HOSTS)."""

import json
import os
from pathlib import Path

hosts = [
    (
        name,
        {
            "ssh_hostname": told["ansible_host"],
            "ssh_user": told["ansible_user"],
            "ssh_key": told["ansible_ssh_private_key_file"],
            "ssh_known_hosts_file": told["known_hosts"],
            "ssh_strict_host_key_checking": "yes",
            "desired": told["desired"],
        },
    )
    for name, told in json.loads(Path(os.environ["PEERS_HOSTS"]).read_text())["all"]["hosts"].items()
]
