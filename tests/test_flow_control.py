"""Flow control of TCP transports: the limits, pause_writing and resume_writing."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support import Recorder, connected, read_exactly, read_to_end, skip_if_asyncio_errs, until

Run = Callable[..., Any]

BIG = 1 << 20


def test_default_limits(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, _):
            assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)

    run(main)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (16384, 65536)),
        ({"high": 1000}, (250, 1000)),
        ({"low": 1000}, (1000, 4000)),
        ({"high": 1000, "low": 10}, (10, 1000)),
        ({"high": 0}, (0, 0)),
        ({"high": 7}, (1, 7)),
        ({"high": 5, "low": 5}, (5, 5)),
        ({"low": 0}, (0, 0)),
    ],
)
def test_limits(run: Run, arguments: dict[str, int], expected: tuple[int, int]) -> None:
    async def main() -> None:
        async with connected() as (transport, _, _):
            transport.set_write_buffer_limits(**arguments)
            assert transport.get_write_buffer_limits() == expected

    run(main)


@pytest.mark.parametrize(("high", "low"), [(5, 6), (10, -1), (-1, None), (-2, -1), (None, -4)])
def test_limits_that_make_no_sense(run: Run, high: int | None, low: int | None) -> None:
    if high is None:
        assert low is not None
        shown_high, shown_low = 4 * low, low
    else:
        shown_high, shown_low = high, high // 4 if low is None else low

    async def main() -> None:
        async with connected() as (transport, _, _):
            with pytest.raises(ValueError) as caught:
                transport.set_write_buffer_limits(high=high, low=low)
            assert str(caught.value) == (
                f"high ({shown_high!r}) must be >= low ({shown_low!r}) must be >= 0"
            )
            assert transport.get_write_buffer_limits() == (16384, 65536)

    run(main)


def test_buffer_size_counts_what_was_not_sent(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, _, peer):
            assert transport.get_write_buffer_size() == 0
            transport.write(bytes(BIG))
            first = transport.get_write_buffer_size()
            assert 0 < first < BIG
            transport.write(bytes(1000))
            assert transport.get_write_buffer_size() == first + 1000
            transport.writelines([bytes(10), bytes(20)])
            # writelines tries to send at once, even when something waits already.
            assert first < transport.get_write_buffer_size() + BIG // 2
            assert transport.get_write_buffer_size() <= first + 1030
            taken = BIG - first
            received = await read_exactly(peer, taken + 100_000)
            assert len(received) == taken + 100_000
            await until(lambda: transport.get_write_buffer_size() < first)
            await read_exactly(peer, BIG + 1030 - len(received))
            assert transport.get_write_buffer_size() == 0

    run(main)


def test_pause_writing_above_the_high_mark_and_resume_at_the_low_one(run: Run) -> None:
    sizes: list[tuple[str, int]] = []

    class Watching(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            sizes.append(("pause", self.transport.get_write_buffer_size()))

        def resume_writing(self) -> None:
            super().resume_writing()
            sizes.append(("resume", self.transport.get_write_buffer_size()))

    async def main() -> None:
        async with connected(Watching(), small=True) as (transport, protocol, peer):
            transport.set_write_buffer_limits(high=100_000, low=20_000)
            sent = 0
            while transport.get_write_buffer_size() == 0:
                transport.write(bytes(10_000))
                sent += 10_000
            while transport.get_write_buffer_size() <= 90_000:
                assert protocol.events == ["made"]
                transport.write(bytes(10_000))
                sent += 10_000
            transport.write(bytes(10_000))
            sent += 10_000
            # Called before write() returned, and only once.
            assert protocol.events == ["made", "pause"]
            transport.write(bytes(10_000))
            sent += 10_000
            assert protocol.events == ["made", "pause"]
            await read_exactly(peer, sent)
            await until(lambda: "resume" in protocol.events)
            assert protocol.events == ["made", "pause", "resume"]
            (_, high), (_, low) = sizes
            assert high > 100_000
            assert low <= 20_000

    run(main)


def test_size_equal_to_the_high_mark_does_not_pause(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, protocol, _):
            transport.set_write_buffer_limits(high=BIG)
            transport.write(bytes(BIG // 2))
            rest = BIG - transport.get_write_buffer_size()
            transport.write(bytes(rest))
            assert transport.get_write_buffer_size() == BIG
            assert protocol.events == ["made"]
            transport.write(b"x")
            assert protocol.events == ["made", "pause"]

    run(main)


def test_lower_limits_pause_at_once(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, protocol, _):
            transport.set_write_buffer_limits(high=2 * BIG)
            transport.write(bytes(BIG))
            assert protocol.events == ["made"]
            transport.set_write_buffer_limits(high=1000)
            assert protocol.events == ["made", "pause"]

    run(main)


def test_limit_of_zero_pauses_whenever_something_waits(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, protocol, peer):
            transport.set_write_buffer_limits(high=0)
            transport.write(b"small")
            assert protocol.events == ["made"]
            transport.write(bytes(BIG))
            assert protocol.events == ["made", "pause"]
            await read_exactly(peer, BIG + 5)
            await until(lambda: "resume" in protocol.events)
            assert transport.get_write_buffer_size() == 0

    run(main)


def test_writelines_pauses_too(run: Run) -> None:
    async def main() -> None:
        skip_if_asyncio_errs(
            asyncio.get_running_loop(), "writelines does not pause", (3, 12), (3, 14)
        )
        async with connected(small=True) as (transport, protocol, peer):
            transport.writelines([bytes(BIG // 4)] * 4)
            assert protocol.events == ["made", "pause"]
            await read_exactly(peer, BIG)
            await until(lambda: "resume" in protocol.events)

    run(main)


def test_write_in_resume_writing(run: Run) -> None:
    class Refilling(Recorder):
        rounds = 5

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.rounds:
                self.rounds -= 1
                self.transport.write(bytes(BIG))
            else:
                asyncio.get_running_loop().call_soon(self.transport.close)

    async def main() -> None:
        async with connected(Refilling(), small=True) as (transport, protocol, peer):
            transport.write(bytes(BIG))
            assert len(await read_to_end(peer)) == 6 * BIG
            await until(lambda: protocol.lost)
            assert protocol.events == ["made"] + ["pause", "resume"] * 6 + ["lost"]

    run(main)


def test_close_in_resume_writing(run: Run) -> None:
    class Closing(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.close()

    async def main() -> None:
        skip_if_asyncio_errs(
            asyncio.get_running_loop(), "the connection is lost twice", until=(3, 14, 10)
        )
        async with connected(Closing(), small=True) as (transport, protocol, peer):
            transport.write(bytes(BIG))
            assert len(await read_to_end(peer)) == BIG
            await until(lambda: protocol.lost)
            await asyncio.sleep(0)
            assert protocol.events == ["made", "pause", "resume", "lost"]

    run(main)


def test_set_protocol_while_paused_resumes_the_new_one(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, first, peer):
            transport.write(bytes(BIG))
            assert first.events == ["made", "pause"]
            second = Recorder()
            transport.set_protocol(second)
            await read_exactly(peer, BIG)
            await until(lambda: second.events)
            assert first.events == ["made", "pause"]
            assert second.events == ["resume"]

    run(main)
