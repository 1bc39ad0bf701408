"""Ways to choose rondel's loop: rondel.run, a loop factory, install, the policy."""

import asyncio
import contextvars
import inspect
import subprocess
import sys
import warnings
from typing import Any

import pytest
from support import in_thread

pytestmark = [
    # Policies and the loop that get_event_loop makes are deprecated on some of the Pythons.
    pytest.mark.filterwarnings("ignore:.*olicy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is no current event loop:DeprecationWarning"),
]


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


# --- new_event_loop and Loop -------------------------------------------------------------------


def test_new_event_loop_makes_a_new_loop_each_time(rondel: Any) -> None:
    first, second = rondel.new_event_loop(), rondel.new_event_loop()
    try:
        assert first is not second
        assert type(first) is type(second) is rondel.Loop
        assert isinstance(first, asyncio.AbstractEventLoop)
        # It is nobody's current loop.
        assert asyncio.events._get_running_loop() is None
    finally:
        first.close()
        second.close()


def test_every_public_name_has_a_docstring(rondel: Any) -> None:
    for name in rondel.__all__:
        if not name.startswith("__"):
            assert inspect.getdoc(getattr(rondel, name)), name


def test_loop_has_every_method_of_asyncios_loop(rondel: Any) -> None:
    public = {name for name in dir(asyncio.SelectorEventLoop) if not name.startswith("_")}
    assert public - set(dir(rondel.Loop)) == set()


#: Signatures that asyncio's own loop has differently, with reasons.
OTHER_SIGNATURES = {
    "subprocess_exec": "comes with subprocesses",
    "subprocess_shell": "comes with subprocesses",
}


def test_methods_take_the_arguments_of_asyncios(rondel: Any) -> None:
    """Every keyword that asyncio's method names is taken by ours."""
    lacking = []
    for name in sorted(vars(asyncio.AbstractEventLoop)):
        theirs = getattr(asyncio.SelectorEventLoop, name, None)
        ours = getattr(rondel.Loop, name, None)
        if name.startswith("_") or name in OTHER_SIGNATURES or not inspect.isfunction(theirs):
            continue
        try:
            taken = inspect.signature(ours).parameters  # type: ignore[arg-type]
        except ValueError:
            continue
        if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            continue
        for parameter in inspect.signature(theirs).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in taken:
                lacking.append(f"{name}({parameter.name}=)")
    assert lacking == []


# --- run ---------------------------------------------------------------------------------------


def test_run_returns_the_result_and_closes_the_loop(rondel: Any) -> None:
    loop = rondel.run(running_loop())
    assert type(loop) is rondel.Loop
    assert loop.is_closed()


def test_run_raises_the_exception(rondel: Any) -> None:
    async def main() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        rondel.run(main())


@pytest.mark.parametrize("debug", [True, False, None])
def test_run_debug(rondel: Any, debug: bool | None) -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert rondel.run(main(), debug=debug) is bool(debug)


def test_run_cancels_what_is_left_and_shuts_generators_and_threads_down(rondel: Any) -> None:
    seen: list[str] = []

    async def left() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("task cancelled")

    async def numbers() -> Any:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            seen.append("generator closed")

    async def main() -> None:
        tasks.append(asyncio.create_task(left()))
        generators.append(numbers())
        await anext(generators[0])
        await asyncio.to_thread(int)

    tasks: list[Any] = []
    generators: list[Any] = []
    rondel.run(main())
    assert seen == ["task cancelled", "generator closed"]


def test_run_inside_a_running_loop_is_refused(rondel: Any) -> None:
    async def main() -> None:
        coro = running_loop()
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
            rondel.run(coro)
        coro.close()

    rondel.run(main())


def test_run_refuses_what_is_no_coroutine(rondel: Any) -> None:
    kind = TypeError if sys.version_info >= (3, 14) else ValueError
    try:
        asyncio.run(42)  # type: ignore[arg-type]
    except Exception as exc:
        expected = str(exc)
    with pytest.raises(kind) as caught:
        rondel.run(42)
    assert str(caught.value) == expected


def test_run_leaves_no_current_loop_behind(rondel: Any) -> None:
    mine = asyncio.new_event_loop()
    asyncio.set_event_loop(mine)
    try:
        rondel.run(running_loop())
        assert asyncio.get_event_loop() is mine
    finally:
        asyncio.set_event_loop(None)
        mine.close()


# --- loop factories ----------------------------------------------------------------------------


def test_runner_with_the_loop_factory(rondel: Any) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")

    async def set_it() -> None:
        var.set("set")

    async def get_it() -> str:
        return var.get()

    with asyncio.Runner(loop_factory=rondel.new_event_loop) as runner:
        assert type(runner.get_loop()) is rondel.Loop
        assert runner.run(running_loop()) is runner.get_loop()
        # The runs share one context.
        runner.run(set_it())
        assert runner.run(get_it()) == "set"
        loop = runner.get_loop()
    assert loop.is_closed()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the argument is new in 3.12")
def test_asyncio_run_with_the_loop_factory(rondel: Any) -> None:
    loop = asyncio.run(running_loop(), loop_factory=rondel.new_event_loop)  # type: ignore[call-arg]
    assert type(loop) is rondel.Loop
    loop = asyncio.run(running_loop(), loop_factory=rondel.Loop)  # type: ignore[call-arg]
    assert type(loop) is rondel.Loop


