"""What a dashboard reads at /metrics: vLLM's names with the prefix `mixwell:`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from mixwell.serve.worker import Worker

FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
LABELS = ("model_name",)
GAUGES = {"num_requests_running": "Answers under way.", "num_requests_waiting": "Answers that wait.",
          "kv_cache_usage_perc": "Share of the cache in use, 0 to 1."}


@dataclass(frozen=True)
class Meters:
    """What is counted and timed of one model."""

    prompt_tokens: Counter
    generated: Counter
    first: Histogram
    between: Histogram
    whole: Histogram


class Metrics:
    """Counts and times of one server, by model."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.registry = CollectorRegistry()
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that were answered.")
        self.generated = self._counter("generation_tokens", "Tokens written.")
        self.first = self._histogram("time_to_first_token_seconds", "From request to first token.", FIRST_S)
        self.between = self._histogram("inter_token_latency_seconds", "From token to token.", BETWEEN_S)
        self.whole = self._histogram("e2e_request_latency_seconds", "From request to its end.", WHOLE_S)
        self.registry.register(_Now(workers))

    def _counter(self, name: str, help: str) -> Counter:
        full = f"mixwell:{name}"
        return Counter(full, help, LABELS, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        full = f"mixwell:{name}"
        return Histogram(full, help, LABELS, registry=self.registry, buckets=buckets)

    def of(self, model: str) -> Meters:
        """Those of the model of that name."""
        prompt_tokens, generated = self.prompt_tokens.labels(model), self.generated.labels(model)
        first, between = self.first.labels(model), self.between.labels(model)
        whole = self.whole.labels(model)
        return Meters(prompt_tokens, generated, first, between, whole)

    def text(self) -> bytes:
        """All of it in Prometheus' form."""
        return generate_latest(self.registry)


class _Now:
    """What the engines do at the moment of asking."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.workers = workers

    def collect(self) -> Iterator[Metric]:
        """The gauges."""
        for name, help in GAUGES.items():
            gauge = GaugeMetricFamily(f"mixwell:{name}", help, labels=LABELS)
            for model, worker in self.workers.items():
                facts = worker.engine.facts()
                gauge.add_metric([model], _gauge(name, facts))
            yield gauge


def _gauge(name: str, facts: Mapping[str, Any]) -> float:
    if name == "kv_cache_usage_perc":
        return facts["blocks_used"] / facts["blocks"]
    return facts[name.removeprefix("num_requests_")]
