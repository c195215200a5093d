"""What an earlier study, or a schedule's earlier sweeps, give a new study."""
