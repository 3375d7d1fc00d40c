//! Running chat templates in processes of their own, whose memory, stack and time are bounded.
//!
//! A template comes with a model, from whoever made it, and no count of a template engine's steps bounds what it takes:
//! a width of two thousand million, values nested in values, a text replaced by a longer one again and again. The
//! process is this program's own `causeway template`. It answers one conversation a line for as long as it lives; one
//! that dies, or is too slow, fails the request that it was on, and no other.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Take};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::models::chat_template::{ChatTemplate, Conversation, Message, RenderError};

/// Processes that wait for the next conversation; further ones end with theirs.
const MOST_IDLE: usize = 2;
/// Bytes that a character of an answer may take, as JSON writes it.
const PER_CHARACTER: u64 = 12;
/// Bytes of an answer beside its text: a template may raise an error of its own.
const SPARE: u64 = 1 << 20;
/// Bytes of what a dying process says that are read, and characters that are told.
const LAST_WORDS: u64 = 1 << 14;
const TOLD: usize = 300;

/// The processes of a server.
#[derive(Debug)]
pub struct TemplateProcesses {
    /// The program whose `template` is run.
    program: PathBuf,
    /// `limits.template_mib` of the settings.
    mib: u64,
    /// `limits.template_seconds` of the settings.
    seconds: u64,
    idle: Mutex<Vec<Process>>,
}

/// Why a conversation could not be written out.
#[derive(Debug, thiserror::Error)]
pub enum TemplateFailure {
    #[error(transparent)]
    Refused(#[from] RenderError),
    #[error(
        "the model's chat template took longer than the {0} seconds that it is given (limits.template_seconds)"
    )]
    Slow(u64),
    #[error(
        "the model's chat template ended the process that ran it ({status}), as when it takes more than its {mib} MiB \
         (limits.template_mib) or nests deeper than its stack allows: {said}"
    )]
    Died {
        status: ExitStatus,
        mib: u64,
        said: String,
    },
    /// It could not be run.
    #[error("the model's chat template could not be run: {0}")]
    System(#[from] io::Error),
}

/// One process, which ends when this is dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<Take<ChildStdout>>,
}

impl TemplateProcesses {
    /// Processes of `program`, each with so many MiB and seconds for a conversation; none is started yet.
    pub fn new(program: PathBuf, mib: u64, seconds: u64) -> Self {
        TemplateProcesses {
            program,
            mib,
            seconds,
            idle: Mutex::default(),
        }
    }

    /// The text of a conversation up to where the assistant's next words begin; at most `limit` characters.
    pub async fn render(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        limit: usize,
    ) -> Result<String, TemplateFailure> {
        let asked = Conversation {
            template: template.clone(),
            messages: messages.to_vec(),
            limit,
        };
        let mut line = serde_json::to_vec(&asked).map_err(io::Error::from)?;
        line.push(b'\n');
        // One whose end nobody has seen yet would fail a request that is not at fault.
        let mut idle = self.idle().pop();
        let idle = idle.take_if(|process| matches!(process.child.try_wait(), Ok(None)));
        let mut process = match idle {
            Some(process) => process,
            None => self.start()?,
        };
        let most = (limit as u64).saturating_mul(PER_CHARACTER) + SPARE;
        let patience = Duration::from_secs(self.seconds);
        let answer = tokio::time::timeout(patience, process.ask(&line, most))
            .await
            .map_err(|_| TemplateFailure::Slow(self.seconds))?;
        let Some(answer) = answer else {
            return Err(self.last_words(process).await);
        };
        let rendered: Result<String, RenderError> =
            serde_json::from_slice(&answer).map_err(io::Error::from)?;
        let mut idle = self.idle();
        if idle.len() < MOST_IDLE {
            idle.push(process);
        }
        Ok(rendered?)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Process>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) -> io::Result<Process> {
        let mut child = Command::new(&self.program)
            .arg("template")
            .args(["--mib", &self.mib.to_string()])
            .env("RAYON_NUM_THREADS", "1")
            // What the allocator sets aside in advance would count as taken.
            .env("MIMALLOC_ARENA_RESERVE", "0")
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the process has no input or no output"));
        };
        Ok(Process {
            child,
            input,
            output: BufReader::new(output.take(0)),
        })
    }

    /// What a process that did not answer died of.
    async fn last_words(&self, mut process: Process) -> TemplateFailure {
        let ended = async {
            let mut said = Vec::new();
            if let Some(errors) = process.child.stderr.take() {
                errors.take(LAST_WORDS).read_to_end(&mut said).await?;
            }
            // One that has complained at too great length still runs.
            process.child.start_kill()?;
            Ok::<_, io::Error>((process.child.wait().await?, said))
        };
        match tokio::time::timeout(Duration::from_secs(self.seconds), ended).await {
            Err(_) => TemplateFailure::Slow(self.seconds),
            Ok(Err(error)) => TemplateFailure::System(error),
            Ok(Ok((status, said))) => TemplateFailure::Died {
                status,
                mib: self.mib,
                said: String::from_utf8_lossy(&said)
                    .trim()
                    .chars()
                    .take(TOLD)
                    .collect(),
            },
        }
    }
}

