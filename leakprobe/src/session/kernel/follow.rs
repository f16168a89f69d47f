//! The loop: reports by the clock until something ends the session.

use anyhow::{Context as _, Result};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::KernelSession;
use crate::{
    session::{Begun, assemble::Occasion, follow::SAMPLE, output::Reader},
    sys::signals::{self, Ending},
};

/// Runs the loop to its end.
pub fn block_on(session: KernelSession, begun: Begun) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")?
        .block_on(follow(session, begun))
}

async fn follow(mut session: KernelSession, begun: Begun) -> Result<()> {
    let mut ending = Ending::note()?.listen()?;
    // Said only now that a Ctrl-C brings a last report.
    session.begin(begun)?;
    let begin = Instant::now();
    let interval = session.options.interval;
    let mut reports = interval_at(begin + interval, interval);
    reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = interval_at(begin + SAMPLE, SAMPLE);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let deadline = session.options.duration.map(|duration| begin + duration);
    let over = async move {
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    let mut reader = Reader::Listens;
    while reader == Reader::Listens {
        tokio::select! {
            biased;
            _ = ending.first() => break,
            () = &mut over => break,
            _ = reports.tick() => reader = session.report(Occasion::Interval)?,
            _ = looks.tick() => session.notice_modules()?,
        }
    }
    // A second Ctrl-C need not wait for the last report.
    drop(ending);
    signals::restore_defaults_soon();
    session.notice_modules()?;
    session.stop()?;
    if reader == Reader::Listens {
        session.report(Occasion::End)?;
    }
    Ok(())
}
