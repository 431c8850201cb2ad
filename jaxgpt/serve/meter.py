"""What the server counts, in Prometheus' text format. Memory and time of its process are among it, on Linux."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from jaxgpt.serve.backend import Backend
from jaxgpt.serve.choices import Choice

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Meter:
    """Counters of one server, in a registry of its own."""

    def __init__(self, backend: Backend):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("jaxgpt_requests", "Answers", ["route", "status"], registry=registry)
        self._prompt = Counter("jaxgpt_prompt_tokens", "Tokens of prompts", registry=registry)
        self._generated = Counter("jaxgpt_generated_tokens", "Tokens generated", registry=registry)
        self._gone = Counter("jaxgpt_disconnects", "Clients that left before the end", registry=registry)
        self._first = Histogram(
            "jaxgpt_time_to_first_token_seconds", "From the request", buckets=SECONDS, registry=registry
        )
        for name, about in (("active", "Texts being generated"), ("waiting", "Texts that wait for a slot")):
            gauge = Gauge(f"jaxgpt_{name}", about, registry=registry)
            gauge.set_function(lambda name=name: getattr(backend, f"n_{name}"))

    def count_answer(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def count_choice(self, choice: Choice) -> None:
        """When it has ended, however."""
        self._generated.inc(choice.n_tokens)
        if choice.first_s is not None:
            self._first.observe(choice.first_s)

    def count_prompt(self, n_tokens: int) -> None:
        self._prompt.inc(n_tokens)

    def count_disconnect(self) -> None:
        self._gone.inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
