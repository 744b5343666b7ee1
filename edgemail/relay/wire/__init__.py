"""Sans-IO SMTP, both sides: bytes in, events and bytes out. Imports neither asyncio nor ssl nor logging."""
