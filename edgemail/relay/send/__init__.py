"""From a due message to outcomes: route, rewrite, resolve, connect, deliver."""
