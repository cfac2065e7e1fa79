"""A sound configuration to break, and the types of the fixtures that read one."""

from __future__ import annotations

from collections.abc import Callable

from gateway.config import Loaded

GOOD = """\
instances:
  - name: alpha
    url: http://gpu1:11434
    capabilities: [general]
    models: ["llama3.1:8b"]
  - name: beta
    url: http://gpu2:11434
    capabilities: [coding]
    max_concurrent: 2
tasks:
  summarise: [general]
routes:
  - name: code
    match: {task: [code_generation, summarise]}
    to:
      - instance: beta
        model: qwen3-coder
      - capability: general
cache:
  ttl: 12h
"""

Problems = dict[str, tuple[str, tuple[int, int]]]
Read = Callable[..., Loaded]
Refused = Callable[..., Problems]
