//! What a report on the kernel looks like, to the letter, and what holds for it at any width.

use super::text;
use crate::report::escape::columns;
use crate::report::model::Report;
use crate::report::sample;

#[test]
fn lines_fit_and_end_without_blanks_and_hold_no_control_character() {
    for report in [sample::kernel(), sample::kernel_hostile()] {
        for width in 40..140 {
            for line in text(&report, width, false).lines() {
                assert!(columns(line) <= width, "{} columns of {width}: {line}", columns(line));
                assert_eq!(line, line.trim_end());
                let is_harmful = |c: char| c.is_control() || "\u{202e}\u{200b}".contains(c);
                assert!(!line.contains(is_harmful), "{line:?}");
            }
        }
        for width in [0, 20, usize::MAX] {
            assert!(text(&report, width, false).ends_with('\n'));
        }
    }
}

/// The paragraph that begins so.
fn paragraph(report: &Report, width: usize, beginning: &str) -> String {
    let text = text(report, width, false);
    let found = text.split("\n\n").find(|paragraph| paragraph.starts_with(beginning));
    found.unwrap_or_else(|| panic!("no {beginning:?} in {text}")).to_owned()
}

#[test]
fn what_slabinfo_contradicts_is_marked_with_colors_and_without() {
    let colored = text(&sample::kernel(), 80, true);
    assert!(colored.contains("\n\x1b[1;33m! maple_node "), "{colored}");
    assert_eq!(colored.matches("\x1b[1;33m! by /proc/slabinfo").count(), 1);
    let mut report = sample::kernel();
    report.kernel.iter_mut().flat_map(|kernel| &mut kernel.caches).for_each(|row| row.contradicted = false);
    assert!(!text(&report, 80, true).contains('!'));
}

#[test]
fn a_name_made_of_a_size_is_not_cut() {
    let mut report = sample::kernel();
    let name = "a cache of 16384-byte objects";
    report.kernel.iter_mut().for_each(|kernel| kernel.caches[0].name = name.to_owned());
    for width in [40, 80, 120] {
        assert_eq!(text(&report, width, false).matches(name).count(), 1);
    }
}

