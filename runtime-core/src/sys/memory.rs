//! madvise(2) and malloc_trim(3): what a process that has nothing to do gives back.

use std::ffi::{c_int, c_void};
use std::ops::Range;

use rustix::mm::{Advice, madvise};

/// A program that a linker makes has two read-only segments, constants and text, or one.
const SEGMENTS_MAX: usize = 4;

/// How far below itself a running function lets the stack be. The kernel keeps more than this free below a stack that may grow (mmap(2),
/// the stack guard gap), so nothing else can lie there.
const STACK_BELOW: usize = 256 << 10;

/// The read-only segments of the program, by whole pages.
#[derive(Default)]
struct Segments {
    pages: [Range<usize>; SEGMENTS_MAX],
    count: usize,
}

/// Gives back what can be had again: free pages of the heap and of the main thread's stack, and the pages of the program's own file that are
/// mapped only because they were used, or lay beside one that was. The next use of each costs a minor fault; the file stays in the page cache.
///
/// To be called on the main thread, whose stack is the one that the kernel made.
///
/// To be called right before a long wait: whatever runs until then is mapped again.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
    give_back_stack();
    let mut segments = Segments::default();
    // SAFETY: the callback matches the declared type; `segments` outlives the call, and nothing else refers to it meanwhile.
    unsafe {
        libc::dl_iterate_phdr(Some(collect), std::ptr::from_mut(&mut segments).cast());
    }
    // The text comes last, as it lies in the file: less of it runs after that.
    for pages in segments.pages.into_iter().take(segments.count) {
        // SAFETY: a segment that was never writable maps the file: what is dropped here, the kernel reads from there again (madvise(2),
        // MADV_DONTNEED of a private mapping of a file). Pages that are shared with another segment are left out.
        unsafe {
            let _ = madvise(pages.start as *mut c_void, pages.len(), Advice::LinuxDontNeed);
        }
    }
}

/// Everything from two pages below this frame on is dead: it belongs to calls that have returned.
#[inline(never)]
fn give_back_stack() {
    let page = rustix::param::page_size();
    let here = 0u8;
    let end = (std::ptr::from_ref(&here) as usize / page - 1) * page;
    // SAFETY: no frame lies there, nor the red zone of one, and nothing else can (see `STACK_BELOW`). What is not mapped stays so.
    unsafe {
        let _ = madvise((end - STACK_BELOW) as *mut c_void, STACK_BELOW, Advice::LinuxDontNeed);
    }
}

/// Notes the read-only segments of the first object, which is the program itself, and ends the walk.
unsafe extern "C" fn collect(info: *mut libc::dl_phdr_info, _: usize, segments: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr(3) passes a valid description for the time of the call, and the pointer that it was given.
    let (info, segments) = unsafe { (&*info, &mut *segments.cast::<Segments>()) };
    // SAFETY: dl_iterate_phdr(3): an array of that many headers, which are part of the program.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let clean = headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    for (place, header) in segments.pages.iter_mut().zip(clean) {
        *place = whole_pages((info.dlpi_addr + header.p_vaddr) as usize, header.p_memsz as usize, rustix::param::page_size());
        segments.count += 1;
    }
    1
}

/// The pages that lie wholly in `start..start + length`.
fn whole_pages(start: usize, length: usize, page: usize) -> Range<usize> {
    start.next_multiple_of(page)..(start + length) / page * page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_file_pages() -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(2).unwrap().parse().unwrap()
    }

    #[test]
    fn pages_at_the_edges_are_left_alone() {
        assert_eq!(whole_pages(0x1000, 0x2000, 0x1000), 0x1000..0x3000);
        assert_eq!(whole_pages(0x1001, 0x2fff, 0x1000), 0x2000..0x4000);
        assert_eq!(whole_pages(0x1001, 0x1000, 0x1000).len(), 0);
    }

    #[test]
    fn the_program_goes_on_with_fewer_pages() {
        // Enough of the program has been used to be seen: the test harness, the formatter, the allocator.
        let before = resident_file_pages();
        give_back();
        let after = resident_file_pages();
        assert!(after < before, "{before} pages of files before, {after} after");
        assert_eq!(format!("{:?}", vec![1.5, 2.5]), "[1.5, 2.5]");
    }
}
