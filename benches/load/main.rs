//! Load from outside on a server: `cargo bench --bench load -- [--url http://127.0.0.1:8080] [--rate 20] ...`.
//!
//! Without `--url` it starts a server of the shipped pair by itself. Clients keep to the last core, the server does
//! not. There are three ways to load it:
//!
//! - requests that come at random times, `--rate` a second on average, whether or not those before are answered:
//!   a server that is late does not slow them down, and is told its lateness in full;
//! - `--overload`: ten times what the server can carry, and whether it refuses the rest and stays well;
//! - `--disconnects [N]`: clients that leave in the middle, and whether anything of them stays.
//!
//! The last two print PASS or FAIL for every claim and fail as a whole if one does.

mod checks;
mod disconnects;
mod http;
mod overload;
mod report;
#[path = "../server/mod.rs"]
mod server;
mod traffic;
mod workload;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway::settings::Limits;
use clap::Parser;

use http::Target;
use report::Report;
use server::{PAIR, Server, pin_to_last_core};
use workload::{Mix, Workload};

#[derive(Parser)]
struct Arguments {
    /// A server that runs already, as http://HOST:PORT.
    #[arg(long)]
    url: Option<String>,
    /// An API key for it.
    #[arg(long)]
    key: Option<String>,
    /// The dense model of a pair.
    #[arg(long, default_value = "tinypython")]
    model: String,
    /// Requests a second, on average.
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// How long requests come.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// The share of requests with edits.
    #[arg(long, default_value_t = 0.5)]
    steered_share: f64,
    /// The share of requests that are answered piece by piece.
    #[arg(long, default_value_t = 0.5)]
    streaming_share: f64,
    /// The same seed gives the same requests at the same times.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Offer ten times what the server carries.
    #[arg(long, conflicts_with = "disconnects")]
    overload: bool,
    /// The server's `limits.first_token_seconds`, which an overload is held against.
    #[arg(long, default_value_t = Limits::default().first_token_seconds)]
    first_token_seconds: u64,
    /// So many clients that close their connections at random points.
    #[arg(long, num_args = 0..=1, default_missing_value = "1000")]
    disconnects: Option<usize>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let own = match arguments.url {
        None => Some(Server::start(&["--no-shipped-pair", "--pair", PAIR])),
        Some(_) => None,
    };
    pin_to_last_core();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    match runtime.block_on(run(&arguments, own.as_ref())) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// False where something that was claimed does not hold.
async fn run(arguments: &Arguments, own: Option<&Server>) -> bool {
    let address = match (own, &arguments.url) {
        (Some(server), _) => server.address.clone(),
        (None, url) => http::address(url.as_deref().unwrap_or_default()),
    };
    let target = Arc::new(Target {
        address,
        key: arguments.key.clone(),
    });
    let mix = Mix {
        model: arguments.model.clone(),
        steered_share: arguments.steered_share,
        streaming_share: arguments.streaming_share,
    };
    let mut workload = Workload::new(&mix, arguments.seed);
    if let Some(clients) = arguments.disconnects {
        return disconnects::run(&target, &mut workload, clients).await;
    }
    let time = Duration::from_secs_f64(arguments.seconds);
    if arguments.overload {
        let process = own.map(|server| server.child.id());
        let bound = Duration::from_secs(arguments.first_token_seconds);
        return overload::run(&target, &mut workload, time, process, bound).await;
    }
    let started = Instant::now();
    let outcomes = traffic::open_loop(&target, &mut workload, arguments.rate, time).await;
    println!("{}", Report::of(&outcomes, started.elapsed()));
    true
}
