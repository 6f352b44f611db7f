#!/usr/bin/python
"""Ansible module: a model's files at one commit, every byte verified."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import converge
from ansible.module_utils.provision_weights import Weights

DOCUMENTATION = r"""
module: model_weights
short_description: Converges the files of a model at one commit of a hub
description:
  - Lays the files down under C(DIRECTORY/ORGANISATION--NAME/COMMIT), and beside it C(COMMIT.json), which names each
    with its size and hash. The unit O(unit) fetches into C(COMMIT.partial), from the source or from the hosts before
    this one in O(chain), and verifies as it writes; what is whole is put in place, and C(current) switched to it.
  - A verified file carries a fixed modification time. A file that differs from that, or in size, is read; when its
    content is right it is only marked again, else that file alone is fetched.
options:
  repo:
    description: The model, as C(ORGANISATION/NAME).
    type: str
    required: true
  revision:
    description: A commit, branch or tag. A branch or tag is looked up at every run.
    type: str
    default: main
  directory:
    description: Where models lie.
    type: path
    required: true
  source:
    description: Where the model comes from.
    type: str
    choices: [huggingface, modelscope, directory, s3]
    default: huggingface
  endpoint:
    description: URL of the hub or of S3's API; empty for the source's own.
    type: str
    default: ""
  path:
    description: The directory on this host, for V(directory).
    type: str
    default: ""
  bucket:
    description: The bucket and the prefix in it, for V(s3).
    type: str
    default: ""
  token:
    description: A token of the hub, for models that are not for everybody.
    type: str
    default: ""
  s3_access_key:
    description: Access key of the bucket; empty where the host has a role of its own.
    type: str
    default: ""
  s3_secret_key:
    description: Secret key of the bucket.
    type: str
    default: ""
  s3_region:
    description: Region of the bucket.
    type: str
    default: ""
  exclude:
    description: Globs of files that are not wanted.
    type: list
    elements: str
    default: []
  address:
    description: This host's own address in the chain.
    type: str
    default: ""
  chain:
    description: Addresses of the hosts that hand this model on to each other, in that order; empty for none.
    type: list
    elements: str
    default: []
  port:
    description: Where each of them serves what it has.
    type: int
    default: 8082
  uplink:
    description: Whether this host may ask the source itself.
    type: bool
    default: true
  streams:
    description: Files that are fetched at a time.
    type: int
    default: 8
  rate:
    description: Bytes a second that this host receives at most; 0 for as many as come.
    type: int
    default: 0
  serving_rate:
    description: The same while a model serves here.
    type: int
    default: 0
  patience:
    description: Seconds without a single byte, after which it is given up.
    type: int
    default: 3600
  full:
    description: Read every byte of what is in place again, and not only of what was written since it was verified.
    type: bool
    default: false
  wait:
    description:
      - Whether to wait until the files are there, and put them in place. With V(false) the unit is only started, and
        goes on beside whatever else is done on the host.
    type: bool
    default: true
  user:
    description: Who fetches, and owns the files.
    type: str
    default: provision-weights
  python:
    description: The interpreter that has the client library of the source.
    type: path
    default: /opt/provision/tools/bin/python
  unit:
    description: Name of the unit that fetches.
    type: str
    default: provision-weights
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Fetch the weights
  model_weights:
    repo: deepseek-ai/DeepSeek-R1-0528
    revision: 4236a6af538feda4548eca9ab308586007567f52
    directory: /data/models
"""

RETURN = r"""
location:
  description: The directory with the files; empty where the commit cannot be known yet.
  returned: always
  type: str
  sample: /data/models/deepseek-ai--DeepSeek-R1-0528/4236a6af538feda4548eca9ab308586007567f52
commit:
  description: The commit that the revision means.
  returned: always
  type: str
manifest_sha256:
  description: SHA-256 of the manifest; empty before the files are there.
  returned: when it waits
  type: str
present:
  description: Whether the files are there.
  returned: when it waits
  type: bool
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: ["Downloaded deepseek-ai/DeepSeek-R1-0528 at 4236a6af538f: 174 files, 688.6 GB."]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry when files are missing or differ.
  returned: always
  type: list
  elements: dict
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "directory": {"type": "path", "required": True},
            "source": {
                "type": "str",
                "choices": ["huggingface", "modelscope", "directory", "s3"],
                "default": "huggingface",
            },
            "endpoint": {"type": "str", "default": ""},
            "path": {"type": "str", "default": ""},
            "bucket": {"type": "str", "default": ""},
            "token": {"type": "str", "default": "", "no_log": True},
            "s3_access_key": {"type": "str", "default": "", "no_log": True},
            "s3_secret_key": {"type": "str", "default": "", "no_log": True},
            "s3_region": {"type": "str", "default": ""},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "address": {"type": "str", "default": ""},
            "chain": {"type": "list", "elements": "str", "default": []},
            "port": {"type": "int", "default": 8082},
            "uplink": {"type": "bool", "default": True},
            "streams": {"type": "int", "default": 8},
            "rate": {"type": "int", "default": 0},
            "serving_rate": {"type": "int", "default": 0},
            "patience": {"type": "int", "default": 3600},
            "wait": {"type": "bool", "default": True},
            "full": {"type": "bool", "default": False},
            "user": {"type": "str", "default": "provision-weights"},
            "python": {"type": "path", "default": "/opt/provision/tools/bin/python"},
            "unit": {"type": "str", "default": "provision-weights"},
        },
        supports_check_mode=True,
    )
    weights = Weights(module.params, module.warn)
    converge(
        module,
        lambda: weights.plan(module.check_mode),
        weights.facts,
        forget=["token", "s3_access_key", "s3_secret_key", "full"],
    )


if __name__ == "__main__":
    main()
