from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from provision.errors import InventoryError, Problem, UsageError
from provision.inventory import load_fleet, select, simulated


def problems(inventory: Path, *extra: Path) -> list[Problem]:
    with pytest.raises(InventoryError) as caught:
        load_fleet(inventory, extra)
    assert caught.value.exit_code == 65
    return caught.value.problems


def only(inventory: Path) -> Problem:
    found = problems(inventory)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def test_a_valid_inventory_is_a_typed_fleet(make):
    fleet = load_fleet(make({"host_vars/n2.yml": "swap_size: 64G\nansible_user: ops\nansible_port: 2222\n"}))
    assert [replica.name for replica in fleet.replicas] == ["a"]
    assert fleet.replicas[0].head.name == "n1"
    second = fleet.hosts["n2"]
    assert (second.address, second.user, second.port, second.variables["swap_size"]) == ("10.0.0.2", "ops", 2222, "64G")
    assert fleet.hosts["n1"].port is None
    assert fleet.stack.vllm == "0.32.0"
    assert not fleet.lab
    assert type(second.variables["swap_size"]) is str


def test_a_single_file_is_an_inventory(make):
    assert load_fleet(make() / "hosts.yml").replicas[0].head.variables["weights_repo"] == "org/model"


def test_an_overlay_wins(make, tmp_path):
    overlay = tmp_path / "overlay"
    (overlay / "host_vars").mkdir(parents=True)
    (overlay / "hosts.yml").write_text("all: {hosts: {n1: }}\n")
    (overlay / "host_vars/n1.yml").write_text("ansible_host: 10.9.9.9\n")
    fleet = load_fleet(make(), [overlay])
    assert fleet.hosts["n1"].address == "10.9.9.9"
    assert fleet.hosts["n2"].address == "10.0.0.2"
    assert len(fleet.sources) == 2


def test_templates_see_defaults_of_roles_and_the_lock(make):
    files = {
        "group_vars/all.yml": "local_model: org/{{ stack.vllm }}\nswap_size: '{{ vllm_pipeline_parallel_size }}G'\n"
    }
    variables = load_fleet(make(files)).hosts["n1"].variables
    assert variables["local_model"] == "org/0.32.0"
    assert variables["swap_size"] == "2G"


def test_a_missing_inventory_says_what_to_do(tmp_path):
    problem = only(tmp_path / "none")
    assert "does not exist" in problem.message
    assert "provision init" in problem.hint


def test_what_is_not_yaml_has_line_and_column(make):
    problem = only(make({"group_vars/serving.yml": "a: 1\nb: [1\nc: 2\n"}))
    assert problem.path.name == "serving.yml"
    assert problem.line == 3
    assert "is not YAML (column" in problem.message


@pytest.mark.parametrize("hosts", ["", "serving:\n", "all: {hosts: }\n"])
def test_an_inventory_without_hosts(make, hosts):
    assert "names no host" in problems(make({"hosts.yml": hosts}))[0].message


def test_an_empty_directory(tmp_path):
    assert "names no host" in only(tmp_path).message


@pytest.mark.parametrize(
    ("files", "line", "said"),
    [
        ({"hosts.yml": "- a\n- b\n"}, 1, "must be a mapping (name: value); this is a list."),
        ({"hosts.yml": "serving: {children: {a: {\nhosts: [n1]}}}\n"}, 2, "hosts of a must be a mapping"),
        ({"hosts.yml": "serving:\n  childen: {}\n"}, 2, "serving has no key childen."),
        ({"group_vars/all.yml": "- x\n"}, 1, "Variables must be a mapping"),
    ],
)
def test_a_wrong_shape_has_its_line(make, files, line, said):
    problem = only(make(files))
    assert problem.line == line
    assert said in problem.message


def test_no_serving_group_names_the_nearest(make):
    found = [
        p for p in problems(make({"hosts.yml": "servng:\n  hosts: {n1: }\n"})) if "no group is called" in p.message
    ]
    assert found[0].line == 1
    assert "servng" in found[0].hint


