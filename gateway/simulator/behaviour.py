"""How a simulator is set up: its models, its version, its pace. Frozen; replaced whole, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

import msgspec


def model_key(name: str) -> str:
    """The one spelling under which model names are compared: case and default tag do not count (ollama.md §5)."""
    key = name.strip().casefold().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return key if ":" in key[key.rfind("/") + 1 :] else key + ":latest"


@lru_cache(maxsize=16)
def version_of(text: str) -> tuple[int, ...]:
    """`0.32.15-rc2` as (0, 32, 15). A development build, `0.0.0`, counts as newer than everything."""
    parts = tuple(int(part) if part.isdigit() else 0 for part in text.partition("-")[0].split("."))
    return parts if any(parts) else (9_999,)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedModel:
    """One installed model, as lists and `/api/show` describe it. An embedding model has the capability `embedding`."""

    name: str
    size: int = 5_000_000_000  # bytes
    digest: str = ""  # sha256 in hex; derived from the name when empty
    capabilities: tuple[str, ...] = ("completion", "tools")
    context_length: int = 32_768
    family: str = "llama"
    parameter_size: str = "8.0B"
    quantization: str = "Q4_K_M"

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", sha256(self.name.encode()).hexdigest())

    @property
    def full_name(self) -> str:
        """With its tag, as every list shows it."""
        return self.name if ":" in self.name[self.name.rfind("/") + 1 :] else self.name + ":latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How the simulated Ollama is set up, and how fast it is. Times are seconds."""

    version: str = "0.32.15"  # decides the wire shapes: the stream changed in 0.32.6, the lists in 0.30.0
    models: tuple[SimulatedModel, ...] = (SimulatedModel(name="llama3.1:8b"),)
    first_token: float = 0.0  # from having a slot to the first token; silent, like the real prefill
    per_second: float = 0.0  # tokens per second after the first; 0 = as fast as the client reads
    load_time: float = 0.0  # to load a model; loads are serial
    max_loaded: int = 3  # models in memory; beyond it an idle one is evicted
    parallel: int = 1  # answers at once per loaded model; the rest wait, silent, unbounded, first come first served
    tokens: int = 12  # length of an answer when the request does not say
    native: bool = True  # False: no /api, an OpenAI-compatible server only
    notices_late: bool = False  # a client lost before the first token keeps its slot until that token (#11889)
    steer: bool = False  # benchmarks: `seed` = milliseconds between chunks, whose text is a time.monotonic_ns()

    def __post_init__(self) -> None:
        if min(self.first_token, self.per_second, self.load_time) < 0:
            raise ValueError("first_token, per_second and load_time must be 0 or more")
        if min(self.parallel, self.max_loaded, self.tokens) < 1:
            raise ValueError("parallel, max_loaded and tokens must be 1 or more")

    def changed(self, values: Mapping[str, object]) -> Behaviour:
        """A copy with some fields replaced. Raises ValueError for an unknown field or a wrong type."""
        unknown = sorted(set(values) - set(Behaviour.__slots__))
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r}; there are {', '.join(Behaviour.__slots__)}")
        merged: Behaviour = msgspec.convert({**msgspec.to_builtins(self), **values}, Behaviour)
        return merged


DEMO = (
    Behaviour(
        models=(
            SimulatedModel(
                name="huihui_ai/deepseek-r1-abliterated:8b",
                capabilities=("completion", "tools", "thinking"),
                family="qwen3",
                parameter_size="8.2B",
                context_length=131_072,
            ),
        ),
        first_token=0.3,
        per_second=30.0,
        tokens=60,
    ),
    Behaviour(
        models=(
            SimulatedModel(
                name="qwen3-coder:30b-a3b-q4_K_M",
                size=18_556_701_140,
                family="qwen3moe",
                parameter_size="30.5B",
                context_length=262_144,
            ),
        ),
        first_token=0.3,
        per_second=30.0,
        tokens=60,
    ),
)
"""Two instances at a human pace, to try a gateway with: one general, one for code."""
