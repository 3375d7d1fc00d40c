//! The server that a bench measures: a process of its own, on a free port, apart from its clients.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The shipped pair.
pub const PAIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bridges/tinypython");

/// A `causeway serve` of its own.
pub struct Server {
    pub child: Child,
    pub address: String,
    data: PathBuf,
}

impl Server {
    pub fn start(serve: &[&str]) -> Self {
        let data = std::env::temp_dir().join(format!("causeway-bench-{}", uuid::Uuid::new_v4()));
        let mut child = Command::new(env!("CARGO_BIN_EXE_causeway"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .args(serve)
            .env("RUST_LOG", "causeway=warn,causeway::cli=info")
            .stderr(Stdio::piped())
            .spawn()
            .expect("a server");
        let mut log = BufReader::new(child.stderr.take().expect("a log")).lines();
        let address = log
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("listening on http://")?.1.trim().to_owned()))
            .expect("an address");
        // The log must not fill its pipe.
        std::thread::spawn(move || log.for_each(drop));
        Server {
            child,
            address,
            data,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

/// Keeps this thread, and those it starts, on the last core.
pub fn pin_to_last_core() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // SAFETY: the set is plain data, zeroed and then passed with its own size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cores - 1, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}
