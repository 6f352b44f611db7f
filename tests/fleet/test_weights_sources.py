"""Where weights come from, on simulated hosts: a bucket, ModelScope, a directory; a hub that throttles or refuses; power and network that go."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from holders import UNIT, Holders
from rehearsal import Site, wait_until
from stores import BadHub, Store, make_model, running, sha256, write_sums

from provision.lab.hub import read_model

STAGES = "site,host,tools,transfer,weights"
HOSTS = "serving:\n  children:\n    w_a: {hosts: {node-1: }}\n    w_b: {hosts: {node-2: }}\n"
NODES = ("node-1", "node-2")
BASE = "/data/models/test--model"
COMMON = """\
hardware_profile: 8xh20-96
serving_env_build: cpu
swap_path: /data/swapfile
vllm_tensor_parallel_size: 1
host_packages: [ca-certificates, python3-venv]
weights_repo: test/model
"""
SLOW, FAST = 3e4, 1e8  # bytes a second
SECRET = "the-secret-of-the-bucket"


class Weights(Holders):
    """The site, the model as it is at its source, and what the hosts hold of it."""

    def __init__(self, site: Site, model: Path) -> None:
        super().__init__(site, NODES, BASE)
        self.model = model
        self.address = site.sh("node-1", "ip route show default").split()[2]

    def ask(self, revision: str, text: str, endpoint: str = "") -> None:
        """Have the inventory want a revision from somewhere."""
        url = f"weights_endpoint: {endpoint}\n" if endpoint else ""
        self.site.variables("group_vars/serving.yml", f"{COMMON}weights_revision: {revision}\n{url}{text}")

    def bootstrap(self, *options: str, stages: str = STAGES, code: int = 0) -> str:
        return self.site.bootstrap("--stage", stages, *options, code=code).text

    def begin(self, hub: BadHub) -> None:
        """Have the hosts fetch from nothing, for minutes, unless the hub gets faster; nobody waits for it."""
        hub.rate = SLOW
        self.forget()
        self.bootstrap("--full", stages="transfer")
        wait_until("something came", lambda: self.state("node-2").get("bytes", 0) > 0, 60)

    def goes_on(self, hub: BadHub, host: str) -> None:
        """A host that was cut off in the middle: the hosts come to the end by themselves."""
        assert not self.state(host).get("done")
        hub.rate = FAST
        for each in NODES:
            wait_until(f"{each} is done", lambda host=each: self.state(host).get("done"), 180)
        self.bootstrap("--full")
        assert self.is_everywhere()

    def is_everywhere(self) -> bool:
        """Whether all hosts hold what the source has, byte by byte."""
        wanted = {path.name: sha256(path) for path in self.model.glob("*.*")}
        for host in NODES:
            lines = self.site.sh(host, f"cd {BASE}/current/ && sha256sum *.*").splitlines()
            assert {name: sha for sha, name in (line.split() for line in lines)} == wanted
        return True


@pytest.fixture(scope="module")
def weights(make_site: Callable[[str], Site], tmp_path_factory: pytest.TempPathFactory) -> Weights:
    site = make_site("weights-sources")
    site.variables("hosts.yml", HOSTS)
    site.variables("group_vars/serving.yml", COMMON)
    site.up()
    for path in site.state.glob("provision/lab/*/overlay/host_vars/*.yml"):  # the lab's own hub would be asked instead
        path.write_text(re.sub("(?m)^weights_endpoint:.*\n", "", path.read_text()))
    model = tmp_path_factory.mktemp("models") / "test/model"
    make_model(model)
    return Weights(site, model)


@pytest.fixture(scope="module")
def hub(weights: Weights) -> Iterator[BadHub]:
    """A hub with a narrow uplink, and the hosts hold what it has."""
    server = BadHub(weights.model.parents[1], weights.address)
    with running(server):
        weights.ask(read_model(weights.model).commit, "", server.url)
        weights.forget()
        weights.bootstrap()
        yield server
        server.down = True


@pytest.fixture
def store(weights: Weights, tmp_path: Path) -> Iterator[Store]:
    """The model as a bucket, and as ModelScope has it."""
    folder = shutil.copytree(weights.model, tmp_path / "store")
    server = Store(folder, write_sums(folder), weights.address)
    with running(server):
        yield server


def test_from_a_bucket(weights: Weights, store: Store) -> None:
    keys = f"weights_s3_access_key: the-name-of-the-bucket\nweights_s3_secret_key: {SECRET}\n"
    weights.ask(store.commit, f"weights_source: s3\nweights_bucket: bucket/some/model\n{keys}", store.url)
    told = weights.bootstrap()
    assert weights.is_everywhere()
    assert SECRET not in told
    left = (
        f"grep -rl {SECRET[:-1]}[t] /etc /run /var/lib /var/log /opt/provision /proc/[0-9]*/environ 2>/dev/null || true"
    )
    assert [weights.site.sh(host, left) for host in NODES] == ["", ""]
    assert weights.site.bootstrap("--stage", STAGES).changes() == {}


def test_from_modelscope(weights: Weights, store: Store) -> None:
    (store.folder / "SHA256SUMS").unlink()
    weights.forget()
    weights.ask(store.commit, "weights_source: modelscope\n", store.url)
    weights.bootstrap()
    assert weights.is_everywhere()
    assert weights.site.bootstrap("--stage", STAGES).changes() == {}


def test_from_a_directory_of_one_host(weights: Weights, store: Store) -> None:
    names = " ".join(path.name for path in store.folder.iterdir())
    get = f"import sys, urllib.request as u; u.urlretrieve('{store.url}/bucket/some/model/' + sys.argv[1], sys.argv[1])"
    weights.site.sh(
        "node-1", f'mkdir /srv/model; cd /srv/model; for name in {names}; do python3 -c "{get}" $name || exit; done'
    )
    weights.forget()
    weights.site.variables("host_vars/node-2.yml", "weights_uplink: false\n")
    weights.ask(store.commit, "weights_source: directory\nweights_path: /srv/model\n")
    weights.bootstrap()
    (weights.site.directory / "host_vars/node-2.yml").unlink()
    assert weights.is_everywhere()


def test_a_hub_that_throttles_is_waited_for_and_says_so(weights: Weights, hub: BadHub) -> None:
    hub.answer = (429, {"Retry-After": "3"})
    weights.forget()
    weights.bootstrap("--full", stages="transfer")

    def reasons() -> str:
        run = weights.site.run("weights", "plan", weights.site.directory, "--json", code=None)
        return " ".join(one["reason"] for one in json.loads(run.out.splitlines()[-1])["hosts"])

    wait_until("plan says why it waits", lambda: "throttles (429)" in reasons(), 60)
    hub.answer = None
    weights.bootstrap()
    assert weights.is_everywhere()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((401, {}), "weights_token"),
        ((403, {"X-Error-Code": "GatedRepo"}), "weights_token"),
        ((404, {"X-Error-Code": "RevisionNotFound"}), "weights_revision"),
    ],
    ids=["bad token", "gated", "vanished"],
)
def test_a_refusal_says_what_to_set_and_spares_what_is_served(
    weights: Weights, hub: BadHub, answer: tuple[int, dict[str, str]], told: str
) -> None:
    asked = (weights.site.directory / "group_vars/serving.yml").read_text()
    weights.ask("d" * 40, "", hub.url)
    hub.answer = answer
    said = weights.bootstrap(code=1)
    hub.answer = None
    (weights.site.directory / "group_vars/serving.yml").write_text(asked)
    assert told in said
    assert weights.is_everywhere()
    for host in NODES:
        weights.site.sh(host, f"systemctl stop {UNIT}")
    assert weights.site.bootstrap("--stage", "transfer,weights").changes() == {}


def test_a_host_that_loses_power_goes_on_by_itself(weights: Weights, hub: BadHub) -> None:
    weights.begin(hub)
    weights.site.run("lab", "reboot", weights.site.directory, "node-1", "--hard")
    weights.goes_on(hub, "node-2")


def test_a_network_that_goes_and_comes_back_is_waited_for(weights: Weights, hub: BadHub) -> None:
    weights.begin(hub)
    weights.site.break_("node-1", "link-down")
    weights.site.mend("node-1", "link-down")
    weights.goes_on(hub, "node-1")
