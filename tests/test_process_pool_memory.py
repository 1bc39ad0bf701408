"""rondel.ProcessPool: large arguments and results, and the memory that they share."""

import array
import gc
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy
import process_calls as calls
import pytest
import rondel
from pools import LIMIT, PROCESS_MARKS

pytestmark = PROCESS_MARKS


@pytest.fixture(scope="module")
def pool() -> Iterator[rondel.ProcessPool]:
    """A pool of one that all tests of this file share."""
    with rondel.ProcessPool(1) as pool:
        yield pool


@pytest.fixture(autouse=True)
def no_block_left(pool: rondel.ProcessPool) -> Iterator[None]:
    """No test leaves a block of shared memory in use, here or in the worker."""
    yield
    pool.submit(calls.forget_kept).result(LIMIT)
    deadline = time.monotonic() + LIMIT
    while pool._native.blocks:
        assert time.monotonic() < deadline
        gc.collect()
        # The worker tells with its next answer what it has done with.
        pool.submit(calls.echo).result(LIMIT)


@pytest.mark.parametrize("size", [0, 1, 900, 1000, 5_000, 65_535, 65_536, 1_000_000, 20_000_000])
def test_bytes(pool: rondel.ProcessPool, size: int) -> None:
    data = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    data = data[:size]
    assert pool.submit(calls.echo, data).result(LIMIT) == data
    assert pool.submit(calls.echo, bytearray(data)).result(LIMIT) == bytearray(data)
    assert pool.submit(calls.echo, [data, "é" * size, {data}]).result(LIMIT) == [
        data,
        "é" * size,
        {data},
    ]


def test_large_bytes_are_in_huge_pages() -> None:
    switch = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.exists() or "[never]" in switch.read_text():
        pytest.skip("this system has no huge pages")
    with rondel.ProcessPool(1) as pool:
        assert pool.submit(calls.memory_in_huge_pages).result(LIMIT) < 16 << 10
        # As far as the system has some at hand.
        large = [bytes(32 << 20)] * 5
        found = [pool.submit(calls.memory_in_huge_pages, data).result(LIMIT) for data in large]
        assert max(found) >= 16 << 10


def test_a_large_result(pool: rondel.ProcessPool) -> None:
    for _ in range(3):
        assert pool.submit(calls.blank, 3_000_000).result(LIMIT) == b"\x07" * 3_000_000


@pytest.mark.parametrize("count", [0, 10, 2_000, 2_100, 1_000_000])
def test_arrays(pool: rondel.ProcessPool, count: int) -> None:
    numbers = numpy.arange(count, dtype="f8")
    result = pool.submit(calls.echo, numbers).result(LIMIT)
    assert (result == numbers).all() and result.dtype == numbers.dtype
    # A copy of one's own, as from any process pool.
    assert result.flags.writeable
    result += 1
    assert (numbers == numpy.arange(count)).all()
    assert pool.submit(calls.total, numbers).result(LIMIT) == numbers.sum()


def test_the_worker_may_write_to_its_argument(pool: rondel.ProcessPool) -> None:
    numbers = numpy.zeros((100, 1000))
    pool.submit(calls.add_one, numbers).result(LIMIT)
    assert (numbers == 0).all()
    assert pool.submit(calls.flags, numbers).result(LIMIT) == (True, False)
    numbers.flags.writeable = False
    assert pool.submit(calls.flags, numbers).result(LIMIT) == (False, False)


def test_layouts(pool: rondel.ProcessPool) -> None:
    square = numpy.arange(90_000.0).reshape(300, 300)
    fortran = numpy.asfortranarray(square)
    assert pool.submit(calls.flags, fortran).result(LIMIT) == (True, True)
    for odd in (fortran, square[::2, ::3], square.T, square[10:200]):
        assert (pool.submit(calls.echo, odd).result(LIMIT) == odd).all()
    several = {"a": square, "b": [fortran, b"x" * 100_000, square]}
    result = pool.submit(calls.echo, several).result(LIMIT)
    assert (result["a"] == square).all() and (result["b"][0] == square).all()
    assert result["b"][2] is result["a"]
    typed = array.array("d", range(100_000))
    assert pool.submit(calls.echo, typed).result(LIMIT) == typed


