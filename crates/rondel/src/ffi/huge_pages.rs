//! Huge pages for large objects, in a process whose interpreter is ours: a pool's worker.
//!
//! Large bytes are made anew for each call. In pages of 4 KiB the first touch of that memory costs more
//! than copying into it. NumPy asks for huge pages in the same way, and for arrays from the same size
//! on.

use std::ffi::c_void;
use std::sync::OnceLock;

use pyo3::ffi::{self, PyMemAllocatorDomain::PYMEM_DOMAIN_RAW, PyMemAllocatorEx};
use pyo3::prelude::*;

/// From this size on, in bytes, memory is fresh from the system and worth the system call.
const LARGE: usize = 4 << 20;

const PAGE: usize = 4096;

/// The allocator that was there before.
static BEFORE: OnceLock<Before> = OnceLock::new();

struct Before(PyMemAllocatorEx);

// SAFETY: CPython calls an allocator of this domain from any thread, and it is never changed here.
unsafe impl Send for Before {}
// SAFETY: as above.
unsafe impl Sync for Before {}

/// Asks for huge pages for every large object from now on. For the rest of the process's life.
pub fn advise(_py: Python<'_>) {
    let mut allocator = PyMemAllocatorEx {
        ctx: std::ptr::null_mut(),
        malloc: None,
        calloc: None,
        realloc: None,
        free: None,
    };
    // SAFETY: attached; CPython fills the struct in.
    unsafe { ffi::PyMem_GetAllocator(PYMEM_DOMAIN_RAW, &raw mut allocator) };
    if allocator.malloc.is_none() || BEFORE.set(Before(allocator)).is_err() {
        return;
    }
    allocator.malloc = Some(malloc);
    // SAFETY: attached. What is put in place of the allocator's `malloc` calls it with its own context,
    // needs no GIL, and gives memory that the others of its functions know.
    unsafe { ffi::PyMem_SetAllocator(PYMEM_DOMAIN_RAW, &raw mut allocator) };
}

extern "C" fn malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    let Some(Before(PyMemAllocatorEx { malloc: Some(before), .. })) = BEFORE.get() else {
        return std::ptr::null_mut();
    };
    let memory = before(ctx, size);
    if size >= LARGE && !memory.is_null() {
        let start = memory.addr().next_multiple_of(PAGE);
        let length = (memory.addr() + size - start) / PAGE * PAGE;
        // SAFETY: whole pages within memory that was just given. The advice changes nothing but their
        // size; where it is refused (a kernel without huge pages) they stay small.
        unsafe { libc::madvise(memory.with_addr(start), length, libc::MADV_HUGEPAGE) };
    }
    memory
}
