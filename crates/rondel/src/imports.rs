//! Names of the standard library: most are looked up once, some each time.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

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
    /// `asyncio.BufferedProtocol`
    buffered_protocol = "asyncio"."BufferedProtocol";
    /// `asyncio.Handle`
    handle_type = "asyncio"."Handle";
    /// `asyncio.events._ThreadSafeHandle` (3.14+)
    threadsafe_handle_type = "asyncio.events"."_ThreadSafeHandle";
    /// `asyncio.TimerHandle`
    timer_handle_type = "asyncio"."TimerHandle";
    /// `rondel.datagram.AbstractDatagramTransport`
    datagram_transport_type = "rondel.datagram"."AbstractDatagramTransport";
    /// `asyncio.Transport`
    transport_type = "asyncio"."Transport";
    /// `asyncio.ReadTransport`
    read_transport_type = "asyncio"."ReadTransport";
    /// `asyncio.SendfileNotAvailableError`
    sendfile_not_available = "asyncio"."SendfileNotAvailableError";
    /// `asyncio.constants._SendfileMode`
    sendfile_mode = "asyncio.constants"."_SendfileMode";
    /// `io.UnsupportedOperation`
    unsupported_operation = "io"."UnsupportedOperation";
    /// `rondel.nesting.Aside`
    put_aside = "rondel.nesting"."Aside";
    /// `rondel.nesting.check_room`
    check_room = "rondel.nesting"."check_room";
    /// `rondel.nesting.NestedRun`
    nested_run = "rondel.nesting"."NestedRun";
    /// `asyncio.isfuture`
    isfuture = "asyncio"."isfuture";
    /// `asyncio.iscoroutine`
    iscoroutine = "asyncio"."iscoroutine";
    /// `asyncio.base_events._run_until_complete_cb`
    run_until_complete_callback = "asyncio.base_events"."_run_until_complete_cb";
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
    /// `ssl.MemoryBIO`
    memory_bio = "ssl"."MemoryBIO";
    /// `ssl.SSLObject`
    ssl_object = "ssl"."SSLObject";
    /// `ssl.SSLError`
    ssl_error = "ssl"."SSLError";
    /// `ssl.CertificateError`
    certificate_error = "ssl"."CertificateError";
    /// `ssl.SSLWantReadError`
    ssl_want_read = "ssl"."SSLWantReadError";
    /// `ssl.SSLSyscallError`
    ssl_syscall_error = "ssl"."SSLSyscallError";
    /// `asyncio.StreamReader`, whatever has that name by now
    stream_reader = "rondel.streams"."_StockReader";
    /// `asyncio.StreamWriter`, likewise
    stream_writer = "rondel.streams"."_StockWriter";
    /// `asyncio.StreamReaderProtocol`, likewise
    stream_protocol = "rondel.streams"."_StockProtocol";
    /// `rondel.StreamReader`
    our_stream_reader = "rondel.streams"."StreamReader";
    /// `asyncio.Queue`, whatever has that name by now
    stock_queue = "rondel.sync"."_StockQueue";
    /// `asyncio.Lock`, likewise
    stock_lock = "rondel.sync"."_StockLock";
    /// `asyncio.Event`
    event_type = "asyncio.locks"."Event";
    /// `asyncio.mixins._LoopBoundMixin._get_loop`
    get_bound_loop = "rondel.sync"."_get_bound_loop";
    /// `collections.deque`
    deque = "collections"."deque";
    /// `heapq.heappush`
    heappush = "heapq"."heappush";
    /// `heapq.heappop`
    heappop = "heapq"."heappop";
    /// `asyncio.QueueEmpty`
    queue_empty = "asyncio.queues"."QueueEmpty";
    /// `asyncio.QueueFull`
    queue_full = "asyncio.queues"."QueueFull";
    /// `asyncio.QueueShutDown` (3.13+)
    queue_shut_down = "asyncio.queues"."QueueShutDown";
    /// `asyncio.IncompleteReadError`
    incomplete_read_error = "asyncio.exceptions"."IncompleteReadError";
    /// `asyncio.LimitOverrunError`
    limit_overrun_error = "asyncio.exceptions"."LimitOverrunError";
    /// `asyncio.CancelledError`
    cancelled_error = "asyncio"."CancelledError";
    /// `concurrent.futures.Future`
    concurrent_future = "concurrent.futures"."Future";
    /// `concurrent.futures.thread.BrokenThreadPool`
    broken_thread_pool = "concurrent.futures.thread"."BrokenThreadPool";
    /// `rondel.pools.threads.ThreadPool`
    thread_pool = "rondel.pools.threads"."ThreadPool";
    /// `multiprocessing.reduction.ForkingPickler`
    forking_pickler = "multiprocessing.reduction"."ForkingPickler";
    /// `copyreg.dispatch_table`
    dispatch_table = "copyreg"."dispatch_table";
    /// `pickle.Pickler`
    pickler = "pickle"."Pickler";
    /// `pickle.loads`
    pickle_loads = "pickle"."loads";
    /// `asyncio.futures._convert_future_exc`
    convert_future_exception = "asyncio.futures"."_convert_future_exc";
    /// `asyncio.Protocol`
    protocol_type = "asyncio"."Protocol";
    /// `asyncio.sslproto._SSLProtocolTransport`
    tls_transport_type = "asyncio.sslproto"."_SSLProtocolTransport";
    /// `asyncio.shield`
    shield = "asyncio"."shield";
    /// `asyncio.futures._set_result_unless_cancelled`
    set_unless_cancelled = "asyncio.futures"."_set_result_unless_cancelled";
    /// `rondel.files.refusals.refuse`
    refuse = "rondel.files.refusals"."refuse";
    /// `rondel.http.exceptions.BadHttpMessage`
    bad_http_message = "rondel.http.exceptions"."BadHttpMessage";
    /// `rondel.http.exceptions.ClientConnectionError`
    client_connection_error = "rondel.http.exceptions"."ClientConnectionError";
    /// `rondel.http.exceptions.ClientOSError`
    client_os_error = "rondel.http.exceptions"."ClientOSError";
    /// `rondel.http.exceptions.ClientPayloadError`
    client_payload_error = "rondel.http.exceptions"."ClientPayloadError";
    /// `rondel.http.exceptions.ServerDisconnectedError`
    server_disconnected = "rondel.http.exceptions"."ServerDisconnectedError";
    /// `os.strerror`
    strerror = "os"."strerror";
    /// `sys.getswitchinterval`
    getswitchinterval = "sys"."getswitchinterval";
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

macro_rules! current {
    ($($(#[$doc:meta])* $function:ident = $module:literal . $name:literal;)*) => {
        $($(#[$doc])*
        pub fn $function(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
            static NAMES: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
            let names = NAMES.get_or_try_init(py, || {
                PyResult::Ok(py.import($module)?.dict().unbind())
            })?;
            match names.bind(py).get_item(intern!(py, $name))? {
                Some(object) => Ok(object),
                // Deleted, or provided by a module's __getattr__: as asyncio would find it.
                None => py.import($module)?.getattr($name),
            }
        })*
    };
}

// What asyncio itself looks up at each use, so that suites and programs can put something else there.
current! {
    /// `asyncio.tasks.Task`
    task_type = "asyncio.tasks"."Task";
    /// `asyncio.tasks.ensure_future`
    ensure_future = "asyncio.tasks"."ensure_future";
    /// `socket.socket`, whatever has that name by now
    current_socket_type = "socket"."socket";
    /// `asyncio.futures.Future`
    future_type = "asyncio.futures"."Future";
    /// `asyncio.events._set_running_loop`
    set_running_loop = "asyncio.events"."_set_running_loop";
    /// `asyncio.events._get_running_loop`
    get_running_loop = "asyncio.events"."_get_running_loop";
}
