//! The engine: one thread (with helpers for large batches) that runs the models, and handles that send it commands.
//!
//! A request brings what it runs on; the engine knows no names and keeps nothing but caches. Requests go to the
//! [`Scheduler`], which lets them join and leave a running batch; between two of its steps the thread does what else
//! it was sent, such as reading activations. The queue is bounded. A command whose caller has gone is skipped, or given
//! up at its next step; a panic fails its own command and nothing else.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::activations::activations;
use super::admission::check_edits;
use super::capacity::Capacity;
use super::health::{EngineHealth, KeptPrefixes, Load, NoProbe, Probe};
use super::needed_groups::NeededGroups;
use super::request::{
    Activations, ActivationsRequest, Delta, EngineError, Generation, GenerationRequest,
};
use super::scheduler::{Observer, Scheduler, generate};
use crate::features::measured::KnownGroups;
use crate::models::model::LoadedModel;

/// Commands that may lie in the channel; callers beyond them wait to send theirs.
const QUEUE: usize = 256;

/// Something for the engine to do.
enum Command {
    Generate(Box<GenerationRequest>, Box<Caller>),
    /// Something to do between two steps. It answers for itself and minds its own caller.
    Work(Box<dyn FnOnce() + Send>),
}

/// Starts and stops the engine's thread.
pub struct Engine;

/// Sends commands to the engine. The engine stops when its last handle is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

struct Shared {
    /// None once the engine is told to stop.
    commands: Mutex<Option<mpsc::Sender<Command>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    health: Arc<EngineHealth>,
    /// Lets one request measure its groups at a time.
    measuring: Arc<Semaphore>,
}

impl Engine {
    /// Starts the thread.
    pub fn start(capacity: Capacity) -> std::io::Result<EngineHandle> {
        Self::start_probed(capacity, Box::new(NoProbe))
    }

    /// The same with a probe inside.
    pub fn start_probed(
        capacity: Capacity,
        probe: Box<dyn Probe>,
    ) -> std::io::Result<EngineHandle> {
        let health = Arc::new(EngineHealth::new(probe));
        let (sender, receiver) = mpsc::channel::<Command>(QUEUE);
        let inside = health.clone();
        // Work that is divided between threads is divided by one of them: from outside a pool, every operation of a
        // step would wait for another thread to begin it.
        let pool = rayon::ThreadPoolBuilder::new()
            .thread_name(|index| format!("engine-{index}"))
            .build()
            .map_err(std::io::Error::other)?;
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || pool.install(|| serve(capacity, receiver, inside)))?;
        let shared = Shared {
            commands: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
            health,
            measuring: Arc::new(Semaphore::new(1)),
        };
        Ok(EngineHandle {
            shared: Arc::new(shared),
        })
    }
}

/// The thread: takes what has come, makes a step, and so on; sleeps while there is nothing to do. It ends when
/// nobody can send any more and everything taken on is answered.
fn serve(capacity: Capacity, mut receiver: mpsc::Receiver<Command>, health: Arc<EngineHealth>) {
    let mut scheduler = Scheduler::watched(capacity, health.clone());
    // After a panic: the models that had run before it and have not answered since.
    let mut suspects: Vec<Weak<LoadedModel>> = Vec::new();
    let mut open = true;
    while open || !scheduler.is_idle() {
        // Sleeping only when idle: a command that comes during a step waits for its end.
        let mut next = match scheduler.is_idle() && open {
            true => receiver.blocking_recv().ok_or(TryRecvError::Disconnected),
            false => receiver.try_recv(),
        };
        loop {
            match next {
                Ok(Command::Generate(request, caller)) => {
                    scheduler.submit(*request, caller);
                }
                Ok(Command::Work(work)) => {
                    work();
                    scheduler.forget_unused();
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    open = false;
                    break;
                }
            }
            next = receiver.try_recv();
        }
        scheduler.step();
        if !health.is_sound() && !health.is_lost() {
            recover(&mut suspects, &mut scheduler, &health);
        }
    }
}

