//! Clients that leave at points of their own choosing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::checks::Checks;
use crate::http::{Answer, Target};
use crate::traffic::{COMPLETIONS, End, Events, complete};
use crate::workload::{Ask, Workload};

/// Clients that come in a second.
const RATE: f64 = 200.0;
/// They leave within this time of having asked.
const LONGEST_STAY: Duration = Duration::from_millis(500);

/// When a client leaves.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    /// After so many bytes of its request.
    Asking(usize),
    /// After so long without reading anything.
    Waiting(Duration),
    /// After so many events of a stream.
    Reading(usize),
}

/// Lets so many clients come and leave, and tells whether anything of them stays.
pub async fn run(target: &Arc<Target>, workload: &mut Workload, clients: usize) -> bool {
    let mut due = Instant::now();
    let mut running = JoinSet::new();
    let mut counts = [0; 3];
    for _ in 0..clients {
        due += workload.pause(RATE);
        sleep_until(due).await;
        let ask = workload.ask();
        let leaves = leaves(target, &ask, workload.rng());
        let kind = match leaves {
            Leaves::Asking(_) => 0,
            Leaves::Waiting(_) => 1,
            Leaves::Reading(_) => 2,
        };
        counts[kind] += 1;
        running.spawn(come_and_leave(target.clone(), ask, leaves));
    }
    let left = running.join_all().await;
    let failed = left.iter().filter(|left| left.is_err()).count();
    println!(
        "{clients} clients left: {} before their request was complete, {} while they waited, {} in a stream; \
         {failed} lost their connection before",
        counts[0], counts[1], counts[2]
    );
    let mut checks = Checks::new();
    checks.check(failed == 0, "nobody is cut off");
    checks.is_idle_again(target).await;
    let after = complete(target.clone(), workload.ask(), Instant::now()).await;
    checks.check(
        matches!(after.end, End::Answered(_)),
        "a request is answered as before",
    );
    checks.all_hold
}

fn leaves(target: &Target, ask: &Ask, rng: &mut impl Rng) -> Leaves {
    match rng.random_range(0..3) {
        0 => Leaves::Asking(
            rng.random_range(0..target.request("POST", COMPLETIONS, &ask.body).len()),
        ),
        1 if ask.streams => Leaves::Reading(rng.random_range(1..16)),
        _ => Leaves::Waiting(rng.random_range(Duration::ZERO..LONGEST_STAY)),
    }
}

/// One client; an error if it could not stay for as long as it wanted. A server that is full may refuse it.
async fn come_and_leave(target: Arc<Target>, ask: Arc<Ask>, leaves: Leaves) -> io::Result<()> {
    let request = target.request("POST", COMPLETIONS, &ask.body);
    let mut stream = target.connect().await?;
    match leaves {
        Leaves::Asking(bytes) => stream.write_all(&request.as_bytes()[..bytes]).await,
        Leaves::Waiting(time) => {
            stream.write_all(request.as_bytes()).await?;
            sleep(time).await;
            Ok(())
        }
        Leaves::Reading(most) => {
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Answer::read_head(stream).await?;
            let (mut events, mut seen) = (Events::default(), 0);
            while seen < most {
                match answer.piece().await? {
                    Some(piece) => seen += events.read(&piece).len(),
                    None => break,
                }
            }
            Ok(())
        }
    }
}
