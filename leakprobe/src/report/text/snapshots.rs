//! What a report looks like, to the letter.

use super::text;
use crate::report::sample;

#[test]
fn everyday() {
    let at = |width| text(&sample::everyday(), width, false);
    insta::assert_snapshot!(at(40), @r"
== report 60: api-server (pid 1298)
   after 5m 00s, 2026-01-12T03:12:04Z ==

api-server (pid 1298), running
  /usr/local/bin/api-server --listen 0.…
  VmSize 1.21 GiB (+64.0 MiB)
  VmRSS 312 MiB (+58.1 MiB)
  VmData 402 MiB (+64.0 MiB)
  threads 12 (+4)
  open files 87 (unchanged)

outstanding: 35.1 MiB in 8,705 blocks;
  +512 KiB since last report,
  +5.99 MiB/min
older than 30s: 32.1 MiB in 7,937 blocks
  at 87 sites (3 shown)

#1  30.0 MiB in 7,680 blocks
    +512 KiB since last report
    +6.00 MiB/min
    27.0 MiB in 6,912 older than 30s:
    oldest 4m 59s, median 2m 32s;
    allocated 7,680, freed 0 [glibc]
      string_copy (inlined)
          src/string.h:31
      leak_in_parser
          src/parse/header.c:142
      handle_request
          src/server/request.c:391
      main  src/main.c:88
      __libc_start_call_main+0x2a
          in …x86_64-linux-gnu/libc.so.6
      _start+0x21
          in /usr/local/bin/api-server

#2  4.10 MiB in 1,024 blocks
    +0 B since last report
    -12.0 KiB/min
    all older than 30s: oldest 58s,
    median 31s; allocated 2,048,
    freed 1,024 [glibc]
      std::_Rb_tree<std…::_M_create_node
          …de/c++/12/bits/stl_tree.h:610
      tree::Node<K, V>::insert(K&&, V&&)
          src/tree.hpp:77
      ... 96 more of the same
      session_cache::fi…(request const&)
          src/cache.cpp:1203
      ... cut here: the stack is deeper
          than the limit of frames

#3  1.00 MiB in 1 range  not growing
    all older than 30s: oldest 42s,
    median 42s; allocated 1, freed 0
    [mmap]
      0x7f1234567890
          in …-gnu/libvendor.so.3+0x1890
          (no symbols: the object is
          stripped, and no debug package
          for it was found)
      0x7f1234569999
          in …-gnu/libvendor.so.3+0x3999
          (as above)
      0x7f12dead0000
          (not in any mapped object)
      ... frames may be missing: the
          walk lost its way, in code
          without call frame information
          or frame pointers

ledger: 10,002 allocations
          = 9,990 recorded + 10 failed
          + 2 in flight
        1,300 frees = 1,285 freed
          + 5 free(NULL)
          + 10 of blocks not recorded
        2,048 recorded with a stack cut
          at the limit of frames
        lost: none
");
    insta::assert_snapshot!(at(80), @r"
    == report 60: api-server (pid 1298) after 5m 00s, 2026-01-12T03:12:04Z =========

    api-server (pid 1298), running
      /usr/local/bin/api-server --listen 0.0.0.0:8080 --motd 'it'\''s up' --workers…
      VmSize 1.21 GiB (+64.0 MiB)  VmRSS 312 MiB (+58.1 MiB)
      VmData 402 MiB (+64.0 MiB)  threads 12 (+4)  open files 87 (unchanged)

    outstanding: 35.1 MiB in 8,705 blocks; +512 KiB since last report, +5.99 MiB/min
    older than 30s: 32.1 MiB in 7,937 blocks at 87 sites (3 shown)

    #1  30.0 MiB in 7,680 blocks  +512 KiB since last report  +6.00 MiB/min
        27.0 MiB in 6,912 older than 30s: oldest 4m 59s, median 2m 32s;
        allocated 7,680, freed 0 [glibc]
          string_copy (inlined)        src/string.h:31
          leak_in_parser               src/parse/header.c:142
          handle_request               src/server/request.c:391
          main                         src/main.c:88
          __libc_start_call_main+0x2a  in /usr/lib/x86_64-linux-gnu/libc.so.6
          _start+0x21                  in /usr/local/bin/api-server

    #2  4.10 MiB in 1,024 blocks  +0 B since last report  -12.0 KiB/min
        all older than 30s: oldest 58s, median 31s; allocated 2,048, freed 1,024
        [glibc]
          std::_Rb_tree<std::__cxx11::basic_str…r> const, session>>>::_M_create_node
              /usr/include/c++/12/bits/stl_tree.h:610
          tree::Node<K, V>::insert(K&&, V&&)   src/tree.hpp:77
          ... 96 more of the same
          session_cache::fill(request const&)  src/cache.cpp:1203
          ... cut here: the stack is deeper than the limit of frames

    #3  1.00 MiB in 1 range  not growing
        all older than 30s: oldest 42s, median 42s; allocated 1, freed 0 [mmap]
          0x7f1234567890  in /usr/lib/x86_64-linux-gnu/libvendor.so.3+0x1890
              (no symbols: the object is stripped, and no debug package for it was
              found)
          0x7f1234569999  in /usr/lib/x86_64-linux-gnu/libvendor.so.3+0x3999
              (as above)
          0x7f12dead0000 (not in any mapped object)
          ... frames may be missing: the walk lost its way, in code without call
              frame information or frame pointers

    ledger: 10,002 allocations = 9,990 recorded + 10 failed + 2 in flight
            1,300 frees = 1,285 freed + 5 free(NULL) + 10 of blocks not recorded
            2,048 recorded with a stack cut at the limit of frames
            lost: none
    ");
    insta::assert_snapshot!(at(120), @r"
    == report 60: api-server (pid 1298) after 5m 00s, 2026-01-12T03:12:04Z =================================================

    api-server (pid 1298), running
      /usr/local/bin/api-server --listen 0.0.0.0:8080 --motd 'it'\''s up' --workers 8
      VmSize 1.21 GiB (+64.0 MiB)  VmRSS 312 MiB (+58.1 MiB)  VmData 402 MiB (+64.0 MiB)  threads 12 (+4)
      open files 87 (unchanged)

    outstanding: 35.1 MiB in 8,705 blocks; +512 KiB since last report, +5.99 MiB/min
    older than 30s: 32.1 MiB in 7,937 blocks at 87 sites (3 shown)

    #1  30.0 MiB in 7,680 blocks  +512 KiB since last report  +6.00 MiB/min
        27.0 MiB in 6,912 older than 30s: oldest 4m 59s, median 2m 32s; allocated 7,680, freed 0 [glibc]
          string_copy (inlined)        src/string.h:31
          leak_in_parser               src/parse/header.c:142
          handle_request               src/server/request.c:391
          main                         src/main.c:88
          __libc_start_call_main+0x2a  in /usr/lib/x86_64-linux-gnu/libc.so.6
          _start+0x21                  in /usr/local/bin/api-server

    #2  4.10 MiB in 1,024 blocks  +0 B since last report  -12.0 KiB/min
        all older than 30s: oldest 58s, median 31s; allocated 2,048, freed 1,024 [glibc]
          std::_Rb_tree<std::__cxx11::basic_string<char>, std::pair…11::basic_string<char> const, session>>>::_M_create_node
              /usr/include/c++/12/bits/stl_tree.h:610
          tree::Node<K, V>::insert(K&&, V&&)   src/tree.hpp:77
          ... 96 more of the same
          session_cache::fill(request const&)  src/cache.cpp:1203
          ... cut here: the stack is deeper than the limit of frames

    #3  1.00 MiB in 1 range  not growing
        all older than 30s: oldest 42s, median 42s; allocated 1, freed 0 [mmap]
          0x7f1234567890  in /usr/lib/x86_64-linux-gnu/libvendor.so.3+0x1890
              (no symbols: the object is stripped, and no debug package for it was found)
          0x7f1234569999  in /usr/lib/x86_64-linux-gnu/libvendor.so.3+0x3999 (as above)
          0x7f12dead0000 (not in any mapped object)
          ... frames may be missing: the walk lost its way, in code without call frame information or frame pointers

    ledger: 10,002 allocations = 9,990 recorded + 10 failed + 2 in flight
            1,300 frees = 1,285 freed + 5 free(NULL) + 10 of blocks not recorded
            2,048 recorded with a stack cut at the limit of frames
            lost: none
    ");
}

#[test]
fn nothing_survived() {
    let at = |width| text(&sample::nothing_survived(), width, false);
    insta::assert_snapshot!(at(40), @r"
== report 1: api-server (pid 1298)
   after 15s, 2026-01-12T03:12:04Z ==

api-server (pid 1298), running
  /usr/local/bin/api-server --listen 0.…
  VmSize 1.21 GiB (+64.0 MiB)
  VmRSS 312 MiB (+58.1 MiB)
  VmData 402 MiB (+64.0 MiB)
  threads 12 (+4)
  open files 87 (unchanged)

outstanding: 35.1 MiB in 8,705 blocks;
  +512 KiB since the start,
  +5.99 MiB/min
older than 7.5s: 0 B in 0 blocks

no block older than 7.5s is outstanding:
nothing has survived so far.

ledger: 10,002 allocations
          = 9,990 recorded + 10 failed
          + 2 in flight
        1,300 frees = 1,285 freed
          + 5 free(NULL)
          + 10 of blocks not recorded
        2,048 recorded with a stack cut
          at the limit of frames
        lost: none
");
    insta::assert_snapshot!(at(80), @r"
== report 1: api-server (pid 1298) after 15s, 2026-01-12T03:12:04Z =============

api-server (pid 1298), running
  /usr/local/bin/api-server --listen 0.0.0.0:8080 --motd 'it'\''s up' --workers…
  VmSize 1.21 GiB (+64.0 MiB)  VmRSS 312 MiB (+58.1 MiB)
  VmData 402 MiB (+64.0 MiB)  threads 12 (+4)  open files 87 (unchanged)

outstanding: 35.1 MiB in 8,705 blocks; +512 KiB since the start, +5.99 MiB/min
older than 7.5s: 0 B in 0 blocks

no block older than 7.5s is outstanding: nothing has survived so far.

ledger: 10,002 allocations = 9,990 recorded + 10 failed + 2 in flight
        1,300 frees = 1,285 freed + 5 free(NULL) + 10 of blocks not recorded
        2,048 recorded with a stack cut at the limit of frames
        lost: none
");
    insta::assert_snapshot!(at(120), @r"
== report 1: api-server (pid 1298) after 15s, 2026-01-12T03:12:04Z =====================================================

api-server (pid 1298), running
  /usr/local/bin/api-server --listen 0.0.0.0:8080 --motd 'it'\''s up' --workers 8
  VmSize 1.21 GiB (+64.0 MiB)  VmRSS 312 MiB (+58.1 MiB)  VmData 402 MiB (+64.0 MiB)  threads 12 (+4)
  open files 87 (unchanged)

outstanding: 35.1 MiB in 8,705 blocks; +512 KiB since the start, +5.99 MiB/min
older than 7.5s: 0 B in 0 blocks

no block older than 7.5s is outstanding: nothing has survived so far.

ledger: 10,002 allocations = 9,990 recorded + 10 failed + 2 in flight
        1,300 frees = 1,285 freed + 5 free(NULL) + 10 of blocks not recorded
        2,048 recorded with a stack cut at the limit of frames
        lost: none
");
}

#[test]
fn idle() {
    insta::assert_snapshot!(text(&sample::idle(), 80, false), @r"
== report 1: api-server (pid 1298) after 15s, 2026-01-12T03:12:04Z =============

api-server (pid 1298), running
  /usr/local/bin/api-server --listen 0.0.0.0:8080 --motd 'it'\''s up' --workers…
  VmSize 1.21 GiB (+64.0 MiB)  VmRSS 312 MiB (+58.1 MiB)
  VmData 402 MiB (+64.0 MiB)  threads 12 (+4)  open files 87 (unchanged)

outstanding: 0 B in 0 blocks; +0 B since the start, +0 B/min
older than 7.5s: 0 B in 0 blocks

no allocation was seen in 15s: nothing has called a probed allocator function.
Is the program idle?

ledger: 0 allocations
        0 frees
        lost: none
");
}

#[test]
fn losses() {
    let at = |width| text(&sample::losses(), width, false);
    insta::assert_snapshot!(at(40), @r"
== final report 61:
   api-server (pid 1298) after 5m 00s,
   2026-01-12T03:12:04Z ==
warning: 812 allocations not recorded:
  the map of outstanding blocks was
  full; raise --max-blocks, or leave out
  small ones with --min-size
warning: 40 blocks recorded without a
  stack: the stack table was full; raise
  --max-stacks
warning: 6 runs of the BPF program
  free_enter skipped by the kernel:
  another one was running on that CPU;
  stop other tracers of this process

api-server (pid 1298), exited: signal 9
  /usr/local/bin/api-server --listen 0.…
  VmSize 1.21 GiB (+64.0 MiB)
  VmRSS unknown
  VmData 402 MiB (+64.0 MiB)
  threads 12 (+4)
  open files 87 (unchanged)

outstanding: 35.1 MiB in 8,705 blocks;
  +512 KiB since last report,
  +5.99 MiB/min
older than 30s: 32.1 MiB in 7,937 blocks
  at 87 sites (1 shown)

#1  30.0 MiB in 7,680 blocks
    +512 KiB since last report
    +6.00 MiB/min
    27.0 MiB in 6,912 older than 30s:
    oldest 4m 59s, median 2m 32s;
    allocated 7,680, freed 0 [glibc]
      no stack was kept: the stack table
      was full; raise --max-stacks

ledger: 10,814 allocations
          = 9,990 recorded + 10 failed
          + 812 lost (block map full)
          + 2 in flight
        1,303 frees = 1,285 freed
          + 5 free(NULL)
          + 10 of blocks not recorded
          (does not balance: 3 too few)
        2,048 recorded with a stack cut
          at the limit of frames
        lost: 812 allocations not
          recorded: the map of
          outstanding blocks was full;
          raise --max-blocks, or leave
          out small ones with --min-size
        lost: 40 blocks recorded without
          a stack: the stack table was
          full; raise --max-stacks
        lost: 6 runs of the BPF program
          free_enter skipped by the
          kernel: another one was
          running on that CPU; stop
          other tracers of this process
");
    insta::assert_snapshot!(at(80), @r"
== final report 61: api-server (pid 1298) after 5m 00s, 2026-01-12T03:12:04Z ===
warning: 812 allocations not recorded: the map of outstanding blocks was full;
  raise --max-blocks, or leave out small ones with --min-size
warning: 40 blocks recorded without a stack: the stack table was full; raise
  --max-stacks
warning: 6 runs of the BPF program free_enter skipped by the kernel: another one
  was running on that CPU; stop other tracers of this process

api-server (pid 1298), exited: signal 9
  /usr/local/bin/api-server --listen 0.0.0.0:8080 --motd 'it'\''s up' --workers…
  VmSize 1.21 GiB (+64.0 MiB)  VmRSS unknown  VmData 402 MiB (+64.0 MiB)
  threads 12 (+4)  open files 87 (unchanged)

outstanding: 35.1 MiB in 8,705 blocks; +512 KiB since last report, +5.99 MiB/min
older than 30s: 32.1 MiB in 7,937 blocks at 87 sites (1 shown)

#1  30.0 MiB in 7,680 blocks  +512 KiB since last report  +6.00 MiB/min
    27.0 MiB in 6,912 older than 30s: oldest 4m 59s, median 2m 32s;
    allocated 7,680, freed 0 [glibc]
      no stack was kept: the stack table was full; raise --max-stacks

ledger: 10,814 allocations = 9,990 recorded + 10 failed
          + 812 lost (block map full) + 2 in flight
        1,303 frees = 1,285 freed + 5 free(NULL) + 10 of blocks not recorded
          (does not balance: 3 too few)
        2,048 recorded with a stack cut at the limit of frames
        lost: 812 allocations not recorded: the map of outstanding blocks was
          full; raise --max-blocks, or leave out small ones with --min-size
        lost: 40 blocks recorded without a stack: the stack table was full;
          raise --max-stacks
        lost: 6 runs of the BPF program free_enter skipped by the kernel:
          another one was running on that CPU; stop other tracers of this
          process
");
    insta::assert_snapshot!(at(120), @r"
== final report 61: api-server (pid 1298) after 5m 00s, 2026-01-12T03:12:04Z ===========================================
warning: 812 allocations not recorded: the map of outstanding blocks was full; raise --max-blocks, or leave out small
  ones with --min-size
warning: 40 blocks recorded without a stack: the stack table was full; raise --max-stacks
warning: 6 runs of the BPF program free_enter skipped by the kernel: another one was running on that CPU; stop other
  tracers of this process

api-server (pid 1298), exited: signal 9
  /usr/local/bin/api-server --listen 0.0.0.0:8080 --motd 'it'\''s up' --workers 8
  VmSize 1.21 GiB (+64.0 MiB)  VmRSS unknown  VmData 402 MiB (+64.0 MiB)  threads 12 (+4)  open files 87 (unchanged)

outstanding: 35.1 MiB in 8,705 blocks; +512 KiB since last report, +5.99 MiB/min
older than 30s: 32.1 MiB in 7,937 blocks at 87 sites (1 shown)

#1  30.0 MiB in 7,680 blocks  +512 KiB since last report  +6.00 MiB/min
    27.0 MiB in 6,912 older than 30s: oldest 4m 59s, median 2m 32s; allocated 7,680, freed 0 [glibc]
      no stack was kept: the stack table was full; raise --max-stacks

ledger: 10,814 allocations = 9,990 recorded + 10 failed + 812 lost (block map full) + 2 in flight
        1,303 frees = 1,285 freed + 5 free(NULL) + 10 of blocks not recorded (does not balance: 3 too few)
        2,048 recorded with a stack cut at the limit of frames
        lost: 812 allocations not recorded: the map of outstanding blocks was full; raise --max-blocks, or leave out
          small ones with --min-size
        lost: 40 blocks recorded without a stack: the stack table was full; raise --max-stacks
        lost: 6 runs of the BPF program free_enter skipped by the kernel: another one was running on that CPU; stop
          other tracers of this process
");
}

#[test]
fn several_processes_verbose() {
    insta::assert_snapshot!(text(&sample::full(), 80, false), @r"
    == final report 61: 2 processes after 5m 00s, 2026-01-12T03:12:04Z =============
    warning: 812 allocations not recorded: the map of outstanding blocks was full;
      raise --max-blocks, or leave out small ones with --min-size
    warning: 40 blocks recorded without a stack: the stack table was full; raise
      --max-stacks
    warning: 6 runs of the BPF program free_enter skipped by the kernel: another one
      was running on that CPU; stop other tracers of this process

       pid  name        outstanding     older  container
      1298  api-server     34.1 MiB  31.1 MiB
      1301  worker         34.1 MiB  31.1 MiB  docker 3f9a3f9a3f9a
      forked: 1 process with copies of blocks of the one before,
        which count for that one alone

    api-server (pid 1298), exited: signal 9
      /usr/local/bin/api-server --listen 0.0.0.0:8080 --motd 'it'\''s up' --workers…
      VmSize 1.21 GiB (+64.0 MiB)  VmRSS unknown  VmData 402 MiB (+64.0 MiB)
      threads 12 (+4)  open files 87 (unchanged)

    worker (pid 1301), running (its 2nd program, by exec)
      (pid 7 in its own namespace)
      forked from process 1298 with copies of its 812 blocks (76.1 KiB),
        which are not counted here; has given back 12 from before
      container docker 3f9a3f9a3f9a
      worker
      VmSize 1.21 GiB (+64.0 MiB)  VmRSS 312 MiB (+58.1 MiB)
      VmData 402 MiB (+64.0 MiB)  threads 12 (+4)  open files 87 (unchanged)

    outstanding: 35.1 MiB in 8,705 blocks; +512 KiB since last report, +5.99 MiB/min
    older than 30s: 32.1 MiB in 7,937 blocks at 87 sites (3 shown)

    #1  30.0 MiB in 7,680 blocks  +512 KiB since last report  +6.00 MiB/min
        27.0 MiB in 6,912 older than 30s: oldest 4m 59s, median 2m 32s;
        allocated 7,680, freed 0 [glibc, pid 1298, exited]
          string_copy (inlined)        src/string.h:31
          leak_in_parser               src/parse/header.c:142
          handle_request               src/server/request.c:391
          main                         src/main.c:88
          __libc_start_call_main+0x2a  in /usr/lib/x86_64-linux-gnu/libc.so.6
          _start+0x21                  in /usr/local/bin/api-server

    #2  4.10 MiB in 1,024 blocks  +0 B since last report  -12.0 KiB/min
        all older than 30s: oldest 58s, median 31s; allocated 2,048, freed 1,024
        [glibc, pid 1301]
          std::_Rb_tree<std::__cxx11::basic_str…r> const, session>>>::_M_create_node
              /usr/include/c++/12/bits/stl_tree.h:610
          tree::Node<K, V>::insert(K&&, V&&)   src/tree.hpp:77
          ... 96 more of the same
          session_cache::fill(request const&)  src/cache.cpp:1203
          ... cut here: the stack is deeper than the limit of frames

    #3  1.00 MiB in 1 range  not growing
        all older than 30s: oldest 42s, median 42s; allocated 1, freed 0
        [mmap, pid 1298, exited]
          0x7f1234567890  in /usr/lib/x86_64-linux-gnu/libvendor.so.3+0x1890
              (no symbols: the object is stripped, and no debug package for it was
              found)
          0x7f1234569999  in /usr/lib/x86_64-linux-gnu/libvendor.so.3+0x3999
              (as above)
          0x7f12dead0000 (not in any mapped object)
          ... frames may be missing: the walk lost its way, in code without call
              frame information or frame pointers

    mismatched frees: given back to another allocator than the one that handed them
        out
      1.41 KiB in 12 blocks from jemalloc given to glibc in process 1301
        allocated by
          string_copy (inlined)        src/string.h:31
          leak_in_parser               src/parse/header.c:142
          handle_request               src/server/request.c:391
          main                         src/main.c:88
          __libc_start_call_main+0x2a  in /usr/lib/x86_64-linux-gnu/libc.so.6
          _start+0x21                  in /usr/local/bin/api-server
        given back by
          close_session                src/session.c:31
          main                         src/main.c:88
          __libc_start_call_main+0x2a  in /usr/lib/x86_64-linux-gnu/libc.so.6
          _start+0x21                  in /usr/local/bin/api-server

    ledger: 10,814 allocations = 9,990 recorded + 10 failed
              + 812 lost (block map full) + 2 in flight
            1,300 frees = 1,285 freed + 5 free(NULL) + 10 of blocks not recorded
            3 mapping calls = 2 recorded + 1 failed
            9,990 records = 8,705 outstanding + 1,285 freed
            2,048 recorded with a stack cut at the limit of frames
            lost: 812 allocations not recorded: the map of outstanding blocks was
              full; raise --max-blocks, or leave out small ones with --min-size
            lost: 40 blocks recorded without a stack: the stack table was full;
              raise --max-stacks
            lost: 6 runs of the BPF program free_enter skipped by the kernel:
              another one was running on that CPU; stop other tracers of this
              process

    all counters (! marks the lost)
      allocations                     10,814
        recorded                       9,990
        failed                            10
        nested                             0
      ! block_map_full                   812
        in_flight                          2
      frees                            1,300
        freed                          1,285
        free_null                          5
        free_unknown                      10
        in_flight                          0
      records                          9,990
        outstanding                    8,705
        freed                          1,285
        in_flight                          0
      mapping calls                        3
        ranges_reported                    2
        ranges_failed                      1
        in_flight                          0
      remarks
        stack_truncated                2,048
      ! stack_map_full                    40
      runs skipped by the kernel
      ! free_enter                         6

    2 probes (1 single-stepped, which is slow)
      [glibc] in process 1298: /usr/lib/x86_64-linux-gnu/libc.so.6
        memalign, aligned_alloc +7: push rbp, emulated, entry and return,
            file offset 0x9d1c7
        free, cfree +0: test rdi,rdi, single-stepped, entry, file offset 0x9c0a0
            because a jump leads back to each emulated instruction before the
            argument is overwritten

    stacks through
        /usr/lib/x86_64-linux-gnu/libc.so.6: unwind tables of 23,353 rows
        /usr/lib/x86_64-linux-gnu/libodd.so.1: unwind tables of 23,353 rows; they
            end in 3 functions with damaged call frame information
            its .debug_frame is not used: it takes more than 128 KiB, which is out
                of proportion to its code
        /usr/lib/x86_64-linux-gnu/libvendor.so.3:
            frame pointers, a guess: it has no call frame information
    ");
}

#[test]
fn hostile_strings() {
    let at = |width| text(&sample::hostile(), width, false);
    insta::assert_snapshot!(at(40), @r"
== report 60: \x1b[31mred\n (pid 1298)
   after 5m 00s, 2026-01-12T03:12:04Z ==
warning:
  \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}e
  xe\u{200b}

\x1b[31mred\n (pid 1298), exited:
  \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}e
  xe\u{200b}
  \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}…
  VmSize 1.21 GiB (+64.0 MiB)
  VmRSS 312 MiB (+58.1 MiB)
  VmData 402 MiB (+64.0 MiB)
  threads 12 (+4)
  open files 87 (unchanged)

outstanding: 35.1 MiB in 8,705 blocks;
  +512 KiB since last report,
  +5.99 MiB/min
older than 30s: 32.1 MiB in 7,937 blocks
  at 87 sites (1 shown)

#1  30.0 MiB in 7,680 blocks
    +512 KiB since last report
    +6.00 MiB/min
    27.0 MiB in 6,912 older than 30s:
    oldest 4m 59s, median 2m 32s;
    allocated 7,680, freed 0
    [\x1b]0;owned\x07\x1b[2J\ngpj.\u{202
    e}exe\u{200b}]
      \x1b]0;owned\x07\…202e}exe\u{200b}
          …2J\ngpj.\u{202e}exe\u{200b}:1
      fffffffffffffffff…ffffffffffffffff
          …d/d/d/d/d/d/d/d/d/d/d/d/d/d:7
      名前空間::関数  src/日本語.cpp:3
      0x7f0000001000
          in …\u{202e}exe\u{200b}+0x1000
          (\x1b]0;owned\x07\x1b[2J\ngpj.
          \u{202e}exe\u{200b})
      0xffffffffffffffff

ledger: 10,002 allocations
          = 9,990 recorded + 10 failed
          + 2 in flight
        1,300 frees = 1,285 freed
          + 5 free(NULL)
          + 10 of blocks not recorded
        2,048 recorded with a stack cut
          at the limit of frames
        lost: 1
          \x1b]0;owned\x07\x1b[2J\ngpj.\
          u{202e}exe\u{200b} lost
");
    insta::assert_snapshot!(at(80), @r"
== report 60: \x1b[31mred\n (pid 1298) after 5m 00s, 2026-01-12T03:12:04Z ======
warning: \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}

\x1b[31mred\n (pid 1298),
  exited: \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}
  \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b} xxxxxxxxxxxxxxxxxxxxxxxxxxxx…
  VmSize 1.21 GiB (+64.0 MiB)  VmRSS 312 MiB (+58.1 MiB)
  VmData 402 MiB (+64.0 MiB)  threads 12 (+4)  open files 87 (unchanged)

outstanding: 35.1 MiB in 8,705 blocks; +512 KiB since last report, +5.99 MiB/min
older than 30s: 32.1 MiB in 7,937 blocks at 87 sites (1 shown)

#1  30.0 MiB in 7,680 blocks  +512 KiB since last report  +6.00 MiB/min
    27.0 MiB in 6,912 older than 30s: oldest 4m 59s, median 2m 32s;
    allocated 7,680, freed 0 [\x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}]
      \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}
          \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}:1
      fffffffffffffffffffffffffffffffffffff…ffffffffffffffffffffffffffffffffffff
          …d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d:7
      名前空間::関数  src/日本語.cpp:3
      0x7f0000001000  in \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}+0x1000
          (\x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b})
      0xffffffffffffffff

ledger: 10,002 allocations = 9,990 recorded + 10 failed + 2 in flight
        1,300 frees = 1,285 freed + 5 free(NULL) + 10 of blocks not recorded
        2,048 recorded with a stack cut at the limit of frames
        lost: 1 \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b} lost
");
    insta::assert_snapshot!(at(120), @r"
== report 60: \x1b[31mred\n (pid 1298) after 5m 00s, 2026-01-12T03:12:04Z ==============================================
warning: \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}

\x1b[31mred\n (pid 1298), exited: \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}
  \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b} xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…
  VmSize 1.21 GiB (+64.0 MiB)  VmRSS 312 MiB (+58.1 MiB)  VmData 402 MiB (+64.0 MiB)  threads 12 (+4)
  open files 87 (unchanged)

outstanding: 35.1 MiB in 8,705 blocks; +512 KiB since last report, +5.99 MiB/min
older than 30s: 32.1 MiB in 7,937 blocks at 87 sites (1 shown)

#1  30.0 MiB in 7,680 blocks  +512 KiB since last report  +6.00 MiB/min
    27.0 MiB in 6,912 older than 30s: oldest 4m 59s, median 2m 32s; allocated 7,680, freed 0
    [\x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}]
      \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}  \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}:1
      fffffffffffffffffffffffffffffffffffffffffffffffffffffffff…ffffffffffffffffffffffffffffffffffffffffffffffffffffffff
          …d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d:7
      名前空間::関数                                    src/日本語.cpp:3
      0x7f0000001000                                    in \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}+0x1000
          (\x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b})
      0xffffffffffffffff

ledger: 10,002 allocations = 9,990 recorded + 10 failed + 2 in flight
        1,300 frees = 1,285 freed + 5 free(NULL) + 10 of blocks not recorded
        2,048 recorded with a stack cut at the limit of frames
        lost: 1 \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b} lost
");
}
