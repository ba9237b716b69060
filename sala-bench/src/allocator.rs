//! The allocator: jemalloc, told to keep what is freed.
//!
//! A training step allocates and frees the same tensors again and again. The system's allocator gives large ones
//! back to the system, and the next step faults every page of them in anew: on small machines that takes longer
//! than the arithmetic. Kept memory costs the peak of one step, and large pages make it cheap to reach.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Read by jemalloc when the process starts: freed pages are never given back, and large pages are asked for.
#[unsafe(export_name = "_rjem_malloc_conf")]
static OPTIONS: &[u8; 65] = b"dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always,metadata_thp:auto\0";
