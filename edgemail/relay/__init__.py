"""From the wire to the wire: receive, queue, send, and the sans-IO SMTP between them."""
