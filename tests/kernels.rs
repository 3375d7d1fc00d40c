//! Every CUDA kernel on the host, under an emulation of threads, barriers and shared memory, against the CPU's functions.

#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/edits.rs"]
mod edits;
#[path = "kernels/emulation.rs"]
mod emulation;
#[path = "kernels/sparse.rs"]
mod sparse;
#[path = "kernels/training.rs"]
mod training;
#[path = "kernels/values.rs"]
mod values;

use std::io::Write;
use std::process::Stdio;

use causeway::numerics::kernels::{SOURCES, THREADS};

use self::emulation::{Emulation, FAULTS, Launch, Order};

#[test]
fn every_kernel_agrees_with_its_oracle() {
    let mut emulation = Emulation::start();
    sparse::abs_top_k::<f32>(&mut emulation);
    sparse::abs_top_k::<u16>(&mut emulation);
    sparse::norm::<f32>(&mut emulation);
    sparse::norm::<u16>(&mut emulation);
    sparse::sparse_products::<f32>(&mut emulation);
    sparse::sparse_products::<u16>(&mut emulation);
    sparse::dense_products::<f32>(&mut emulation);
    sparse::dense_products::<u16>(&mut emulation);
    attention::rotary::<f32>(&mut emulation);
    attention::rotary::<u16>(&mut emulation);
    attention::attention::<f32>(&mut emulation);
    attention::attention::<u16>(&mut emulation);
    sparse::draws(&mut emulation);
    edits::row_edits::<f32>(&mut emulation);
    edits::row_edits::<u16>(&mut emulation);
    training::clipping(&mut emulation);
    training::adamw(&mut emulation);
    training::weight_mask(&mut emulation);
    training::kl_divergence::<f32>(&mut emulation);
    training::kl_divergence::<u16>(&mut emulation);
    let cases = emulation.cases.clone();
    let (status, _) = emulation.end();
    assert_eq!(status, Some(0), "the driver's end");
    let mut told = String::from("kernels under emulation, with their cases:\n");
    for source in &SOURCES {
        for kernel in source.kernels {
            let count = cases.get(*kernel).copied().unwrap_or(0);
            assert!(count > 0, "{kernel} of {}.cu has no case", source.name);
            told += &format!("  {kernel} {count}\n");
        }
    }
    // Past what the harness keeps of a test that succeeds: whoever runs the tests is to see it.
    let _ = std::io::stderr().write_all(told.as_bytes());
}

/// Runs a kernel of `faults.cu` in two orders: what it left, if the driver lived, and how the driver ended.
fn run_fault(kernel: &str, shared: usize) -> (Vec<Option<Vec<f32>>>, Option<i32>, String) {
    let x: Vec<f32> = (0..THREADS).map(|n| n as f32).collect();
    let launch = Launch::new(kernel, [1, 1, 1])
        .shared(shared)
        .input(&x)
        .output::<f32>(x.len());
    let mut emulation = Emulation::start_with(Stdio::piped());
    let mut left = Vec::new();
    for (order, pattern) in [(Order::Forwards, 0xff), (Order::Backwards, 0x7f)] {
        let bytes = emulation.run_once(&launch, order, pattern);
        left.push(bytes.map(|bytes| bytemuck::pod_collect_to_vec(&bytes[0])));
    }
    let (status, complaints) = emulation.end();
    (left, status, complaints)
}

#[test]
fn faults_are_found() {
    for kernel in FAULTS {
        let shared = match kernel {
            "fault_past_dynamic_shared" => 4 * THREADS as usize,
            _ => 0,
        };
        let (left, status, complaints) = run_fault(kernel, shared);
        let differ = match &left[..] {
            [Some(forwards), Some(backwards)] => {
                let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                bits(forwards) != bits(backwards)
            }
            _ => true,
        };
        match kernel {
            "fault_none" => assert!(!differ && status == Some(0), "{complaints}"),
            "fault_missing_barrier" | "fault_unwritten_shared" => {
                assert!(differ && status == Some(0), "{kernel}: {complaints}");
            }
            "fault_barrier_in_a_branch" => {
                assert_eq!(status, Some(3), "{complaints}");
                assert!(complaints.contains("a barrier that not all threads reach"));
            }
            _ => {
                assert!(!matches!(status, None | Some(0)), "{kernel} ended well");
                assert!(
                    complaints.contains("Sanitizer") || complaints.contains("runtime error"),
                    "{kernel}: {complaints}"
                );
            }
        }
    }
}
