//! The losses of training: cross-entropy, KL divergence, normalised mean squared error.
//!
//! Logits are `[rows, vocabulary]`. Cross-entropy and KL give one value a row, in nats: `[rows]`. Neither keeps
//! probabilities: each pass over a row goes through the vocabulary once in cache, and the backward pass
//! computes them again, so memory stays that of the logits.

use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;

use super::lanes::{LANES, Lanes};
use super::{exponential, kernels, rows};

/// `-log softmax(logits)[target]` for each row: `[rows, vocabulary]`, `[rows]` (u32) `-> [rows]`.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    if logits.device().is_cpu() {
        return logits.contiguous()?.apply_op2(targets, CrossEntropy);
    }
    let log_probabilities = candle_nn::ops::log_softmax(logits, D::Minus1)?;
    let picked = log_probabilities.gather(&targets.unsqueeze(1)?, 1)?;
    picked.squeeze(1)?.neg()
}

/// `KL(softmax(teacher) || softmax(student))` for each row. The teacher is a constant: its gradient is none.
pub fn kl_divergence(teacher: &Tensor, student: &Tensor) -> Result<Tensor> {
    if kernels::run_on(student.device()) {
        return kernels::training::kl_divergence(teacher, student);
    }
    if student.device().is_cpu() {
        let teacher = teacher.detach().contiguous()?;
        return student.contiguous()?.apply_op2(&teacher, KlDivergence);
    }
    let teacher = candle_nn::ops::log_softmax(&teacher.detach(), D::Minus1)?;
    let student = candle_nn::ops::log_softmax(student, D::Minus1)?;
    (teacher.exp()? * (&teacher - student)?)?.sum(D::Minus1)
}

/// Squared error over the target's squared deviation from its mean over the rows, one ratio for all of
/// `[rows, width]`. The denominator is a constant, or training would inflate the variance to shrink the ratio.
pub fn normalised_mean_squared_error(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    if target.device().is_cpu() {
        let op = NormalisedError::default();
        return prediction
            .contiguous()?
            .apply_op2(&target.contiguous()?, op);
    }
    composed_error(prediction, target)
}

fn composed_error(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    let constant = target.detach();
    let mean = constant.mean_keepdim(0)?;
    let denominator = constant.broadcast_sub(&mean)?.sqr()?.sum_all()?;
    // A constant target has no deviation to explain; the floor keeps the ratio finite.
    let denominator = denominator.maximum(1e-12f32)?;
    (prediction - target)?.sqr()?.sum_all()? / denominator.detach()
}

/// The denominator is kept for the gradient.
#[derive(Default)]
struct NormalisedError {
    denominator: std::sync::atomic::AtomicU32,
}

