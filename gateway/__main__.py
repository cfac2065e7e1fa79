"""`python -m gateway` is `ollama-gateway`."""

from gateway.cli import main

main()
