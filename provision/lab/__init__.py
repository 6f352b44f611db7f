"""The simulated fleet: one real systemd host in a container for each host of an inventory."""
