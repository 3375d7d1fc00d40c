//! `causeway template`: what the server runs, in a process of its own, to write conversations out by their models' chat
//! templates.

use std::io::{BufRead, Read, Write};

use clap::Args;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::memory;
use crate::models::chat_template::{Conversation, RenderError};

/// What templates in use nest takes far less.
const STACK: usize = 8 << 20;
/// Bytes of a conversation with its template, as JSON.
const LONGEST_LINE: u64 = 256 << 20;

/// Write out conversations, one a line of JSON, by the chat templates that come with them.
#[derive(Debug, Args)]
pub struct TemplateArguments {
    /// MiB that this may take.
    #[arg(long)]
    mib: u64,
}

impl TemplateArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        setrlimit(Resource::Core, none)?;
        memory::bound_growth(self.mib.saturating_mul(1 << 20))?;
        let answering = std::thread::Builder::new()
            .name("chat template".to_owned())
            .stack_size(STACK)
            .spawn(answer)?;
        match answering.join() {
            Ok(answered) => answered,
            Err(_) => anyhow::bail!("the chat template panicked"),
        }
    }
}

/// Answers until nobody asks any more.
fn answer() -> anyhow::Result<()> {
    let mut input = std::io::stdin().lock();
    let mut output = std::io::stdout().lock();
    loop {
        let mut line = Vec::new();
        (&mut input)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let Conversation {
            template,
            messages,
            limit,
        } = serde_json::from_slice(&line)?;
        drop(line);
        let rendered: Result<String, RenderError> = template.render(&messages, limit);
        serde_json::to_writer(&mut output, &rendered)?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
}
