//! `causeway convert`: a model in any form that can be read, written in Causeway's own.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::artifacts::atomic;
use crate::artifacts::tensors::FloatPrecision;
use crate::memory;
use crate::models::companions;
use crate::models::gguf;
use crate::models::layout::ModelFiles;
use crate::models::text_bounds::TextBounds;

const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Write a model in Causeway's own form: safetensors, with the zeros of sparse matrices left out. Pickled checkpoints
/// cannot be loaded from a server's library until they are written so.
#[derive(Debug, Args)]
pub struct ConvertArguments {
    /// The model's directory: a released checkpoint, its Hugging Face copy, or a dense model in Hugging Face's form. Or a
    /// GGUF file, which is copied into the new directory: its weights stay as they are.
    from: PathBuf,
    /// The new directory.
    to: PathBuf,
    /// Write the weights of a GGUF file as float32 instead.
    #[arg(long)]
    float32: bool,
    /// MiB that the weights may take, as they will be held.
    #[arg(long, hide = true)]
    max_model_mib: Option<u64>,
    /// Seconds of the processor that this may take.
    #[arg(long, hide = true)]
    seconds: Option<u64>,
}

/// Weights are there as they are read and as they are written, and as what is packed of them. Beside them there is the
/// file's header.
const PER_WEIGHT: u64 = 4;
const SPARE: u64 = 512 << 20;

impl ConvertArguments {
    pub fn run(self) -> anyhow::Result<()> {
        ensure!(
            !self.to.exists(),
            "{} is there already; name a new directory",
            self.to.display()
        );
        if let Some(most) = self.seconds {
            let limit = Rlimit {
                current: Some(most),
                maximum: Some(most),
            };
            setrlimit(Resource::Cpu, limit)?;
        }
        let most_bytes = self
            .max_model_mib
            .map_or(u64::MAX, |mib| mib.saturating_mul(1 << 20));
        if self.max_model_mib.is_some() {
            memory::bound_growth(most_bytes.saturating_mul(PER_WEIGHT).saturating_add(SPARE))?;
        }
        if self.from.is_file() {
            return self.convert_gguf(most_bytes);
        }
        let model = ModelFiles::read(&self.from)?;
        // The configuration comes last, so that what was cut short is no model.
        atomic::create_directory(&self.to)?;
        companions::copy(&self.from, &self.to)?;
        // A configuration of Causeway's own does not say what ends a text.
        TextBounds::read(&self.from)?.keep(&self.to)?;
        model
            .write(&self.to)
            .with_context(|| format!("cannot write {}", self.to.display()))
    }

    fn convert_gguf(&self, most_bytes: u64) -> anyhow::Result<()> {
        let model = match self.float32 {
            true => gguf::read(&self.from, most_bytes)?,
            false => gguf::read_as(&self.from, most_bytes, FloatPrecision::AsStored)?,
        };
        atomic::create_directory(&self.to)?;
        if let Some(template) = &model.chat_template {
            atomic::write(&self.to.join(CHAT_TEMPLATE), template.as_bytes())?;
        }
        model.bounds.keep(&self.to)?;
        let written = match self.float32 {
            true => model.files.write(&self.to),
            false => model.files.write_beside_gguf(&self.from, &self.to),
        };
        written.with_context(|| format!("cannot write {}", self.to.display()))
    }
}
