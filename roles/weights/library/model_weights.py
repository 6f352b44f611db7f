#!/usr/bin/python
"""Ansible module: a model's files at one commit, every byte verified."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import converge
from ansible.module_utils.provision_transient import after
from ansible.module_utils.provision_weights import Weights

DOCUMENTATION = r"""
module: model_weights
short_description: Converges the files of a model at one commit of a hub
description:
  - Lays the files down under C(DIRECTORY/ORGANISATION--NAME/COMMIT), and beside it C(COMMIT.json), which names each
    with its size and hash. C(hf) downloads into C(COMMIT.partial), as the transient unit O(unit); what was verified is
    put in place.
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
  endpoint:
    description: The hub's URL; empty for C(hf)'s own.
    type: str
    default: ""
  token:
    description: A token of the hub, for models that are not for everybody.
    type: str
    default: ""
  exclude:
    description: Globs of files that are not wanted.
    type: list
    elements: str
    default: []
  user:
    description: Who downloads, and owns the files.
    type: str
    default: vllm
  hf:
    description: The C(hf) program.
    type: path
    default: /opt/provision/tools/bin/hf
  unit:
    description: Name of the transient unit that downloads.
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
  returned: always
  type: str
present:
  description: Whether the files are there.
  returned: always
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
            "endpoint": {"type": "str", "default": ""},
            "token": {"type": "str", "default": "", "no_log": True},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "user": {"type": "str", "default": "vllm"},
            "hf": {"type": "path", "default": "/opt/provision/tools/bin/hf"},
            "unit": {"type": "str", "default": "provision-weights"},
        },
        supports_check_mode=True,
    )
    weights = Weights(module.params, module.warn)
    converge(
        module,
        lambda: after(module.params["unit"], module.check_mode, lambda: weights.plan(module.check_mode)),
        weights.facts,
        forget=["token"],
    )


if __name__ == "__main__":
    main()
