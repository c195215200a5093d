"""`nightsweep serve`: Ray, the coordinator and the API as supervised child processes."""