impl CustomOp2 for NormalisedError {
    fn name(&self) -> &'static str {
        "normalised-mean-squared-error"
    }

    fn cpu_fwd(
        &self,
        prediction: &CpuStorage,
        layout: &Layout,
        target: &CpuStorage,
        target_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = rows::width(layout)?;
        let prediction = rows::values(prediction, layout)?;
        let target = rows::values(target, target_layout)?;
        if prediction.len() != target.len() {
            bail!(
                "{} values were predicted of {}",
                prediction.len(),
                target.len()
            )
        }
        let count = (target.len() / width).max(1) as f32;
        let mean: Vec<f32> = rows::sum_over_rows(target, width)
            .iter()
            .map(|sum| sum / count)
            .collect();
        let (mut errors, mut deviations) = (0f64, 0f64);
        let both = prediction
            .chunks_exact(width)
            .zip(target.chunks_exact(width));
        for (prediction, target) in both {
            errors += f64::from(squared_distance(prediction, target));
            deviations += f64::from(squared_distance(target, &mean));
        }
        // A constant target has no deviation to explain; the floor keeps the ratio finite.
        let denominator = deviations.max(1e-12) as f32;
        self.denominator
            .store(denominator.to_bits(), std::sync::atomic::Ordering::Relaxed);
        let error = (errors / f64::from(denominator)) as f32;
        Ok((CpuStorage::F32(vec![error]), Shape::from(())))
    }

    fn bwd(
        &self,
        prediction: &Tensor,
        target: &Tensor,
        _result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let bits = self.denominator.load(std::sync::atomic::Ordering::Relaxed);
        let scale = 2.0 * grad.to_scalar::<f32>()? / f32::from_bits(bits);
        let gradient = |scale: f32| -> Result<Tensor> {
            let values: Vec<f32> = rows::with_two(prediction, target, |prediction, target| {
                let both = prediction.iter().zip(target);
                both.map(|(prediction, target)| scale * (prediction - target))
                    .collect()
            })?;
            Tensor::from_vec(values, prediction.shape(), prediction.device())
        };
        let of =
            |tensor: &Tensor, scale: f32| tensor.track_op().then(|| gradient(scale)).transpose();
        Ok((of(prediction, scale)?, of(target, -scale)?))
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn squared_distance(one: &[f32], other: &[f32]) -> f32 {
    let (ones, others) = (one.chunks_exact(LANES), other.chunks_exact(LANES));
    let rest = ones.remainder().iter().zip(others.remainder());
    let rest: f32 = rest.map(|(&a, &b)| (a - b) * (a - b)).sum();
    let mut total = Lanes::splat(0.0);
    for (a, b) in ones.zip(others) {
        let difference = Lanes::load(a).zip(Lanes::load(b), |a, b| a - b);
        total = total + difference.map(|x| x * x);
    }
    total.sum() + rest
}

struct CrossEntropy;

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n_rows, width) = layout.shape().dims2()?;
        let logits = rows::values(logits, layout)?;
        let CpuStorage::U32(targets) = targets else {
            bail!("targets must be u32 token ids")
        };
        let Some((start, end)) = targets_layout.contiguous_offsets() else {
            bail!("targets must be contiguous")
        };
        let targets = &targets[start..end];
        if targets.len() != n_rows || targets.iter().any(|&t| t as usize >= width) {
            bail!("expected {n_rows} targets below {width}")
        }
        let mut losses = vec![0f32; n_rows];
        rows::map_rows(logits, width, &mut losses, 1, |row, logits, loss| {
            loss[0] = log_sum_exp(logits) - logits[targets[row] as usize];
        });
        Ok((CpuStorage::F32(losses), Shape::from(n_rows)))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        _result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = logits.dim(1)?;
        let grad = rows::to_vec(grad)?;
        let targets = targets.to_vec1::<u32>()?;
        let mut output = vec![0f32; logits.elem_count()];
        rows::with_values(logits, |values| {
            rows::map_rows(values, width, &mut output, width, |row, logits, out| {
                let total = log_sum_exp(logits);
                probabilities(logits, total, grad[row], out);
                out[targets[row] as usize] -= grad[row];
            })
        })?;
        Ok((
            Some(Tensor::from_vec(output, logits.shape(), logits.device())?),
            None,
        ))
    }
}

struct KlDivergence;

impl CustomOp2 for KlDivergence {
    fn name(&self) -> &'static str {
        "kl-divergence"
    }

    fn cpu_fwd(
        &self,
        student: &CpuStorage,
        layout: &Layout,
        teacher: &CpuStorage,
        teacher_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n_rows, width) = layout.shape().dims2()?;
        let student = rows::values(student, layout)?;
        let teacher = rows::values(teacher, teacher_layout)?;
        if student.len() != teacher.len() {
            bail!(
                "the teacher has {} logits, the student {}",
                teacher.len(),
                student.len()
            )
        }
        let mut losses = vec![0f32; n_rows];
        rows::map_rows(student, width, &mut losses, 1, |row, student, loss| {
            loss[0] = divergence(&teacher[row * width..][..width], student);
        });
        Ok((CpuStorage::F32(losses), Shape::from(n_rows)))
    }

    fn bwd(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        _result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = student.dim(1)?;
        let grad = rows::to_vec(grad)?;
        let mut output = vec![0f32; student.elem_count()];
        rows::with_two(student, teacher, |students, teachers| {
            rows::map_rows(students, width, &mut output, width, |row, student, out| {
                let teacher = &teachers[row * width..][..width];
                let totals = (log_sum_exp(teacher), log_sum_exp(student));
                divergence_gradient(teacher, student, totals, grad[row], out);
            })
        })?;
        Ok((
            Some(Tensor::from_vec(output, student.shape(), student.device())?),
            None,
        ))
    }
}

