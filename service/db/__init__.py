"""The service's tables, connections and transactions."""
