"""What `provision preflight` runs on a host: it looks, and changes nothing."""
