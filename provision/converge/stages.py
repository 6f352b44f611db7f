"""The stages of a bootstrap, in order. A stage is one play, one tag and one role of the same name."""

from collections.abc import Container, Iterable, Sequence

from provision.errors import UsageError
from provision.inventory.model import Fleet
from provision.inventory.schema import nearest

STAGES = (
    "preflight",
    "site",
    "host",
    "swap",
    "tools",
    "transfer",
    "driver",
    "gpu",
    "cuda",
    "rdma",
    "serving_env",
    "fabric",
    "weights",
    "ray",
    "vllm",
    "gateway",
    "drift",
)

# A replica's hosts stand together from here on: if one of them failed, the others do not start these.
REPLICA_STAGES = ("fabric", "ray", "vllm")

# What only a whole replica can do: with some of its hosts left out of a run, it waits for one that has all.
WHOLE_STAGES = ("fabric",)

# What a gateway goes through that does not serve itself.
GATEWAY_STAGES = ("site", "gateway", "drift")

# What may take a replica out of service for a while: replicas that serve go through these one after another.
DISRUPTIVE = ("driver", "gpu", "rdma", "serving_env", "fabric", "ray", "vllm")

# Where a host can set right what differs by itself: quick, and with nothing that only the controller knows. The other
# stages fetch gigabytes, or handle secrets that no receipt keeps.
MENDABLE = ("site", "host", "swap", "driver", "gpu", "rdma", "drift")

# What stands on a stage, and is looked at again once it has been changed.
FOLLOWERS = {
    "transfer": ("weights",),
    "driver": ("gpu", "fabric", "ray", "vllm"),
    "rdma": ("fabric", "ray", "vllm"),
    "serving_env": ("fabric", "ray", "vllm"),
    "weights": ("vllm",),
    "ray": ("vllm",),
}


def stages_of(
    fleet: Fleet, host: str, stages: Sequence[str] = STAGES, done: Container[str] = frozenset()
) -> tuple[str, ...]:
    """Those of some stages that concern a host, which has `done` some already.

    Who was a gateway and is none by the inventory has the stage take it away.
    """
    serves, is_gateway = fleet.replica_of(host) is not None, fleet.hosts[host] in fleet.gateways or "gateway" in done
    return tuple(
        stage for stage in stages if (serves or stage in GATEWAY_STAGES) and (stage != "gateway" or is_gateway)
    )


def chosen_stages(names: Iterable[str]) -> tuple[str, ...]:
    """The stages that `--stage` means, in the order in which they run; all of them if it names none.

    Each item may itself hold several, separated by commas. Raises UsageError with the nearest name of an unknown one.
    """
    asked = [name.strip() for item in names for name in item.split(",") if name.strip()]
    for name in asked:
        if name not in STAGES:
            near = nearest(name, STAGES)
            more = f"Did you mean {near}?" if near else f"The stages are {', '.join(STAGES)}."
            raise UsageError(f"--stage: there is no stage {name}. {more}")
    return tuple(stage for stage in STAGES if stage in asked) or STAGES
