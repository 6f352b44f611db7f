"""Expert parallelism on CPUs: found by vLLM through the entry point `vllm.general_plugins`, in every process."""

import torch
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

whole = CPUUnquantizedExperts.apply


def apply_local_experts(
    self: CPUUnquantizedExperts,
    *,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    expert_map: torch.Tensor | None,
    **others: object,
) -> None:
    """Compute only what the experts of this rank add; the ranks' results are summed afterwards.

    vLLM hands on the experts' global numbers, and the kernel takes them as places in this rank's share of the weights:
    it reads what lies behind them, and now and then crashes. Here they become places; another rank's expert counts
    nothing.
    """
    if expert_map is not None:
        places = expert_map[topk_ids.long()]
        topk_weights = topk_weights.masked_fill(places < 0, 0.0).contiguous()
        topk_ids = places.clamp(min=0).to(topk_ids.dtype).contiguous()
    whole(self, topk_ids=topk_ids, topk_weights=topk_weights, expert_map=None, **others)


def register() -> None:
    """Put the above in the place of vLLM's own."""
    CPUUnquantizedExperts.apply = apply_local_experts