def test_an_unknown_variable_has_place_and_nearest_name(make):
    inventory = make({"host_vars/n1.yml": "\nvllm_pipeline_paralel_size: 2\n"})
    problem = only(inventory)
    assert (problem.path, problem.line) == (inventory / "host_vars/n1.yml", 2)
    assert problem.message == "vllm_pipeline_paralel_size is not a variable of any role."
    assert "Did you mean vllm_pipeline_parallel_size (role vllm)?" in problem.hint
    assert "provision vars vllm" in problem.hint


def test_a_variable_of_a_group_is_one_problem_however_many_hosts(make):
    assert only(make({"group_vars/all/more.yml": "nonsense: 1\n"})).path.name == "more.yml"


def test_a_variable_inline_in_hosts_yml_has_its_line(make):
    problem = only(make({"hosts.yml": "serving:\n  vars:\n    swapp_size: 1\n  children:\n    a: {hosts: {n1: , n2: }}\n"
                         .replace("n1: , n2: ", "n1: {ansible_host: 10.0.0.1}, n2: {ansible_host: 10.0.0.2}")}))  # fmt: skip
    assert problem.line == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu_locked_clocks: 1830\n", "gpu_locked_clocks is 1830; expected a mapping."),
        ("ray_num_gpus: many\n", "ray_num_gpus is many; expected a whole number."),
        ("vllm_executor: rey\n", "vllm_executor is rey; expected one of ray, mp."),
        ("swap_size: [1]\n", "swap_size does not fit; expected a string."),
        ("gpu_limits: [{index: 0}, {index: x}]\n", "gpu_limits.1.index is x; expected a whole number."),
        ("gpu_limits: [{watts: 3}]\n", "gpu_limits.0 does not fit; expected also index"),
        ("gpu_limits: [{index: 1, wats: 3}]\n", "gpu_limits.0 has no key wats."),
        ("hardware_profile: 8xh20-69\n", "hardware_profile 8xh20-69 is not known."),
        ("vllm_args: {max-model-length: 3}\n", "vllm_args: vLLM 0.32.0 has no argument max-model-length."),
        ("rdma_env: {NCCL_IB_HCAS: mlx5_0}\n", "rdma_env: NCCL has no variable NCCL_IB_HCAS."),
        ("rdma_env: {NCCL_TIMEOUT: 3}\n", "rdma_env: NCCL has no variable NCCL_TIMEOUT: the timeout of collectives is"),
        ("ray_env: {GLOO_SOCKET_IFNAME: eth0}\n", "ray_env: GLOO_SOCKET_IFNAME describes a host's network."),
        ("swap_size: '{{ nowhere }}'\n", "swap_size cannot be resolved: 'nowhere' is undefined"),
        ("swap_size: 1G\nswap_size: 2G\n", "swap_size is set twice; it stands in line 1 too."),
    ],
)
def test_values(make, text, said):
    inventory = make({"host_vars/n1.yml": text})
    found = [p for p in problems(inventory) if said in p.message]
    assert found, [str(p) for p in problems(inventory)]
    assert found[0].path == inventory / "host_vars/n1.yml"
    assert found[0].line


def test_nearest_choice_profile_and_argument(make):
    hints = [
        str(p.hint)
        for p in problems(make({"host_vars/n1.yml": "vllm_executor: rayy\nvllm_args: {max-model-leng: 3}\n"}))
    ]
    assert any("Did you mean ray?" in hint for hint in hints)
    assert any("Did you mean max-model-len?" in hint for hint in hints)
    (problem,) = problems(make({"host_vars/n1.yml": "rdma_env: {NCCL_IB_TC: 106, TZ: UTC, NCCL_SOCKET_IFNAM: eno1}\n"}))
    assert problem.hint == "Did you mean NCCL_SOCKET_IFNAME?"


