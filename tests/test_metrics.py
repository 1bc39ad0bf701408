"""rondel.metrics: what the loop counts, and its way to Prometheus and OpenTelemetry."""

import asyncio
import contextlib
import os
import threading
import time
import tracemalloc
from typing import Any

import pytest
import rondel
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families
from rondel import metering
from support import run_on

Loop = asyncio.AbstractEventLoop


def test_turns_and_callbacks_are_counted(rondel_loop: Loop) -> None:
    async def main() -> tuple[rondel.Metrics, rondel.Metrics]:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        before = rondel.metrics()
        for _ in range(100):
            loop.call_soon(int)
        for _ in range(10):
            await asyncio.sleep(0)
        return before, rondel.metrics(loop)

    before, after = run_on(rondel_loop, main)
    assert after.turns - before.turns == 10
    # Each sleep(0) is a callback, too.
    assert after.callbacks - before.callbacks == 110
    assert after.most_ready == 101
    assert before.ready == after.ready == 0


def test_timers_transports_and_events(rondel_loop: Loop) -> None:
    async def main() -> list[rondel.Metrics]:
        loop = asyncio.get_running_loop()
        seen = [rondel.metrics()]
        timers = [loop.call_later(1000, int) for _ in range(3)]
        timers[1].cancel()
        near, far = os.pipe()
        pipe, _ = await loop.connect_read_pipe(asyncio.Protocol, os.fdopen(near, "rb", 0))
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        transport, _ = await loop.create_connection(asyncio.Protocol, *address)
        udp, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        while rondel.metrics().transports < 4:  # Until the server's side is there.
            await asyncio.sleep(0.001)
        seen.append(rondel.metrics())
        for closing in (transport, udp, pipe):
            closing.close()
        os.close(far)
        server.close()
        while rondel.metrics().transports > 0:
            await asyncio.sleep(0.001)
        for timer in timers:
            timer.cancel()
        return [*seen, rondel.metrics()]

    first, second, third = run_on(rondel_loop, main)
    assert (second.timers - first.timers, second.transports - first.transports) == (2, 4)
    assert (third.timers, third.transports) == (first.timers, 0)
    assert third.events > second.events > first.events
    assert third.polls > second.polls


def test_times_add_up(rondel_loop: Loop) -> None:
    async def main() -> None:
        await asyncio.sleep(0.2)
        time.sleep(0.1)
        await asyncio.sleep(0)

    began = time.monotonic()
    run_on(rondel_loop, main)
    taken = time.monotonic() - began
    measured = rondel.metrics(rondel_loop)
    parts = (measured.running, measured.idle, measured.polling, measured.gil)
    assert measured.total == pytest.approx(sum(parts))
    assert 0.3 <= measured.total <= taken
    assert measured.idle >= 0.19
    assert 0.1 <= measured.running <= taken - measured.idle
    # What is not in a run is not counted.
    assert rondel.metrics(rondel_loop).total == measured.total


def test_lag_and_lateness(rondel_loop: Loop) -> None:
    async def main() -> rondel.Metrics:
        asyncio.get_running_loop().call_later(0.01, int)
        await asyncio.sleep(0)
        time.sleep(0.2)
        await asyncio.sleep(0.001)
        return rondel.metrics()

    measured = run_on(rondel_loop, main)
    assert measured.lag.longest >= 0.2
    assert measured.lag.quantile(1) == measured.lag.longest
    assert measured.lateness.longest >= 0.15
    assert measured.lag.total >= measured.lag.longest
    # Its bucket is the one that has it between its bounds.
    last = max(index for index, count in enumerate(measured.lag.counts) if count)
    assert measured.lag.longest <= metering.BOUNDS[last]
    assert last == 0 or measured.lag.longest > metering.BOUNDS[last - 1]


def test_waiting_for_the_gil_is_seen(rondel_loop: Loop) -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    async def main() -> rondel.Metrics:
        # Each time the loop comes back from sleeping, the thread has the GIL.
        for _ in range(10):
            await asyncio.sleep(0.002)
        return rondel.metrics()

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        assert run_on(rondel_loop, main).gil > 0.005
    finally:
        stop.set()
        thread.join()


def test_from_another_thread_while_the_loop_waits(rondel_loop: Loop) -> None:
    async def main() -> tuple[rondel.Metrics, rondel.Metrics]:
        def watch() -> tuple[rondel.Metrics, rondel.Metrics]:
            time.sleep(0.05)  # By now, or at some time later, the loop sleeps.
            before = rondel.metrics(rondel_loop)
            time.sleep(0.1)
            return before, rondel.metrics(rondel_loop)

        return await asyncio.to_thread(watch)

    before, after = run_on(rondel_loop, main)
    # The wait that goes on is idle already.
    assert after.idle - before.idle > 0.05


