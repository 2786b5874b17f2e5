"""Helpers of the tests: builders, fakes, references, stand-ins."""
