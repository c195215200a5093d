"""Who may change a study or a schedule beside its owner."""
