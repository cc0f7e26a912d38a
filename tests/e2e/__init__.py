"""The gateway as its users run it: `python -m gateway run FILE`, real machines and brokers, foreign clients."""
