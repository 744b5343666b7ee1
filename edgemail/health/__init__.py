"""Numbers, guards, the endpoint. Imports neither relay nor spool."""
