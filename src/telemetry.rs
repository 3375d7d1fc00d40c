//! Logs and traces. Logs go to standard error, as text or as JSON, filtered by `RUST_LOG`; traces go to an
//! OpenTelemetry collector where the settings name one. A request is one span, which continues the caller's trace
//! if its `traceparent` header names one; log lines of a request carry the span's fields, its id among them.

use std::io::IsTerminal;

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::settings::{LogFormat, TelemetrySettings};

/// What traces are made of, whatever the log shows.
const TRACED: &str = "causeway=info";

/// Sends what traces are left when dropped.
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Begins; once in a process.
    pub fn start(settings: &TelemetrySettings) -> Result<Self, ExporterBuildError> {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        // Colours are for people who look at it just then.
        let terminal = std::io::stderr().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(terminal && !plain)
            .with_writer(std::io::stderr);
        let lines = match settings.log {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().boxed(),
        };
        let provider = match settings.traces_endpoint.as_str() {
            "" => None,
            endpoint => Some(provider(endpoint)?),
        };
        let traces = provider.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("causeway"))
                .with_filter(EnvFilter::new(TRACED))
        });
        tracing_subscriber::registry()
            .with(lines.with_filter(filter))
            .with(traces)
            .init();
        Ok(Telemetry { provider })
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "some traces were not sent");
        }
    }
}

fn provider(endpoint: &str) -> Result<SdkTracerProvider, ExporterBuildError> {
    crate::tls::choose();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .build()?;
    let resource = Resource::builder().with_service_name("causeway").build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

/// Makes `span` part of the trace that a request's headers name, if they name one; `header` gives one by its name.
pub fn continue_trace<'h>(span: &Span, header: impl Fn(&str) -> Option<&'h str>) {
    let caller = TraceContextPropagator::new().extract(&Headers(&header));
    // Without a collector there is no trace to be part of.
    let _ = span.set_parent(caller);
}

struct Headers<'a, 'h>(&'a dyn Fn(&str) -> Option<&'h str>);

impl Extractor for Headers<'_, '_> {
    fn get(&self, key: &str) -> Option<&str> {
        (self.0)(key)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}
