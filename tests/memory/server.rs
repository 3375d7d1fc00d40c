//! A server process on the shipped pair whose memory can be watched.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// `causeway serve` on a free port with a data directory of its own; it is killed when dropped.
pub struct Server {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
    /// Holds its data and its library; removed when dropped.
    pub directory: PathBuf,
    client: reqwest::blocking::Client,
}

impl Server {
    /// Starts a server with further settings as environment variables, and waits until it is ready.
    pub fn start(environment: &[(&str, &str)]) -> Self {
        let directory =
            std::env::temp_dir().join(format!("causeway-memory-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(directory.join("library")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_causeway"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(directory.join("data"))
            .env("CAUSEWAY_LIBRARY", directory.join("library"))
            .env("CAUSEWAY_JOBS__WORKERS", "0")
            // What outlives requests has a bound of its own.
            .env("CAUSEWAY_ENGINE__PREFIX_CACHE_MIB", "16")
            .env("NO_COLOR", "1")
            .env_remove("RUST_LOG")
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = log
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, rest) = line.split_once("listening on http://")?;
                Some(rest.split(['"', ' ']).next()?.to_owned())
            })
            .expect("it says where it listens");
        // Nobody reads the log any more, but a full pipe would stop the server.
        std::thread::spawn(move || log.for_each(drop));
        // The program does the same before its first connection.
        causeway::tls::choose();
        let client = reqwest::blocking::Client::builder()
            .timeout(Duration::from_secs(120))
            .build()
            .unwrap();
        Server {
            child,
            address,
            directory,
            client,
        }
    }

    /// Sends JSON; the status and the body of the answer.
    pub fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let url = format!("http://{}{path}", self.address);
        let request = self.client.post(url).json(body);
        let response = request.send().expect("an answer");
        let status = response.status().as_u16();
        (status, response.text().expect("a body of text"))
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.address);
        let response = self.client.get(url).send().expect("an answer");
        let status = response.status().as_u16();
        (status, response.text().expect("a body of text"))
    }

    /// Bytes by which the process's resident memory, at its highest while `work` runs, exceeds what it was before.
    pub fn peak_above_idle(&self, work: impl FnOnce()) -> u64 {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let kibibytes = |name: &str| -> u64 {
            let status = fs::read_to_string(process.join("status")).expect("it runs");
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line
                .expect("the system tells")
                .trim_matches([':', '\t', ' ']);
            value.trim_end_matches(" kB").parse().expect("a number")
        };
        // 5 makes the highest resident size start again from the present one.
        fs::write(process.join("clear_refs"), "5").expect("it is our own process");
        let idle = kibibytes("VmRSS");
        work();
        kibibytes("VmHWM").saturating_sub(idle) << 10
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
