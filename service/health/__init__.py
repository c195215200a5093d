"""`/healthz` and `/readyz`: whether the API answers, and whether a study would be run."""
