"""The pytest plugin of rondel.testing, run by pytest's own pytester."""

import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Callable

import pytest

pytest_plugins = ("pytester",)

RACE = """
    import asyncio
    import pytest

    @pytest.mark.rondel(seed=range(20))
    async def test_race():
        order = []
        async def worker(number):
            order.append(number)
        await asyncio.gather(*(worker(number) for number in range(3)))
        assert order[0] == 0, f"started with {order[0]}"
"""


Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs pytest with this plugin; others (anyio's, pytest-timeout) only take time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return functools.partial(pytester.runpytest, "-p", "rondel.testing.plugin")


def test_each_seed_is_a_test_and_a_failure_says_how_to_repeat(
    pytester: pytest.Pytester, run: Run
) -> None:
    pytester.makepyfile(RACE)
    result = run("--strict-markers")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] + outcomes["failed"] == 20
    assert outcomes["passed"] > 1 and outcomes["failed"] > 1
    result.stdout.fnmatch_lines(["*rondel: to repeat this*", "pytest test_*.py::test_race --ron*"])
    text = result.stdout.str()
    commands = re.findall(r"^pytest (.+::test_race --rondel-seed=\d+)$", text, re.MULTILINE)
    assert len(commands) == outcomes["failed"]
    messages = re.findall(r"^E +AssertionError: (started with \d)", text, re.MULTILINE)
    for command, message in zip(commands[:3], messages[:3], strict=True):
        repeated = run(*shlex.split(command))
        repeated.assert_outcomes(failed=1)
        repeated.stdout.fnmatch_lines([f"*{message}*"])


def test_seeds_on_the_command_line(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(RACE)
    result = run("--rondel-seed=100-109", "--collect-only", "-q")
    assert re.findall(r"\[seed(\d+)\]", result.stdout.str()) == [str(n) for n in range(100, 110)]
    result = run("--rondel-seed=x")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_fixtures_parameters_and_the_seed_itself(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile("""
        import asyncio
        import pytest
        from rondel import testing

        made = []

        @pytest.fixture
        def fresh():
            made.append([])
            return made[-1]

        @pytest.mark.parametrize("word", ["a", "b"])
        @pytest.mark.rondel(seed=[3, 4])
        async def test_all(fresh, word, rondel_seed):
            assert fresh == [] and word in "ab" and rondel_seed in (3, 4)
            fresh.append(word)
            loop = asyncio.get_running_loop()
            assert isinstance(loop, testing.Loop) and loop.tape.seed == rondel_seed
            await asyncio.sleep(3600)
            assert word == "a" or rondel_seed == 3

        class TestClass:
            @pytest.mark.rondel
            async def test_virtual_time(self):
                assert asyncio.get_running_loop().tape.seed is None
                await asyncio.sleep(3600)

        @pytest.mark.rondel(seed=1)
        def test_not_asynchronous():
            pass

        def test_ordinary():
            assert len(made) == 4
    """)
    result = run("-v")
    result.assert_outcomes(passed=5, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*::TestClass::test_virtual_time[[]virtual[]] PASSED*",
            "pytest 'test_*.py::test_all[[]*b*[]]' --rondel-seed=4",
            "*is for asynchronous tests*",
        ]
    )
    command = re.search(r"^pytest (.*)", result.stdout.str(), re.MULTILINE)
    assert command is not None
    run(*shlex.split(command[1])).assert_outcomes(failed=1)


def test_the_plugin_is_installed_and_imports_no_loop() -> None:
    """A program that runs pytest without a rondel test pays for no asyncio."""
    program = (
        "import importlib.metadata as m, sys\n"
        "entry, = m.entry_points(group='pytest11', name='rondel')\n"
        "import pytest; before = set(sys.modules)\n"
        "entry.load(); new = set(sys.modules) - before\n"
        "print(sorted(n for n in new if 'asyncio' in n or n.startswith('rondel')))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert eval(done.stdout) == [
        "rondel",
        "rondel._rondel",
        "rondel.testing",
        "rondel.testing.plugin",
    ]
