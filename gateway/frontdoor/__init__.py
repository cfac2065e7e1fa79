"""What comes before the application: clients' connections, read strictly and within bounds."""

from gateway.frontdoor.door import Door
from gateway.frontdoor.head import flaw
from gateway.frontdoor.protocol import Protocol

__all__ = ["Door", "Protocol", "flaw"]
