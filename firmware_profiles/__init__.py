"""Data only: the device profiles that ship with the gateway (see README.md)."""