def test_isolated_asyncio_test_case(rondel: Any) -> None:
    import unittest

    seen: list[Any] = []

    class Case(unittest.IsolatedAsyncioTestCase):
        if sys.version_info >= (3, 13):
            loop_factory = rondel.Loop

        async def asyncSetUp(self) -> None:
            seen.append("set up")

        async def test_it(self) -> None:
            await asyncio.sleep(0)
            seen.append(type(asyncio.get_running_loop()))

    rondel.install()
    try:
        result = unittest.TestResult()
        Case("test_it").run(result)
    finally:
        rondel.uninstall()
    assert result.errors == result.failures == []
    assert seen == ["set up", rondel.Loop]


# --- install -----------------------------------------------------------------------------------


def test_install_makes_asyncio_use_rondel(rondel: Any) -> None:
    rondel.install()
    try:
        made = asyncio.new_event_loop()
        assert type(made) is rondel.Loop
        made.close()
        assert type(asyncio.run(running_loop())) is rondel.Loop
        with asyncio.Runner() as runner:
            assert type(runner.get_loop()) is rondel.Loop
    finally:
        rondel.uninstall()


def test_install_and_get_event_loop(rondel: Any) -> None:
    """The last lines of many a program: it gets a loop without making one."""
    rondel.install()
    try:
        loop = asyncio.get_event_loop()
        try:
            assert type(loop) is rondel.Loop
            assert asyncio.get_event_loop() is loop
            assert loop.run_until_complete(running_loop()) is loop
        finally:
            loop.close()
    finally:
        rondel.uninstall()


def test_install_and_get_event_loop_in_another_thread(rondel: Any) -> None:
    rondel.install()

    def body() -> None:
        with pytest.raises(RuntimeError, match=r"^There is no current event loop in thread '"):
            asyncio.get_event_loop()
        assert type(asyncio.run(running_loop())) is rondel.Loop

    try:
        with in_thread(body):
            pass
    finally:
        rondel.uninstall()


def test_install_respects_a_loop_that_was_set(rondel: Any) -> None:
    rondel.install()
    mine = asyncio.SelectorEventLoop()
    try:
        asyncio.set_event_loop(mine)
        assert asyncio.get_event_loop() is mine
        asyncio.set_event_loop(None)
        with pytest.raises(RuntimeError, match=r"^There is no current event loop in thread '"):
            asyncio.get_event_loop()
    finally:
        mine.close()
        rondel.uninstall()


def test_uninstall_puts_everything_back(rondel: Any) -> None:
    before = asyncio.get_event_loop_policy()
    rondel.install()
    rondel.install()
    assert asyncio.get_event_loop_policy() is not before
    rondel.uninstall()
    assert asyncio.get_event_loop_policy() is before
    rondel.uninstall()
    assert asyncio.get_event_loop_policy() is before
    made = asyncio.new_event_loop()
    assert type(made).__module__.startswith("asyncio.")
    made.close()
    assert type(asyncio.run(running_loop())).__module__.startswith("asyncio.")


def test_uninstall_leaves_a_policy_of_the_program_alone(rondel: Any) -> None:
    rondel.install()
    mine = rondel.EventLoopPolicy()
    asyncio.set_event_loop_policy(mine)
    rondel.uninstall()
    assert asyncio.get_event_loop_policy() is mine


def test_install_over_a_policy_of_the_program_and_back(rondel: Any) -> None:
    class Mine(type(asyncio.get_event_loop_policy())):  # type: ignore[misc]
        pass

    mine = Mine()
    asyncio.set_event_loop_policy(mine)
    rondel.install()
    assert asyncio.get_event_loop_policy() is not mine
    made = asyncio.new_event_loop()
    assert type(made) is rondel.Loop
    made.close()
    rondel.uninstall()
    assert asyncio.get_event_loop_policy() is mine


def test_importing_rondel_changes_nothing(rondel: Any) -> None:
    code = (
        "import asyncio, rondel\n"
        "loop = asyncio.new_event_loop()\n"
        "assert type(loop).__module__.startswith('asyncio.'), loop\n"
        "loop.close()\n"
        "assert asyncio.open_connection.__module__ == 'asyncio.streams'\n"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code], timeout=20, check=True, capture_output=True
    )


def test_install_and_use_do_not_warn(rondel: Any) -> None:
    code = (
        "import asyncio, rondel\n"
        "rondel.install()\n"
        "asyncio.run(asyncio.sleep(0))\n"
        "rondel.uninstall()\n"
        "rondel.run(asyncio.sleep(0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code],
        timeout=20,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""


# --- the policy --------------------------------------------------------------------------------


def test_policy(rondel: Any) -> None:
    policy = rondel.EventLoopPolicy()
    base = asyncio.events._event_loop_policy  # type: ignore[attr-defined]
    assert base is None or base is not policy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert isinstance(policy, asyncio.AbstractEventLoopPolicy)
        assert isinstance(policy, asyncio.DefaultEventLoopPolicy)
    asyncio.set_event_loop_policy(policy)
    made = asyncio.new_event_loop()
    assert type(made) is rondel.Loop
    made.close()
    assert type(asyncio.run(running_loop())) is rondel.Loop


def test_policy_and_get_event_loop(rondel: Any) -> None:
    asyncio.set_event_loop_policy(rondel.EventLoopPolicy())
    if sys.version_info >= (3, 14):
        # As with asyncio's own default policy.
        with pytest.raises(RuntimeError, match=r"^There is no current event loop in thread '"):
            asyncio.get_event_loop()
        return
    loop = asyncio.get_event_loop()
    try:
        assert type(loop) is rondel.Loop
        assert loop.run_until_complete(running_loop()) is loop
    finally:
        loop.close()
