"""edgemail: a mail relay for small gateways that keeps what it accepts."""

__version__ = "0.1.0"
