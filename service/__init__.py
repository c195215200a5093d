"""REST, SQL, the coordinator and the command line."""
