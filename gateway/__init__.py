"""One OpenAI-compatible address in front of all your Ollamas."""

__version__ = "0.1.0"
