"""The runtime: configuration, supervision, health and the command line."""
