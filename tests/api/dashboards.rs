//! Every metric that the dashboard and the rules name is told, and counts what the clients saw.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use causeway::jobs::job::{Level, NewEvent};
use causeway::jobs::store::Store;
use causeway::jobs::store::claims::Position;
use causeway::settings::keys::Role;
use serde_json::json;

use crate::client::{Response, Server};
use crate::keys::key;

/// The names of metrics in a text, without the suffixes of histograms.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c: char| !word(c))
        .filter(|name| name.starts_with("causeway_"))
        .map(|name| {
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            base.unwrap_or(name).to_owned()
        })
        .collect()
}

/// The value of a series, by its beginning up to the value.
fn value(metrics: &str, series: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    let value = line.and_then(|rest| rest.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {series} in {metrics}"))
}

/// Does what a worker does when the only job has taken its first step.
fn take_a_step(server: &Server) {
    let lease = Duration::from_secs(600);
    let told = async {
        let store = Store::open(None, &server.directory.join("data/jobs.sqlite")).await?;
        let (claim, _) = store.claim("test", lease).await?.expect("a job");
        let step = NewEvent {
            key: "step:1".into(),
            level: Level::Info,
            message: "step 1".into(),
            metrics: Some(json!({"step": 1, "loss": 2.5})),
        };
        let position = Position {
            step: 1,
            trained_tokens: 32,
            step_milliseconds: 1.0,
        };
        store.tell(&claim, lease, &[step], Some(position)).await
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(told).unwrap();
}

#[test]
fn what_the_dashboard_and_the_rules_show_exists() {
    let server = Server::with(|settings| {
        settings.keys = vec![
            key("reader", Role::Infer, None),
            key("slow", Role::Infer, Some(1)),
            key("trainer", Role::Train, None),
        ];
    });
    let send = |name: &str, method: &str, path: &str, body: &str| -> Response {
        let bearer = format!("Bearer ck-{name}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
        ];
        server.send(method, path, &headers, body.as_bytes())
    };
    let mut body =
        json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 6, "logit_bias": {"319": -100}});
    let plain = send("reader", "POST", "/v1/completions", &body.to_string()).ok();
    body["steer"] = json!({
        "edits": [{"feature": "shipped_feature", "op": "add", "value": 1.0}], "return": ["receipt"]
    });
    let steered = send("reader", "POST", "/v1/completions", &body.to_string()).ok();
    body["temperature"] = json!(9);
    assert_eq!(
        send("reader", "POST", "/v1/completions", &body.to_string()).status,
        400
    );
    let limited = [(); 2].map(|()| send("slow", "GET", "/v1/models", "").status);
    assert_eq!(limited, [200, 429]);

    let job = crate::jobs::bridge("trained").to_string();
    send("trainer", "POST", "/v1/fine_tuning/jobs", &job).ok();
    take_a_step(&server);

    let metrics = send("reader", "GET", "/metrics", "").body;
    let told = named(&metrics);
    let docker = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker");
    for file in ["rules.yml", "grafana/dashboards/causeway.json"] {
        let text = std::fs::read_to_string(docker.join(file)).unwrap();
        let wanted = named(&text);
        assert!(wanted.len() > 3, "{file} names {wanted:?}");
        let missing: Vec<_> = wanted.difference(&told).collect();
        assert!(missing.is_empty(), "{file} names {missing:?}");
    }

    let completion = "causeway_requests_total{endpoint=\"/v1/completions\",outcome=";
    for (series, expected) in [
        (format!("{completion}\"ok\"}}"), 2.0),
        (format!("{completion}\"refused\"}}"), 1.0),
        (
            "causeway_rejected_total{reason=\"rate_limit_exceeded\"}".to_owned(),
            1.0,
        ),
        (
            "causeway_steered_requests_total{bridge=\"tiny\"}".to_owned(),
            1.0,
        ),
        ("causeway_time_to_first_token_seconds_count".to_owned(), 2.0),
        ("causeway_inter_token_latency_seconds_count".to_owned(), 2.0),
        ("causeway_requests_running".to_owned(), 0.0),
        ("causeway_job_state{state=\"running\"}".to_owned(), 1.0),
        ("causeway_job_state{state=\"failed\"}".to_owned(), 0.0),
    ] {
        assert_eq!(value(&metrics, &series), expected, "{series}");
    }
    let touched = &steered["choices"][0]["receipt"]["edits"][0]["tokens_touched"];
    assert_eq!(
        value(&metrics, "causeway_steer_delta_norm_ratio_count"),
        touched.as_f64().unwrap()
    );
    let active = value(
        &metrics,
        "causeway_sparse_active_ratio{model=\"tiny-sparse\"}",
    );
    assert!(active > 0.0 && active <= 1.0, "{active}");
    let tokens = |answer: &serde_json::Value, field: &str| answer["usage"][field].as_f64().unwrap();
    for (series, field) in [
        ("causeway_prompt_tokens_total", "prompt_tokens"),
        ("causeway_generation_tokens_total", "completion_tokens"),
    ] {
        let expected = tokens(&plain, field) + tokens(&steered, field);
        assert_eq!(value(&metrics, series), expected, "{series}");
    }
}

/// Prometheus' own rules for names: base units, `_total` for counters and for nothing else, no suffix that belongs to
/// a histogram's parts, a line of help, no colons, which are for recording rules.
#[test]
fn metrics_are_named_as_prometheus_wants() {
    let server = Server::new();
    server.get("/v1/models").ok();
    let metrics = server.get("/metrics").body;
    let mut kinds = BTreeMap::new();
    let mut helped = BTreeSet::new();
    for line in metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                kinds.insert(name.to_owned(), kind.to_owned());
            }
            (Some("#"), Some("HELP"), Some(name), Some(help)) if help.ends_with('.') => {
                helped.insert(name.to_owned());
            }
            _ => {}
        }
    }
    assert!(kinds.len() > 10, "{metrics}");
    for (name, kind) in &kinds {
        let rest = name
            .strip_prefix("causeway_")
            .expect("the program's prefix");
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(rest.chars().all(allowed), "{name}");
        assert_eq!(
            rest.ends_with("_total"),
            kind == "counter",
            "{name} is a {kind}"
        );
        for suffix in [
            "_count",
            "_sum",
            "_bucket",
            "_milliseconds",
            "_ms",
            "_percent",
            "_minutes",
            "_kib",
            "_mib",
        ] {
            assert!(!rest.ends_with(suffix), "{name}");
        }
        assert!(!rest.contains(kind.as_str()), "{name} tells its type");
        assert!(helped.contains(name), "{name} has no sentence of help");
    }
}
