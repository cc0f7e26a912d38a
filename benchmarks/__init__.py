"""What the gateway costs, each figure beside a reference measured in the same run: `make bench`, `make soak`.

`bench_*.py` take a minute or two each, `soak_*.py` five minutes (`--seconds`). Each prints a table and ends with code
1 when a bar of the project is missed. Figures are CPU time of one process with all its threads, unless they say
otherwise: wall time would measure what else runs on the machine.
"""
