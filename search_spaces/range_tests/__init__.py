"""Learning-rate range tests: what a sweep's loss shows, and the study that a definition's range test is."""
