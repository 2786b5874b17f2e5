"""Defines the errors that end a command with one sentence, and the exit code of each.

0 ok, 1 the run broke (a member died or none was left, a weight transfer or a checkpoint failed, an environment mostly raised, runs
of a lab failed; a defect of ours ends with 1 too), 2 configuration, 3 resources not available, 4 a loss that is not finite, or
engine, trainer and plain transformers disagree, 130 and 143 stopped by a signal after a checkpoint. A message is one sentence:
what is wrong, with the values, and what to do.
"""

from __future__ import annotations


class IsentropeError(Exception):
    """Ends the command with `exit_code`; the message is printed without a traceback."""

    exit_code = 1
    at_once = False  # whether the process ends without the clean-up of its libraries, which would crash


class ConfigError(IsentropeError):
    """Reports a configuration or an argument that cannot work."""

    exit_code = 2


class PlacementError(IsentropeError):
    """Reports that the cluster or this machine lacks what the run needs: CPUs, GPUs, packages."""

    exit_code = 3


class NumericsError(IsentropeError):
    """Reports a loss that is not finite, or an engine whose log-probs differ from the trainer's."""

    exit_code = 4


class ModelRefused(NumericsError):
    """Reports, before the first update, a model that trainer, engine and plain transformers do not compute alike. The sentence
    begins with the part that disagrees."""


class EnvironmentErrors(IsentropeError):
    """Reports an environment that raised for most responses of several iterations; raised after a checkpoint."""


class Stopped(IsentropeError):
    """Reports SIGINT (exit code 130) or SIGTERM (143), raised after the checkpoint was written."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple[type[Stopped], tuple[int]]:
        return type(self), (self.exit_code - 128,)
