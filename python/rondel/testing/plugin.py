"""The plugin for pytest: ``@pytest.mark.rondel(seed=range(100))`` on asynchronous tests.

pytest imports this file each time it starts, so it imports nothing of rondel's before a test needs
it.
"""

import inspect
from collections.abc import Generator, Iterable

import pytest

_MARKER = (
    "rondel(seed=None, network=None): run an asynchronous test on a loop of rondel.testing, once "
    "with each seed (a number or several)"
)
#: The parameter by which a test is multiplied; a test may ask for it.
_SEED = "rondel_seed"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tell pytest about ``--rondel-seed``."""
    parser.getgroup("rondel").addoption(
        "--rondel-seed",
        metavar="SEED",
        type=_parse_seeds,
        help="run tests that are marked with rondel with this seed, or those from A to B (A-B)",
    )


def _parse_seeds(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if first and dash else [int(text)]


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest about the marker."""
    config.addinivalue_line("markers", _MARKER)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test for each seed."""
    marker = metafunc.definition.get_closest_marker("rondel")
    if marker is None:
        return
    seeds = _seeds(metafunc.config, marker.kwargs.get("seed"))
    if _SEED not in metafunc.fixturenames:
        metafunc.fixturenames.append(_SEED)
    metafunc.parametrize(_SEED, seeds, ids=_identify)


def _seeds(config: pytest.Config, seed: int | Iterable[int] | None) -> Iterable[int | None]:
    chosen: list[int] | None = config.getoption("rondel_seed")
    if chosen is not None:
        return chosen
    return [seed] if seed is None or isinstance(seed, int) else seed


def _identify(seed: int | None) -> str:
    return "virtual" if seed is None else f"seed{seed}"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a marked test on a loop of its own."""
    marker = pyfuncitem.get_closest_marker("rondel")
    if marker is None:
        return None
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        pytest.fail("@pytest.mark.rondel is for asynchronous tests (async def)", pytrace=False)
    from .running import run

    names = inspect.signature(test).parameters
    values = {name: value for name, value in pyfuncitem.funcargs.items() if name in names}
    options = {**marker.kwargs, "seed": _seed_of(pyfuncitem)}
    run(test(**values), **options)
    return True


def _seed_of(item: pytest.Function) -> int | None:
    seed = item.callspec.params[_SEED]
    assert seed is None or isinstance(seed, int)
    return seed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say of a failure how to repeat it."""
    report = yield
    if report.failed and report.when == "call" and item.get_closest_marker("rondel"):
        assert isinstance(item, pytest.Function)
        seed = _seed_of(item)
        if seed is not None:
            report.sections.append(("rondel: to repeat this", _command(item, seed)))
    return report


def _command(item: pytest.Function, seed: int) -> str:
    others = [part for part in item.callspec.id.split("-") if part != _identify(seed)]
    if not others:
        # Without the parameter any seed can be tried by changing the option.
        node = item.nodeid.removesuffix(f"[{item.callspec.id}]")
        return f"pytest {node} --rondel-seed={seed}"
    return f"pytest '{item.nodeid}' --rondel-seed={seed}"