/// `log(sum(exp(row)))`, in lanes of fixed width.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn log_sum_exp(row: &[f32]) -> f32 {
    let groups = row.chunks_exact(LANES);
    let rest = groups.remainder();
    let mut largest = Lanes::splat(f32::NEG_INFINITY);
    for group in groups.clone() {
        largest = largest.max(Lanes::load(group));
    }
    let largest = rest
        .iter()
        .fold(largest.largest(), |m, &x| if x > m { x } else { m });
    let mut total = Lanes::splat(0.0);
    for group in groups {
        total = total + Lanes::load(group).map(|x| exponential::exp(x - largest));
    }
    let rest: f32 = rest.iter().map(|&x| exponential::exp(x - largest)).sum();
    largest + (total.sum() + rest).ln()
}

/// `out = scale * softmax(logits)`, given their log-sum-exp.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn probabilities(logits: &[f32], total: f32, scale: f32, out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(logits) {
        *o = scale * exponential::exp(x - total);
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn divergence_from_totals(
    teacher: &[f32],
    student: &[f32],
    teacher_total: f32,
    student_total: f32,
) -> f32 {
    let term = |t: f32, s: f32| {
        let log_p = t - teacher_total;
        exponential::exp(log_p) * (log_p - (s - student_total))
    };
    let (teachers, students) = (teacher.chunks_exact(LANES), student.chunks_exact(LANES));
    let rest = teachers.remainder().iter().zip(students.remainder());
    let rest: f32 = rest.map(|(&t, &s)| term(t, s)).sum();
    let mut total = Lanes::splat(0.0);
    for (teacher, student) in teachers.zip(students) {
        total = total + Lanes::load(teacher).zip(Lanes::load(student), term);
    }
    total.sum() + rest
}

/// `KL(softmax(teacher) || softmax(student))` of one row of logits, in nats.
pub fn divergence(teacher: &[f32], student: &[f32]) -> f32 {
    divergence_from_totals(teacher, student, log_sum_exp(teacher), log_sum_exp(student))
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn divergence_gradient(
    teacher: &[f32],
    student: &[f32],
    totals: (f32, f32),
    scale: f32,
    out: &mut [f32],
) {
    for ((o, &t), &s) in out.iter_mut().zip(teacher).zip(student) {
        *o = scale * (exponential::exp(s - totals.1) - exponential::exp(t - totals.0));
    }
}

/// The mean of a `[rows]` loss.
pub fn mean(per_row: &Tensor) -> Result<Tensor> {
    debug_assert_eq!(per_row.dtype(), DType::F32);
    per_row.mean_all()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn the_normalised_error_is_that_of_its_parts_with_its_gradients() -> Result<()> {
        let values =
            |seed: f32| -> Vec<f32> { (0..7 * 19).map(|i| (seed * i as f32).sin()).collect() };
        let var = |seed: f32| Var::from_vec(values(seed), (7, 19), &Device::Cpu);
        let (prediction, target) = (var(0.7)?, var(1.3)?);
        let gradients = |loss: Tensor| -> Result<[Vec<f32>; 2]> {
            let store = (loss * 3.0)?.backward()?;
            let of = |var: &Var| rows::to_vec(store.get(var).expect("a gradient"));
            Ok([of(&prediction)?, of(&target)?])
        };
        let found = normalised_mean_squared_error(&prediction, &target)?;
        let expected = composed_error(&prediction, &target)?;
        assert!((found.to_scalar::<f32>()? - expected.to_scalar::<f32>()?).abs() < 1e-5);
        for (found, expected) in gradients(found)?.iter().zip(gradients(expected)?) {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
            }
        }
        Ok(())
    }
}
