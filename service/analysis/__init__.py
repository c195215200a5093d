"""What a study has shown: curves, diagnosis, the winner, importance, the Pareto front."""
