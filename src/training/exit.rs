//! What the exit code of a training's process says, to whoever has started it.

use std::error::Error;

use super::TrainingError;
use crate::artifacts::is_full;

/// An end that is neither success nor a failure like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainingExit {
    /// As it was asked to, after a checkpoint.
    Early,
    /// A term of the loss is no number any more.
    Diverged,
    /// There is no room for what it writes.
    DiskFull,
}

impl TrainingExit {
    pub const ALL: [TrainingExit; 3] = [
        TrainingExit::Early,
        TrainingExit::Diverged,
        TrainingExit::DiskFull,
    ];

    pub fn code(self) -> u8 {
        match self {
            TrainingExit::Early => 75,
            TrainingExit::Diverged => 76,
            TrainingExit::DiskFull => 77,
        }
    }

    /// What a process said that exited so.
    pub fn of_code(code: i32) -> Option<Self> {
        let mut all = TrainingExit::ALL.into_iter();
        all.find(|exit| i32::from(exit.code()) == code)
    }

    /// What there is to say of a failure.
    pub fn of_error(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(found) = cause {
            if let Some(TrainingError::Diverged { .. }) = found.downcast_ref() {
                return Some(TrainingExit::Diverged);
            }
            cause = found.source();
        }
        is_full(error).then_some(TrainingExit::DiskFull)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;
    use crate::artifacts::ArtifactError;

    #[test]
    fn failures_are_told_by_what_they_are_not_by_their_words() {
        let diverged = TrainingError::Diverged {
            step: 3,
            term: "loss".to_owned(),
            value: f32::NAN,
        };
        assert_eq!(
            TrainingExit::of_error(&diverged),
            Some(TrainingExit::Diverged)
        );
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let full = TrainingError::from(ArtifactError::io("write", Path::new("metrics"))(full));
        assert_eq!(TrainingExit::of_error(&full), Some(TrainingExit::DiskFull));
        let words = TrainingError::Data(format!("{diverged} (os error 28)"));
        assert_eq!(TrainingExit::of_error(&words), None);
        for exit in TrainingExit::ALL {
            assert_eq!(TrainingExit::of_code(i32::from(exit.code())), Some(exit));
        }
        assert_eq!(TrainingExit::of_code(1), None);
    }
}
