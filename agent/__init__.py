"""The agent: supervises the Docker daemon, the containers and the disks of one VM, and says how they are."""