def test_what_is_known_only_during_a_run_is_left_alone(make):
    load_fleet(make({"host_vars/n1.yml": "swap_size: \"{{ ansible_facts['memtotal_mb'] }}M\"\n"}))


def test_secrets_are_never_shown(make):
    text = "weights_token: {hidden: s3cret}\nvault_key: s3cret\nswap_size: ['{{ vault_key }}']\n"
    said = "\n".join(str(p) for p in problems(make({"host_vars/n1.yml": text})))
    assert "weights_token" in said
    assert "s3cret" not in said


def test_a_range_of_hosts_has_its_line(make):
    hosts = "serving:\n  children:\n    a:\n      hosts:\n        n[1:2]:\n          ansible_host: 10.0.0.1\n          swapp: 1\n"
    assert only(make({"hosts.yml": hosts})).line == 7


@pytest.mark.parametrize("whole", [True, False])
def test_a_vault_without_its_password(make, tmp_path, monkeypatch, whole):
    password = tmp_path / "password"
    password.write_text("x\n")
    vault = [
        str(Path(sys.executable).parent / "ansible-vault"),
        "encrypt_string",
        "--vault-password-file",
        str(password),
    ]
    inline = subprocess.run([*vault, "--name", "vault_t", "s3cret"], check=True, capture_output=True, text=True).stdout
    text = textwrap.dedent(inline.split("\n", 1)[1]) if whole else inline
    problem = only(make({"group_vars/all.yml": text}))
    assert "cannot be opened" in problem.message
    assert "export ANSIBLE_VAULT_PASSWORD_FILE=FILE" in problem.hint


def test_a_required_variable_is_missed_once(make):
    problem = only(make({"group_vars/serving.yml": "hardware_profile: 8xh20-96\nvllm_pipeline_parallel_size: 2\n"}))
    assert problem.message == "weights_repo is not set, and role weights needs it."


def test_parallel_sizes_must_fill_the_replica(make):
    text = (
        "hardware_profile: 8xh20-96\nweights_repo: a/b\nvllm_tensor_parallel_size: 4\nvllm_pipeline_parallel_size: 2\n"
    )
    problem = only(make({"group_vars/serving.yml": text}))
    assert problem.line == 3
    assert "vllm_tensor_parallel_size 4" in problem.message
    assert "= 8 GPUs" in problem.message
    assert "= 16." in problem.message


def test_data_parallel_counts(make):
    load_fleet(make({"group_vars/serving.yml": SERVING_DATA_PARALLEL}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            ("vllm_data_parallel_size: 2", "vllm_args: {data-parallel-size: 2}"),
            "data-parallel-size would go by vllm_data_parallel_size",
        ),
        (("size: 2", "size: 2\nvllm_executor: ray"), "vllm_executor is ray, and vllm_data_parallel_size is 2"),
        (("size: 8\nvllm_data_parallel_size: 2", "size: 1\nvllm_data_parallel_size: 15"), "cannot share equally"),
    ],
)
def test_copies_that_the_hosts_cannot_share(make, changed, said):
    text = SERVING_DATA_PARALLEL.replace(*changed)
    assert any(said in problem.message for problem in problems(make({"group_vars/serving.yml": text})))


SERVING_DATA_PARALLEL = (
    "hardware_profile: 8xh20-96\nweights_repo: a/b\nvllm_tensor_parallel_size: 8\nvllm_data_parallel_size: 2\n"
)


