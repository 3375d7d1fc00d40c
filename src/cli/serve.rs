//! `causeway serve`: the HTTP server over one or more models.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use actix_web::web;
use anyhow::Context;
use clap::Args;

use crate::api::{loading, server};
use crate::artifacts::ArtifactId;
use crate::numerics::device::{DeviceChoice, DeviceLost, MatrixType};
use crate::settings::Settings;
use crate::telemetry::Telemetry;

/// The pair that is served beside those that are named, below the repository's root.
const SHIPPED_PAIR: &str = "bridges/tinypython";

/// Serve models over HTTP. Without further words: the shipped pair, to this machine only.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// Settings, a TOML file; `configs/server.toml` shows all of them.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The address and port to listen on.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Let other machines in without any API keys: whoever reaches the port may do everything.
    #[arg(long)]
    allow_remote: bool,
    /// Print the settings that all of this comes to, and do not serve.
    #[arg(long)]
    print_config: bool,
    /// Where to keep what callers make.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Serve a model's directory under an id, beside the shipped pair.
    #[arg(long, value_name = "ID=DIR", value_parser = named_model)]
    model: Vec<(ArtifactId, PathBuf)>,
    /// Serve a pair's directory, beside the shipped pair.
    #[arg(long, value_name = "DIR")]
    pair: Vec<PathBuf>,
    /// Do not serve the shipped pair.
    #[arg(long)]
    no_shipped_pair: bool,
    /// What models compute on: auto, cpu, or cuda:N.
    #[arg(long)]
    device: Option<DeviceChoice>,
    /// What sparse models compute on, where it is something else.
    #[arg(long, value_name = "DEVICE")]
    sparse_device: Option<DeviceChoice>,
    /// What a device holds dense matrices in: float32 or bfloat16.
    #[arg(long, value_name = "TYPE")]
    dtype: Option<MatrixType>,
}

impl ServeArguments {
    /// Serves until the process is told to stop.
    pub fn run(self) -> anyhow::Result<()> {
        let print = self.print_config;
        let settings = self.settings()?;
        if print {
            print!("{}", toml::to_string(&settings.without_secrets())?);
            return Ok(());
        }
        let _telemetry = Telemetry::start(&settings.telemetry)?;
        let listener = TcpListener::bind(settings.listen)
            .with_context(|| format!("cannot listen on {}", settings.listen))?;
        let address = listener.local_addr()?;
        let state = web::Data::new(loading::load(&settings, address)?);
        for model in state.snapshot().models.values() {
            let kind = if model.sparse { "sparse" } else { "dense" };
            tracing::info!(
                id = model.id,
                kind,
                device = model.device,
                parameters = model.parameters,
                "serving a model"
            );
        }
        let engine = state.engine.clone();
        let (jobs, told) = (state.clone(), state.clone());
        actix_web::rt::System::new().block_on(async move {
            let server = server::run(listener, state, &settings)?;
            let handle = server.handle();
            actix_web::rt::spawn(async move {
                let told_to_stop = tokio::select! {
                    told = told_to_stop() => Some(told),
                    () = told.engine.lost() => None,
                };
                match told_to_stop {
                    Some(Ok(signal)) => tracing::info!(
                        signal,
                        "stopping: no new requests, those in progress are finished"
                    ),
                    Some(Err(error)) => {
                        tracing::error!(%error, "signals cannot be waited for; stopping");
                    }
                    None => tracing::error!("stopping: {DeviceLost}"),
                }
                told.jobs.begin_to_stop();
                told.downloads.stop();
                handle.stop(true).await;
            });
            tracing::info!("listening on http://{address}");
            server.await?;
            jobs.jobs.stop().await;
            Ok::<_, std::io::Error>(())
        })?;
        let lost = engine.is_lost();
        engine.shutdown();
        tracing::info!("stopped");
        anyhow::ensure!(!lost, DeviceLost);
        Ok(())
    }

    fn settings(self) -> anyhow::Result<Settings> {
        let mut settings = Settings::read(
            self.config.as_deref(),
            std::env::vars_os().filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            }),
        )?;
        settings.listen = self.listen.unwrap_or(settings.listen);
        settings.allow_remote |= self.allow_remote;
        settings.engine.device = self.device.unwrap_or(settings.engine.device);
        settings.engine.sparse_device = self.sparse_device.or(settings.engine.sparse_device);
        settings.engine.dtype = self.dtype.unwrap_or(settings.engine.dtype);
        settings.data_dir = self.data_dir.unwrap_or(settings.data_dir);
        // Named pairs and models take the place of the file's, all of them together.
        if !self.pair.is_empty() || !self.model.is_empty() {
            settings.pairs = self.pair;
            settings.models = self.model.into_iter().collect();
        }
        settings.shipped_pair &= !self.no_shipped_pair;
        if settings.shipped_pair {
            let shipped = shipped_pair()?;
            let same = |pair: &PathBuf| pair.canonicalize().ok() == shipped.canonicalize().ok();
            // The first bridge of a model is its default: what was named comes first.
            if !settings.pairs.iter().any(same) {
                settings.pairs.push(shipped);
            }
        }
        settings.check()?;
        Ok(settings)
    }
}

fn named_model(text: &str) -> Result<(ArtifactId, PathBuf), String> {
    let (id, directory) = text.split_once('=').ok_or("expected ID=DIR")?;
    Ok((
        id.parse().map_err(|error| format!("{error}"))?,
        PathBuf::from(directory),
    ))
}

/// Where the shipped pair is: below the working directory, beside the program, or where it was built.
fn shipped_pair() -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|program| program.parent().map(Path::to_path_buf));
    let roots = [
        Some(PathBuf::from(".")),
        beside,
        Some(PathBuf::from(env!("CARGO_MANIFEST_DIR"))),
    ];
    let mut places = roots
        .into_iter()
        .flatten()
        .map(|root| root.join(SHIPPED_PAIR));
    places.find(|place| place.join("bridge.json").is_file()).with_context(|| {
        format!("{SHIPPED_PAIR} is neither here nor beside the program; name pairs and models with --pair and --model, and say --no-shipped-pair")
    })
}

/// Waits for Ctrl-C or, on Unix, SIGTERM, and tells which it was.
pub(super) async fn told_to_stop() -> std::io::Result<&'static str> {
    #[cfg(unix)]
    {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            pressed = tokio::signal::ctrl_c() => pressed.map(|()| "Ctrl-C"),
            _ = terminate.recv() => Ok("SIGTERM"),
        }
    }
    #[cfg(not(unix))]
    {
        tokio::signal::ctrl_c().await.map(|()| "Ctrl-C")
    }
}
