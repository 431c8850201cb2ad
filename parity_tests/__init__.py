"""Tests: each says that two routes to one thing agree, or that a property holds, and can be seen to fail."""

from jaxgpt.signals import guard_command

guard_command("parity_tests")
