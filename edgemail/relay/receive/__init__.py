"""From the socket to the intake: listeners, sessions, policy, authentication, TLS, the trace header."""
