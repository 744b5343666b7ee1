"""The counters as text: OpenMetrics 1.0, and the older Prometheus text format for those who ask for it."""

from __future__ import annotations

from typing import Final

from edgemail.counters import METRICS, Counter, Histogram, Metric

OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


def escape(value: str) -> str:
    """A label value or help text: backslash, newline and quote escaped, controls dropped."""
    clean = "".join(c for c in value if c == "\n" or c >= " ")
    return clean.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def render_metric(metric: Metric, openmetrics: bool) -> str:
    """One family: its TYPE and HELP, then its series."""
    suffix = "_total" if isinstance(metric, Counter) and not openmetrics else ""
    lines = [f"# HELP {metric.name}{suffix} {escape(metric.help)}", f"# TYPE {metric.name}{suffix} {metric.kind}"]
    for end, series, value in metric.samples():
        names = ("le",) if isinstance(metric, Histogram) and end == "_bucket" else metric.labels
        pairs = ",".join(f'{name}="{escape(text)}"' for name, text in zip(names, series, strict=True))
        label = f"{{{pairs}}}" if pairs else ""
        lines.append(f"{metric.name}{end}{label} {number(value)}")
    return "\n".join(lines) + "\n"


def render(openmetrics: bool) -> tuple[str, bytes]:
    """The content type and the whole exposition."""
    text = "".join(render_metric(metric, openmetrics) for metric in METRICS.values())
    return (OPENMETRICS, (text + "# EOF\n").encode()) if openmetrics else (PROMETHEUS, text.encode())
