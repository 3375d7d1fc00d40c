//! A server whose disk is full: no file may have a byte more.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::installation::{Database, Installation, method};

const TEXT: &str = "{\"text\": \"x = 1\\n\"}\n{\"text\": \"y = 2\\n\"}\n";

/// The program under a limit on its files that can be lifted while it runs.
fn on_a_full_disk() -> Command {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "trap '' XFSZ; ulimit -S -f 0; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_causeway"),
    ]);
    command
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_on_a_full_disk_starts_answers_and_says_so() {
    let installation = Installation::new(Database::Sqlite).await;
    let job = json!({"model": "tinypython", "suffix": "made", "method": method(8)});
    let feature = json!({"name": "mine", "description": "d", "node": "0.mlp.act_in",
        "channels": [{"channel": 20, "weight": 1}], "write": "sublayer", "tests": []});
    for known in [false, true] {
        let server = installation
            .listening_server_by("none", &mut on_a_full_disk())
            .await;
        let completion = json!({"model": "tinypython", "prompt": "x = 1\n", "max_tokens": 4});
        assert_eq!(server.post("/v1/completions", &completion).await.0, 200);
        let answers = [
            server.upload("code.jsonl", TEXT).await,
            server.post("/v1/fine_tuning/jobs", &job).await,
            server.post("/v1/features", &feature).await,
        ];
        for (status, answer) in answers {
            assert_eq!(status, 507, "{known}: {answer}");
            assert_eq!(answer["error"]["code"], "disk_full", "{answer}");
        }
        // Somebody makes room: the same server goes on.
        let lifted = Command::new("prlimit")
            .args([
                "--pid",
                &server.process.0.id().to_string(),
                "--fsize=unlimited:",
            ])
            .status();
        assert!(lifted.unwrap().success());
        let begun = Instant::now();
        loop {
            let (status, answer) = server.upload("code.jsonl", TEXT).await;
            if status == 200 {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{answer}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let (status, files) = server.get("/v1/files").await;
        assert_eq!(status, 200, "{files}");
        assert_eq!(
            files["data"].as_array().unwrap().len(),
            1 + usize::from(known)
        );
    }
}
