"""What is due, why it waits, and what is said about it. Knows the spool, not the network."""