/// The size of an object gives way first.
#[test]
fn a_table_that_is_too_wide_by_a_column() {
    insta::assert_snapshot!(paragraph(&sample::kernel(), 79, "  cache "), @r"
  cache        traced    traced     traced  slabinfo  slabinfo      frees
                 live     bytes    per min   per min   objects   untraced
  pages         3,072  12.0 MiB  +2.40 MiB         -         -  none seen
! maple_node   31,204  7.62 MiB  +1.52 MiB    -819 B       -16      85.0%
  kmalloc-256  19,740  4.82 MiB   +987 KiB  +986 KiB   +19,712      <0.1%
  dentry        9,112  1.67 MiB   +342 KiB  +347 KiB    +9,240  none seen
  per-CPU          96  24.0 KiB  +4.80 KiB         -         -  none seen
  ... 57 caches more (--top)
! by /proc/slabinfo the cache did not grow by most of what was traced as live
  3.20 MiB in 410 blocks of pages are left out: slabs took them, and their
    objects are counted
");
}

#[test]
fn verbose() {
    let mut report = sample::kernel();
    report.verbose = true;
    let ledger = paragraph(&report, 80, "ledger: ") + "\n\n" + &paragraph(&report, 80, "all counters");
    insta::assert_snapshot!(ledger, @r"
ledger: 1,208,726 allocations = 1,204,311 recorded + 2 failed
          + 4,410 for leakprobe itself + 3 in flight
        988,638 frees = 983,755 freed + 12 free(NULL)
          + 4,871 of blocks not recorded
        1,205,525 records = 71,450 outstanding + 983,755 freed
          + 150,320 replaced (free missed)
        1,214 rests of blocks of pages that were given back in part
        lost: none

all counters (! marks the lost)
  allocations                  1,208,726
    recorded                   1,204,311
    failed                             2
    own                            4,410
    block_map_full                     0
    block_map_refused                  0
    scratch_busy                       0
    bulk_cut                           0
    in_flight                          3
  frees                          988,638
    freed                        983,755
    free_null                         12
    free_unknown                   4,871
    free_bulk_cut                      0
    in_flight                          0
  records                      1,205,525
    outstanding                   71,450
    freed                        983,755
    missed_free                  150,320
    in_flight                          0
  remarks
    stack_truncated                    0
    pages_split                    1,214
    stack_map_full                     0
    pages_split_lost                   0
");
}

#[test]
fn a_leaking_module() {
    let at = |width| text(&sample::kernel(), width, false);
    insta::assert_snapshot!(at(40), @r#"
== report 60: the kernel after 5m 00s,
   2026-01-12T03:12:04Z ==
warning: this kernel has neither kprobes
  nor patched functions, so
  kmem_cache_free_bulk cannot be probed:
  objects that are freed in bulk or
  after a grace period look live until
  their address is handed out again; the
  column "frees untraced" says in which
  caches that was seen, and
  /proc/slabinfo is compared with all

kernel 6.1.0-56-amd64
  Slab 105 MiB (+6.75 MiB)
  SReclaimable 60.0 MiB (+1.75 MiB)
  SUnreclaim 45.0 MiB (+5.00 MiB)
  KernelStack 4.00 MiB (unchanged)
  PageTables 9.00 MiB (-64.0 KiB)
  Percpu 1.57 MiB (unchanged)
  VmallocUsed 28.0 MiB (unchanged)

  pages: 3,072 traced live, 12.0 MiB,
      +2.40 MiB/min;
      frees untraced: none seen
! maple_node: 256-byte objects,
      31,204 traced live, 7.62 MiB,
      +1.52 MiB/min; by slabinfo -16,
      -819 B/min; frees untraced: 85.0%
  kmalloc-256: 256-byte objects,
      19,740 traced live, 4.82 MiB,
      +987 KiB/min; by slabinfo +19,712,
      +986 KiB/min;
      frees untraced: <0.1%
  dentry: 192-byte objects,
      9,112 traced live, 1.67 MiB,
      +342 KiB/min; by slabinfo +9,240,
      +347 KiB/min;
      frees untraced: none seen
  per-CPU: 96 traced live, 24.0 KiB,
      +4.80 KiB/min;
      frees untraced: none seen
  ... 57 caches more (--top)
! by /proc/slabinfo the cache did not
  grow by most of what was traced as
  live
  3.20 MiB in 410 blocks of pages are
    left out: slabs took them, and their
    objects are counted

outstanding: 28.5 MiB in 71,040 blocks;
  +208 KiB since last report,
  +5.70 MiB/min
older than 30s:
  23.0 MiB in 60,211 blocks at 214 sites
  (5 shown)

#1  4.69 MiB in 19,200 objects
    +80.0 KiB since last report
    +960 KiB/min
    4.22 MiB in 17,280 older than 30s:
    oldest 5m 00s, median 2m 45s;
    allocated 19,200, freed 0
    [kmalloc-256]
    made while kworker/1:2 (pid 61) ran:
    71%
      leaky_forget_buffer+0x2f
          in [leaky]
      leaky_tick+0x5a  in [leaky]
      process_one_work+0x1c7
      worker_thread+0x4d
      kthread+0xe9
      ret_from_fork+0x22

#2  1.50 MiB in 48 blocks
    +0 B since last report  +307 KiB/min
    all older than 30s: oldest 5m 00s,
    median 2m 45s; allocated 2,211,
    freed 2,163 [pages]
    made while the CPU was idle
    (swapper/0), in an interrupt: 85%
      skb_page_frag_refill+0x85
      try_fill_recv+0x2d1
          in [virtio_net]
      virtnet_poll+0x40a
          in [virtio_net]
      __napi_poll+0x28
      net_rx_action+0x2a4
      __do_softirq+0xf0
      common_interrupt+0xb5

#3  1.48 MiB in 8,064 objects
    -1.88 KiB since last report
    +302 KiB/min
    1.46 MiB in 8,000 older than 30s:
    oldest 5m 00s, median 2m 45s;
    allocated 41,330, freed 33,266
    [dentry]
    made while sh ran, in 41 processes:
    71%
      __d_alloc       fs/dcache.c:1768
      d_alloc         fs/dcache.c:1852
      __lookup_slow   fs/namei.c:1690
      lookup_slow (inlined)
          fs/namei.c:1722
      walk_component  fs/namei.c:2013
      do_syscall_64
          arch/x86/entry/common.c:80

#4  24.0 KiB in 96 blocks
    +256 B since last report
    +4.80 KiB/min
    768 B in 3 older than 30s:
    oldest 5m 00s, median 2m 45s;
    allocated 4,120, freed 4,024
    [per-CPU]
    made while cc1 ran, in 3 processes:
    all
      __percpu_counter_init+0x5b
      ... the caller alone: no stack was
          taken

#5  7.03 MiB in 28,800 objects
    +120 KiB since last report
    +1.41 MiB/min
    6.59 MiB in 27,000 older than 30s:
    oldest 5m 00s, median 2m 45s;
    allocated 190,400, freed 161,600
    [maple_node]
    not to be believed as growth: by
    /proc/slabinfo the objects of
    maple_node have changed by -16 since
    the start; either as many older ones
    went, or frees of these were not
    seen
    made while cc1 ran, in 1,204
    processes: 75%
      mas_alloc_nodes+0x1f9
      mas_preallocate+0x66
      mmap_region+0x3ab
      do_mmap+0x3b4
      vm_mmap_pgoff+0xd3
      do_syscall_64+0x55
      entry_SYSCALL_64_…ter_hwframe+0x6e

ledger: 1,208,726 allocations
          = 1,204,311 recorded
          + 2 failed
          + 4,410 for leakprobe itself
          + 3 in flight
        988,638 frees = 983,755 freed
          + 12 free(NULL)
          + 4,871 of blocks not recorded
        1,205,525 records
          = 71,450 outstanding
          + 983,755 freed + 150,320
          replaced (free missed)
        1,214 rests of blocks of pages
          that were given back in part
        lost: none
"#);
    insta::assert_snapshot!(at(80), @r#"
== report 60: the kernel after 5m 00s, 2026-01-12T03:12:04Z ====================
warning: this kernel has neither kprobes nor patched functions, so
  kmem_cache_free_bulk cannot be probed: objects that are freed in bulk or after
  a grace period look live until their address is handed out again; the column
  "frees untraced" says in which caches that was seen, and /proc/slabinfo is
  compared with all

kernel 6.1.0-56-amd64
  Slab 105 MiB (+6.75 MiB)  SReclaimable 60.0 MiB (+1.75 MiB)
  SUnreclaim 45.0 MiB (+5.00 MiB)  KernelStack 4.00 MiB (unchanged)
  PageTables 9.00 MiB (-64.0 KiB)  Percpu 1.57 MiB (unchanged)
  VmallocUsed 28.0 MiB (unchanged)

  cache        traced    traced     traced  slabinfo  slabinfo      frees
                 live     bytes    per min   per min   objects   untraced
  pages         3,072  12.0 MiB  +2.40 MiB         -         -  none seen
! maple_node   31,204  7.62 MiB  +1.52 MiB    -819 B       -16      85.0%
  kmalloc-256  19,740  4.82 MiB   +987 KiB  +986 KiB   +19,712      <0.1%
  dentry        9,112  1.67 MiB   +342 KiB  +347 KiB    +9,240  none seen
  per-CPU          96  24.0 KiB  +4.80 KiB         -         -  none seen
  ... 57 caches more (--top)
! by /proc/slabinfo the cache did not grow by most of what was traced as live
  3.20 MiB in 410 blocks of pages are left out: slabs took them, and their
    objects are counted

outstanding: 28.5 MiB in 71,040 blocks; +208 KiB since last report,
  +5.70 MiB/min
older than 30s: 23.0 MiB in 60,211 blocks at 214 sites (5 shown)

#1  4.69 MiB in 19,200 objects  +80.0 KiB since last report  +960 KiB/min
    4.22 MiB in 17,280 older than 30s: oldest 5m 00s, median 2m 45s;
    allocated 19,200, freed 0 [kmalloc-256]
    made while kworker/1:2 (pid 61) ran: 71%
      leaky_forget_buffer+0x2f  in [leaky]
      leaky_tick+0x5a           in [leaky]
      process_one_work+0x1c7
      worker_thread+0x4d
      kthread+0xe9
      ret_from_fork+0x22

#2  1.50 MiB in 48 blocks  +0 B since last report  +307 KiB/min
    all older than 30s: oldest 5m 00s, median 2m 45s; allocated 2,211,
    freed 2,163 [pages]
    made while the CPU was idle (swapper/0), in an interrupt: 85%
      skb_page_frag_refill+0x85
      try_fill_recv+0x2d1  in [virtio_net]
      virtnet_poll+0x40a   in [virtio_net]
      __napi_poll+0x28
      net_rx_action+0x2a4
      __do_softirq+0xf0
      common_interrupt+0xb5

#3  1.48 MiB in 8,064 objects  -1.88 KiB since last report  +302 KiB/min
    1.46 MiB in 8,000 older than 30s: oldest 5m 00s, median 2m 45s;
    allocated 41,330, freed 33,266 [dentry]
    made while sh ran, in 41 processes: 71%
      __d_alloc              fs/dcache.c:1768
      d_alloc                fs/dcache.c:1852
      __lookup_slow          fs/namei.c:1690
      lookup_slow (inlined)  fs/namei.c:1722
      walk_component         fs/namei.c:2013
      do_syscall_64          arch/x86/entry/common.c:80

#4  24.0 KiB in 96 blocks  +256 B since last report  +4.80 KiB/min
    768 B in 3 older than 30s: oldest 5m 00s, median 2m 45s; allocated 4,120,
    freed 4,024 [per-CPU]
    made while cc1 ran, in 3 processes: all
      __percpu_counter_init+0x5b
      ... the caller alone: no stack was taken

#5  7.03 MiB in 28,800 objects  +120 KiB since last report  +1.41 MiB/min
    6.59 MiB in 27,000 older than 30s: oldest 5m 00s, median 2m 45s;
    allocated 190,400, freed 161,600 [maple_node]
    not to be believed as growth: by /proc/slabinfo the objects of maple_node
    have changed by -16 since the start; either as many older ones went, or
    frees of these were not seen
    made while cc1 ran, in 1,204 processes: 75%
      mas_alloc_nodes+0x1f9
      mas_preallocate+0x66
      mmap_region+0x3ab
      do_mmap+0x3b4
      vm_mmap_pgoff+0xd3
      do_syscall_64+0x55
      entry_SYSCALL_64_after_hwframe+0x6e

ledger: 1,208,726 allocations = 1,204,311 recorded + 2 failed
          + 4,410 for leakprobe itself + 3 in flight
        988,638 frees = 983,755 freed + 12 free(NULL)
          + 4,871 of blocks not recorded
        1,205,525 records = 71,450 outstanding + 983,755 freed
          + 150,320 replaced (free missed)
        1,214 rests of blocks of pages that were given back in part
        lost: none
"#);
    insta::assert_snapshot!(at(100), @r#"
== report 60: the kernel after 5m 00s, 2026-01-12T03:12:04Z ========================================
warning: this kernel has neither kprobes nor patched functions, so kmem_cache_free_bulk cannot be
  probed: objects that are freed in bulk or after a grace period look live until their address is
  handed out again; the column "frees untraced" says in which caches that was seen, and
  /proc/slabinfo is compared with all

kernel 6.1.0-56-amd64
  Slab 105 MiB (+6.75 MiB)  SReclaimable 60.0 MiB (+1.75 MiB)  SUnreclaim 45.0 MiB (+5.00 MiB)
  KernelStack 4.00 MiB (unchanged)  PageTables 9.00 MiB (-64.0 KiB)  Percpu 1.57 MiB (unchanged)
  VmallocUsed 28.0 MiB (unchanged)

  cache        object  traced    traced     traced  slabinfo  slabinfo      frees
                bytes    live     bytes    per min   per min   objects   untraced
  pages             -   3,072  12.0 MiB  +2.40 MiB         -         -  none seen
! maple_node      256  31,204  7.62 MiB  +1.52 MiB    -819 B       -16      85.0%
  kmalloc-256     256  19,740  4.82 MiB   +987 KiB  +986 KiB   +19,712      <0.1%
  dentry          192   9,112  1.67 MiB   +342 KiB  +347 KiB    +9,240  none seen
  per-CPU           -      96  24.0 KiB  +4.80 KiB         -         -  none seen
  ... 57 caches more (--top)
! by /proc/slabinfo the cache did not grow by most of what was traced as live
  3.20 MiB in 410 blocks of pages are left out: slabs took them, and their objects are counted

outstanding: 28.5 MiB in 71,040 blocks; +208 KiB since last report, +5.70 MiB/min
older than 30s: 23.0 MiB in 60,211 blocks at 214 sites (5 shown)

#1  4.69 MiB in 19,200 objects  +80.0 KiB since last report  +960 KiB/min
    4.22 MiB in 17,280 older than 30s: oldest 5m 00s, median 2m 45s; allocated 19,200, freed 0
    [kmalloc-256]
    made while kworker/1:2 (pid 61) ran: 71%
      leaky_forget_buffer+0x2f  in [leaky]
      leaky_tick+0x5a           in [leaky]
      process_one_work+0x1c7
      worker_thread+0x4d
      kthread+0xe9
      ret_from_fork+0x22

#2  1.50 MiB in 48 blocks  +0 B since last report  +307 KiB/min
    all older than 30s: oldest 5m 00s, median 2m 45s; allocated 2,211, freed 2,163 [pages]
    made while the CPU was idle (swapper/0), in an interrupt: 85%
      skb_page_frag_refill+0x85
      try_fill_recv+0x2d1  in [virtio_net]
      virtnet_poll+0x40a   in [virtio_net]
      __napi_poll+0x28
      net_rx_action+0x2a4
      __do_softirq+0xf0
      common_interrupt+0xb5

#3  1.48 MiB in 8,064 objects  -1.88 KiB since last report  +302 KiB/min
    1.46 MiB in 8,000 older than 30s: oldest 5m 00s, median 2m 45s; allocated 41,330, freed 33,266
    [dentry]
    made while sh ran, in 41 processes: 71%
      __d_alloc              fs/dcache.c:1768
      d_alloc                fs/dcache.c:1852
      __lookup_slow          fs/namei.c:1690
      lookup_slow (inlined)  fs/namei.c:1722
      walk_component         fs/namei.c:2013
      do_syscall_64          arch/x86/entry/common.c:80

#4  24.0 KiB in 96 blocks  +256 B since last report  +4.80 KiB/min
    768 B in 3 older than 30s: oldest 5m 00s, median 2m 45s; allocated 4,120, freed 4,024 [per-CPU]
    made while cc1 ran, in 3 processes: all
      __percpu_counter_init+0x5b
      ... the caller alone: no stack was taken

#5  7.03 MiB in 28,800 objects  +120 KiB since last report  +1.41 MiB/min
    6.59 MiB in 27,000 older than 30s: oldest 5m 00s, median 2m 45s; allocated 190,400,
    freed 161,600 [maple_node]
    not to be believed as growth: by /proc/slabinfo the objects of maple_node have changed by -16
    since the start; either as many older ones went, or frees of these were not seen
    made while cc1 ran, in 1,204 processes: 75%
      mas_alloc_nodes+0x1f9
      mas_preallocate+0x66
      mmap_region+0x3ab
      do_mmap+0x3b4
      vm_mmap_pgoff+0xd3
      do_syscall_64+0x55
      entry_SYSCALL_64_after_hwframe+0x6e

ledger: 1,208,726 allocations = 1,204,311 recorded + 2 failed + 4,410 for leakprobe itself
          + 3 in flight
        988,638 frees = 983,755 freed + 12 free(NULL) + 4,871 of blocks not recorded
        1,205,525 records = 71,450 outstanding + 983,755 freed + 150,320 replaced (free missed)
        1,214 rests of blocks of pages that were given back in part
        lost: none
"#);
    insta::assert_snapshot!(at(120), @r#"
== report 60: the kernel after 5m 00s, 2026-01-12T03:12:04Z ============================================================
warning: this kernel has neither kprobes nor patched functions, so kmem_cache_free_bulk cannot be probed: objects that
  are freed in bulk or after a grace period look live until their address is handed out again; the column "frees
  untraced" says in which caches that was seen, and /proc/slabinfo is compared with all

kernel 6.1.0-56-amd64
  Slab 105 MiB (+6.75 MiB)  SReclaimable 60.0 MiB (+1.75 MiB)  SUnreclaim 45.0 MiB (+5.00 MiB)
  KernelStack 4.00 MiB (unchanged)  PageTables 9.00 MiB (-64.0 KiB)  Percpu 1.57 MiB (unchanged)
  VmallocUsed 28.0 MiB (unchanged)

  cache        object  traced    traced     traced  slabinfo  slabinfo      frees
                bytes    live     bytes    per min   per min   objects   untraced
  pages             -   3,072  12.0 MiB  +2.40 MiB         -         -  none seen
! maple_node      256  31,204  7.62 MiB  +1.52 MiB    -819 B       -16      85.0%
  kmalloc-256     256  19,740  4.82 MiB   +987 KiB  +986 KiB   +19,712      <0.1%
  dentry          192   9,112  1.67 MiB   +342 KiB  +347 KiB    +9,240  none seen
  per-CPU           -      96  24.0 KiB  +4.80 KiB         -         -  none seen
  ... 57 caches more (--top)
! by /proc/slabinfo the cache did not grow by most of what was traced as live
  3.20 MiB in 410 blocks of pages are left out: slabs took them, and their objects are counted

outstanding: 28.5 MiB in 71,040 blocks; +208 KiB since last report, +5.70 MiB/min
older than 30s: 23.0 MiB in 60,211 blocks at 214 sites (5 shown)

#1  4.69 MiB in 19,200 objects  +80.0 KiB since last report  +960 KiB/min
    4.22 MiB in 17,280 older than 30s: oldest 5m 00s, median 2m 45s; allocated 19,200, freed 0 [kmalloc-256]
    made while kworker/1:2 (pid 61) ran: 71%
      leaky_forget_buffer+0x2f  in [leaky]
      leaky_tick+0x5a           in [leaky]
      process_one_work+0x1c7
      worker_thread+0x4d
      kthread+0xe9
      ret_from_fork+0x22

#2  1.50 MiB in 48 blocks  +0 B since last report  +307 KiB/min
    all older than 30s: oldest 5m 00s, median 2m 45s; allocated 2,211, freed 2,163 [pages]
    made while the CPU was idle (swapper/0), in an interrupt: 85%
      skb_page_frag_refill+0x85
      try_fill_recv+0x2d1  in [virtio_net]
      virtnet_poll+0x40a   in [virtio_net]
      __napi_poll+0x28
      net_rx_action+0x2a4
      __do_softirq+0xf0
      common_interrupt+0xb5

#3  1.48 MiB in 8,064 objects  -1.88 KiB since last report  +302 KiB/min
    1.46 MiB in 8,000 older than 30s: oldest 5m 00s, median 2m 45s; allocated 41,330, freed 33,266 [dentry]
    made while sh ran, in 41 processes: 71%
      __d_alloc              fs/dcache.c:1768
      d_alloc                fs/dcache.c:1852
      __lookup_slow          fs/namei.c:1690
      lookup_slow (inlined)  fs/namei.c:1722
      walk_component         fs/namei.c:2013
      do_syscall_64          arch/x86/entry/common.c:80

#4  24.0 KiB in 96 blocks  +256 B since last report  +4.80 KiB/min
    768 B in 3 older than 30s: oldest 5m 00s, median 2m 45s; allocated 4,120, freed 4,024 [per-CPU]
    made while cc1 ran, in 3 processes: all
      __percpu_counter_init+0x5b
      ... the caller alone: no stack was taken

#5  7.03 MiB in 28,800 objects  +120 KiB since last report  +1.41 MiB/min
    6.59 MiB in 27,000 older than 30s: oldest 5m 00s, median 2m 45s; allocated 190,400, freed 161,600 [maple_node]
    not to be believed as growth: by /proc/slabinfo the objects of maple_node have changed by -16 since the start;
    either as many older ones went, or frees of these were not seen
    made while cc1 ran, in 1,204 processes: 75%
      mas_alloc_nodes+0x1f9
      mas_preallocate+0x66
      mmap_region+0x3ab
      do_mmap+0x3b4
      vm_mmap_pgoff+0xd3
      do_syscall_64+0x55
      entry_SYSCALL_64_after_hwframe+0x6e

ledger: 1,208,726 allocations = 1,204,311 recorded + 2 failed + 4,410 for leakprobe itself + 3 in flight
        988,638 frees = 983,755 freed + 12 free(NULL) + 4,871 of blocks not recorded
        1,205,525 records = 71,450 outstanding + 983,755 freed + 150,320 replaced (free missed)
        1,214 rests of blocks of pages that were given back in part
        lost: none
"#);
}

#[test]
fn hostile_strings() {
    insta::assert_snapshot!(text(&sample::kernel_hostile(), 80, false), @r"
== report 60: the kernel after 5m 00s, 2026-01-12T03:12:04Z ====================
warning: \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}

kernel \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}
  \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b} 105 MiB (+6.75 MiB)
  SReclaimable unknown

  \x1b]0;owned\x07…02e}exe\u{200b}: 3,072 traced live, 12.0 MiB, +2.40 MiB/min;
      frees untraced: none seen
! xxxxxxxxxxxxxxxx…xxxxxxxxxxxxxxx: 256-byte objects, 31,204 traced live,
      7.62 MiB, +1.52 MiB/min; by slabinfo -16, -819 B/min;
      frees untraced: 85.0%
  キャッシュ: 18,446,744,073,709,551,615-byte objects,
      18,446,744,073,709,551,615 traced live, 16.0 EiB, +8.00 EiB/min;
      by slabinfo -9,223,372,036,854,775,808, ?/min; frees untraced: <0.1%
  ... 59 caches more (--top)
! by /proc/slabinfo the cache did not grow by most of what was traced as live
  3.20 MiB in 410 blocks of pages are left out: slabs took them, and their
    objects are counted

outstanding: 28.5 MiB in 71,040 blocks; +208 KiB since last report,
  +5.70 MiB/min
older than 30s: 23.0 MiB in 60,211 blocks at 214 sites (2 shown)

#1  4.69 MiB in 19,200 objects  +80.0 KiB since last report  +960 KiB/min
    4.22 MiB in 17,280 older than 30s: oldest 5m 00s, median 2m 45s;
    allocated 19,200, freed 0 [\x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}]
    \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}
    made while \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b} (pid 61) ran:
    71%
      \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}+0x2f
          in \x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}
      leaky_tick+0x5a  in [leaky]
      process_one_work+0x1c7
      worker_thread+0x4d
      kthread+0xe9
      ret_from_fork+0x22

#2  1.50 MiB in 48 blocks  +0 B since last report  +307 KiB/min
    all older than 30s: oldest 5m 00s, median 2m 45s; allocated 2,211,
    freed 2,163
    [xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx]
    made while xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
    ran, in 18,446,744,073,709,551,615 processes: 85%
      skb_page_frag_refill+0x85
      try_fill_recv+0x2d1  in [virtio_net]

ledger: 1,208,726 allocations = 1,204,311 recorded + 2 failed
          + 4,410 for leakprobe itself + 3 in flight
        988,638 frees = 983,755 freed + 12 free(NULL)
          + 4,871 of blocks not recorded
        1,205,525 records = 71,450 outstanding + 983,755 freed
          + 150,320 replaced (free missed)
        1,214 rests of blocks of pages that were given back in part
        lost: none
");
}
