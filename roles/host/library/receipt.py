#!/usr/bin/python
"""Ansible module: keeps on the host what a stage brought about, so that later runs can tell whether it still stands."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import HostError, host_lock
from ansible.module_utils.provision_receipt import seal

DOCUMENTATION = r"""
module: receipt
short_description: Keeps a receipt of a stage
description:
  - Makes C(/var/lib/provision/receipts/STAGE.json) of the steps that the modules of this run have noted in the stage.
    Running these in check mode later, with the same parameters, tells whether the stage still stands.
  - Never reports a change, since a receipt is no resource of the host. Does nothing in check mode, without O(inputs),
    or where no run is named in the environment (C(PROVISION_RUN)), as with a plain ansible-playbook.
options:
  stage:
    description: The stage's name.
    type: str
    required: true
  inputs:
    description: Hashes of all that the stage was computed from, by name.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Keep a receipt
  receipt:
    stage: host
    inputs: {host_packages: 5d1ac6b2f9c01e77}
"""

RETURN = r"""
sealed:
  description: Whether a receipt was made.
  returned: always
  type: bool
"""


def main() -> None:
    spec = {"stage": {"type": "str", "required": True}, "inputs": {"type": "dict", "default": {}}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    stage, inputs, run = module.params["stage"], module.params["inputs"], os.environ.get("PROVISION_RUN", "")
    is_asked = bool(inputs and run) and not module.check_mode
    try:
        if is_asked:
            with host_lock("module receipt"):
                seal(stage, inputs, run)
    except HostError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"The receipt of stage {stage} cannot be kept on this host: {error}.")
    module.exit_json(changed=False, sealed=is_asked)


if __name__ == "__main__":
    main()
