"""Who calls: a credential becomes a Principal here and nowhere else."""
