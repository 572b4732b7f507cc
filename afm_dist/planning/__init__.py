"""What a job takes of a cluster, and whether the cluster has it, before anything starts."""
