"""Workers on Ray: starting them, orders, verdicts, silence and deaths.

The only part of the service that knows Ray.
"""
