"""Champions: the best adapter of a schedule so far, on the eval data of today."""
