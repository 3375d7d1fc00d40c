//! How a recipe is carried out, whatever it is of: from where it goes on, behind whom it stands back, who may end it.

use std::sync::atomic::Ordering;

use clap::Args;

use crate::memory;
use crate::training::exit::TrainingExit;
use crate::training::run::{ASKED_TO_END, Mode, NOTHING_TO_KEEP, STOP};

/// The lowest priority.
const MOST_NICE: i32 = 19;

/// What `causeway train` and `causeway prune` have in common.
#[derive(Debug, Args)]
pub struct CarryingOut {
    /// Go on from the newest checkpoint in the recipe's directory.
    #[arg(long)]
    resume: bool,
    /// Do not train: write the result of the newest checkpoint.
    #[arg(long, conflicts_with = "resume")]
    export: bool,
    /// Do not train: measure a few steps, and print what all of them would cost as JSON.
    #[arg(long, conflicts_with_all = ["resume", "export"])]
    pub dry_run: bool,
    /// End when standard input does, with the process that started this one; at once or, told `stop`, after a checkpoint.
    #[arg(long, hide = true)]
    attended: bool,
    /// Stand back behind other processes, 0 to 19; with 19 only idle cores are used. Above 0 it is also the first to go
    /// where the machine has no memory left.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=19))]
    nice: i32,
}

impl CarryingOut {
    pub fn mode(&self) -> Mode {
        match (self.dry_run, self.export, self.resume) {
            (true, _, _) => Mode::Measure,
            (_, true, _) => Mode::Export,
            (_, _, true) => Mode::Resume,
            _ => Mode::Start,
        }
    }

    /// Makes this process one that carries a recipe out.
    pub fn begin(&self) -> anyhow::Result<()> {
        memory::keep_freed();
        if self.attended {
            std::thread::spawn(end_with_input);
        } else if !self.dry_run {
            std::thread::spawn(end_when_told);
        }
        if self.nice > 0 {
            go_first_without_memory();
            rustix::process::setpriority_process(None, self.nice)?;
        }
        if self.nice == MOST_NICE {
            wait_for_idle_cores();
        }
        Ok(())
    }
}

/// A training can be taken up again; what it runs beside cannot. Where the system does not know of this, nothing is lost.
fn go_first_without_memory() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// Where the priority cannot be lower, the system is told that this is for cores that have nothing else to do: whoever
/// wakes up gets its core at once, not at the end of this process's turn.
fn wait_for_idle_cores() {
    #[cfg(target_os = "linux")]
    // SAFETY: the structure is plain data and outlives the call. A refusal leaves everything as it was.
    unsafe {
        let parameters = libc::sched_param { sched_priority: 0 };
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters);
    }
}

/// Whoever started this process holds the other end; when that is gone, so is the use of going on.
fn end_with_input() {
    // An error is an end as well.
    for line in std::io::stdin().lines().map_while(Result::ok) {
        if line == STOP.trim_end() {
            ASKED_TO_END.store(true, Ordering::SeqCst);
            end_if_asked();
        }
    }
    std::process::exit(1);
}

/// Who is told by a signal to end writes a checkpoint first; who is told twice ends at once.
#[cfg(unix)]
fn end_when_told() {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    // Without either the system's own way of ending a process stays.
    let Ok(runtime) = runtime else {
        return;
    };
    runtime.block_on(async {
        let terminated = signal(SignalKind::terminate());
        let interrupted = signal(SignalKind::interrupt());
        let (Ok(mut terminated), Ok(mut interrupted)) = (terminated, interrupted) else {
            return;
        };
        loop {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
            if ASKED_TO_END.swap(true, Ordering::SeqCst) {
                std::process::exit(1);
            }
            tracing::warn!("told to end: it will after a checkpoint; told once more, at once");
            end_if_asked();
        }
    });
}

#[cfg(not(unix))]
fn end_when_told() {}

/// From now on there is nothing to be kept before this process ends: what it does then begins anew when it is taken up.
pub fn nothing_to_keep() {
    NOTHING_TO_KEEP.store(true, Ordering::SeqCst);
    end_if_asked();
}

fn end_if_asked() {
    if NOTHING_TO_KEEP.load(Ordering::SeqCst) && ASKED_TO_END.load(Ordering::SeqCst) {
        end_early();
    }
}

/// Ends this process as one that was asked to.
pub fn end_early() -> ! {
    std::process::exit(i32::from(TrainingExit::Early.code()))
}
