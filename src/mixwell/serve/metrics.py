"""What a dashboard reads at /metrics: vLLM's names with the prefix `mixwell:`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from mixwell.serve.worker import Worker

FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts and times of one server."""

    def __init__(self, worker: Worker, model: str) -> None:
        self.registry = CollectorRegistry()
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that were answered.", model)
        self.generated = self._counter("generation_tokens", "Tokens written.", model)
        self.first = self._histogram("time_to_first_token_seconds", "From request to first token.", FIRST_S, model)
        self.between = self._histogram("inter_token_latency_seconds", "From token to token.", BETWEEN_S, model)
        self.whole = self._histogram("e2e_request_latency_seconds", "From request to its end.", WHOLE_S, model)
        self.registry.register(_Now(worker, model))

    def _counter(self, name: str, help: str, model: str) -> Counter:
        found = Counter(f"mixwell:{name}", help, ["model_name"], registry=self.registry)
        return found.labels(model)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], model: str) -> Histogram:
        found = Histogram(f"mixwell:{name}", help, ["model_name"], registry=self.registry, buckets=buckets)
        return found.labels(model)

    def text(self) -> bytes:
        """All of it in Prometheus' form."""
        return generate_latest(self.registry)


class _Now:
    """What the engine does at the moment of asking."""

    def __init__(self, worker: Worker, model: str) -> None:
        self.worker, self.model = worker, model

    def collect(self) -> Iterator[Metric]:
        """The gauges."""
        facts = self.worker.engine.facts()
        full = facts["blocks_used"] / facts["blocks"]
        gauges = (("num_requests_running", "Answers under way.", facts["running"]),
                  ("num_requests_waiting", "Answers that wait.", facts["waiting"]),
                  ("kv_cache_usage_perc", "Share of the cache in use, 0 to 1.", full))
        for name, help, value in gauges:
            gauge = GaugeMetricFamily(f"mixwell:{name}", help, labels=["model_name"])
            gauge.add_metric([self.model], value)
            yield gauge
