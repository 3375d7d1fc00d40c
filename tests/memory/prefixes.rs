//! What is kept of prompts stays within its own bound, however many there are.

use serde_json::json;

use crate::server::Server;

const MIB: u64 = 1 << 20;
/// Less than two rounds of prompts leave.
const KEPT_MIB: u64 = 48;
/// Room for the requests themselves: less than their prompts would leave.
const BESIDE: u64 = 100 * MIB;

#[test]
fn what_is_kept_of_prompts_has_its_own_bound() {
    let room = KEPT_MIB.to_string();
    let server = Server::start(&[("CAUSEWAY_ENGINE__PREFIX_CACHE_MIB", &room)]);
    let kept = || {
        let (_, metrics) = server.get("/metrics");
        let name = "causeway_prefix_cache_bytes ";
        let value = metrics.lines().find_map(|line| line.strip_prefix(name));
        value.expect("a metric").parse::<u64>().expect("a number")
    };
    let ask = |round: u32| {
        let prompt = |first: u32| (0..250).map(|at| (at * 7 + first) % 2000).collect();
        let prompts: Vec<Vec<u32>> = (0..100).map(|at| prompt(100 * round + at)).collect();
        let body = json!({"model": "tinypython", "prompt": prompts, "max_tokens": 1});
        let (status, answer) = server.post("/v1/completions", &body);
        assert_eq!(status, 200, "{}", &answer[..answer.len().min(500)]);
    };
    // All slots are used once.
    (0..2).for_each(ask);
    assert!(
        kept() <= KEPT_MIB * MIB && kept() > (KEPT_MIB - 1) * MIB,
        "{}",
        kept()
    );
    let above = server.peak_above_idle(|| (2..6).for_each(ask));
    assert!(above <= BESIDE, "{above} bytes");
    assert!(kept() <= KEPT_MIB * MIB, "{}", kept());
}