def test_an_array_that_the_worker_keeps(pool: rondel.ProcessPool) -> None:
    for value in (1.0, 2.0, 3.0):
        pool.submit(calls.keep, numpy.full(100_000, value)).result(LIMIT)
    # Others come and go; what is kept stays what it was.
    for _ in range(5):
        assert pool.submit(calls.total, numpy.full(100_000, 9.0)).result(LIMIT) == 900_000
    assert pool.submit(calls.total_of_kept).result(LIMIT) == 600_000


def test_results_that_the_parent_keeps(pool: rondel.ProcessPool) -> None:
    kept = [pool.submit(calls.ones, 50_000).result(LIMIT) for _ in range(100)]
    for number, result in enumerate(kept):
        result *= number
    assert [float(result.sum()) for result in kept] == [50_000.0 * i for i in range(100)]
    # On to the next call, without a copy.
    assert pool.submit(calls.total, kept[3]).result(LIMIT) == 150_000
    assert pool.submit(calls.total, kept[3][:100]).result(LIMIT) == 300


def test_a_result_outlives_its_worker_and_its_pool() -> None:
    with rondel.ProcessPool(1) as pool:
        first = pool.submit(calls.ones, 200_000).result(LIMIT)
        with pytest.raises(rondel.WorkerDied):
            pool.submit(calls.exit_by, "kill").result(LIMIT)
        second = [pool.submit(calls.ones, 200_000).result(LIMIT) for _ in range(3)]
        first += 1
        assert all((result == 1).all() for result in second)
        assert pool.submit(calls.total, first).result(LIMIT) == 400_000
    del pool
    gc.collect()
    assert float(first.sum()) == 400_000


def test_share(pool: rondel.ProcessPool) -> None:
    numbers = numpy.arange(100_000.0)
    shared = pool.share(numbers)
    assert (shared == numbers).all() and shared is not numbers
    assert pool.share(shared) is shared
    pool.submit(calls.add_one, shared).result(LIMIT)
    assert (shared == numbers + 1).all()
    pool.submit(calls.add_one, shared[50_000:]).result(LIMIT)
    assert (shared[:50_000] == numbers[:50_000] + 1).all()
    assert (shared[50_000:] == numbers[50_000:] + 2).all()
    # What comes back is the same memory, too.
    back = pool.submit(calls.echo, shared).result(LIMIT)
    back[0] = -7
    assert shared[0] == -7
    for wrong in (5, "text", b"x" * 100_000, numpy.zeros(10)):
        with pytest.raises(TypeError):
            pool.share(wrong)


def test_buffer(pool: rondel.ProcessPool) -> None:
    buffer = pool.buffer(800_000)
    assert len(buffer) == 800_000 and not memoryview(buffer).readonly
    numbers = numpy.frombuffer(buffer, dtype="f8")
    numbers[:] = 2
    pool.submit(calls.add_one, numbers).result(LIMIT)
    assert (numbers == 3).all()


def test_shared_memory_survives_a_death(pool: rondel.ProcessPool) -> None:
    shared = pool.share(numpy.ones(100_000))
    pool.submit(calls.keep, shared).result(LIMIT)
    with pytest.raises(rondel.WorkerDied):
        pool.submit(calls.exit_by, "kill").result(LIMIT)
    assert pool.submit(calls.total, shared).result(LIMIT) == 100_000


def test_memory_is_used_again(pool: rondel.ProcessPool) -> None:
    numbers = numpy.ones(1_000_000)
    call: Callable[[], float] = lambda: pool.submit(calls.total, numbers).result(LIMIT)  # noqa: E731
    call()
    before = shared_memory()
    for _ in range(50):
        assert call() == 1_000_000
        assert len(pool.submit(calls.blank, 1_000_000).result(LIMIT)) == 1_000_000
    # 50 blocks of 8 MB would be 400 MB.
    assert shared_memory() - before < 100_000


def shared_memory() -> int:
    """How much memory of pools this process has touched, in KiB."""
    total = 0
    ours = False
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if "-" in line.split(" ", 1)[0]:
                ours = "memfd:rondel-pool" in line
            elif ours and line.startswith("Rss:"):
                total += int(line.split()[1])
    return total
