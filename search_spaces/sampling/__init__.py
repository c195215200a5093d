"""How `search_spaces.sampling.suggest` comes to its suggestions.

axes        one parameter as a sampler sees it: numbers with an order, or categories without one
plan        what is settled before the first trial: the narrowed space, the enqueued points, the grid's order
history     what a study's storage holds of its trials, as configurations of the space
spread      draws that learn nothing: random, qmc
shadow      the study as models see it: its trials, translated
models      draws that learn: tpe, gp (Optuna's)
evolution   draws that learn: cmaes
unused      the nearest configuration that no trial has had
"""
