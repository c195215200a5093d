"""Training: one trial's run, the passes that trials share, evaluation, optimizers, schedules.

Knows no pack.
"""
