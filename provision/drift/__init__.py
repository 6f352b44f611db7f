"""Receipts: what a run left behind on each host, verified there by the modules that did the work."""

from provision.drift.receipts import Busy, Finding, HostReceipts, StageReceipt

__all__ = ["Busy", "Finding", "HostReceipts", "StageReceipt"]