def test_quantiles() -> None:
    empty = metering.Histogram((0,) * 23, 0.0, 0.0)
    assert empty.count == 0
    assert empty.quantile(0.99) == 0.0
    some = metering.Histogram((90, 9, *(0,) * 20, 1), 30.0, 25.0)
    assert some.count == 100
    assert some.quantile(0.5) == metering.BOUNDS[0]
    assert some.quantile(0.99) == metering.BOUNDS[1]
    assert some.quantile(1) == 25.0


def test_errors() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        rondel.metrics()
    with contextlib.closing(asyncio.SelectorEventLoop()) as other:
        with pytest.raises(TypeError, match="only rondel's loops"):
            rondel.metrics(other)
        with pytest.raises(TypeError, match="only rondel's loops"):
            rondel.export_metrics(other)


def test_reading_leaves_nothing_behind(rondel_loop: Loop) -> None:
    def read() -> int:
        for _ in range(200):
            rondel.metrics(rondel_loop)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        read()
        before = read()
        assert read() - before < 5_000
    finally:
        tracemalloc.stop()


async def some_work() -> None:
    for _ in range(5):
        await asyncio.sleep(0.001)
    time.sleep(0.02)


def test_prometheus(rondel_loop: Loop) -> None:
    run_on(rondel_loop, some_work)
    measured = rondel.metrics(rondel_loop)
    with contextlib.closing(rondel.new_event_loop()) as second:
        text = metering.prometheus(
            [({"loop": 'the "first"\n\\'}, measured), ({"loop": "second"}, rondel.metrics(second))]
        )
    families = {family.name: family for family in text_string_to_metric_families(text)}

    def samples(family: str, name: str = "") -> dict[tuple[str, ...], float]:
        # By the values of the labels beside the loop's.
        return {
            tuple(value for key, value in sample.labels.items() if key != "loop"): sample.value
            for sample in families[f"rondel_loop_{family}"].samples
            if sample.name == f"rondel_loop_{name or family}"
            and sample.labels["loop"] == 'the "first"\n\\'
        }

    assert samples("turns", "turns_total") == {(): measured.turns}
    assert families["rondel_loop_turns"].type == "counter"
    assert samples("timers") == {(): measured.timers}
    assert samples("seconds", "seconds_total")["idle",] == measured.idle
    lag = samples("lag_seconds", "lag_seconds_bucket")
    assert lag["+Inf",] == measured.lag.count
    assert list(lag.values()) == sorted(lag.values())
    assert samples("lag_seconds", "lag_seconds_sum") == {(): measured.lag.total}
    assert samples("lag_seconds", "lag_seconds_count") == {(): measured.lag.count}
    assert families["rondel_loop_lag_seconds"].type == "histogram"
    assert len(families["rondel_loop_turns"].samples) == 2
    # Without labels, too.
    assert {family.name for family in text_string_to_metric_families(measured.prometheus())} == {
        *families
    }


@pytest.mark.parametrize("label", ["1st", "a b", "__name__", "größe", "le"])
def test_labels_that_prometheus_does_not_know(rondel_loop: Loop, label: str) -> None:
    with pytest.raises(ValueError, match="label"):
        rondel.metrics(rondel_loop).prometheus(**{label: "x"})


def test_opentelemetry(rondel_loop: Loop) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    try:
        rondel.export_metrics(rondel_loop, provider=provider, attributes={"loop": "main"})
        run_on(rondel_loop, some_work)
        measured = rondel.metrics(rondel_loop)
        told = observed(reader)
        assert told["rondel.loop.turns"] == {(("loop", "main"),): measured.turns}
        assert told["rondel.loop.timers"] == {(("loop", "main"),): 0}
        idle = (("loop", "main"), ("state", "idle"))
        assert told["rondel.loop.time"][idle] == measured.idle
        assert told["rondel.loop.lag.time"] == {(("loop", "main"),): measured.lag.total}
        assert (
            told["rondel.loop.lag.buckets"][("le", "+Inf"), ("loop", "main")] == measured.lag.count
        )
        rondel_loop.close()
        assert not any(observed(reader).values())
    finally:
        provider.shutdown()


def observed(reader: InMemoryMetricReader) -> dict[str, dict[Any, Any]]:
    """Values by the instrument's name and the observation's attributes."""
    data = reader.get_metrics_data()
    found: dict[str, dict[Any, Any]] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            assert scope.scope.name == "rondel"
            for metric in scope.metrics:
                found[metric.name] = {
                    tuple(sorted(point.attributes.items())): point.value
                    for point in metric.data.data_points
                }
    return found
