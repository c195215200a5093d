"""How `search_spaces.sampling.suggest` comes to its suggestions.

axes        one parameter as a sampler sees it: numbers with an order, or categories without one
plan        what is fixed before the first trial: the narrowed space, the enqueued points, the grid's order
history     what a study's storage holds of its trials, as configurations of the space
uninformed  draws that learn nothing: random, qmc
study_copy  the study as models see it: its trials, translated
model_based draws that learn: tpe, gp (Optuna's)
cmaes       draws that learn: CMA-ES
nearest     the nearest configuration that no trial has had
"""
