"""The health monitor: tracks every agent, tells what deviates, and has dead VMs rebuilt."""