impl Process {
    /// Sends one line and reads one, of at most so many bytes; none where the process ends instead.
    async fn ask(&mut self, line: &[u8], most: u64) -> Option<Vec<u8>> {
        self.input.write_all(line).await.ok()?;
        self.input.flush().await.ok()?;
        self.output.get_mut().set_limit(most);
        let mut answer = Vec::new();
        self.output.read_until(b'\n', &mut answer).await.ok()?;
        if answer.len() as u64 == most {
            // It would wait for ever for somebody to read the rest.
            self.child.start_kill().ok()?;
        }
        answer.ends_with(b"\n").then_some(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What a process does whose program is this shell script, asked so many times.
    async fn outcomes(script: &str, times: usize) -> Vec<Result<String, TemplateFailure>> {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("program");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("a script");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("its mode");
        let processes = TemplateProcesses::new(program, 7, 2);
        let template = ChatTemplate::new(String::new(), None, None);
        let mut outcomes = Vec::new();
        for _ in 0..times {
            outcomes.push(processes.render(&template, &[], 10).await);
        }
        outcomes
    }

    #[tokio::test]
    async fn one_process_answers_until_it_dies_and_another_takes_its_place() {
        let twice = r#"for i in 1 2; do read line; echo '{"Ok": "'$$'"}'; done; echo gone >&2; read line; kill -ABRT $$"#;
        let outcomes = outcomes(twice, 4).await;
        let answer = |index: usize| outcomes[index].as_ref().expect("an answer");
        assert_eq!(answer(0), answer(1));
        let died = &outcomes[2];
        assert!(
            matches!(died, Err(TemplateFailure::Died { said, mib: 7, .. }) if said == "gone"),
            "{died:?}"
        );
        assert_ne!(answer(3), answer(0));
    }

    #[tokio::test]
    async fn one_that_is_slow_or_has_no_end_is_given_up() {
        let slow = outcomes("read line; exec sleep 600", 1).await;
        assert!(matches!(slow[0], Err(TemplateFailure::Slow(2))), "{slow:?}");
        let endless = outcomes("exec tr '\\0' x </dev/zero", 1).await;
        assert!(
            matches!(
                endless[0],
                Err(TemplateFailure::Died { .. } | TemplateFailure::Slow(_))
            ),
            "{endless:?}"
        );
        let refused = outcomes(r#"read line; echo '{"Err": {"Raised": "no"}}'"#, 1).await;
        assert!(
            matches!(&refused[0], Err(TemplateFailure::Refused(RenderError::Raised(text))) if text == "no"),
            "{refused:?}"
        );
    }
}
