"""The warnings of a plan, by what they are about."""
