//! The ledger: what was hit, and what became of it.

use super::page::{Page, Tone};
use crate::report::escape::visible;
use crate::report::ledger::in_words;
use crate::report::model::{Account, Entry, Ledger};
use crate::report::units::count;

/// `records`: whether what became of the records is shown, even where it balances.
pub(super) fn ledger(page: &mut Page, ledger: &Ledger, records: bool, verbose: bool) {
    balance(page, "ledger: ", "allocations", &ledger.allocations);
    balance(page, "        ", "frees", &ledger.frees);
    if let Some(ranges) = &ledger.ranges {
        balance(page, "        ", "mapping calls", ranges);
    }
    if records || verbose || !ledger.records.balanced() {
        balance(page, "        ", "records", &ledger.records);
    }
    remarks(page, &ledger.remarks);
    losses(page, ledger);
    if verbose {
        page.blank();
        table(page, ledger);
    }
}

/// `10,000 allocations = 9,990 recorded + 10 failed`.
fn balance(page: &mut Page, lead: &str, noun: &str, account: &Account) {
    let mut pieces = vec![format!("{lead}{} {noun}", count(account.hits))];
    let outcomes = account.outcomes.iter().filter(|outcome| outcome.count > 0);
    let outcomes = outcomes.map(|outcome| format!("{} {}", count(outcome.count), brief(outcome)));
    let in_flight = (account.in_flight > 0).then(|| format!("{} in flight", count(account.in_flight)));
    for (index, term) in outcomes.chain(in_flight).enumerate() {
        pieces.push(format!("{} {term}", if index == 0 { "=" } else { "+" }));
    }
    let unexplained = account.unexplained();
    if unexplained != 0 {
        let amount = count(u64::try_from(unexplained.unsigned_abs()).unwrap_or(u64::MAX));
        let which = if unexplained > 0 { "too few" } else { "too many" };
        pieces.push(format!("(does not balance: {amount} {which})"));
    }
    page.flow(if unexplained == 0 { Tone::Plain } else { Tone::Warning }, 10, " ", &pieces);
}

fn brief(entry: &Entry) -> String {
    visible(&in_words(&entry.name)).into_owned()
}

/// Remarks that are no losses.
fn remarks(page: &mut Page, remarks: &[Entry]) {
    for remark in remarks.iter().filter(|remark| remark.count > 0 && !remark.lost) {
        page.prose(Tone::Plain, 10, &format!("        {} {}", count(remark.count), brief(remark)));
    }
}

fn losses(page: &mut Page, ledger: &Ledger) {
    let losses = ledger.losses();
    if losses.is_empty() {
        return page.line(Tone::Plain, "        lost: none");
    }
    for loss in losses {
        page.prose(Tone::Warning, 10, &format!("        lost: {}", visible(&loss.text)));
    }
}

/// Every counter by its name, zeros too.
fn table(page: &mut Page, ledger: &Ledger) {
    page.line(Tone::Strong, "all counters (! marks the lost)");
    rows(page, "allocations", &ledger.allocations);
    rows(page, "frees", &ledger.frees);
    rows(page, "records", &ledger.records);
    if let Some(ranges) = &ledger.ranges {
        rows(page, "mapping calls", ranges);
    }
    group(page, "remarks", &ledger.remarks);
    group(page, "runs skipped by the kernel", &ledger.recursion_misses);
}

fn rows(page: &mut Page, title: &str, account: &Account) {
    row(page, "  ", title, account.hits);
    entries(page, &account.outcomes);
    row(page, "    ", "in_flight", account.in_flight);
}

fn group(page: &mut Page, title: &str, of: &[Entry]) {
    if !of.is_empty() {
        page.line(Tone::Plain, &format!("  {title}"));
        entries(page, of);
    }
}

fn entries(page: &mut Page, entries: &[Entry]) {
    for entry in entries {
        let lead = if entry.lost && entry.count > 0 { "  ! " } else { "    " };
        row(page, lead, &visible(&entry.name), entry.count);
    }
}

fn row(page: &mut Page, lead: &str, name: &str, value: u64) {
    let name = crate::report::escape::fit(name, 24, crate::report::escape::Cut::Middle);
    let left = format!("{lead}{name}");
    page.line(Tone::Plain, &format!("{left:<26}{:>14}", count(value)));
}
