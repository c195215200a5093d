"""Search spaces: reading their parameters, conditions between them, counting configurations."""
