"""What a coordinator does beside running trials: schedules, stages before a search, sweeping artifacts."""
