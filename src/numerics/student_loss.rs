//! The loss of a model that learns text, another model's predictions, or both: `c CE + d KL`, means over rows.
//!
//! `logits [rows, vocabulary]`, `targets [rows]`, the teacher's logits `[rows, vocabulary]`. One operation goes through a
//! row of logits while it is in cache, takes each exponential once, and has the gradient at once: the two losses of
//! [`super::loss`] take ten exponentials a logit and keep several arrays of the logits' size. Those are its oracle, and
//! what runs on other devices.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::{LANES, Lanes};
use super::loss::{cross_entropy, kl_divergence, mean};
use super::parts::Part;
use super::{exponential, kernels, rows};

/// What a model learns from, each with its weight in the loss.
pub struct Lessons<'a> {
    /// The next tokens.
    pub targets: Option<(&'a [u32], f32)>,
    /// Another model's logits. They are constants.
    pub teacher: Option<(&'a Tensor, f32)>,
}

/// The loss and its parts.
pub struct StudentLoss {
    /// The weighted sum.
    pub total: Tensor,
    /// The mean cross-entropy in nats a row, where there are targets.
    pub cross_entropy: Option<Tensor>,
    /// The mean divergence from the teacher in nats a row, where there is one.
    pub divergence: Option<Tensor>,
}

/// The loss of `logits`.
pub fn student_loss(logits: &Tensor, lessons: &Lessons) -> Result<StudentLoss> {
    let device = logits.device();
    if !device.is_cpu() || kernels::run_on(device) {
        return composed(logits, lessons);
    }
    let found = Arc::new(Mutex::new([0f32; 2]));
    let op = StudentLossOp {
        targets: lessons
            .targets
            .map(|(targets, weight)| (targets.to_vec(), weight)),
        teacher: match lessons.teacher {
            Some((teacher, weight)) => Some((teacher.detach().contiguous()?, weight)),
            None => None,
        },
        wants_gradient: logits.track_op(),
        gradient: Mutex::default(),
        found: found.clone(),
    };
    let total = logits.contiguous()?.apply_op1(op)?;
    let [entropy, divergence] = *found.lock().unwrap_or_else(PoisonError::into_inner);
    let scalar =
        |is_there: bool, value: f32| is_there.then(|| Tensor::new(value, device)).transpose();
    Ok(StudentLoss {
        total,
        cross_entropy: scalar(lessons.targets.is_some(), entropy)?,
        divergence: scalar(lessons.teacher.is_some(), divergence)?,
    })
}

fn composed(logits: &Tensor, lessons: &Lessons) -> Result<StudentLoss> {
    let entropy = match lessons.targets {
        Some((targets, weight)) => {
            let targets = Tensor::new(targets, logits.device())?;
            Some((mean(&cross_entropy(logits, &targets)?)?, weight))
        }
        None => None,
    };
    let divergence = match lessons.teacher {
        Some((teacher, weight)) => Some((mean(&kl_divergence(teacher, logits)?)?, weight)),
        None => None,
    };
    let mut total: Option<Tensor> = None;
    for (value, weight) in [&entropy, &divergence].into_iter().flatten() {
        let weighted = (value * f64::from(*weight))?;
        total = Some(match total {
            Some(total) => (total + weighted)?,
            None => weighted,
        });
    }
    match total {
        Some(total) => Ok(StudentLoss {
            total,
            cross_entropy: entropy.map(|(value, _)| value),
            divergence: divergence.map(|(value, _)| value),
        }),
        None => bail!("a student without lessons has no loss"),
    }
}

struct StudentLossOp {
    targets: Option<(Vec<u32>, f32)>,
    teacher: Option<(Tensor, f32)>,
    wants_gradient: bool,
    /// The loss's gradient, `[rows, vocabulary]`, until it is asked for.
    gradient: Mutex<Vec<f32>>,
    /// The mean cross-entropy and divergence.
    found: Arc<Mutex<[f32; 2]>>,
}

impl StudentLossOp {
    /// The sums of both losses over the rows.
    fn run(&self, logits: &[f32], teacher: &[f32], width: usize, gradient: &mut [f32]) -> [f64; 2] {
        let _timed = Part::Losses.begin();
        let n_rows = logits.len() / width;
        let scale = 1.0 / n_rows as f32;
        let weights = [
            self.targets
                .as_ref()
                .map_or(0.0, |(_, weight)| weight * scale),
            self.teacher
                .as_ref()
                .map_or(0.0, |(_, weight)| weight * scale),
        ];
        let one_row = |row: usize, gradient: &mut [f32], room: &mut Vec<f32>| {
            room.resize(width, 0.0);
            let student = &logits[row * width..][..width];
            let total = softmax(student, gradient);
            let entropy = match &self.targets {
                Some((targets, _)) => total - student[targets[row] as usize],
                None => 0.0,
            };
            let divergence = match teacher.get(row * width..(row + 1) * width) {
                Some(teacher) => {
                    let teacher_total = softmax(teacher, room);
                    mix(
                        (teacher, teacher_total),
                        (student, total),
                        room,
                        weights,
                        gradient,
                    )
                }
                None => {
                    gradient.iter_mut().for_each(|p| *p *= weights[0]);
                    0.0
                }
            };
            if let Some((targets, _)) = &self.targets {
                gradient[targets[row] as usize] -= weights[0];
            }
            [entropy, divergence]
        };
        let losses: Vec<[f32; 2]> = match gradient.is_empty() {
            true => (0..n_rows)
                .into_par_iter()
                .map_init(
                    || (vec![0f32; width], Vec::new()),
                    |(gradient, room), row| one_row(row, gradient, room),
                )
                .collect(),
            false => gradient
                .par_chunks_mut(width)
                .enumerate()
                .map_init(Vec::new, |room, (row, gradient)| {
                    one_row(row, gradient, room)
                })
                .collect(),
        };
        let sum = |part: usize| losses.iter().map(|loss| f64::from(loss[part])).sum::<f64>();
        [sum(0), sum(1)]
    }
}

impl CustomOp1 for StudentLossOp {
    fn name(&self) -> &'static str {
        "student-loss"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n_rows, width) = layout.shape().dims2()?;
        let logits = rows::values(storage, layout)?;
        if let Some((targets, _)) = &self.targets
            && (targets.len() != n_rows || targets.iter().any(|&target| target as usize >= width))
        {
            bail!("expected {n_rows} targets below {width}")
        }
        let mut gradient = vec![0f32; if self.wants_gradient { logits.len() } else { 0 }];
        let sums = match &self.teacher {
            Some((teacher, _)) if teacher.elem_count() != logits.len() => bail!(
                "the teacher has {} logits, the student {}",
                teacher.elem_count(),
                logits.len()
            ),
            Some((teacher, _)) => rows::with_values(teacher, |teacher| {
                self.run(logits, teacher, width, &mut gradient)
            })?,
            None => self.run(logits, &[], width, &mut gradient),
        };
        *self.gradient.lock().unwrap_or_else(PoisonError::into_inner) = gradient;
        let means = sums.map(|sum| (sum / n_rows as f64) as f32);
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = means;
        let weight = |part: Option<f32>| part.unwrap_or(0.0);
        let total = weight(self.targets.as_ref().map(|(_, weight)| *weight)) * means[0]
            + weight(self.teacher.as_ref().map(|(_, weight)| *weight)) * means[1];
        Ok((CpuStorage::F32(vec![total]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let gradient =
            std::mem::take(&mut *self.gradient.lock().unwrap_or_else(PoisonError::into_inner));
        if gradient.len() != logits.elem_count() {
            bail!("the gradient of a student's loss was asked for twice, or of a constant")
        }
        let gradient = Tensor::from_vec(gradient, logits.shape(), logits.device())?;
        match grad.to_scalar::<f32>()? {
            1.0 => Ok(Some(gradient)),
            scale => Ok(Some((gradient * f64::from(scale))?)),
        }
    }
}

/// `out = softmax(row)`; returns the logarithm of the sum of the exponentials.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn softmax(row: &[f32], out: &mut [f32]) -> f32 {
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
    for (group, out) in groups.zip(out.chunks_exact_mut(LANES)) {
        let exponentials = Lanes::load(group).map(|x| exponential::exp(x - largest));
        exponentials.store(out);
        total = total + exponentials;
    }
    let start = row.len() - rest.len();
    let mut sum = total.sum();
    for (out, &x) in out[start..].iter_mut().zip(rest) {
        *out = exponential::exp(x - largest);
        sum += *out;
    }
    let inverse = 1.0 / sum;
    for out in out.iter_mut() {
        *out *= inverse;
    }
    largest + sum.ln()
}

/// `gradient`, the student's probabilities, becomes `(weights[0] + weights[1]) gradient - weights[1] shares`, `shares`
/// being the teacher's probabilities; returns the divergence.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn mix(
    (teacher, teacher_total): (&[f32], f32),
    (student, student_total): (&[f32], f32),
    shares: &[f32],
    weights: [f32; 2],
    gradient: &mut [f32],
) -> f32 {
    let offset = student_total - teacher_total;
    let both = weights[0] + weights[1];
    let mut total = Lanes::splat(0.0);
    let groups = student.len() / LANES * LANES;
    for at in (0..groups).step_by(LANES) {
        let share = Lanes::load(&shares[at..]);
        let difference =
            Lanes::load(&teacher[at..]).zip(Lanes::load(&student[at..]), |t, s| t - s + offset);
        total = total + share.zip(difference, |share, difference| share * difference);
        let own = Lanes::load(&gradient[at..]);
        own.zip(share, |own, share| both * own - weights[1] * share)
            .store(&mut gradient[at..]);
    }
    let mut sum = total.sum();
    for at in groups..student.len() {
        sum += shares[at] * (teacher[at] - student[at] + offset);
        gradient[at] = both * gradient[at] - weights[1] * shares[at];
    }
    sum
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn it_is_the_sum_of_both_losses_with_their_gradients() -> Result<()> {
        let mut rng = SmallRng::seed_from_u64(3);
        for (n_rows, width) in [(1, 5), (7, 50)] {
            let mut random = || {
                let values: Vec<f32> = (0..n_rows * width)
                    .map(|_| rng.random_range(-4.0..4.0))
                    .collect();
                Tensor::from_vec(values, (n_rows, width), &Device::Cpu)
            };
            let (student, teacher) = (Var::from_tensor(&random()?)?, random()?);
            let targets: Vec<u32> = (0..n_rows as u32)
                .map(|row| row * 3 % width as u32)
                .collect();
            let some_targets = Some((targets.as_slice(), 0.7f32));
            let some_teacher = Some((&teacher, 1.9f32));
            for (targets, teacher) in [
                (some_targets, some_teacher),
                (some_targets, None),
                (None, some_teacher),
            ] {
                let lessons = Lessons { targets, teacher };
                let found = student_loss(student.as_tensor(), &lessons)?;
                let expected = composed(student.as_tensor(), &lessons)?;
                let scalar = |tensor: &Tensor| tensor.to_scalar::<f32>();
                assert!((scalar(&found.total)? - scalar(&expected.total)?).abs() < 1e-5);
                for (found, expected) in [
                    (&found.cross_entropy, &expected.cross_entropy),
                    (&found.divergence, &expected.divergence),
                ] {
                    assert_eq!(found.is_some(), expected.is_some());
                    if let (Some(found), Some(expected)) = (found, expected) {
                        assert!((scalar(found)? - scalar(expected)?).abs() < 1e-5);
                    }
                }
                let gradient = |loss: &Tensor| -> Result<Vec<f32>> {
                    let store = (loss * 1.5)?.backward()?;
                    rows::to_vec(store.get(&student).expect("a gradient"))
                };
                let pairs = gradient(&found.total)?
                    .into_iter()
                    .zip(gradient(&expected.total)?);
                for (found, expected) in pairs {
                    assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
                }
            }
        }
        Ok(())
    }
}
