"""Defines what one actor needs: bytes on the device it computes on, and on its host beside that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestration.text import size


@dataclass(frozen=True, slots=True)
class Need:
    """Holds what one actor needs, in bytes, at the moment when it needs most.

    parts       on its device, which is the host where it has no GPU: what follows from shapes
    estimate    activations, there too
    beside      in host memory, of an actor on a GPU: libraries, what is offloaded, the model while it is read
    away        activations that are kept there, an estimate as well
    first_only  bytes on the host that only the first of `count` has, such as what weights are sent out of
    shared      bytes of `parts` that are another actor's memory, which this one maps
    """

    kind: str
    count: int
    on_gpu: bool
    parts: Mapping[str, int] = field(default_factory=dict[str, int])
    estimate: int = 0
    beside: Mapping[str, int] = field(default_factory=dict[str, int])
    away: int = 0
    first_only: int = 0
    shared: int = 0

    @property
    def certain(self) -> int:
        """Returns the bytes on the device without the estimate."""
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        """Returns the bytes on the device with the estimate: on a CPU, what is resident of the process."""
        return self.certain + self.estimate

    @property
    def least(self) -> int:
        """Returns the bytes on the device with half of the estimate: what it certainly takes."""
        return self.certain + self.estimate // 2

    def on_host(self) -> int:
        """Returns the least bytes of host memory that all actors of this kind take together, what they share counted once."""
        own = sum(self.beside.values()) + self.away // 2
        if not self.on_gpu:
            own += self.least - self.shared
        return own * self.count - self.first_only * (self.count - 1)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size(count)}" for name, count in self.parts.items() if count)
        more = f", activations about {size(self.estimate)}" if self.estimate else ""
        host = ", ".join(f"{name} {size(count)}" for name, count in self.beside.items() if count)
        host += f", activations about {size(self.away)}" if self.away else ""
        host = f"; in host memory {size(sum(self.beside.values()) + self.away)}: {host}" if host else ""
        return f"{size(self.total)}: {parts}{more}{host}"
