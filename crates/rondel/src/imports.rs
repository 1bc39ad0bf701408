//! Names of the standard library that are looked up once.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

macro_rules! imported {
    ($($(#[$doc:meta])* $function:ident = $module:literal . $name:literal;)*) => {
        $($(#[$doc])*
        pub fn $function(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
            static CELL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            CELL.get_or_try_init(py, || Ok(py.import($module)?.getattr($name)?.unbind()))
                .map(|object| object.bind(py))
        })*
    };
}

imported! {
    /// `asyncio.Task`
    task_type = "asyncio"."Task";
    /// `asyncio.BufferedProtocol`
    buffered_protocol = "asyncio"."BufferedProtocol";
    /// `asyncio.Handle`
    handle_type = "asyncio"."Handle";
    /// `asyncio.TimerHandle`
    timer_handle_type = "asyncio"."TimerHandle";
    /// `rondel.datagram.AbstractDatagramTransport`
    datagram_transport_type = "rondel.datagram"."AbstractDatagramTransport";
    /// `asyncio.Transport`
    transport_type = "asyncio"."Transport";
    /// `asyncio.SendfileNotAvailableError`
    sendfile_not_available = "asyncio"."SendfileNotAvailableError";
    /// `asyncio.constants._SendfileMode`
    sendfile_mode = "asyncio.constants"."_SendfileMode";
    /// `io.UnsupportedOperation`
    unsupported_operation = "io"."UnsupportedOperation";
    /// `asyncio.ensure_future`
    ensure_future = "asyncio"."ensure_future";
    /// `asyncio.isfuture`
    isfuture = "asyncio"."isfuture";
    /// `asyncio.iscoroutine`
    iscoroutine = "asyncio"."iscoroutine";
    /// `asyncio.base_events._run_until_complete_cb`
    run_until_complete_callback = "asyncio.base_events"."_run_until_complete_cb";
    /// `asyncio._set_running_loop`
    set_running_loop = "asyncio"."_set_running_loop";
    /// `asyncio._get_running_loop`
    get_running_loop = "asyncio"."_get_running_loop";
    /// `asyncio.trsock.TransportSocket`
    transport_socket = "asyncio.trsock"."TransportSocket";
    /// `asyncio.format_helpers._format_callback_source`
    format_callback_source = "asyncio.format_helpers"."_format_callback_source";
    /// `asyncio.format_helpers.extract_stack`
    extract_stack = "asyncio.format_helpers"."extract_stack";
    /// `asyncio.log.logger`
    logger = "asyncio.log"."logger";
    /// `inspect.iscoroutinefunction`
    iscoroutinefunction = "inspect"."iscoroutinefunction";
    /// `socket.socket`
    socket_type = "socket"."socket";
    /// `_socket.socket`, the base class of `socket.socket`
    native_socket_type = "_socket"."socket";
    /// `ssl.SSLSocket`
    ssl_socket = "ssl"."SSLSocket";
    /// `os.strerror`
    strerror = "os"."strerror";
    /// `sys._getframe`
    getframe = "sys"."_getframe";
    /// `sys.get_asyncgen_hooks`
    get_asyncgen_hooks = "sys"."get_asyncgen_hooks";
    /// `sys.set_asyncgen_hooks`
    set_asyncgen_hooks = "sys"."set_asyncgen_hooks";
    /// `sys.get_coroutine_origin_tracking_depth`
    get_origin_depth = "sys"."get_coroutine_origin_tracking_depth";
    /// `sys.set_coroutine_origin_tracking_depth`
    set_origin_depth = "sys"."set_coroutine_origin_tracking_depth";
}
