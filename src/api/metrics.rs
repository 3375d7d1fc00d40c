//! What the server counts, in Prometheus' form. Labels are bounded: routes, not paths; ids of bridges that are
//! loaded, not names that callers made up.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::generation::health::{KeptPrefixes, Load};
use crate::generation::request::Generation;
use crate::jobs::job::Status;
use crate::jobs::store::jobs::Tally;
use crate::numerics::device::{self, DeviceUse};
use crate::serving::snapshot::Snapshot;

/// Upper bounds in seconds: from an answer out of memory to a long completion.
const DURATION_BUCKETS: [f64; 12] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0,
];

/// The same for what takes a token.
const TOKEN_BUCKETS: [f64; 11] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
];

/// For a change beside what it changed.
const RATIO_BUCKETS: [f64; 11] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// The counters of one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    steered_requests: IntCounterVec,
    queue_time: Histogram,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    rejected: IntCounterVec,
    delta_norm: Histogram,
    running: IntGauge,
    waiting: IntGauge,
    cache_usage: Gauge,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new(
                "causeway_requests_total",
                "Requests answered, by route and how they ended.",
            ),
            &["endpoint", "outcome"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "causeway_request_duration_seconds",
                "From a request's head to its answer's head.",
            )
            .buckets(DURATION_BUCKETS.to_vec()),
            &["endpoint"],
        )?;
        let prompt_tokens = IntCounter::new(
            "causeway_prompt_tokens_total",
            "Tokens of prompts completed.",
        )?;
        let generation_tokens =
            IntCounter::new("causeway_generation_tokens_total", "Tokens generated.")?;
        let steered_requests = IntCounterVec::new(
            Opts::new(
                "causeway_steered_requests_total",
                "Completions that carried edits, by bridge.",
            ),
            &["bridge"],
        )?;
        let histogram = |name: &str, help: &str| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec()))
        };
        let queue_time = histogram(
            "causeway_queue_time_seconds",
            "From a completion's arrival at the engine to its first place in a batch.",
        )?;
        let time_to_first_token = histogram(
            "causeway_time_to_first_token_seconds",
            "From a completion's arrival at the engine to its first token.",
        )?;
        let inter_token_latency = Histogram::with_opts(
            HistogramOpts::new(
                "causeway_inter_token_latency_seconds",
                "The mean time between two tokens of a completion.",
            )
            .buckets(TOKEN_BUCKETS.to_vec()),
        )?;
        let rejected = IntCounterVec::new(
            Opts::new(
                "causeway_rejected_total",
                "Requests turned away that another time could be answered, by the error's code.",
            ),
            &["reason"],
        )?;
        let delta_norm = Histogram::with_opts(
            HistogramOpts::new(
                "causeway_steer_delta_norm_ratio",
                "Norm of what an edit added over the norm of what it was added to, of each token a receipt tells.",
            )
            .buckets(RATIO_BUCKETS.to_vec()),
        )?;
        let running = IntGauge::new(
            "causeway_requests_running",
            "Completions that take part in the engine's steps.",
        )?;
        let waiting = IntGauge::new(
            "causeway_requests_waiting",
            "Completions that wait for room in the engine.",
        )?;
        let cache_usage = Gauge::new(
            "causeway_kv_cache_usage_ratio",
            "Share of the key-value cache's slots in use, of the model with the most.",
        )?;
        let build = IntGaugeVec::new(Opts::new("causeway_build_info", "Always 1."), &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(prompt_tokens.clone()))?;
        registry.register(Box::new(generation_tokens.clone()))?;
        registry.register(Box::new(steered_requests.clone()))?;
        registry.register(Box::new(queue_time.clone()))?;
        registry.register(Box::new(time_to_first_token.clone()))?;
        registry.register(Box::new(inter_token_latency.clone()))?;
        registry.register(Box::new(rejected.clone()))?;
        registry.register(Box::new(delta_norm.clone()))?;
        registry.register(Box::new(running.clone()))?;
        registry.register(Box::new(waiting.clone()))?;
        registry.register(Box::new(cache_usage.clone()))?;
        registry.register(Box::new(build))?;
        Ok(Metrics {
            registry,
            requests,
            durations,
            prompt_tokens,
            generation_tokens,
            steered_requests,
            queue_time,
            time_to_first_token,
            inter_token_latency,
            rejected,
            delta_norm,
            running,
            waiting,
            cache_usage,
        })
    }

    /// Counts the tokens of a generation, and its steering over `bridge`.
    pub fn generated(&self, generation: &Generation, bridge: Option<&str>) {
        self.prompt_tokens.inc_by(generation.prompt_tokens as u64);
        self.generation_tokens
            .inc_by(generation.completion_tokens as u64);
        self.queue_time.observe(generation.queued.as_secs_f64());
        self.time_to_first_token
            .observe(generation.to_first_token.as_secs_f64());
        if let Some(time) = generation.between_tokens {
            self.inter_token_latency.observe(time.as_secs_f64());
        }
        if let Some(bridge) = bridge {
            self.steered_requests.with_label_values(&[bridge]).inc();
        }
        let receipts = generation
            .choices
            .iter()
            .filter_map(|choice| choice.receipt.as_ref());
        for token in receipts.flat_map(|receipt| receipt.touched()) {
            self.delta_norm.observe(f64::from(token.relative_change));
        }
    }

    /// Counts a request that was turned away.
    pub fn turned_away(&self, reason: &str) {
        self.rejected.with_label_values(&[reason]).inc();
    }

    /// Counts one request that was answered with `status` after `seconds`.
    pub fn answered(&self, endpoint: &str, status: u16, seconds: f64) {
        let outcome = match status {
            0..400 => "ok",
            499 => "abandoned",
            400..500 => "refused",
            _ => "failed",
        };
        self.requests.with_label_values(&[endpoint, outcome]).inc();
        self.durations
            .with_label_values(&[endpoint])
            .observe(seconds);
    }

    /// The text that Prometheus reads; `load` is what the engine is doing now, `kept` what it keeps of prompts, `served` what it can be asked, `jobs`
    /// how the trainings stand.
    pub fn text(
        &self,
        load: Load,
        kept: KeptPrefixes,
        served: &Snapshot,
        jobs: &Tally,
    ) -> Result<Vec<u8>, prometheus::Error> {
        self.running.set(load.running as i64);
        self.waiting.set(load.waiting as i64);
        self.cache_usage.set(load.cache_usage);
        let mut families = self.registry.gather();
        families.extend(prefixes(kept)?);
        families.extend(bridges(served)?);
        families.extend(sparse_models(served)?);
        families.extend(devices(served)?);
        families.extend(trainings(jobs)?);
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

/// What the engine keeps of prompts. It has counted itself.
fn prefixes(kept: KeptPrefixes) -> Result<Vec<MetricFamily>, prometheus::Error> {
    let queried = IntCounter::new(
        "causeway_prefix_cache_queried_tokens_total",
        "Prompt tokens that were looked up in what earlier requests left, of each arm.",
    )?;
    let hit = IntCounter::new(
        "causeway_prefix_cache_hit_tokens_total",
        "Prompt tokens that were found there and not run again.",
    )?;
    let bytes = IntGauge::new(
        "causeway_prefix_cache_bytes",
        "Keys and values that are kept after their requests.",
    )?;
    queried.inc_by(kept.queried_tokens as u64);
    hit.inc_by(kept.hit_tokens as u64);
    bytes.set(kept.bytes as i64);
    let collectors: [&dyn Collector; 3] = [&queried, &hit, &bytes];
    Ok(collectors.into_iter().flat_map(told).collect())
}

/// How well the bridges that are served reconstruct.
fn bridges(served: &Snapshot) -> Result<Vec<MetricFamily>, prometheus::Error> {
    let nmse = GaugeVec::new(
        Opts::new(
            "causeway_bridge_nmse",
            "Normalised mean squared error of a bridge's map at a site, as its record says.",
        ),
        &["bridge", "site", "map"],
    )?;
    for bridge in served.bridges.values() {
        for site in &bridge.record.sites {
            for (map, error) in [
                ("encoder", site.encoder_nmse),
                ("decoder", site.decoder_nmse),
            ] {
                nmse.with_label_values(&[bridge.record.id.as_str(), site.site.as_str(), map])
                    .set(error);
            }
        }
    }
    Ok(told(&nmse))
}

/// How sparse the sparse models that are served are.
fn sparse_models(served: &Snapshot) -> Result<Vec<MetricFamily>, prometheus::Error> {
    let active = GaugeVec::new(
        Opts::new(
            "causeway_sparse_active_ratio",
            "Share of a sparse model's parameters that are not zero.",
        ),
        &["model"],
    )?;
    for card in served.models.values().filter(|card| card.sparse) {
        active
            .with_label_values(&[&card.id])
            .set(card.nonzeros as f64 / card.parameters.max(1) as f64);
    }
    Ok(told(&active))
}

/// What the models that are served compute on.
fn devices(served: &Snapshot) -> Result<Vec<MetricFamily>, prometheus::Error> {
    let info = IntGaugeVec::new(
        Opts::new(
            "causeway_model_device_info",
            "Always 1; what a model computes on, cpu or cuda:N.",
        ),
        &["model", "device"],
    )?;
    for card in served.models.values() {
        info.with_label_values(&[&card.id, &card.device]).set(1);
    }
    let mut families = told(&info);
    let used = device_memory(
        "used",
        "Bytes of a CUDA device's memory that are in use, by any process.",
    )?;
    let all = device_memory("total", "Bytes of memory that a CUDA device has.")?;
    for (name, device) in device::opened() {
        if let Some(DeviceUse { used: held, memory }) = device::usage(&device) {
            used.with_label_values(&[&name]).set(held as i64);
            all.with_label_values(&[&name]).set(memory as i64);
        }
    }
    families.extend(told(&used));
    families.extend(told(&all));
    Ok(families)
}

/// `causeway_device_memory_..._bytes`, by device; it has no lines where there is no CUDA device.
fn device_memory(part: &str, help: &str) -> Result<IntGaugeVec, prometheus::Error> {
    let name = format!("causeway_device_memory_{part}_bytes");
    IntGaugeVec::new(Opts::new(name, help), &["device"])
}

/// How the trainings stand, and those that run.
fn trainings(jobs: &Tally) -> Result<Vec<MetricFamily>, prometheus::Error> {
    let gauge =
        |name: &str, help: &str, labels: &[&str]| GaugeVec::new(Opts::new(name, help), labels);
    let states = gauge(
        "causeway_job_state",
        "Trainings, by where they stand.",
        &["state"],
    )?;
    let steps = gauge(
        "causeway_train_step",
        "Steps done of a training that runs.",
        &["job"],
    )?;
    let tokens = CounterVec::new(
        Opts::new(
            "causeway_train_tokens_total",
            "Tokens that a training that runs has seen.",
        ),
        &["job"],
    )?;
    let losses = gauge(
        "causeway_train_loss",
        "Terms of the loss of a training that runs, at its last step.",
        &["job", "term"],
    )?;
    for status in Status::ALL {
        let count = jobs.states.get(&status).copied().unwrap_or(0);
        states
            .with_label_values(&[status.as_str()])
            .set(count as f64);
    }
    for training in &jobs.running {
        let id = training.job.as_str();
        steps.with_label_values(&[id]).set(training.step as f64);
        tokens
            .with_label_values(&[id])
            .inc_by(training.trained_tokens as f64);
        for (term, value) in &training.terms {
            losses.with_label_values(&[id, term]).set(*value);
        }
    }
    let collectors: [&dyn Collector; 4] = [&states, &steps, &tokens, &losses];
    Ok(collectors.into_iter().flat_map(told).collect())
}

/// What a collector has to tell; the encoder takes no family without metrics.
fn told(collector: &dyn Collector) -> Vec<MetricFamily> {
    let mut families = collector.collect();
    families.retain(|family| !family.get_metric().is_empty());
    families
}
