"""What routing sees: the pool and its models at one moment, frozen. Advice only; the line decides who may go.

`catalog` fills it; `match` and `plan` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from gateway.call import model_key


class ModelView(Struct, frozen=True, kw_only=True, gc=False):
    """One model on one instance. `capabilities` is None where the instance does not tell."""

    name: str
    loaded: bool = False
    capabilities: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceView:
    name: str
    capabilities: tuple[str, ...] = ()
    default_model: str | None = None
    models: Mapping[str, ModelView] = field(default_factory=dict)  # by model_key
    known: bool = False  # its models were read at least once
    awaited: bool = False  # they were not, but it has come so lately that they may be at any moment
    healthy: bool = True  # takes calls: probes and breaker agree, not drained
    native: bool = True  # has Ollama's own API
    why_not: str = ""  # in words, where it is not healthy


@dataclass(frozen=True, slots=True)
class PoolView:
    instances: tuple[InstanceView, ...]

    def having(self, model: str) -> list[InstanceView]:
        """The instances that have `model` installed, however it is spelt."""
        key = model_key(model)
        return [instance for instance in self.instances if key in instance.models]

    def named(self, name: str) -> InstanceView | None:
        return next((instance for instance in self.instances if instance.name == name), None)
