//! What goes wrong inside the engine stays with the request that it went wrong for.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use causeway::generation::health::Probe;
use causeway::generation::request::{EngineError, GenerationRequest};
use serde_json::{Value, json};

use crate::client::Server;

/// The seed of requests that panic.
const UNLUCKY: u64 = 13;

/// Panics for one seed, and recovers only when told to.
struct Unlucky {
    recovers: Mutex<(Sender<()>, Receiver<()>)>,
}

impl Probe for Unlucky {
    fn computing(&self, request: &GenerationRequest) -> Result<(), EngineError> {
        assert_ne!(request.sampling.seed, Some(UNLUCKY), "on purpose");
        Ok(())
    }

    fn recovering(&self) {
        let (begins, released) = &*self.recovers.lock().unwrap();
        // A test that has failed meanwhile waits for nothing.
        let _ = begins.send(());
        let _ = released.recv();
    }
}

fn completion(seed: u64) -> Value {
    json!({"model": "tiny", "prompt": "def f(x):", "max_tokens": 8, "seed": seed})
}

#[test]
fn a_panic_fails_one_request_and_the_server_says_when_it_has_recovered() {
    let ((begins, begun), (release, released)) = (channel(), channel());
    let server = Server::probed(Unlucky {
        recovers: Mutex::new((begins, released)),
    });
    let before = server.post("/v1/completions", &completion(7)).ok();
    assert_eq!(server.get("/readyz").status, 200);

    let failed = server.post("/v1/completions", &completion(UNLUCKY));
    failed.is_error(500, None, Some("internal_error"));
    assert!(!failed.body.contains("on purpose"), "that is for the log");
    begun.recv().expect("the engine looks itself over");
    let unready = server.get("/readyz");
    unready.is_error(503, None, Some("not_ready"));
    assert!(unready.headers.contains_key("retry-after"));
    assert_eq!(server.get("/livez").status, 200);

    release.send(()).expect("an engine that waits");
    while server.get("/readyz").status != 200 {
        std::thread::yield_now();
    }
    let after = server.post("/v1/completions", &completion(7)).ok();
    assert_eq!(after["choices"], before["choices"]);
}

#[test]
fn those_beside_a_request_that_panics_are_answered() {
    let ((begins, _begun), (release, released)) = (channel(), channel());
    drop(release);
    let server = Server::probed(Unlucky {
        recovers: Mutex::new((begins, released)),
    });
    let expected = server.post("/v1/completions", &completion(7)).ok();
    std::thread::scope(|scope| {
        let asked: Vec<_> = [7, UNLUCKY, 7, 7, UNLUCKY, 7]
            .map(|seed| {
                let server = &server;
                let ask = move || server.post("/v1/completions", &completion(seed));
                (seed, scope.spawn(ask))
            })
            .into();
        for (seed, answer) in asked {
            let answer = answer.join().expect("an answer");
            match seed {
                UNLUCKY => assert_eq!(answer.status, 500),
                _ => assert_eq!(answer.ok()["choices"], expected["choices"]),
            }
        }
    });
}

/// A device that has no room for one seed, and fails for good with another.
struct FailingDevice;

/// The seeds of requests for which there is no room, and with which the device is lost.
const LARGE: u64 = 14;
const FATAL: u64 = 15;

impl Probe for FailingDevice {
    fn computing(&self, request: &GenerationRequest) -> Result<(), EngineError> {
        // As the driver's errors come through the tensors' library.
        let error = match request.sampling.seed {
            Some(LARGE) => "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            Some(FATAL) => "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access\")",
            _ => return Ok(()),
        };
        Err(candle_core::Error::Msg(error.to_owned()).into())
    }
}

#[test]
fn a_request_that_a_device_has_no_room_for_fails_alone() {
    let server = Server::probed(FailingDevice);
    let expected = server.post("/v1/completions", &completion(7)).ok();
    let failed = server.post("/v1/completions", &completion(LARGE));
    failed.is_error(503, None, Some("not_ready"));
    assert!(failed.headers.contains_key("retry-after"));
    assert_eq!(server.get("/readyz").status, 200);
    let after = server.post("/v1/completions", &completion(7)).ok();
    assert_eq!(after["choices"], expected["choices"]);
}

#[test]
fn a_server_whose_device_is_lost_is_never_ready_again() {
    let server = Server::probed(FailingDevice);
    server.post("/v1/completions", &completion(7)).ok();
    let failed = server.post("/v1/completions", &completion(FATAL));
    failed.is_error(503, None, Some("not_ready"));
    assert!(!failed.body.contains("ILLEGAL"), "that is for the log");
    for _ in 0..2 {
        server.get("/readyz").is_error(503, None, Some("not_ready"));
        assert_eq!(server.get("/livez").status, 200);
    }
}
