//! Stacks of Rust without frame pointers: closures, trait objects, iterators, the library's sort, panics that are caught.
//!
//! The protocol of `victim.h`, and the truth of `stacks.h`.

use std::fmt::Write as _;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, BufRead as _, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

type Step = extern "C" fn(*mut u8, *mut Walk) -> i32;

unsafe extern "C" {
    fn _Unwind_Backtrace(step: Step, walk: *mut Walk) -> i32;
    fn _Unwind_GetIP(context: *mut u8) -> usize;
}

#[repr(C)]
struct Walk {
    frames: [usize; 160],
    len: usize,
}

extern "C" fn step(context: *mut u8, walk: *mut Walk) -> i32 {
    // SAFETY: what `_Unwind_Backtrace` was called with.
    let walk = unsafe { &mut *walk };
    if walk.len < walk.frames.len() {
        // SAFETY: the unwinder's own context.
        walk.frames[walk.len] = unsafe { _Unwind_GetIP(context) };
        walk.len += 1;
    }
    0
}

static TAKEN: AtomicU64 = AtomicU64::new(0);
static TEXT: Mutex<String> = Mutex::new(String::new());
static STATE: AtomicU64 = AtomicU64::new(88_172_645_463_325_252);

fn random() -> u64 {
    let mut state = STATE.load(Ordering::Relaxed);
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    STATE.store(state, Ordering::Relaxed);
    state >> 11
}

/// Writes down the stack of the function that calls this one, without this function and that one.
#[inline(never)]
fn note(size: u64) {
    let mut walk = Walk { frames: [0; 160], len: 0 };
    // SAFETY: `step` gets this walk, and nothing else looks at it meanwhile.
    unsafe { _Unwind_Backtrace(step, &mut walk) };
    let mut text = TEXT.lock().unwrap();
    write!(text, "{size}").unwrap();
    for ip in walk.frames[2..walk.len].iter().filter(|ip| **ip != 0) {
        write!(text, " {ip:x}").unwrap();
    }
    text.push('\n');
}

#[inline(never)]
fn take() {
    let size = TAKEN.fetch_add(1, Ordering::Relaxed) + 1;
    let layout = std::alloc::Layout::from_size_align(size as usize, 1).unwrap();
    // SAFETY: the layout is not empty.
    black_box(unsafe { std::alloc::alloc(layout) });
    note(size);
    black_box(size);
}

trait Shape {
    fn visit(&self, depth: u64);
}
struct Small;
struct Large([u64; 40]);
impl Shape for Small {
    #[inline(never)]
    fn visit(&self, depth: u64) {
        go(depth);
        black_box(self);
    }
}
impl Shape for Large {
    #[inline(never)]
    fn visit(&self, depth: u64) {
        let copy = black_box(self.0);
        go(depth);
        black_box(copy);
    }
}

#[inline(never)]
fn by_trait(depth: u64) {
    let shape: &dyn Shape = if depth & 1 == 0 { &Small } else { &Large([3; 40]) };
    black_box(shape).visit(depth);
    black_box(depth);
}

#[inline(never)]
fn by_closure(depth: u64) {
    let captured = [depth; 7];
    let closure: &dyn Fn() = &|| {
        go(captured[3]);
        black_box(captured);
    };
    black_box(closure)();
    black_box(captured);
}

#[inline(never)]
fn by_iterator(depth: u64) {
    let sum: u64 = (0..3)
        .map(|number| {
            if number == 1 {
                go(depth);
            }
            black_box(number)
        })
        .sum();
    black_box(sum);
}

#[inline(never)]
fn by_sort(depth: u64) {
    let mut numbers = [9, 4, 7, 1, 3];
    let mut first = true;
    numbers.sort_by(|a: &u64, b| {
        if std::mem::take(&mut first) {
            go(depth);
        }
        a.cmp(b)
    });
    black_box(numbers);
}

#[inline(never)]
fn generic<Number: Copy, const ROOM: usize>(number: Number, depth: u64) {
    let room = black_box([number; ROOM]);
    go(depth);
    black_box(room);
}

#[inline(never)]
fn by_generic(depth: u64) {
    if depth & 1 == 0 { generic::<u8, 300>(1, depth) } else { generic::<u64, 3>(2, depth) }
    black_box(depth);
}

struct Taker(u64);
impl Drop for Taker {
    #[inline(never)]
    fn drop(&mut self) {
        go(self.0);
        black_box(self);
    }
}

/// In a destructor, while a panic passes.
#[inline(never)]
fn in_passing(depth: u64) {
    let caught = panic::catch_unwind(AssertUnwindSafe(|| {
        let taker = Taker(depth);
        if black_box(depth) > 0 {
            panic::resume_unwind(Box::new(1_u8));
        }
        drop(taker);
    }));
    black_box(caught.is_err());
}

#[inline(never)]
fn go(depth: u64) {
    const WAYS: [fn(u64); 6] = [by_trait, by_closure, by_iterator, by_sort, by_generic, in_passing];
    if depth <= 1 {
        take();
    } else {
        WAYS[(random() % 6) as usize](depth - 1);
    }
    black_box(depth);
}

fn say(text: &str) {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).unwrap();
    output.flush().unwrap();
}

fn main() {
    TEXT.lock().unwrap().reserve(32 << 20);
    note(0);
    TEXT.lock().unwrap().clear();
    say(&format!("ready {}\n", std::process::id()));
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        if line == "quit" {
            return;
        }
        let mut words = line.splitn(3, ' ');
        assert_eq!(words.next(), Some("stacks"));
        let count: u64 = words.next().unwrap().parse().unwrap();
        for _ in 0..count {
            go(1 + random() % 14);
        }
        File::create(words.next().unwrap()).unwrap().write_all(TEXT.lock().unwrap().as_bytes()).unwrap();
        TEXT.lock().unwrap().clear();
        say(&format!("truth - blocks={count}\ndone\n"));
    }
}
