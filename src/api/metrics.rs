//! What the server counts, in Prometheus' form. Labels are bounded: routes, not paths; ids of bridges that are
//! loaded, not names that callers made up.

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Upper bounds in seconds: from an answer out of memory to a long completion.
const DURATION_BUCKETS: [f64; 12] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0,
];

/// The counters of one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    pub prompt_tokens: IntCounter,
    pub generation_tokens: IntCounter,
    pub steered_requests: IntCounterVec,
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
        let build = IntGaugeVec::new(Opts::new("causeway_build_info", "Always 1."), &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(prompt_tokens.clone()))?;
        registry.register(Box::new(generation_tokens.clone()))?;
        registry.register(Box::new(steered_requests.clone()))?;
        registry.register(Box::new(build))?;
        Ok(Metrics {
            registry,
            requests,
            durations,
            prompt_tokens,
            generation_tokens,
            steered_requests,
        })
    }

    /// Counts one request that was answered with `status` after `seconds`.
    pub fn answered(&self, endpoint: &str, status: u16, seconds: f64) {
        let outcome = match status {
            0..400 => "ok",
            400..500 => "refused",
            _ => "failed",
        };
        self.requests.with_label_values(&[endpoint, outcome]).inc();
        self.durations
            .with_label_values(&[endpoint])
            .observe(seconds);
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
