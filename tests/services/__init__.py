"""Real servers for tests and benchmarks: installed on first use, on 127.0.0.1, stopped by their own process ids.

No module here knows pytest; the fixtures are in tests/conftest.py. `make services` installs everything ahead
(`python -m tests.services.install`), each class installs what it needs when it is made.
"""
