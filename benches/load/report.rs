//! What became of many requests, in numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::traffic::{End, Outcome};

/// The outcomes of one run, counted.
#[derive(Default)]
pub struct Report {
    pub answered: usize,
    tokens: usize,
    /// The errors' statuses.
    refusals: BTreeMap<u16, usize>,
    /// Refusals that another time could be answered, and say when.
    pub told_to_retry: usize,
    failures: BTreeMap<String, usize>,
    pub first_tokens: Times,
    gaps: Times,
    totals: Times,
    until_refused: Times,
    /// How long the run took, to the end of its last request.
    span: Duration,
}

impl Report {
    /// `span` is how long it took until all had ended.
    pub fn of(outcomes: &[Outcome], span: Duration) -> Self {
        let mut report = Report {
            span,
            ..Report::default()
        };
        for outcome in outcomes {
            match &outcome.end {
                End::Answered(completion) => {
                    report.answered += 1;
                    report.tokens += completion.tokens;
                    report.first_tokens.0.extend(completion.first_token);
                    report.gaps.0.extend(&completion.gaps);
                    report.totals.0.push(outcome.total);
                }
                End::Refused {
                    status,
                    says_when_to_retry,
                } => {
                    *report.refusals.entry(*status).or_default() += 1;
                    let in_time = matches!(status, 429 | 503) && *says_when_to_retry;
                    report.told_to_retry += usize::from(in_time);
                    report.until_refused.0.push(outcome.total);
                }
                End::Failed(why) => *report.failures.entry(why.clone()).or_default() += 1,
            }
        }
        for times in [
            &mut report.first_tokens,
            &mut report.gaps,
            &mut report.totals,
            &mut report.until_refused,
        ] {
            times.0.sort_unstable();
        }
        report
    }

    pub fn refused(&self) -> usize {
        self.refusals.values().sum()
    }

    pub fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// Requests answered in a second.
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.span.as_secs_f64()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let requests = self.answered + self.refused() + self.failed();
        writeln!(
            f,
            "{requests} requests in {:.1} s: {} answered, {} refused, {} failed",
            self.span.as_secs_f64(),
            self.answered,
            self.refused(),
            self.failed()
        )?;
        writeln!(
            f,
            "throughput: {:.1} requests/s, {:.0} tokens/s",
            self.rate(),
            self.tokens as f64 / self.span.as_secs_f64()
        )?;
        writeln!(f, "{:<22}{:>10}{:>10}{:>10}", "", "p50", "p90", "p99")?;
        writeln!(f, "{:<22}{}", "first token (streams)", self.first_tokens)?;
        writeln!(f, "{:<22}{}", "between pieces", self.gaps)?;
        writeln!(f, "{:<22}{}", "whole answer", self.totals)?;
        writeln!(f, "{:<22}{}", "refusal", self.until_refused)?;
        writeln!(f, "status 200: {}", self.answered)?;
        for (status, count) in &self.refusals {
            writeln!(f, "status {status}: {count}")?;
        }
        writeln!(
            f,
            "refusals: {} with 429 or 503 and retry-after, {} otherwise",
            self.told_to_retry,
            self.refused() - self.told_to_retry
        )?;
        for (why, count) in &self.failures {
            writeln!(f, "failed, {count} times: {why}")?;
        }
        Ok(())
    }
}

/// Times in ascending order.
#[derive(Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// The time that this share of all is no longer than; none of none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.max(1) - 1).copied()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        [0.5, 0.9, 0.99]
            .into_iter()
            .try_for_each(|share| match self.quantile(share) {
                Some(time) => write!(f, "{:>7.1} ms", 1e3 * time.as_secs_f64()),
                None => write!(f, "{:>10}", "-"),
            })
    }
}