/// After a panic: nothing it may have left half written is used again, and every model that had run must answer. Where
/// one does not, the engine stays unsound and looks again after the next command.
fn recover(
    suspects: &mut Vec<Weak<LoadedModel>>,
    scheduler: &mut Scheduler,
    health: &EngineHealth,
) {
    health.probe.recovering();
    suspects.extend(scheduler.models().iter().map(Arc::downgrade));
    scheduler.renew_caches();
    while let Some(suspect) = suspects.last() {
        // Nobody can ask one that is gone.
        if let Some(model) = suspect.upgrade()
            && let Err(error) = generate(&GenerationRequest::of_one_token(model.clone()), |_| true)
        {
            tracing::error!(model = model.id, %error, "a model does not answer after a panic");
            return;
        }
        suspects.pop();
    }
    tracing::warn!("the engine has recovered from a panic");
    health.restore();
}

impl EngineHandle {
    /// Completes prompts.
    pub async fn generate(
        &self,
        mut request: GenerationRequest,
    ) -> Result<Generation, EngineError> {
        self.measure_groups(&mut request).await?;
        let (reply, answer) = oneshot::channel();
        let caller = Caller {
            reply,
            pieces: None,
            begun: None,
        };
        self.send(Command::Generate(Box::new(request), Box::new(caller)))
            .await?;
        answer.await.map_err(|_| EngineError::Stopped)?
    }

    /// The same, piece by piece. Returns once there is something to tell, so that a refusal, or a failure before
    /// that, is an error here. Dropping the future gives the request up.
    pub async fn stream(&self, mut request: GenerationRequest) -> Result<Stream, EngineError> {
        self.measure_groups(&mut request).await?;
        let (reply, mut answer) = oneshot::channel();
        // No more pieces can wait here than the request may generate tokens.
        let (sender, pieces) = mpsc::unbounded_channel();
        let (begun, begins) = oneshot::channel();
        let caller = Caller {
            reply,
            pieces: Some(sender),
            begun: Some(begun),
        };
        self.send(Command::Generate(Box::new(request), Box::new(caller)))
            .await?;
        match begins.await {
            Ok(()) => Ok(Stream { pieces, answer }),
            Err(_) => match answer.try_recv() {
                Ok(Err(error)) => Err(error),
                Ok(Ok(_)) | Err(_) => Err(EngineError::Stopped),
            },
        }
    }

    /// Measures those groups of a request's edits that have no statistics yet, beside the engine's thread. One
    /// request measures at a time; the others wait as long as they may wait for their first token.
    async fn measure_groups(&self, request: &mut GenerationRequest) -> Result<(), EngineError> {
        let Some(needed) = NeededGroups::of(request) else {
            return Ok(());
        };
        let wait = request.first_token_within.or(request.deadline);
        request.measured = match wait {
            None => self.measured(needed).await?,
            Some(wait) => {
                let measured = tokio::time::timeout(wait, self.measured(needed)).await;
                measured.map_err(|_| EngineError::Busy)??
            }
        };
        Ok(())
    }

    async fn measured(&self, needed: NeededGroups) -> Result<KnownGroups, EngineError> {
        if let Some(known) = needed.known() {
            return Ok(known);
        }
        let turn = self.shared.measuring.clone().acquire_owned().await;
        let turn = turn.map_err(|_| EngineError::Stopped)?;
        // Who came before may have measured the same.
        if let Some(known) = needed.known() {
            return Ok(known);
        }
        let measured = tokio::task::spawn_blocking(move || {
            let measured = needed.measure();
            drop(turn);
            measured
        });
        let failed = |error: &dyn std::fmt::Display| EngineError::Failed(error.to_string());
        let measured = measured.await.map_err(|error| failed(&error))?;
        measured.map_err(|error| failed(&error))
    }

    /// Refuses a request without prompts whose edits could be made for none.
    pub async fn check_edits(&self, mut request: GenerationRequest) -> Result<(), EngineError> {
        self.measure_groups(&mut request).await?;
        self.work(move || check_edits(&request)).await
    }

