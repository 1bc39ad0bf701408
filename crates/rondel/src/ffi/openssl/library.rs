//! OpenSSL's functions in the very library that `_ssl` is linked with.

use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// `SSL`
#[repr(C)]
pub struct Ssl {
    _opaque: [u8; 0],
}

/// `BIO`
#[repr(C)]
pub struct Bio {
    _opaque: [u8; 0],
}

/// `BIO_METHOD`
#[repr(C)]
pub struct BioMethod {
    _opaque: [u8; 0],
}

pub type BioRead = unsafe extern "C" fn(*mut Bio, *mut c_char, c_int) -> c_int;
pub type BioWrite = unsafe extern "C" fn(*mut Bio, *const c_char, c_int) -> c_int;
pub type BioControl = unsafe extern "C" fn(*mut Bio, c_int, c_long, *mut c_void) -> c_long;
pub type BioDestroy = unsafe extern "C" fn(*mut Bio) -> c_int;

macro_rules! library {
    ($($field:ident = $symbol:literal: $signature:ty;)*) => {
        /// The functions by name, with the signatures of OpenSSL 1.1.1 to 3.
        pub struct Library {
            $(pub $field: $signature,)*
        }

        impl Library {
            /// None unless the library has them all.
            ///
            /// # Safety
            /// `handle` is dlopen()'s for a library whose functions of these names are OpenSSL's.
            unsafe fn from_handle(handle: *mut c_void) -> Option<Self> {
                Some(Library {
                    $($field: {
                        // SAFETY: the name is a C string, the handle one of dlopen()'s.
                        let address = unsafe { libc::dlsym(handle, $symbol.as_ptr()) };
                        if address.is_null() {
                            return None;
                        }
                        // SAFETY: by this function's contract the address is that of a function,
                        // and the signature in the list below is that of OpenSSL's manual.
                        unsafe { std::mem::transmute::<*mut c_void, $signature>(address) }
                    },)*
                })
            }
        }
    };
}

library! {
    version = c"OpenSSL_version_num": unsafe extern "C" fn() -> c_ulong;
    ssl_read = c"SSL_read": unsafe extern "C" fn(*mut Ssl, *mut c_void, c_int) -> c_int;
    ssl_write = c"SSL_write": unsafe extern "C" fn(*mut Ssl, *const c_void, c_int) -> c_int;
    ssl_pending = c"SSL_pending": unsafe extern "C" fn(*const Ssl) -> c_int;
    ssl_get_error = c"SSL_get_error": unsafe extern "C" fn(*const Ssl, c_int) -> c_int;
    ssl_get_ex_data = c"SSL_get_ex_data": unsafe extern "C" fn(*const Ssl, c_int) -> *mut c_void;
    ssl_get_context = c"SSL_get_SSL_CTX": unsafe extern "C" fn(*const Ssl) -> *mut c_void;
    ssl_set_bio = c"SSL_set_bio": unsafe extern "C" fn(*mut Ssl, *mut Bio, *mut Bio);
    bio_new_index = c"BIO_get_new_index": unsafe extern "C" fn() -> c_int;
    bio_method_new =
        c"BIO_meth_new": unsafe extern "C" fn(c_int, *const c_char) -> *mut BioMethod;
    bio_method_read = c"BIO_meth_set_read": unsafe extern "C" fn(*mut BioMethod, BioRead) -> c_int;
    bio_method_write =
        c"BIO_meth_set_write": unsafe extern "C" fn(*mut BioMethod, BioWrite) -> c_int;
    bio_method_control =
        c"BIO_meth_set_ctrl": unsafe extern "C" fn(*mut BioMethod, BioControl) -> c_int;
    bio_method_destroy =
        c"BIO_meth_set_destroy": unsafe extern "C" fn(*mut BioMethod, BioDestroy) -> c_int;
    bio_new = c"BIO_new": unsafe extern "C" fn(*const BioMethod) -> *mut Bio;
    bio_set_data = c"BIO_set_data": unsafe extern "C" fn(*mut Bio, *mut c_void);
    bio_get_data = c"BIO_get_data": unsafe extern "C" fn(*mut Bio) -> *mut c_void;
    bio_set_init = c"BIO_set_init": unsafe extern "C" fn(*mut Bio, c_int);
    bio_set_flags = c"BIO_set_flags": unsafe extern "C" fn(*mut Bio, c_int);
    bio_clear_flags = c"BIO_clear_flags": unsafe extern "C" fn(*mut Bio, c_int);
}

/// The oldest OpenSSL that has all of this (1.1.1).
const OLDEST: c_ulong = 0x1010_1000;
/// The first that may differ from what is known (4.0).
const UNKNOWN: c_ulong = 0x4000_0000;

/// What [`library`] finds once.
pub struct Found {
    pub library: Library,
    /// Our kind of BIO; never freed.
    pub method: *const BioMethod,
}

// SAFETY: functions, and the address of a table that nothing changes once it is made.
unsafe impl Send for Found {}
// SAFETY: as above.
unsafe impl Sync for Found {}

/// The library that `_ssl` uses; None where it is not shared, or not one that is known.
///
/// # Errors
/// When the ssl module cannot be imported.
pub fn library(py: Python<'_>) -> PyResult<Option<&'static Found>> {
    static FOUND: PyOnceLock<Option<Found>> = PyOnceLock::new();
    FOUND.get_or_try_init(py, || find(py)).map(Option::as_ref)
}

fn find(py: Python<'_>) -> PyResult<Option<Found>> {
    let module = py.import("_ssl")?;
    let text: String = module.getattr("OPENSSL_VERSION")?.extract()?;
    let version: c_ulong = module.getattr("OPENSSL_VERSION_NUMBER")?.extract()?;
    // LibreSSL and AWS-LC have the same names for things that differ.
    if !text.starts_with("OpenSSL ") || !(OLDEST..UNKNOWN).contains(&version) {
        return Ok(None);
    }
    let Some(path) = module.getattr_opt("__file__")? else { return Ok(None) }; // built in
    let path: PathBuf = path.extract()?;
    let Ok(path) = CString::new(path.into_os_string().into_vec()) else { return Ok(None) };
    // SAFETY: RTLD_NOLOAD only finds what is loaded, so no code is run; the path is a C string.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if handle.is_null() {
        return Ok(None);
    }
    // The handle is never closed: the library stays for as long as the process.
    // SAFETY: dlsym() looks in `_ssl` and in what it was linked with, and `_ssl` says that this is
    // OpenSSL of a version in which these functions are what they are here.
    let Some(library) = (unsafe { Library::from_handle(handle) }) else { return Ok(None) };
    // SAFETY: the function has no precondition.
    if unsafe { (library.version)() } != version {
        return Ok(None);
    }
    let Some(method) = super::pipe::method(&library) else { return Ok(None) };
    Ok(Some(Found { library, method }))
}

/// `BIO_TYPE_SOURCE_SINK`
pub const SOURCE_SINK: c_int = 0x0400;