@pytest.mark.parametrize(
    ("given", "said", "hint"),
    [
        ("{port: 9000}", "what follows from port would go by vllm_port", "Say vllm_port: 9000"),
        ("{api-key: geheim}", "what follows from api-key would go by vllm_api_key", "Say vllm_api_key: ..."),
        ("{tensor-parallel-size: 4}", "would go by vllm_tensor_parallel_size", "Say vllm_tensor_parallel_size: 4"),
        ("{ssl-keyfile: /x}", "ssl-keyfile cannot be set: the gateway ends TLS", "Leave it out."),
    ],
)
def test_arguments_from_which_other_things_follow(make, given, said, hint):
    text = SERVING_DATA_PARALLEL + f"vllm_args: {given}\n"
    found = [one for one in problems(make({"group_vars/serving.yml": text})) if said in one.message]
    assert found
    assert {(one.line, one.hint) for one in found} == {(5, hint)}


def test_hosts_whose_gpus_do_not_compute_hold_one_rank(make):
    text = "hardware_profile: 8xh20-96\nweights_repo: a/b\nray_num_gpus: 1\nvllm_tensor_parallel_size: 2\n"
    load_fleet(make({"group_vars/serving.yml": text}))


def test_hosts_of_a_replica_are_given_one_version(make, content):
    options = {"driver_version": {"type": "str"}}
    (content / "roles/driver/meta").mkdir(parents=True)
    (content / "roles/driver/meta/argument_specs.yml").write_text(
        json.dumps({"argument_specs": {"main": {"options": options}}})
    )
    found = only(make({"host_vars/n2.yml": "driver_version: 580.95.05\n"}))
    assert found.message == (
        "a: the hosts of a replica must have one driver_version, but they have n1 unset, n2 580.95.05."
    )
    assert (found.path.name, found.line) == ("n2.yml", 1)
    assert load_fleet(make({"host_vars/n2.yml": "", "group_vars/a.yml": "driver_version: 580.95.05\n"}))


def test_mixed_profiles(make):
    found = problems(make({"host_vars/n2.yml": "hardware_profile: 4xa100-80\n"}))
    assert any("must be of one hardware_profile" in p.message and p.path.name == "n2.yml" for p in found)


def test_a_host_in_two_replicas_and_one_in_none(make):
    hosts = (
        "serving:\n  hosts: {n3: {ansible_host: 10.0.0.3}}\n  children:\n    a: {hosts: {n1: {ansible_host: 10.0.0.1}}}\n"
        "    b: {hosts: {n1: , n2: {ansible_host: 10.0.0.2}}}\n"
    )
    said = [p.message for p in problems(make({"hosts.yml": hosts}))]
    assert "n1 is in the replicas a and b; a host serves in one." in said
    assert any("n3 stands directly under serving" in message for message in said)


def test_peers_need_addresses(make):
    found = problems(make({"host_vars/n2.yml": "ray_address: node-two.example\n"}))
    assert [(p.path.name, p.line) for p in found] == [("n2.yml", 1)]
    assert "by IP address" in found[0].message


def test_every_problem_is_told_at_once(make):
    found = problems(
        make({"host_vars/n1.yml": "nonsense: 1\nvllm_executor: x\n", "stack.lock.yml": "stack: {vllm: new}\n"})
    )
    assert len(found) > 4
    assert [p.path.name for p in found] == sorted(p.path.name for p in found)


@pytest.mark.parametrize(
    ("text", "expected"), [("lab: true\n", True), ("lab: false\n", False), ("local_x: 1\n", False)]
)
def test_simulated(make, text, expected):
    assert simulated(make({"group_vars/all.yml": text})) is expected


def test_limit_means_what_ansible_means(make):
    fleet = load_fleet(make())
    assert [host.name for host in select(fleet, None)] == ["n1", "n2"]
    assert [host.name for host in select(fleet, "a:!n1")] == ["n2"]
    assert [host.name for host in select(fleet, "n*,!n2")] == ["n1"]
    with pytest.raises(UsageError, match=r"no host or group n11\. Did you mean n1\?"):
        select(fleet, "n11")
    with pytest.raises(UsageError, match="leaves no host"):
        select(fleet, "a:!a")