    /// Reads values inside a model.
    pub async fn activations(
        &self,
        mut request: ActivationsRequest,
    ) -> Result<Activations, EngineError> {
        self.measure_groups(&mut request.run).await?;
        self.work(move || activations(&request)).await
    }

    /// Whether no panic has happened that the engine has not recovered from.
    pub fn is_sound(&self) -> bool {
        self.shared.health.is_sound()
    }

    /// Whether a device has failed for good.
    pub fn is_lost(&self) -> bool {
        self.shared.health.is_lost()
    }

    /// Returns when a device has failed for good: the process is to end, and be started again.
    pub async fn lost(&self) {
        self.shared.health.lost().await;
    }

    /// Returns once the engine has come to this command.
    pub async fn ping(&self) -> Result<(), EngineError> {
        self.work(|| Ok(())).await
    }

    /// Returns once the engine keeps no caches of models that nobody holds any more.
    pub async fn forget_unused(&self) -> Result<(), EngineError> {
        // It looks after every piece of work.
        self.ping().await
    }

    /// What the engine is doing.
    pub fn load(&self) -> Load {
        self.shared.health.load()
    }

    /// What it keeps of prompts.
    pub fn kept(&self) -> KeptPrefixes {
        self.shared.health.kept()
    }

    /// Stops taking commands, lets those that wait finish, and waits for the thread.
    pub fn shutdown(&self) {
        self.shared.stop();
    }

    /// Sends work and waits for its answer; it is skipped if the caller has gone before its turn. It runs on the
    /// engine's thread, between two steps; a panic in it comes back as an error.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        let health = self.shared.health.clone();
        let work = move || {
            if reply.is_closed() {
                return;
            }
            let answer = health.contain(work);
            // The caller may have gone meanwhile.
            let _ = reply.send(answer);
        };
        self.send(Command::Work(Box::new(work))).await?;
        answer.await.map_err(|_| EngineError::Stopped)?
    }

    async fn send(&self, command: Command) -> Result<(), EngineError> {
        let commands = self.shared.sender().ok_or(EngineError::Stopped)?;
        commands
            .send(command)
            .await
            .map_err(|_| EngineError::Stopped)
    }
}

/// An answer in the making. Dropping it gives the request up.
pub struct Stream {
    /// Closed once the answer is there.
    pub pieces: mpsc::UnboundedReceiver<Delta>,
    pub answer: oneshot::Receiver<Result<Generation, EngineError>>,
}

/// The caller of a generation.
struct Caller {
    reply: oneshot::Sender<Result<Generation, EngineError>>,
    pieces: Option<mpsc::UnboundedSender<Delta>>,
    /// Told of the first piece, or of an answer without pieces; dropped unsent if neither comes.
    begun: Option<oneshot::Sender<()>>,
}

impl Caller {
    fn begin(&mut self) {
        // The caller may have gone meanwhile.
        let _ = self.begun.take().map(|begun| begun.send(()));
    }
}

impl Observer for Caller {
    fn more(&mut self, delta: Delta) -> bool {
        self.begin();
        self.pieces
            .as_ref()
            .is_none_or(|pieces| pieces.send(delta).is_ok())
    }

    fn waits(&self) -> bool {
        !self.reply.is_closed()
    }

    fn done(mut self: Box<Self>, answer: Result<Generation, EngineError>) {
        if answer.is_ok() {
            self.begin();
        }
        // First the answer, then the end of the pieces: who sees that finds the answer there. The caller may
        // have gone meanwhile.
        let _ = self.reply.send(answer);
    }
}

impl Shared {
    fn sender(&self) -> Option<mpsc::Sender<Command>> {
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn stop(&self) {
        drop(
            self.commands
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            // A command that drops the last handle runs on the thread itself.
            && thread.thread().id() != std::thread::current().id()
        {
            // Commands cannot panic it, and there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop();
    }
}
