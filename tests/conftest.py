"""Settings of all tests: hypothesis runs the same examples in each run, and prints how to repeat a failure."""

from hypothesis import settings

settings.register_profile("t2s", deadline=None, derandomize=True, print_blob=True, max_examples=200)
settings.load_profile("t2s")