TWO_REPLICAS = (
    "serving: {children: {a: {hosts: {n1: {ansible_host: 10.0.0.1}}}, b: {hosts: {n2: {ansible_host: 10.0.0.2}}}}}\n"
)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ("vllm_port: 8000\ngateway_port: 8000\n", "n1: vllm_port and gateway_port are both 8000."),
        ("vllm_port: 8001\nvllm_health_port: 8001\n", "n1: vllm_port and vllm_health_port are both 8001."),
        ("vllm_served_model_name: other\n", "vllm_served_model_name differs between n1 and n2"),
        ("vllm_host: 127.0.0.1\n", "n1: vllm_host is 127.0.0.1, where no gateway reaches it."),
    ],
)
def test_what_one_gateway_cannot_stand_before(make, content, variables, said):
    names = ("vllm_port", "gateway_port", "vllm_health_port", "vllm_served_model_name", "vllm_host")
    spec = {"argument_specs": {"main": {"options": {name: {"type": "raw"} for name in names}}}}
    (content / "roles/gateway/meta").mkdir(parents=True)
    (content / "roles/gateway/meta/argument_specs.yml").write_text(json.dumps(spec))
    serving = "hardware_profile: 8xh20-96\nweights_repo: org/model\nvllm_served_model_name: tiny\n"
    hosts = TWO_REPLICAS + "gateway: {hosts: {n1: , gw: {ansible_host: 10.0.0.9}}}\n"
    files = {"hosts.yml": hosts, "group_vars/serving.yml": serving}
    assert said in only(make({**files, "host_vars/n1.yml": variables})).message


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ("vllm_port: 29511\n", "n1: vllm_port and fabric_port are both 29511."),
        ("vllm_port: 6379\n", "n1: vllm_port and ray_ports.cluster are both 6379."),
        (
            "vllm_port: 12000\n",
            "n1: vllm_port (12000) and ray_ports.workers_from to workers_to (10002-19999) overlap.",
        ),
        ("vllm_port: 29501\nvllm_executor: mp\n", "n1: vllm_port and vllm_ports.master are both 29501."),
        ("vllm_port: 6379\nvllm_executor: mp\n", ""),
    ],
)
def test_ports_of_a_replica_that_spans_hosts(make, content, variables, said):
    names = ("vllm_port", "vllm_executor", "vllm_pipeline_parallel_size", "ray_ports", "vllm_ports", "fabric_port")
    spec = {"argument_specs": {"main": {"options": {name: {"type": "raw"} for name in names}}}}
    ports = {"ray_ports": {"cluster": 6379, "workers_from": 10002, "workers_to": 19999}}
    defaults = {**ports, "vllm_ports": {"master": 29501}, "fabric_port": 29511}
    for part, text in (("meta/argument_specs.yml", spec), ("defaults/main.yml", defaults)):
        (content / "roles/gateway" / part).parent.mkdir(parents=True)
        (content / "roles/gateway" / part).write_text(json.dumps(text))
    hosts = "serving: {children: {r: {hosts: {n1: {ansible_host: 10.0.0.1}, n2: {ansible_host: 10.0.0.2}}}}}\n"
    serving = f"hardware_profile: 8xh20-96\nweights_repo: org/model\nvllm_pipeline_parallel_size: 2\n{variables}"
    inventory = make({"hosts.yml": hosts, "group_vars/serving.yml": serving})
    if said:
        assert said in only(inventory).message
    else:
        assert load_fleet(inventory).replicas


def test_gateways_are_part_of_a_run_and_can_be_limited_to(make):
    fleet = load_fleet(
        make({"host_vars/gw.yml": "ansible_host: 10.0.0.9\n", "gw.yml": "gateway: {hosts: {n2: , gw: }}\n"})
    )
    assert [host.name for host in fleet.managed] == ["n1", "n2", "gw"]
    assert [host.name for host in select(fleet, None)] == ["n1", "n2", "gw"]
    assert [host.name for host in select(fleet, "gateway")] == ["n2", "gw"]
