//! The operations in float64, as a textbook writes them.

use causeway::numerics::attention::kernel::Heads;

pub fn abs_top_k(x: &[f64], width: usize, k: usize) -> Vec<f64> {
    let keep = |row: &[f64]| -> Vec<f64> {
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|&a, &b| row[b].abs().total_cmp(&row[a].abs()));
        let mut kept = vec![0.0; width];
        for &index in &order[..k] {
            kept[index] = row[index];
        }
        kept
    };
    x.chunks(width).flat_map(keep).collect()
}

/// RMSNorm, or LayerNorm where `centre` is set.
pub fn norm(x: &[f64], gain: &[f64], bias: Option<&[f64]>, epsilon: f64, centre: bool) -> Vec<f64> {
    let width = gain.len();
    let row = |row: &[f64]| -> Vec<f64> {
        let mean = if centre {
            row.iter().sum::<f64>() / width as f64
        } else {
            0.0
        };
        let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let scale = (square + epsilon).sqrt();
        (0..width)
            .map(|c| (row[c] - mean) / scale * gain[c] + bias.map_or(0.0, |b| b[c]))
            .collect()
    };
    x.chunks(width).flat_map(row).collect()
}

/// The error function by its Taylor series, exact to float64 for the arguments here.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
}

pub fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// `x W^T + b` with `weight [outputs, inputs]`.
pub fn linear(x: &[f64], weight: &[f64], bias: Option<&[f64]>, inputs: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let outputs = weight.chunks(inputs).enumerate();
        let dot = |w: &[f64]| row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
        outputs
            .map(|(o, w)| dot(w) + bias.map_or(0.0, |b| b[o]))
            .collect()
    };
    x.chunks(inputs).flat_map(row).collect()
}

/// Causal attention within sequences of `length` rows.
pub fn attention(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    sinks: &[f64],
    heads: Heads,
    length: usize,
) -> Vec<f64> {
    let width = heads.count * heads.d_head;
    let mut y = vec![0.0; q.len()];
    for row in 0..q.len() / width {
        let first = row - row % length;
        for (head, &sink) in sinks.iter().enumerate() {
            let channel = |row: usize, d: usize| row * width + head * heads.d_head + d;
            let score = |key: usize| {
                let dot: f64 = (0..heads.d_head)
                    .map(|d| q[channel(row, d)] * k[channel(key, d)])
                    .sum();
                (dot / (heads.d_head as f64).sqrt()).exp()
            };
            let total = sink.exp() + (first..=row).map(score).sum::<f64>();
            for d in 0..heads.d_head {
                y[channel(row, d)] = (first..=row)
                    .map(|key| score(key) / total * v[channel(key, d)])
                    .sum();
            }
        }
    }
    y
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = largest + logits.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
    logits.iter().map(|x| x - total).collect()
}

pub fn cross_entropy(logits: &[f64], targets: &[u32]) -> Vec<f64> {
    let width = logits.len() / targets.len();
    let rows = logits.chunks(width).zip(targets);
    rows.map(|(row, &target)| -log_softmax(row)[target as usize])
        .collect()
}

pub fn kl_divergence(teacher: &[f64], student: &[f64], width: usize) -> Vec<f64> {
    let row = |(teacher, student): (&[f64], &[f64])| {
        let pairs = log_softmax(teacher).into_iter().zip(log_softmax(student));
        pairs.map(|(t, s)| t.exp() * (t - s)).sum()
    };
    teacher
        .chunks(width)
        .zip(student.chunks(width))
        .map(row)
        .collect()
}

/// The squared deviation of `[rows, width]` values from their mean over the rows.
pub fn deviation(target: &[f64], width: usize) -> f64 {
    let rows = (target.len() / width) as f64;
    let mean = |channel: usize| target.iter().skip(channel).step_by(width).sum::<f64>() / rows;
    let means: Vec<f64> = (0..width).map(mean).collect();
    target
        .iter()
        .enumerate()
        .map(|(index, value)| (value - means[index % width]).powi(2))
        .sum()
}
