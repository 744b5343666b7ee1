"""The same work for edgemail and for Postfix, side by side. `python -m bench`; see bench/README.md."""
